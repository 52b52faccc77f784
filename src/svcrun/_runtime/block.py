"""End the block of an entrypoint at a signal or a crash.

The block is the code of the program between entering and leaving the entrypoint. A ``with`` block
runs the loop from outside, and an ``async with`` block runs in a task of the loop.

:meth:`Block.interrupt` cancels the wait of the block, so that its code can clean up.
:meth:`Block.stop_loop` is the step for a block that ignores its cancellation.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from svcrun._runtime.event_loop import SpareDescriptors
from svcrun._runtime.os_signals import BlockInterrupted
from svcrun._util.drain import GRACE_PERIOD
from svcrun._util.hints import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

MAX_RUNS = 100
"""The maximum number of runs of the loop that a block may begin during the shutdown.

A block that begins more of them calls ``run_forever()`` in an endless loop.
"""

__all__ = ("Block", "LoopBlock", "TaskBlock")


class Block:
    """The code of a block, and the future that it waits for.

    :param loop: the loop of the entrypoint.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.spare = SpareDescriptors(loop)
        """Descriptors that are reserved for the loop while it does not run."""
        self._closing = asyncio.Event()
        # The tasks that wait in closing(). The event wakes them, so interrupt() does not cancel
        # them.
        self._await_closing: set[asyncio.Task[Any] | None] = set()
        self._cancellations = 0
        self.task: asyncio.Future[Any] | None = None
        """The future that the block waits for; None if it is unknown."""
        self.stop_services: Callable[[], asyncio.Future[Any]] | None = None
        """Begins the shutdown unless it has begun, and returns a future that ends with it."""

    @property
    def is_closing(self) -> bool:
        """Whether the shutdown has begun."""
        return self._closing.is_set()

    @property
    def was_cancelled(self) -> bool:
        """Whether the entrypoint has cancelled a future that the block waited for."""
        return self._cancellations > 0

    def close(self) -> None:
        """Wake the tasks that wait in :meth:`closing`."""
        self._closing.set()

    async def closing(self) -> None:
        """Wait until the shutdown begins."""
        task = asyncio.current_task()
        self._await_closing.add(task)
        try:
            await self._closing.wait()
        finally:
            # Race: another callback of this iteration may call interrupt(), which would cancel the
            # code after the wait. So the task stays in the set until the next iteration.
            self.loop.call_soon(self._await_closing.discard, task)

    def watch(self) -> None:
        """Begin to record the future that the block waits for."""
        raise NotImplementedError

    def unwatch(self) -> None:
        """Stop recording; a second call has no effect."""

    def interrupt(self) -> bool:
        """Cancel the block's task unless it waits in :meth:`closing`.

        :returns: whether there is a task that will end. If not, a wait of the block has just ended,
            and the caller has to try again.
        """
        return self.task in self._await_closing or self.cancel()

    def cancel(self) -> bool:
        """Cancel the block's task, and return whether there was one."""
        cancelled = self.task is not None and self.task.cancel()
        self._cancellations += cancelled
        return cancelled

    def uncancel(self) -> bool:
        """Withdraw the entrypoint's cancellations, and return whether the task has another one."""
        return False

    def stop_loop(self) -> bool:
        """Stop the loop under a block that ignores its cancellation.

        :returns: whether the loop stops. A block that is a task of the loop can't be ended so.
        """
        return False

    def is_interruption(self, error: BaseException | None) -> bool:
        """Return whether `error`, which ended the block, results from :meth:`interrupt` alone."""
        return error is None or (self.was_cancelled and isinstance(error, asyncio.CancelledError))


