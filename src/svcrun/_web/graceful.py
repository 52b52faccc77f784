"""Shut down the connections of a web server gracefully.

The servers of aiohttp and uvicorn differ in how they make a connection accept no further request.
The rest of the shutdown is the same, and is done here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol

from svcrun._net.listener import close_listener
from svcrun._util.terminating import is_terminating, shutdown_deadline

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection

    from svcrun._net.handshake import Handshakes
    from svcrun._net.proxy_protocol import ProxyProtocol
    from svcrun._util.drain import Drain

__all__ = ("GracefulServer", "accept_waiting", "limit_grace", "shut_down_connections")

# Seconds for handshakes in progress, and for clients to receive the last output.
LINGER: Final = 0.5

# Seconds between two checks of all connections.
POLL_INTERVAL: Final = 0.02

# Iterations of the loop after which it has received data that was sent before, and has closed the
# transports that were aborted: a TCP transport in the first iteration, TLS above it in the second.
ITERATIONS: Final = 3


class GracefulServer(Protocol):
    """A server of a web framework, as far as the shutdown of its connections needs it."""

    handshakes: Handshakes
    """The TLS handshakes of new connections."""
    drain: Drain
    """The tasks of requests in flight."""

    def transports(self) -> Collection[asyncio.Transport]:
        """Return the transports of the open connections."""

    def http_connections(self) -> Collection[tuple[Any, bool]]:
        """Return the connections that may receive a request, each with whether it is idle.

        An idle one has no request under way. Web sockets are left out.
        """

    def end_connection(self, connection: Any) -> None:
        """Accept no further request on a connection, and close it if it is idle."""

    def end_web_sockets(self) -> None:
        """Send a Close frame to each web socket that has not been sent one."""

    def end_connections(self) -> None:
        """End all connections, those of web sockets with a Close frame."""

    def abort(self) -> None:
        """Cancel all tasks and close all connections, without waiting for anything."""


async def accept_waiting(
    listener: asyncio.AbstractServer,
    sock: socket.socket,
    backlog: int,
    connect: Callable[[], asyncio.Protocol],
    *,
    is_shared: bool,
    proxy: ProxyProtocol | None,
    idle_grace: float,
) -> None:
    """Close a listener, after accepting the connections that wait in its backlog.

    Connections whose proxy has not sent its header are closed: they have no request. In a shutdown
    by SIGTERM, the proxies have `idle_grace` seconds to send it.

    :param connect: returns the protocol of a new connection.
    :param is_shared: whether another process listens on the socket, or will.
    :param proxy: receives the headers of the connections, None if they have none.
    """
    waiting = close_listener(listener, sock, backlog, is_shared=is_shared)
    loop = asyncio.get_running_loop()
    await asyncio.gather(
        *(loop.connect_accepted_socket(connect, connection) for connection in waiting),
        return_exceptions=True,  # race: the client may disconnect
    )
    if proxy is not None:
        await _run_loop()
        deadline = loop.time() + (_current_grace(idle_grace) if is_terminating.get() else 0)
        while proxy.waiting and loop.time() < deadline:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(POLL_INTERVAL)
        proxy.close()


def limit_grace(idle_grace: float, *limits: float | None) -> float:
    """Return the time that idle connections stay open, at most half of the limits of the stop.

    An idle client must not be the reason for a stop that exceeds its time limit.
    """
    return min([idle_grace, *(limit / 2 for limit in limits if limit is not None)])


def _current_grace(idle_grace: float) -> float:
    deadline = shutdown_deadline.get()
    if deadline is None:
        return idle_grace
    return limit_grace(idle_grace, max(deadline - asyncio.get_running_loop().time(), 0))


async def shut_down_connections(
    server: GracefulServer, timeout: float, limit: str, *, idle_grace: float
) -> None:
    """Handle the requests in flight, then close all connections.

    When this is cancelled, everything is aborted.

    :param timeout: seconds that the requests in flight may take. They are cancelled then.
    :param limit: the name of the parameter that set `timeout`.
    :param idle_grace: seconds that a connection without a request under way stays open in a
        shutdown by SIGTERM.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    # Invariant: no connection begins from here on, because the listener is closed. So each step
    # leaves fewer connections, and the last one needs no loop.
    try:
        if is_terminating.get():
            await _receive_last_requests(server, _current_grace(idle_grace), deadline)
        else:
            await _finish_handshakes(server.handshakes, min(LINGER, timeout))
        server.end_connections()
        # Race: a connection may have received a request in the same iteration of the loop. Its task
        # begins in the next one, and is then among the requests in flight.
        await _run_loop()
        await server.drain.run(timeout, limit, deadline=deadline)
        await _flush(server, max(deadline, loop.time() + LINGER))
    finally:
        server.abort()
    await _run_loop()


async def _receive_last_requests(
    server: GracefulServer, idle_grace: float, deadline: float
) -> None:
    """Receive the requests of clients that have not been told that their connection closes.

    Each response says ``Connection: close`` from the begin of the shutdown on. A connection is idle
    if its client has sent no request since, or if its last response had begun before. Each idle
    connection is closed after `idle_grace` seconds. Return when there is none left, and all
    requests in flight have been answered.
    """
    loop = asyncio.get_running_loop()
    now = loop.time()
    idle_since = {connection: now for connection, is_idle in server.http_connections() if is_idle}
    await _run_loop()
    server.end_web_sockets()
    await _finish_handshakes(server.handshakes, min(LINGER, max(deadline - now, 0)))
    while (found := server.http_connections()) and (now := loop.time()) < deadline:
        idle = {one: idle_since.get(one, now) for one, is_idle in found if is_idle}
        if any(now - since >= idle_grace for since in idle.values()):
            # Race: the loop may have been blocked, so that the request of a client is not read yet.
            await _run_loop()
            for connection, is_idle in server.http_connections():
                if is_idle and now - idle.get(connection, now) >= idle_grace:
                    server.end_connection(connection)
        idle_since = idle
        server.end_web_sockets()
        await asyncio.sleep(min(POLL_INTERVAL, deadline - now))


async def _run_loop() -> None:
    """Receive the data that clients have sent while the loop was blocked."""
    for _ in range(ITERATIONS):
        await asyncio.sleep(0)


async def _finish_handshakes(handshakes: Handshakes, timeout: float) -> None:
    """Wait for the handshakes in progress, those of the connections just accepted included."""
    await _run_loop()
    if handshakes.tasks:
        _, late = await asyncio.wait(handshakes.tasks, timeout=timeout)
        for task in late:
            task.cancel()
        await _run_loop()


async def _flush(server: GracefulServer, deadline: float) -> None:
    """Wait until all connections are closed, which is when the clients have received the output.

    A client of TLS may never confirm the end of a connection. When everything was sent, such a
    connection is aborted.
    """
    loop = asyncio.get_running_loop()
    confirm_by = loop.time() + LINGER
    while (transports := server.transports()) and (now := loop.time()) < deadline:
        # The output may be in the transport below TLS.
        if now >= confirm_by and not any(map(_unsent, server.handshakes.transports)):
            for transport in transports:
                if transport.is_closing() and not _unsent(transport):
                    transport.abort()
        await asyncio.sleep(POLL_INTERVAL)


def _unsent(transport: Any) -> int:
    """Return the number of bytes that `transport` has not passed to the system."""
    try:
        size: int = transport.get_write_buffer_size()
    except RuntimeError:
        return 0  # uvloop raises it for a closed transport
    return size
