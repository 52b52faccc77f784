"""Callbacks that are called again and again, and the counters of their calls."""

from __future__ import annotations

import asyncio
import inspect
import logging
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from svcrun._schedule.clock import clock_of
from svcrun._schedule.runner import Schedule, ScheduleRunner
from svcrun._util.callables import describe
from svcrun._util.eager import start_eagerly
from svcrun._util.loop_internals import current_loop
from svcrun._util.per_loop import running_loop
from svcrun._util.tasks import mark_retrieved
from svcrun._util.validation import function

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from svcrun._schedule.clock import Clock
    from svcrun._schedule.runner import ExceptionsType

    CallbackType: TypeAlias = Callable[..., Any]
    Strategy: TypeAlias = Callable[["RecurringCallback"], float | Awaitable[float]]

__all__ = (
    "Recurring",
    "RecurringCallback",
    "StrategyException",
    "StrategySkip",
    "StrategyStop",
)

log = logging.getLogger(__name__)


# The attributes of a callback by the names of their metrics.
_COUNTERS: Final = {
    "calls_total": "calls",
    "failures_total": "failures",
    "skipped_total": "skipped",
    "call_seconds_total": "total_duration",
    "call_lateness_seconds_total": "total_lateness",
}


def measure(callbacks: Iterable[Recurring]) -> dict[str, float]:
    """Return the sums of the counters of `callbacks`, by the names of their metrics."""
    found = list(callbacks)
    return {
        name: sum(getattr(one, counter) for one in found) for name, counter in _COUNTERS.items()
    }


class StrategyException(Exception):
    """Raised by a strategy to end the calls."""


class StrategyStop(StrategyException):
    """Raised by a strategy to end the calls."""


class StrategySkip(StrategyException):
    """Raised by a strategy that skips a call; the strategy is called again later.

    :param next_attempt_delay: seconds until then.
    """

    def __init__(self, next_attempt_delay: float) -> None:
        super().__init__(next_attempt_delay)
        self.delay = next_attempt_delay


def find_clock(loop: asyncio.AbstractEventLoop | None) -> Clock:
    """Return the clock of `loop`; of the current loop if `loop` is None.

    :raises RuntimeError: if there is no current loop.
    """
    found = loop or running_loop() or current_loop()
    if found is None:
        raise RuntimeError("no event loop is running; give one: start(..., loop=...)")
    return clock_of(found)


