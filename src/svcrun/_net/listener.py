"""Accept connections, and close a listener without a loss of connections.

asyncio schedules a task, a future and two iterations of the loop for each connection that it
accepts. :class:`Listener` creates the transport in the callback that accepted, which saves 16 % of
the processor time of a connection without data. It needs a private method of asyncio's loops. On
uvloop, which accepts as fast by itself, and on loops without that method, :func:`listen` uses
``loop.create_server()``. But such a server can't pause. So with a maximum of open connections,
:class:`Listener` accepts on these loops too, and ``loop.connect_accepted_socket()`` creates the
transport.
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
from svcrun._util.eager import start_eagerly

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from svcrun._net.admission import Admission

__all__ = ("Listener", "close_listener", "listen")

log = logging.getLogger("svcrun.net")

# Seconds until the next attempt when the process or the system has no descriptors or memory left.
RETRY_DELAY: Final = 1.0

# asyncio receives into a buffer of 256 KiB, which the C library maps and unmaps each time. With one
# connection, that takes half of the processor time of a round trip.
RECEIVE_SIZE: Final = 1 << 16

# A socket option of Linux that Python has no name for.
_SO_BINDTOIFINDEX: Final = 62

# Errors of accept(2) that concern one connection, which was lost before it was accepted.
_LOST: Final = frozenset(
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
    admission: Admission | None = None,
) -> asyncio.AbstractServer:
    """Accept connections on a listening socket.

    :param factory: creates the protocol of a connection.
    :param backlog: the maximum number of connections that wait to be accepted.
    :param admission: has the maximum of open connections.
    """
    make_transport = getattr(loop, "_make_socket_transport", None)
    if make_transport is not None and isinstance(loop, asyncio.SelectorEventLoop):
        return Listener(loop, sock, factory, backlog, make_transport, admission)
    if admission is not None and admission.is_needed:
        return Listener(loop, sock, factory, backlog, None, admission)
    # Not create_unix_server() for a path: since Python 3.13 it removes the file of the socket, and
    # that is up to the endpoint.
    return await loop.create_server(factory, sock=sock, backlog=backlog)


def close_listener(
    server: asyncio.AbstractServer,
    sock: socket.socket,
    backlog: int,
    *,
    is_shared: bool = False,
) -> list[socket.socket]:
    """Close a listener, and return the connections that were waiting to be accepted.

    Closing the socket alone would reset them. Each connection takes a descriptor. If none is left,
    the connections are lost, and the listener is closed all the same.

    :param sock: the socket of `server`.
    :param backlog: the maximum number of connections that wait.
    :param is_shared: whether another process listens on the socket, or will. New connections are
        not refused then.
    """
    waiting: list[socket.socket] = []
    try:
        if not is_shared:
            _refuse_more(sock)
        # The server accepts from the same socket, but only in another iteration of the loop.
        for _ in range(backlog):
            try:
                connection = sock.accept()[0]
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _LOST:
                    continue
                log.warning(
                    "could not accept the connections that wait on %s: %s",
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
    """Refuse new connections if the system can, and keep those that wait to be accepted.

    Race: a connection that arrives between the last accept() and the close of the socket would be
    reset. Linux has no call to stop listening alone. But a listening socket that is bound to a
    network interface accepts only connections of that interface, and none has this number.
    """
    if sys.platform == "linux" and sock.family != AF_UNIX:
        with contextlib.suppress(OSError):  # before Linux 5.7, this requires a privilege
            sock.setsockopt(SOL_SOCKET, _SO_BINDTOIFINDEX, 2**31 - 1)


class Listener(asyncio.AbstractServer):
    """A server that creates transport and protocol in the callback of a readable socket.

    :param make_transport: the method of the loop that creates a transport for an accepted socket;
        None if the loop has only one that waits.
    :param admission: has the maximum of open connections.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        factory: Callable[[], asyncio.BaseProtocol],
        backlog: int,
        make_transport: Callable[..., Any] | None,
        admission: Admission | None = None,
    ) -> None:
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._factory = factory
        self._backlog = backlog
        self._make_transport = make_transport
        self._admission = admission
        # The same if there is a maximum, or another reason to ask it.
        self._limit = admission if admission is not None and admission.is_needed else None
        # The tasks that create a transport, on a loop that has no other way.
        self._connecting: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        # Whether the last attempt found no descriptors or memory, which was logged.
        self._exhausted = False
        loop.add_reader(sock, self._accept)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening socket, none after :meth:`close`."""
        return () if self._sock is None else (self._sock,)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop."""
        return self._loop

    def is_serving(self) -> bool:
        """Return whether connections are accepted."""
        return self._sock is not None

    def close(self) -> None:
        """Close the socket; accepted connections stay open. Idempotent."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._loop.remove_reader(sock)
        if self._retry is not None:
            self._retry.cancel()
        sock.close()

    async def wait_closed(self) -> None:
        """Return at once: closing is synchronous."""

    async def start_serving(self) -> None:
        """Return at once: the server accepts connections since it was created."""

    async def serve_forever(self) -> None:
        """Wait to be cancelled, then close."""
        try:
            await self._loop.create_future()
        finally:
            self.close()

    def resume(self) -> None:
        """Accept connections again, after the admission has paused the listener."""
        if self._sock is not None:
            self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        sock = self._sock
        if sock is None:
            return
        limit = self._limit
        if limit is not None and limit.is_full:
            # The listener pauses only now that a client is waiting: until then, a full server has
            # nothing to report.
            self._loop.remove_reader(sock)
            limit.pause(self)
            return
        # The limit lets other callbacks run while new clients keep connecting.
        for _ in range(self._backlog):
            try:
                connection, peer = sock.accept()
                connection.setblocking(False)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                if error.errno in _LOST:
                    continue
                self._pause(sock, error)
                return
            if limit is None:
                self._connect(connection, peer)
                continue
            self._connect(limit.take(connection), peer)
            if limit.is_full:
                break
        self._exhausted = False

    def _connect(self, connection: socket.socket, peer: Any) -> None:
        """Create the protocol and the transport of an accepted connection."""
        protocol: asyncio.BaseProtocol | None = None
        try:
            protocol = self._factory()
            if self._make_transport is None:
                self._connect_in_task(connection, protocol, peer)
            else:
                transport = self._make_transport(connection, protocol, extra={"peername": peer})
                transport.max_size = RECEIVE_SIZE
        except Exception as error:  # noqa: BLE001 - the listener continues after any error
            self._fail(connection, protocol, peer, error)

    def _connect_in_task(
        self, connection: socket.socket, protocol: asyncio.BaseProtocol, peer: Any
    ) -> None:
        task = start_eagerly(self._create_transport(connection, protocol, peer), self._loop)
        if not task.done():
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _create_transport(
        self, connection: socket.socket, protocol: asyncio.BaseProtocol, peer: Any
    ) -> None:
        connect: Any = self._loop.connect_accepted_socket
        try:
            await connect(lambda: protocol, connection)
        except Exception as error:  # noqa: BLE001 - the same
            self._fail(connection, protocol, peer, error)
        except BaseException:
            connection.close()
            raise

    def _fail(
        self,
        connection: socket.socket,
        protocol: asyncio.BaseProtocol | None,
        peer: Any,
        error: Exception,
    ) -> None:
        connection.close()
        if protocol is not None:
            protocol.connection_lost(error)
        if self._admission is not None:
            self._admission.refused += 1
        log.error("could not set up the connection from %s", format_address(peer), exc_info=error)

    def _pause(self, sock: socket.socket, error: OSError) -> None:
        """Pause for a second: each iteration of the loop would find the same error."""
        if not self._exhausted:
            self._exhausted = True
            log.error(
                "could not accept connections on %s: %s; retrying every %g s",
                format_address(sock.getsockname()),
                error,
                RETRY_DELAY,
            )
        self._loop.remove_reader(sock)
        self._retry = self._loop.call_later(RETRY_DELAY, self._resume)

    def _resume(self) -> None:
        self._retry = None
        if self._sock is not None:
            self._loop.add_reader(self._sock, self._accept)
