"""Functions that are called again and again, and count their calls."""

from __future__ import annotations

import asyncio
import inspect
import logging
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, TypeAlias

from svcrun._schedule.clock import clock_of
from svcrun._schedule.runner import Schedule, Series
from svcrun._util.callables import describe
from svcrun._util.eager import current_loop, start_eagerly
from svcrun._util.per_loop import running_loop
from svcrun._util.tasks import retrieve
from svcrun.errors import ParameterTypeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

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


class StrategyException(Exception):
    """Raised by a strategy: the series ends."""


class StrategyStop(StrategyException):
    """Raised by a strategy to end the series."""


class StrategySkip(StrategyException):
    """Raised by a strategy to be asked again later, without a call.

    :param next_attempt_delay: seconds until then.
    """

    def __init__(self, next_attempt_delay: float) -> None:
        super().__init__(next_attempt_delay)
        self.delay = next_attempt_delay


def find_clock(loop: asyncio.AbstractEventLoop | None) -> Clock:
    """Return the clock of `loop`, or of the current loop.

    :raises RuntimeError: if there is none.
    """
    found = loop or running_loop() or current_loop()
    if found is None:
        msg = "no event loop is running; give one: start(..., loop=...)"
        raise RuntimeError(msg)
    return clock_of(found)


class Recurring:
    """A function to be called again and again, and the count of its calls.

    :param coroutine_func: what to call; what it returns is awaited if it can be.
    :param args: are given to it,
    :param kwargs: and so are these.
    :param name: tells it apart in the log; the name of the function by default.

    :raises TypeError: if it can't be called.
    """

    __slots__ = (
        "_series",
        "args",
        "calls",
        "failures",
        "func",
        "kwargs",
        "last_duration",
        "last_start",
        "name",
        "skipped",
    )

    def __init__(
        self, coroutine_func: CallbackType, *args: Any, name: str | None = None, **kwargs: Any
    ) -> None:
        _check_callable(type(self).__name__, "coroutine_func", coroutine_func)
        self.func = coroutine_func
        self.args = args
        self.kwargs = kwargs
        self.name = name or describe(coroutine_func)
        self.calls = 0
        """How many calls were begun."""
        self.failures = 0
        """How many of them raised something, `suppress_exceptions` and cancellations included."""
        self.skipped = 0
        """How many times it was due and not called."""
        self.last_start: float | None = None
        """When the last call began, in seconds since the epoch; None before the first."""
        self.last_duration: float | None = None
        """How many seconds the last call that is over took; None before that."""
        self._series: Series | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the calls; before the start, the running loop."""
        return asyncio.get_running_loop() if self._series is None else self._series.clock.loop

    @property
    def next_due(self) -> float | None:
        """When the next call is due, in seconds since the epoch; None if that is not known."""
        series = self._series
        if series is None or series.is_over or series.moment == inf:
            return None
        if series.schedule.by_wall:
            return series.moment
        return series.clock.wall() + series.moment - series.clock.time()

    def _begin(self, series: Series) -> None:
        if self._series is not None and not self._series.is_over:
            raise asyncio.InvalidStateError(f"{self!r} was started already; stop it first")
        self._series = series
        series.plan()

    def stop(self, return_exceptions: bool = False) -> asyncio.Future[Any]:
        """End the calls, and cancel the one under way unless there is a shield.

        A call that stops its own series is not cancelled.

        :param return_exceptions: give what is raised otherwise, in a list.

        Returns a future that is done when all is over, and then raises
        :class:`asyncio.CancelledError`; or :class:`RuntimeError`, if there was nothing to stop.
        """
        series, self._series = self._series, None
        loop = find_clock(None).loop if series is None else series.clock.loop
        stopped: asyncio.Future[Any] = loop.create_future()

        def tell(error: BaseException) -> None:
            if stopped.done():
                return  # who waited for it does so no longer
            if return_exceptions:
                stopped.set_result([error])
            elif isinstance(error, asyncio.CancelledError):
                stopped.cancel()
            else:
                stopped.set_exception(error)

        if series is None:
            tell(RuntimeError(f"{self!r} was not started"))
        else:
            series.cancel(lambda: tell(asyncio.CancelledError()))
        return stopped

    async def finish(self) -> None:
        """End the calls, and wait for the one under way to end by itself; idempotent.

        A call may wait for this: then nobody waits for that call. If this is cancelled, so is the
        call under way.
        """
        if self._series is not None:
            await self._series.finish()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}({self.name})>"


class RecurringCallback(Recurring):
    """A function to be called again and again, at times that another function determines.

    It counts the calls: see :attr:`calls`, :attr:`failures`, :attr:`last_start`,
    :attr:`last_duration` and :attr:`next_due`.

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

    __slots__ = ()

    def start(
        self,
        strategy: Strategy,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        shield: bool = False,
        suppress_exceptions: ExceptionsType = (),
        clock: Clock | None = None,
    ) -> asyncio.Task[None]:
        """Begin to call, with pauses in between, and return the task that does so.

        Cancel the task to end it, which also cancels a call under way.

        :param strategy: is given this object and returns the seconds until the next call, or
            something to be awaited for them. It is asked again when that call is over, and may
            raise :class:`StrategyStop` or :class:`StrategySkip`. A negative number counts as 0;
            what is no number ends the calls. The log has a warning of both.
        :param loop: the loop to do it in; the current one by default.
        :param shield: let a call under way go on when the task is cancelled.
        :param suppress_exceptions: are not logged when the function raises them.
        :param clock: another clock than that of the loop.

        :raises ValueError, TypeError: naming a parameter that has a wrong value.
        """
        _check_callable(self, "strategy", strategy)
        clock = clock or find_clock(loop)
        series = Series(
            self, Schedule(), clock, shield=shield, suppress_exceptions=suppress_exceptions
        )
        self._series = series
        name = f"strategy of {self.name}"
        task = start_eagerly(_follow(strategy, self, series), clock.loop, name=name)
        series.follower = task
        task.add_done_callback(retrieve)  # a failure is logged when it happens
        return task


async def _follow(strategy: Strategy, callback: RecurringCallback, series: Series) -> None:
    """Ask the strategy, have a call, and again."""
    called = asyncio.Event()
    series.on_call_over = called.set
    try:
        while (pause := await _ask(strategy, callback)) is not None:
            called.clear()
            series.call_at(series.clock.time() + pause)
            await called.wait()
    except asyncio.CancelledError:
        if not series.is_over:  # else who has ended it sees to the call as well
            over = asyncio.Event()
            series.cancel(over.set)
            await over.wait()
        raise
    except Exception:
        log.exception("%r: the strategy failed, there will be no more calls", callback)
        raise
    finally:
        series.end()


async def _ask(strategy: Strategy, callback: RecurringCallback) -> float | None:
    """Return the seconds until the next call, None if there is to be none."""
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
                "%r: there will be no more calls, since the strategy %s returned %r and no seconds",
                callback,
                describe(strategy),
                pause,
            )
            return None
        if pause < 0:
            log.warning(
                "%r: the strategy %s returned %r seconds, which count as 0",
                callback,
                describe(strategy),
                pause,
            )
            return 0
        return pause


def _check_callable(owner: object, name: str, value: object) -> None:
    if not callable(value):
        raise ParameterTypeError(owner, name, value, "a function")
