"""Run the calls of one callback on one schedule.

:class:`ScheduleRunner` calls the functions of all periodic, cron and recurring callbacks::

    Schedule.next() -> timer -> ScheduleRunner.fire() -> the task of the runner -> function
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections import deque
from collections.abc import Iterable
from contextvars import copy_context
from math import inf
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, cast

from svcrun._util.current_service import current_service, on_behalf_of
from svcrun._util.drain import log_late
from svcrun._util.eager import start_eagerly
from svcrun._util.loop_internals import callbacks_of
from svcrun._util.tasks import current_work, mark_retrieved
from svcrun._util.waiter import Waiter
from svcrun.errors import ParameterError, ParameterTypeError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from svcrun._schedule.clock import Clock

    ExceptionsType: TypeAlias = Iterable[type[BaseException]] | type[BaseException]

__all__ = ("Callback", "Overlap", "Schedule", "ScheduleRunner", "check_call_options")

log = logging.getLogger("svcrun.recurring")

Overlap: TypeAlias = Literal["skip", "queue", "cancel"]


class Callback(Protocol):
    """The function that a runner calls, and the counters that the runner updates."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str
    calls: int
    failures: int
    skipped: int
    last_start: float | None
    last_duration: float | None
    total_duration: float
    total_lateness: float


class Schedule:
    """The times at which a runner calls its callback.

    This base class has no times of its own: a strategy passes each time to
    :meth:`ScheduleRunner.schedule_at`.
    """

    uses_wall_clock: ClassVar[bool] = False
    """Whether the times are those of the wall clock, and not of the loop's clock."""

    def next(self) -> float | None:
        """Return the next time, or None if it is not known yet.

        The runner calls this once at the start, and once each time that a time has come.
        """
        return None

    def is_due(self, runner: ScheduleRunner, due: float, now: float) -> bool:  # noqa: ARG002 - for subclasses
        """Return whether to call the callback at `now` for the time `due`, which has come.

        The runner calls this before it asks for the next time. The method counts and logs the times
        that passed between `due` and `now` without a call.
        """
        return True

    def follows_set_back(self, runner: ScheduleRunner, now: float) -> bool:  # noqa: ARG002 - for subclasses
        """Return whether :meth:`next` has another answer, because the wall clock went back."""
        return False


