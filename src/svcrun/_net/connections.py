"""The connections of a stream server, and their graceful shutdown."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from svcrun._net.resume_queue import ResumeQueue
from svcrun._util.shared_stop import SharedStop
from svcrun.errors import show

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcrun._net.connection import Connection

__all__ = ("Clients",)

log = logging.getLogger("svcrun.net")

GRACE: Final = 1.0  # seconds that stop() gives a cancelled handler to clean up
LINGER: Final = 0.5  # seconds that stop() gives a client to receive its output


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
        self.stop = SharedStop()
        # Set during a stop when a handler or a connection has ended.
        self._progress: asyncio.Event | None = None

    def __repr__(self) -> str:
        return show(self.service)

    # Callbacks of the connections.

    def forget(self, connection: Connection) -> None:
        """React to the end of both the handler and the transport of `connection`."""
        self.connections.discard(connection)
        self.progress()

    def progress(self) -> None:
        """React to the end of a handler."""
        if self._progress is not None:
            self._progress.set()

    # Methods for the server.

    def excuse(self, task: asyncio.Task[Any] | None) -> None:
        """Exclude the handler that runs in `task` from the stop, for which it waits: a deadlock."""
        for connection in self.connections:
            if connection.task is task:
                connection.excused = True
                self.progress()

    async def end(self, drain_timeout: float) -> None:
        """End the handlers, then close the connections."""
        ending = {connection for connection in self.connections if not connection.excused}
        self._progress = asyncio.Event()
        deadline = self.loop.time() + drain_timeout
        try:
            await self._end_handlers(ending, deadline, drain_timeout)
            await self._close_transports(ending, deadline)
        finally:
            self._progress = None

    def abort(self) -> None:
        """End all handlers and connections without waiting for them."""
        for connection in tuple(self.connections):
            connection.end(at_once=True)
            connection.abort()

    async def _end_handlers(
        self, ending: set[Connection], deadline: float, drain_timeout: float
    ) -> None:
        for connection in ending:
            connection.end(at_once=drain_timeout == 0)
        late = await self._still_working(ending, deadline)
        if not late:
            return
        log.warning(
            "%r: cancelling %d handlers that did not end within %g s, including that for %s",
            self,
            len(late),
            drain_timeout,
            late[0].peer,
        )
        for connection in late:
            connection.end(at_once=True)
        for connection in await self._still_working(ending, self.loop.time() + GRACE):
            connection.abandon()

    async def _still_working(self, ending: set[Connection], deadline: float) -> list[Connection]:
        def working() -> list[Connection]:
            return [c for c in ending if not (c.finished or c.excused)]

        await self._dismiss(working, deadline)
        return working()

    async def _close_transports(self, ending: set[Connection], deadline: float) -> None:
        def remaining() -> list[Connection]:
            return [c for c in ending & self.connections if not c.excused]

        # Each handler that ended has closed its transport, which still sends its output.
        await self._dismiss(remaining, max(deadline, self.loop.time() + LINGER))
        rest = remaining()
        for connection in rest:
            connection.abort()
        # An aborted transport closes in the next iteration of the loop, TLS above it in the one
        # after that.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.connections.difference_update(rest)

    async def _dismiss(self, remaining: Callable[[], list[Connection]], deadline: float) -> None:
        """Wait until no connections are `remaining`, or until the deadline.

        Abort connections whose output is sent, and which only wait for the peer's confirmation.
        """
        loop = self.loop
        while remaining() and loop.time() < deadline:
            await self._until(lambda: not remaining(), min(loop.time() + LINGER, deadline))
            for connection in remaining():
                if connection.is_sent():
                    connection.abort()

    async def _until(self, reached: Callable[[], bool], deadline: float) -> bool:
        """Wait until `reached` is true or the deadline has passed; return whether it is true."""
        progress = self._progress
        if progress is None:
            return True
        while not reached():
            progress.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await progress.wait()
            except TimeoutError:
                return reached()
        return True
