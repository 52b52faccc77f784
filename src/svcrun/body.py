"""What runs inside the block of an entrypoint, and how a signal or a crash ends it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from svcrun.hints import TYPE_CHECKING, Any, TypeVar
from svcrun.interrupts import BodyInterrupted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

__all__ = ("Body", "LoopBody", "TaskBody")


class Body:
    """The code of a block."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._closing = asyncio.Event()
        # Who waits for the end is told in a better way than by cancellation.
        self._await_closing: set[asyncio.Task[Any] | None] = set()
        self._cancellations = 0
        self.task: asyncio.Future[Any] | None = None
        """What the block waits for, as far as is known."""

    @property
    def is_closing(self) -> bool:
        """Whether the shutdown has begun."""
        return self._closing.is_set()

    def close(self) -> None:
        """Tell those who wait for it that the shutdown begins."""
        self._closing.set()

    async def closing(self) -> None:
        """Wait until the shutdown begins."""
        task = asyncio.current_task()
        self._await_closing.add(task)
        try:
            await self._closing.wait()
        finally:
            # Not before the other callbacks of this turn of the loop, one of which may be about to
            # cancel the task.
            self._loop.call_soon(self._await_closing.discard, task)

    def watch(self) -> None:
        """Begin to watch the block."""
        raise NotImplementedError

    def unwatch(self) -> None:
        """Watch it no longer."""

    def interrupt(self) -> bool:
        """Ask the block to end, and tell whether there was something to be asked."""
        return self.task in self._await_closing or self.insist()

    def insist(self) -> bool:
        """Ask it without regard to what it waits for."""
        cancelled = self.task is not None and self.task.cancel()
        self._cancellations += cancelled
        return cancelled

    def settle(self) -> bool:
        """Take our cancellations back, and tell whether there is another one."""
        return False

    def give_up(self) -> bool:
        """Take the loop away from a block that goes on, and tell whether that is possible."""
        return False

    def is_interruption(self, error: BaseException | None) -> bool:
        """Whether `error`, which ended the block, is only what :meth:`interrupt` did."""
        return error is None or (
            self._cancellations > 0 and isinstance(error, asyncio.CancelledError)
        )


class LoopBody(Body):
    """The body of ``with entrypoint(...) as loop``, which runs the loop whenever it likes.

    While watched, ``loop.run_until_complete()`` tells what it runs, so that just that can be
    cancelled.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._gave_up = False
        self._original: Callable[[Awaitable[Any]], Any] = loop.run_until_complete

    def watch(self) -> None:
        """Begin to watch the block."""
        # The loop may have slots. Then a signal stops it, whatever it runs.
        with suppress(AttributeError):
            self._loop.run_until_complete = self._run  # type: ignore[assignment, method-assign]

    def unwatch(self) -> None:
        """Put the method back."""
        with suppress(AttributeError):
            del self._loop.run_until_complete
            if self._loop.run_until_complete != self._original:  # the one of an outer entrypoint
                self._loop.run_until_complete = self._original  # type: ignore[assignment, method-assign]

    def _run(self, future: Awaitable[T]) -> T:
        if self._loop.is_running() or self._loop.is_closed():
            result: T = self._original(future)  # complains, better than we could
            return result
        is_new = not asyncio.isfuture(future)
        self.task = task = asyncio.ensure_future(future, loop=self._loop)
        try:
            result = self._original(task)
        except BaseException:
            if is_new and task.done() and not task.cancelled():
                task.exception()  # it comes out here; asyncio need not complain that nobody saw it
            raise
        finally:
            self.task = None
        return result

    def insist(self) -> bool:
        """Cancel what the block waits for, or stop the loop that it lets run."""
        if self.task is not None:
            return super().insist()
        self._loop.stop()
        return True

    def give_up(self) -> bool:
        """Stop the loop that the block lets run."""
        self._gave_up = True
        self._loop.stop()
        return True

    def is_interruption(self, error: BaseException | None) -> bool:
        """Whether `error`, which ended the block, is only our own way to end it."""
        return (
            super().is_interruption(error)
            or isinstance(error, BodyInterrupted)
            # What run_until_complete() raises when the loop is stopped.
            or (self._gave_up and isinstance(error, RuntimeError))
        )


class TaskBody(Body):
    """The body of ``async with entrypoint(...)``, which runs in the task that entered."""

    def watch(self) -> None:
        """Take note of the task."""
        self.task = asyncio.current_task()

    def interrupt(self) -> bool:
        """Cancel the task; if it has ended, the block is left by another one, and not watched."""
        super().interrupt()
        return True

    def settle(self) -> bool:
        """Take our cancellations back, and tell whether there is another one."""
        if not isinstance(self.task, asyncio.Task):
            return False
        for _ in range(self._cancellations):
            self.task.uncancel()
        return self.task.cancelling() > 0