class ScheduleRunner:
    """Call a callback on a schedule, from the start to the end.

    :param callback: the function to call, and its counters.
    :param schedule: the times.
    :param clock: the clocks, and the timers on them.
    :param shield: whether a call in flight goes on when the runner is cancelled.
    :param suppress_exceptions: exceptions of the function that are not logged.
    :param overlap: what happens when a call is due while another one is in flight: ``"skip"`` it,
        ``"queue"`` it, or ``"cancel"`` the one in flight.

    Calls never overlap. One task makes them all: a program that cancels all of its tasks thereby
    ends the calls, and on Python 3.11 a small call takes a quarter less processor time than with a
    task of its own. The function does not notice: it has the task and the context to itself while
    it runs, and a task that it leaves changed makes no further calls.

    A runner goes through these states once: it waits for its timer, or has a call in flight, until
    :meth:`end`; then no call begins, and :meth:`finish` waits for the call in flight.

    :raises TypeError, ValueError: naming the parameter that has a wrong value.
    """

    def __init__(
        self,
        callback: Callback,
        schedule: Schedule,
        clock: Clock,
        *,
        shield: bool = False,
        suppress_exceptions: ExceptionsType = (),
        overlap: Overlap = "skip",
    ) -> None:
        self._suppress = check_call_options(callback, overlap, suppress_exceptions)
        self.callback = callback
        self.schedule = schedule
        self.clock = clock
        self.ended = False
        """Whether no more calls will begin."""
        self._shield = shield
        self._overlap = overlap
        self._context = copy_context()

        self._timers = clock.wall_timers if schedule.uses_wall_clock else clock.loop_timers
        self.entry: list[Any] | None = None  # in the queue of timers
        self.next_due = inf
        """When the next call is due, by the clock of the schedule; infinity if it is not known."""
        self.on_call_end: Callable[[], object] | None = None
        """Called after each call."""
        self.strategy_task: asyncio.Task[None] | None = None
        """The task that finds the times, if the schedule does not."""

        self._task: asyncio.Task[None] | None = None  # makes the calls; None before the first
        self._waiter = Waiter(clock.loop)  # where that task waits between calls
        self._due: deque[float] = deque()  # when the calls were due that have not begun
        # Each call is an object. These three are a call, or None: the call in flight, the call
        # that the runner has cancelled, and the call that itself waits for the end of the runner.
        self._call: object = None
        self._cancelled: object = None
        self._excused: object = None
        self._call_start = 0.0
        self._has_warned = False  # whether the overlap with the call in flight was logged

    def warn(self, message: str, *args: object, logger: logging.Logger = log) -> None:
        """Log a warning of the service that started the runner.

        :param message: a format, whose first argument is the callback, followed by `args`.
        """
        with on_behalf_of(self._context.get(current_service)):
            logger.warning(message, self.callback, *args)

    # The schedule.

    def schedule_next(self) -> None:
        """Set the timer to the next time of the schedule, if that is known."""
        when = self.schedule.next()
        if when is not None:
            self.schedule_at(when)

    def schedule_at(self, when: float) -> None:
        """Set the timer to `when`."""
        self.next_due = when
        self._timers.add(self, when)

    def fire(self, now: float) -> None:
        """Begin a call, or handle the overlap with the call in flight; called by the timer."""
        due, self.next_due = self.next_due, inf
        is_due = self.schedule.is_due(self, due, now)
        self.schedule_next()
        if not is_due:
            return
        if self._call is not None:
            self._handle_overlap(due)
            return
        self._has_warned = False
        self._due.append(due)
        if self._task is None:
            self._start_task()
        else:
            self._waiter.wake()

    def on_clock_set_back(self, now: float) -> None:
        """Set the timer again if the schedule follows a wall clock that was set back to `now`."""
        if self.schedule.follows_set_back(self, now):
            self.schedule_next()

    def _handle_overlap(self, due: float) -> None:
        if not self._has_warned:
            self._has_warned = True
            self.warn(_OVERLAP_MESSAGES[self._overlap], time.monotonic() - self._call_start)
        if self._overlap == "queue":
            self._due.append(due)
        elif self._overlap == "skip" or self._due:
            self.callback.skipped += 1
        else:
            self._due.append(due)
            self._cancel_call()

    # The calls.

    def _start_task(self) -> None:
        if self.ended or self._task is not None:
            return
        context = self._context.copy()
        name = self.callback.name
        task = start_eagerly(self._run_calls(context), self.clock.loop, name=name, context=context)
        if not task.done():
            self._task = task  # a task of a task factory may not have begun

    async def _run_calls(self, context: Context) -> None:
        """Make the calls that are due, until the end or until a call leaves the task changed."""
        task: asyncio.Task[None] = asyncio.current_task()  # type: ignore[assignment]  # never None here
        self._task = task
        untouched = self._context
        in_call = False
        try:
            while not self.ended:
                if not self._due:
                    await self._waiter
                    continue
                in_call = True
                await self._make_call(task)
                in_call = False
                if context != untouched or task.cancelling() or callbacks_of(task):
                    break
                if self._due:
                    await asyncio.sleep(0)  # other callbacks run between the calls of a long queue
        except asyncio.CancelledError:
            if not in_call:  # a program cancels all of its tasks, and wants no more calls
                self.end()
            raise
        finally:
            self._task = None
            if self._due and not self.ended and not self.clock.loop.is_closed():
                self.clock.loop.call_soon(self._start_task)

    async def _make_call(self, task: asyncio.Task[None]) -> None:
        callback = self.callback
        clock = self.clock
        due = self._due.popleft()
        callback.last_start = now = clock.wall()
        lateness = (now if self.schedule.uses_wall_clock else clock.time()) - due
        callback.total_lateness += max(lateness, 0.0)
        callback.calls += 1
        self._call_start = start = time.monotonic()
        self._call = call = object()
        token = current_work.set(call)
        try:
            result = callback.func(*callback.args, **callback.kwargs)
            if isinstance(result, CoroutineType) or inspect.isawaitable(result):
                await result
        except self._suppress:
            callback.failures += 1
        except asyncio.CancelledError:
            if self._cancelled is not call:
                callback.failures += 1
                log.warning("%r: a call was cancelled from outside", callback)
            raise
        except Exception:
            callback.failures += 1
            log.exception("%r failed", callback)
        except (SystemExit, KeyboardInterrupt):
            # It propagates out of the loop. asyncio would report it a second time as an exception
            # of the task that was never retrieved.
            task.add_done_callback(mark_retrieved)
            raise
        finally:
            callback.last_duration = duration = time.monotonic() - start
            callback.total_duration += duration
            self._call = None
            if self.on_call_end is not None:
                self.on_call_end()
        current_work.reset(token)  # not after an error: that ends the task, and its context

    def _cancel_call(self) -> None:
        call, task = self._call, self._task
        if task is None or call is None or call is self._excused or call is self._cancelled:
            return
        self._cancelled = call
        task.cancel()

    # The end.

    def end(self) -> None:
        """Begin no more calls; idempotent."""
        self.ended = True
        self._timers.discard(self)
        self._waiter.wake()
        task = self.strategy_task
        if task is not None and task is not asyncio.current_task(self.clock.loop):
            task.cancel()

    def cancel(self, on_end: Callable[[], object]) -> None:
        """Begin no more calls, and cancel the call in flight unless it is shielded.

        :param on_end: called when the cancelled tasks have ended, at once if there are none.
        """
        self._excuse_caller()
        self.end()
        pending = self._other_tasks()
        if self._shield and self._call is not None:
            pending = [task for task in pending if task is not self._task]
        else:
            self._cancel_call()

        def check(_: object = None) -> None:
            if all(task.done() for task in pending):
                on_end()

        for task in pending:
            task.add_done_callback(check)
        check()

    async def finish(self) -> None:
        """Begin no more calls, and wait for the call in flight.

        If this coroutine is cancelled, it cancels the call in flight.
        """
        self._excuse_caller()
        self.end()
        try:
            if self._other_tasks():
                await asyncio.sleep(0)  # enough for a task without a call in flight
            if pending := self._other_tasks():
                await asyncio.wait(pending)
        except asyncio.CancelledError:
            if self._task is not None and self._call is not None:
                log_late(log, self.callback, [self._task], "when the stop was cancelled")
            self._cancel_call()
            raise

    def _other_tasks(self) -> list[asyncio.Task[None]]:
        """Return the tasks in progress, without those that wait for the end of the runner.

        A task that waits for its own end would be a deadlock.
        """
        tasks = []
        if self._task is not None and (self._call is None or self._call is not self._excused):
            tasks.append(self._task)
        strategy_task = self.strategy_task
        if strategy_task is not None and strategy_task is not asyncio.current_task(self.clock.loop):
            tasks.append(strategy_task)
        return tasks

    def _excuse_caller(self) -> None:
        """Leave out the call in flight if it is the caller, be it from another task."""
        if self._call is not None and self._call is current_work.get():
            self._excused = self._call


_OVERLAP_MESSAGES = {
    "skip": "%r: a call has been in flight for %.3g s; skipping calls until it ends",
    "queue": "%r: a call has been in flight for %.3g s; queueing calls until it ends",
    "cancel": "%r: a call has been in flight for %.3g s; cancelling it, the next one is due",
}


def check_call_options(
    owner: object, overlap: object, suppress_exceptions: object
) -> tuple[type[BaseException], ...]:
    """Return the exceptions to suppress as a tuple, and check `overlap`.

    :raises ValueError, TypeError: naming `owner`, the parameter, the value and what is accepted.
    """
    if overlap not in _OVERLAP_MESSAGES:
        raise ParameterError(owner, "overlap", overlap, "'skip', 'queue' or 'cancel'")
    classes: tuple[object, ...] = (suppress_exceptions,)
    if isinstance(suppress_exceptions, Iterable) and not isinstance(suppress_exceptions, type):
        classes = tuple(suppress_exceptions)
    if not all(isinstance(one, type) and issubclass(one, BaseException) for one in classes):
        accepted = "an exception class or several"
        raise ParameterTypeError(owner, "suppress_exceptions", suppress_exceptions, accepted)
    return cast("tuple[type[BaseException], ...]", classes)