class LoopBlock(Block):
    """The block of ``with entrypoint(...) as loop``, which may run the loop any number of times.

    While the block is watched, ``loop.run_until_complete()`` records its future, so that an
    interruption cancels that future alone. Once the shutdown has begun, ``run_forever()`` returns
    at once, and all calls of ``run_until_complete()`` share the grace period for their clean-up.

    Invariant: the wrappers of the two methods are attributes of the loop object. They hide the
    methods of the class, and :meth:`unwatch` removes them. Entrypoints may be nested, so the inner
    one restores the wrappers of the outer one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._stopped_loop = False
        self._watched = False
        self._runs_itself = False  # whether run_until_complete() calls run_forever()
        self._lets_run = False  # whether the block waits in run_forever()
        self._runs = 0  # the number of runs that the block has begun since the shutdown began
        self._clean_up_until: float | None = None
        self._cut: asyncio.TimerHandle | None = None
        self._run_task: Callable[[Awaitable[Any]], Any] = loop.run_until_complete
        self._run_loop: Callable[[], None] = loop.run_forever

    def watch(self) -> None:
        """Begin to watch the block."""
        self._watched = True
        self.spare.hold()
        self._run_task = self.loop.run_until_complete
        self._run_loop = self.loop.run_forever
        # A loop without a __dict__ can't be wrapped. A signal then stops the loop, and the future
        # of the block is not cancelled.
        with suppress(AttributeError):
            self.loop.run_until_complete = self._run  # type: ignore[assignment, method-assign]
            self.loop.run_forever = self._run_forever  # type: ignore[method-assign]

    def unwatch(self) -> None:
        """Restore the methods of the loop."""
        if self._cut is not None:
            self._cut.cancel()
        if not self._watched:
            return
        self._watched = False
        for name, found in (
            ("run_until_complete", self._run_task),
            ("run_forever", self._run_loop),
        ):
            with suppress(AttributeError):
                delattr(self.loop, name)
                if getattr(self.loop, name) != found:  # the wrapper of an outer entrypoint
                    setattr(self.loop, name, found)

    def _run(self, future: Awaitable[T]) -> T:
        if self.loop.is_running() or self.loop.is_closed():
            result: T = self._run_task(future)  # raises the loop's own error
            return result
        is_new = not asyncio.isfuture(future)
        self.task = task = asyncio.ensure_future(future, loop=self.loop)
        if self.is_closing:
            self._limit_clean_up()
        try:
            result = self._run_itself(task)
        except BaseException:
            if is_new and task.done() and not task.cancelled():
                # The caller receives this exception. asyncio would log it as never retrieved.
                task.exception()
            raise
        finally:
            self.task = None
            if self._cut is not None:
                self._cut.cancel()
            self._after_run()
        return result

    def _run_itself(self, future: Awaitable[T]) -> T:
        self._runs_itself = True
        self.spare.free()
        try:
            result: T = self._run_task(future)
        finally:
            self._runs_itself = False
            self._hold_spare()
        return result

    def _run_forever(self) -> None:
        if self._runs_itself or self.loop.is_running() or self.loop.is_closed():
            self._run_loop()  # called by run_until_complete(), or raises the loop's own error
            return
        if self.is_closing:
            self._runs += 1
            if self._runs > MAX_RUNS:
                raise BlockInterrupted
            self.loop.stop()
        self._lets_run = True
        self.spare.free()
        try:
            self._run_loop()
        finally:
            self._lets_run = False
            self._hold_spare()
            self._after_run()

    def _hold_spare(self) -> None:
        # A block that was entered by hand leaves the entrypoint inside a run of the loop. Once it
        # has done so, no code would free the descriptors.
        if self._watched:
            self.spare.hold()

    def _limit_clean_up(self) -> None:
        now = self.loop.time()
        if self._clean_up_until is None:
            self._clean_up_until = now + GRACE_PERIOD
        # Race: cancelling at once would cancel __aexit__() of an entrypoint that was entered by
        # hand before it calls unwatch().
        self._cut = self.loop.call_at(max(self._clean_up_until, now), self.cancel)

    def _after_run(self) -> None:
        """Run after each wait of the block; do nothing here."""

    def cancel(self) -> bool:
        """Cancel the future that the block waits for; without one, stop the loop."""
        if self.task is not None:
            return super().cancel()
        self.loop.stop()
        return True

    def stop_loop(self) -> bool:
        """Stop the loop that the block runs."""
        self._stopped_loop = True
        self.loop.stop()
        return True

    def is_interruption(self, error: BaseException | None) -> bool:
        """Return whether `error`, which ended the block, results from an interruption alone."""
        return (
            super().is_interruption(error)
            or isinstance(error, BlockInterrupted)
            # run_until_complete() raises RuntimeError when stop_loop() stops the loop.
            or (self._stopped_loop and isinstance(error, RuntimeError))
        )


class TaskBlock(LoopBlock):
    """The block of ``async with entrypoint(...)``, which runs in the task that entered.

    If that task ends before the block, the entrypoint was entered by hand, by
    ``loop.run_until_complete(ep.__aenter__())``. The program then runs the loop as a ``with`` block
    does. It may never call ``__aexit__()``, so a wait that a shutdown ends returns after the
    services have stopped.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._entering: asyncio.Task[Any] | None = None
        self._by_hand = False

    def watch(self) -> None:
        """Watch the current task, which enters the entrypoint."""
        self.task = self._entering = asyncio.current_task()
        if self._entering is not None:
            self._entering.add_done_callback(self._on_entered)

    def unwatch(self) -> None:
        """Stop watching the task."""
        super().unwatch()
        if self._entering is not None:
            self._entering.remove_done_callback(self._on_entered)

    def _on_entered(self, _: asyncio.Task[Any]) -> None:
        self._by_hand = True
        self.task = None
        super().watch()
        if self.is_closing:
            self.cancel()

    def interrupt(self) -> bool:
        """Cancel the task, or end the wait of a block that was entered by hand."""
        super().interrupt()
        return True

    def cancel(self) -> bool:
        """Cancel the task, or end the wait of a block that was entered by hand."""
        if not self._by_hand or self.task is not None:
            return Block.cancel(self)
        is_seen = self._lets_run or self._runs_itself
        if self.loop.is_running() and not is_seen and self.stop_services is not None:
            # Race: this run of the loop began before watch() could wrap its method, so nothing
            # calls _after_run() at its end. Stop the loop once the services have stopped.
            self.stop_services().add_done_callback(lambda _: self.loop.stop())
            return True
        return super().cancel()

    def _after_run(self) -> None:
        if self._watched and self.is_closing and self.stop_services is not None:
            self._run_itself(self.stop_services())

    def stop_loop(self) -> bool:
        """Stop the loop of a block that was entered by hand; a task can't be ended so."""
        return self._by_hand and super().stop_loop()

    def uncancel(self) -> bool:
        """Withdraw the entrypoint's cancellations, and return whether the task has another one.

        A cancellation that remains is that of ``asyncio.timeout()`` or of another caller.
        """
        if self._by_hand or self._entering is None:
            return False
        # Invariant: asyncio counts the cancellations of a task. The entrypoint withdraws as many as
        # it has made, so those that remain are of others.
        for _ in range(self._cancellations):
            self._entering.uncancel()
        return self._entering.cancelling() > 0