class Recurring:
    """The base class of callbacks that are called again and again.

    :param coroutine_func: the function to call; a result that can be awaited is awaited.
    :param args: positional arguments of the function.
    :param kwargs: keyword arguments of the function.
    :param name: names the callback in log messages; the qualified name of the function by default.

    :raises TypeError: if `coroutine_func` is not callable.
    """

    def __init__(
        self, coroutine_func: CallbackType, *args: Any, name: str | None = None, **kwargs: Any
    ) -> None:
        function(self, "coroutine_func", coroutine_func)
        self.func = coroutine_func
        self.args = args
        self.kwargs = kwargs
        self.name = name or describe(coroutine_func)
        self.calls = 0
        """The number of calls that have begun."""
        self.failures = 0
        """The number of calls that raised, including suppressed exceptions and cancellations."""
        self.skipped = 0
        """The number of calls that were due and did not begin."""
        self.last_start: float | None = None
        """When the last call began, in seconds since the epoch; None before the first call."""
        self.last_duration: float | None = None
        """The seconds that the last completed call took; None before that."""
        self.total_duration = 0.0
        """The seconds that all completed calls took."""
        self.total_lateness = 0.0
        """The sum of the seconds between the time a call was due and the time it began."""
        self._runner: ScheduleRunner | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the calls; the running loop before the start."""
        return asyncio.get_running_loop() if self._runner is None else self._runner.clock.loop

    @property
    def next_due(self) -> float | None:
        """When the next call is due, in seconds since the epoch; None if that is not known."""
        runner = self._runner
        if runner is None or runner.ended or runner.next_due == inf:
            return None
        if runner.schedule.uses_wall_clock:
            return runner.next_due
        return runner.clock.wall() + runner.next_due - runner.clock.time()

    def _start(self, runner: ScheduleRunner) -> None:
        if self._runner is not None and not self._runner.ended:
            raise asyncio.InvalidStateError(f"{self!r} is already started; stop it first")
        self._runner = runner
        runner.schedule_next()

    def stop(self, return_exceptions: bool = False) -> asyncio.Future[Any]:
        """Begin no more calls, and cancel the call in flight unless it is shielded.

        A call that stops its own callback is not cancelled.

        :param return_exceptions: whether the future returns the exception below in a list, and
            does not raise it.

        Returns a future that is done when the cancelled call has ended. It raises
        :class:`asyncio.CancelledError`, or :class:`RuntimeError` if the callback was not started.
        """
        runner, self._runner = self._runner, None
        loop = find_clock(None).loop if runner is None else runner.clock.loop
        stopped: asyncio.Future[Any] = loop.create_future()

        def resolve(error: BaseException) -> None:
            if stopped.done():
                return  # race: the task that waited for it was cancelled
            if return_exceptions:
                stopped.set_result([error])
            elif isinstance(error, asyncio.CancelledError):
                stopped.cancel()
            else:
                stopped.set_exception(error)

        if runner is None:
            resolve(RuntimeError(f"{self!r} was not started"))
        else:
            runner.cancel(lambda: resolve(asyncio.CancelledError()))
        return stopped

    async def finish(self) -> None:
        """Begin no more calls, and wait for the call in flight; idempotent.

        A call may await this method. It then returns without waiting for that call. If this
        coroutine is cancelled, it cancels the call in flight.
        """
        if self._runner is not None:
            await self._runner.finish()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}({self.name})>"


class RecurringCallback(Recurring):
    """Call a function again and again, at times that another function determines.

    The attributes :attr:`calls`, :attr:`failures`, :attr:`last_start`, :attr:`last_duration` and
    :attr:`next_due` count and time the calls.

    >>> import asyncio
    >>> from svcrun import RecurringCallback, StrategyStop
    >>> def three_times(callback):
    ...     if callback.calls == 3:
    ...         raise StrategyStop
    ...     return 0.001
    >>> async def main():
    ...     await RecurringCallback(print, "tick").start(three_times)
    >>> asyncio.run(main())
    tick
    tick
    tick
    """

    def start(
        self,
        strategy: Strategy,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        shield: bool = False,
        suppress_exceptions: ExceptionsType = (),
        clock: Clock | None = None,
    ) -> asyncio.Task[None]:
        """Start the calls, and return the task that calls the strategy.

        Cancel the task to stop the calls; that also cancels a call in flight unless it is shielded.

        :param strategy: a function that gets this object, and returns the seconds until the next
            call or an awaitable of them. It is called at the start and after each call. It may
            raise :class:`StrategyStop` or :class:`StrategySkip`. A negative number counts as 0, and
            any other result that is not a number ends the calls; both are logged as warnings.
        :param loop: the event loop of the calls; the current one by default.
        :param shield: whether a call in flight goes on when the task is cancelled.
        :param suppress_exceptions: exceptions of the function that are not logged.
        :param clock: for tests; the clock of `loop` by default.

        :raises ValueError, TypeError: naming the parameter that has a wrong value.
        """
        function(self, "strategy", strategy)
        clock = clock or find_clock(loop)
        runner = ScheduleRunner(
            self, Schedule(), clock, shield=shield, suppress_exceptions=suppress_exceptions
        )
        self._runner = runner
        name = f"strategy of {self.name}"
        task = start_eagerly(_follow(strategy, self, runner), clock.loop, name=name)
        runner.strategy_task = task
        task.add_done_callback(mark_retrieved)  # _follow() has logged its error
        return task


async def _follow(strategy: Strategy, callback: RecurringCallback, runner: ScheduleRunner) -> None:
    """Ask the strategy for a time, wait for the call at that time, and repeat."""
    called = asyncio.Event()
    runner.on_call_end = called.set
    try:
        while (pause := await _ask(strategy, callback)) is not None:
            called.clear()
            runner.schedule_at(runner.clock.time() + pause)
            await called.wait()
    except asyncio.CancelledError:
        if not runner.ended:  # else the stop, which cancelled this task, cancels the call
            stopped = asyncio.Event()
            runner.cancel(stopped.set)
            await stopped.wait()
        raise
    except Exception:
        log.exception("%r: the strategy failed; no more calls", callback)
        raise
    finally:
        runner.end()


async def _ask(strategy: Strategy, callback: RecurringCallback) -> float | None:
    """Return the seconds until the next call, or None if the strategy ends the calls."""
    while True:
        pause: Any
        try:
            pause = strategy(callback)
            if inspect.isawaitable(pause):
                pause = await pause
        except StrategySkip as skip:
            await asyncio.sleep(skip.delay)
            continue
        except StrategyException:
            return None
        if isinstance(pause, bool) or not isinstance(pause, int | float) or not isfinite(pause):
            log.warning(
                "%r: the strategy %s must return a number of seconds, not %r; no more calls",
                callback,
                describe(strategy),
                pause,
            )
            return None
        if pause < 0:
            log.warning(
                "%r: the strategy %s returned %r s; calling at once",
                callback,
                describe(strategy),
                pause,
            )
            return 0
        return pause
