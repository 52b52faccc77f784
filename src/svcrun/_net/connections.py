"""The connections of a stream server, and the drain that ends them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from svcrun._util.drain import Drain
from svcrun._util.shared_stop import SharedStop
from svcrun.errors import show

if TYPE_CHECKING:
    from svcrun._net.connection import Connection

__all__ = ("Connections",)

log = logging.getLogger("svcrun.net")

# Seconds that a drain gives a peer to receive the output, or to confirm the end of TLS.
FLUSH_TIMEOUT: Final = 0.5


class Connections:
    """The connections of a stream server.

    Invariant: a connection is in :attr:`open_connections` until both its handler and its transport
    have ended, or until a drain has aborted it.

    :param service: the server, whose type names the tasks of the handlers.
    """

    service: Any = None
    """The server while it runs or a connection is open, otherwise None: a reference cycle."""

    loop: asyncio.AbstractEventLoop
    """The event loop of the current run."""
    limit: int
    """The maximum of bytes in a line."""
    receive_buffer: memoryview
    """The buffer that TLS decrypts into, for a TLS server."""

    def __init__(self, service: Any) -> None:
        self.open_connections: set[Connection] = set()
        self.task_name = f"{type(service).__name__}.handle_client"
        self.listener: asyncio.AbstractServer | None = None
        # Whether new connections are refused.
        self.stopping = False
        self._drain = Drain(log, self, self._handlers, self._describe)
        self.stop = SharedStop(on_call=self._drain.recheck)
        # Calls _abort_flushed() during a drain.
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return show(self.service)

    async def drain(self, drain_timeout: float) -> None:
        """End the handlers, then close the connections.

        A handler that waits for its peer is cancelled at once, one that is at work after
        `drain_timeout` seconds. The peers have that time to receive the output.
        """
        deadline = self.loop.time() + drain_timeout
        self._timer = self.loop.call_later(FLUSH_TIMEOUT, self._abort_flushed)
        try:
            # No connection joins these meanwhile: the listener is closed, and a connection that was
            # accepted before aborts itself while `stopping` is set.
            ending = self._to_end()
            for connection in ending:
                connection.end(at_once=drain_timeout == 0)
            abandoned = await self._drain.run(drain_timeout, "drain_timeout")
            for connection in ending:
                if connection.task in abandoned:
                    connection.abort()
            await self._close_transports(deadline)
        finally:
            self._timer.cancel()

    def abort(self) -> None:
        """Cancel all handlers and abort all connections, without waiting for them."""
        for connection in tuple(self.open_connections):
            connection.end(at_once=True)
            connection.abort()

    def _to_end(self) -> list[Connection]:
        """Return the connections, except those whose handlers wait for the stop themselves."""
        callers = self.stop.callers
        return [one for one in self.open_connections if one.task is None or one.task not in callers]

    def _handlers(self) -> list[asyncio.Task[None]]:
        return [one.task for one in self._to_end() if one.task is not None]

    def _describe(self, task: asyncio.Task[Any]) -> str:
        return next(f"handler for {one.peer}" for one in self.open_connections if one.task is task)

    async def _close_transports(self, deadline: float) -> None:
        """Wait until the peers have received the output, then abort the remaining connections.

        Each handler has closed its transport when it ended. The transport is still sending.
        """
        remaining = self._to_end()
        if remaining:
            timeout = max(deadline - self.loop.time(), FLUSH_TIMEOUT)
            await asyncio.wait([one.on_release() for one in remaining], timeout=timeout)
            remaining = [one for one in remaining if one in self.open_connections]
            for connection in remaining:
                connection.abort()
        # The loop may be closed afterwards, and a socket leaks unless its transport closes before.
        # An aborted transport closes in the next iteration of the loop, a TLS transport above it
        # in the one after that.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.open_connections.difference_update(remaining)

    def _abort_flushed(self) -> None:
        """Abort connections whose output is sent and which lack only the peer's end of TLS.

        The handler of such a connection may be waiting in ``wait_closed()``.
        """
        for connection in self._to_end():
            if connection.is_sent():
                connection.abort()
        self._timer = self.loop.call_later(FLUSH_TIMEOUT, self._abort_flushed)
