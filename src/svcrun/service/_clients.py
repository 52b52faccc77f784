"""The clients of a stream server: their connections, and the orderly end of these."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from svcrun.errors import show
from svcrun.service._resume_queue import ResumeQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcrun.service._connection import Connection

__all__ = ("Clients",)

log = logging.getLogger("svcrun.service._stream")

# Seconds that stop() gives a cancelled handler to clean up, and an output to be taken.
GRACE: Final = 1.0
LINGER: Final = 0.5


class Clients:
    """What a stream server keeps of its clients, and what their connections call."""

    service: Any = None
    """The server, while it runs or a client of it is left: else it would refer to itself."""

    loop: asyncio.AbstractEventLoop
    """The loop of the present run."""
    limit: int
    """How many bytes a line may have."""
    receive_buffer: memoryview
    """Where TLS puts what it has decrypted."""

    def __init__(self, service: Any) -> None:
        self.connections: set[Connection] = set()
        # What the tasks of the handlers are called.
        self.task_name = f"{type(service).__name__}.handle_client"
        # Resumes the handlers whose data has arrived.
        self.resume_queue = ResumeQueue()
        # The listener, while there is one.
        self.listener: asyncio.AbstractServer | None = None
        # Whether no more clients are wanted.
        self.stopping = False
        # Set when the present stop() is done.
        self.stopped: asyncio.Future[None] | None = None
        # Set by what brings a stop nearer to its end.
        self._progress: asyncio.Event | None = None

    def __repr__(self) -> str:
        return show(self.service)

    # What the connections call.

    def forget(self, connection: Connection) -> None:
        """React to the end of both the handler and the transport of `connection`."""
        self.connections.discard(connection)
        self.progress()

    def progress(self) -> None:
        """React to the end of a handler."""
        if self._progress is not None:
            self._progress.set()

    # What the server calls.

    def excuse(self, task: asyncio.Task[Any] | None) -> None:
        """Do not wait for the handler that runs in `task`, because it waits for the stop."""
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
            "%r: %d handlers did not end within %g s and are cancelled, that for %s among them",
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

        # Each handler that ended has closed its transport. Now its output leaves.
        await self._dismiss(remaining, max(deadline, self.loop.time() + LINGER))
        rest = remaining()
        for connection in rest:
            connection.abort()
        # An aborted transport closes in the next turn of the loop, TLS above it in the one after.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.connections.difference_update(rest)

    async def _dismiss(self, remaining: Callable[[], list[Connection]], deadline: float) -> None:
        """Wait until none are `remaining`; help those that are closed but for a confirmation."""
        loop = self.loop
        while remaining() and loop.time() < deadline:
            await self._until(lambda: not remaining(), min(loop.time() + LINGER, deadline))
            for connection in remaining():
                if connection.is_sent():
                    connection.abort()

    async def _until(self, reached: Callable[[], bool], deadline: float) -> bool:
        """Wait until `reached` is true, to the `deadline` at most; tell whether it is."""
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
