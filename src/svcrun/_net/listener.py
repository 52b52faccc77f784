"""Accept connections with less work between the socket and the protocol.

asyncio makes a task, a future and two turns of the loop for each connection that it accepts.
:class:`Listener` makes the transport in the callback that accepted. It needs a method of asyncio's
loops that is not public; for loops without it (uvloop has its own way, which is quick) and for
versions that may not have it any more, :func:`listen` falls back to ``loop.create_server()``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import sys
from socket import SOL_SOCKET
from typing import TYPE_CHECKING, Any, Final

from svcrun._net.addresses import AF_UNIX, format_address

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

__all__ = ("Listener", "close_listener", "listen")

log = logging.getLogger("svcrun.net")

# Seconds without accepting when the process or the system has no descriptors or memory left.
RETRY_DELAY: Final = 1.0

# asyncio receives with a buffer of 256 KiB, which the C library maps and unmaps each time.
RECEIVE_SIZE: Final = 1 << 16

# An option of sockets that Python does not name.
_SO_BINDTOIFINDEX: Final = 62

# Errors that concern one connection, which was lost before it was accepted (see accept(2)).
_LOST = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETDOWN",
        "ENETUNREACH",
        "ENONET",
        "ENOPROTOOPT",
        "EOPNOTSUPP",
        "EPERM",
        "EPROTO",
        "ETIMEDOUT",
    )
    if hasattr(errno, name)
)


async def listen(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    factory: Callable[[], asyncio.BaseProtocol],
    backlog: int,
) -> asyncio.AbstractServer:
    """Serve what connects to a listening socket.

    :param factory: makes the protocol of a connection.
    :param backlog: how many connections may wait to be accepted.
    """
    make_transport = getattr(loop, "_make_socket_transport", None)
    if make_transport is not None and hasattr(loop, "_selector"):
        return Listener(loop, sock, factory, backlog, make_transport)
    # Not create_unix_server() for a path: from Python 3.13 on that removes the file, which is the
    # endpoint's to do.
    return await loop.create_server(factory, sock=sock, backlog=backlog)


def close_listener(
    server: asyncio.AbstractServer,
    sock: socket.socket,
    backlog: int,
    *,
    is_shared: bool = False,
) -> list[socket.socket]:
    """Close a listener, and return the connections that wait to be accepted.

    Closing the socket would reset them. Each connection takes a descriptor. If none is left, the
    connections are lost, but the listener is closed nevertheless.

    :param sock: the socket of `server`.
    :param backlog: the maximum of connections that wait.
    :param is_shared: whether another process listens on the socket, or will. New connections are
        not refused then.
    """
    waiting: list[socket.socket] = []
    try:
        if not is_shared:
            _refuse_more(sock)
        # Race: the server accepts from the same socket, but only in another iteration of the loop.
        for _ in range(backlog):
            try:
                connection = sock.accept()[0]
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _LOST:
                    continue
                log.warning(
                    "could not accept connections that wait on %s: %s",
                    format_address(sock.getsockname()),
                    error,
                )
                break
            connection.setblocking(False)
            waiting.append(connection)
    finally:
        server.close()
    return waiting


def _refuse_more(sock: socket.socket) -> None:
    """Have newcomers refused, if the system can, and keep those who wait to be accepted.

    Between the last accept() and the end of the socket the process may lose the processor for long.
    Linux has no call for that, but a listening socket that is bound to an interface gets only
    what comes in there, and there is none of this number.
    """
    if sys.platform == "linux" and sock.family != AF_UNIX:
        with contextlib.suppress(OSError):  # before Linux 5.7 it takes a privilege
            sock.setsockopt(SOL_SOCKET, _SO_BINDTOIFINDEX, 2**31 - 1)


class Listener(asyncio.AbstractServer):
    """A server whose loop calls it when somebody connects.

    :param make_transport: the loop's method that makes a transport of an accepted socket.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        factory: Callable[[], asyncio.BaseProtocol],
        backlog: int,
        make_transport: Callable[..., Any],
    ) -> None:
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._factory = factory
        self._backlog = backlog
        self._make_transport = make_transport
        # How many connections to accept before asking the loop again whether there are more. To
        # ask the socket costs an exception, which is worth it only if there are many.
        self._burst = 1
        self._retry: asyncio.TimerHandle | None = None
        self._exhausted = False
        loop.add_reader(sock, self._accept)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening socket, as long as there is one."""
        return () if self._sock is None else (self._sock,)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop that accepts."""
        return self._loop

    def is_serving(self) -> bool:
        """Tell whether connections are accepted."""
        return self._sock is not None

    def close(self) -> None:
        """Accept no more connections; those that were are not touched."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        if self._retry is None:
            self._loop.remove_reader(sock)
        else:
            self._retry.cancel()
        sock.close()

    async def wait_closed(self) -> None:
        """Return at once: there is nothing to wait for."""

    async def start_serving(self) -> None:
        """Return at once: connections are accepted from the beginning."""

    async def serve_forever(self) -> None:
        """Wait to be cancelled, then close."""
        try:
            await self._loop.create_future()
        finally:
            self.close()

    def _accept(self) -> None:
        sock = self._sock
        if sock is None:
            return
        factory = self._factory
        make_transport = self._make_transport
        burst = self._burst
        for accepted in range(burst):
            try:
                connection, peer = sock.accept()
                connection.setblocking(False)
            except (BlockingIOError, InterruptedError):
                self._burst = max(accepted, 1)
                return
            except OSError as error:
                if error.errno in _LOST:
                    continue
                self._pause(error)
                return
            protocol = factory()
            try:
                transport = make_transport(connection, protocol, extra={"peername": peer})
                transport.max_size = RECEIVE_SIZE
            except Exception as error:
                connection.close()
                protocol.connection_lost(error)
                log.exception("A connection from %s could not be set up", format_address(peer))
        self._exhausted = False
        self._burst = min(2 * burst, self._backlog)

    def _pause(self, error: OSError) -> None:
        """Accept nothing for a while: each turn of the loop would report the same connections."""
        if self._sock is None:
            return
        if not self._exhausted:
            self._exhausted = True
            log.error(
                "No connection can be accepted on %s: %s; trying again every %g s",
                format_address(self._sock.getsockname()),
                error,
                RETRY_DELAY,
            )
        self._loop.remove_reader(self._sock)
        self._retry = self._loop.call_later(RETRY_DELAY, self._resume)

    def _resume(self) -> None:
        self._retry = None
        if self._sock is not None:
            self._loop.add_reader(self._sock, self._accept)
