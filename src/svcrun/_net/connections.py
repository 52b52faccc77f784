"""The connections of a stream server, and their graceful shutdown."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from svcrun._net.resume_queue import ResumeQueue
from svcrun._util.drain import Drain
from svcrun._util.shared_stop import SharedStop
from svcrun.errors import show

if TYPE_CHECKING:
    from svcrun._net.connection import Connection

__all__ = ("Clients",)

log = logging.getLogger("svcrun.net")

# Seconds that stop() gives a peer to receive its output, or to confirm the end of TLS.
LINGER: Final = 0.5


class Clients:
    """The connections of a stream server, and the callbacks of the connections.

    Invariant: a connection is in :attr:`connections` until both its handler and its transport have
    ended, or until a stop has aborted it.
    """

    service: Any = None
    """The server, while it runs or a connection is open; None otherwise: a reference cycle."""

    loop: asyncio.AbstractEventLoop
    """The loop of the current run."""
    limit: int
    """The maximum of bytes in a line."""
    receive_buffer: memoryview
    """The buffer into which TLS decrypts."""

    def __init__(self, service: Any) -> None:
        self.connections: set[Connection] = set()
        # The name of the handlers' tasks.
        self.task_name = f"{type(service).__name__}.handle_client"
        # Resumes the handlers whose data has arrived.
        self.resume_queue = ResumeQueue()
        # The listener, while there is one.
        self.listener: asyncio.AbstractServer | None = None
        # Whether new clients are refused.
        self.stopping = False
        self._drain = Drain(log, self, self._handlers, self._name_of)
        self.stop = SharedStop(on_call=self._drain.recheck)
        # Calls _abort_flushed() during a stop.
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return show(self.service)

    async def end(self, drain_timeout: float) -> None:
        """End the handlers, then close the connections."""
        ending = self._to_end()
        deadline = self.loop.time() + drain_timeout
        self._timer = self.loop.call_later(LINGER, self._abort_flushed)
        try:
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
        """End all handlers and connections without waiting for them."""
        for connection in tuple(self.connections):
            connection.end(at_once=True)
            connection.abort()

    def _handlers(self) -> list[asyncio.Task[None]]:
        return [one.task for one in self._to_end() if one.task is not None]

    def _name_of(self, task: asyncio.Task[Any]) -> str:
        return next(f"handler for {one.peer}" for one in self.connections if one.task is task)

    def _to_end(self) -> list[Connection]:
        """Return the connections except those whose handlers wait for the stop themselves."""
        callers = self.stop.callers
        return [one for one in self.connections if one.task is None or one.task not in callers]

    async def _close_transports(self, deadline: float) -> None:
        """Wait until the peers have received their output, then abort the connections.

        Each handler that ended has closed its transport, which still sends its output.
        """
        remaining = self._to_end()
        if remaining:
            timeout = max(deadline - self.loop.time(), LINGER)
            await asyncio.wait([one.on_release() for one in remaining], timeout=timeout)
            remaining = [one for one in remaining if one in self.connections]
            for connection in remaining:
                connection.abort()
        # An aborted transport closes in the next iteration of the loop, TLS above it in the one
        # after that.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.connections.difference_update(remaining)

    def _abort_flushed(self) -> None:
        """Abort connections whose output is sent, and which only wait for the peer to confirm that.

        The handler of such a connection may be waiting for that, too, in ``wait_closed()``.
        """
        for connection in self._to_end():
            if connection.is_sent():
                connection.abort()
        self._timer = self.loop.call_later(LINGER, self._abort_flushed)
