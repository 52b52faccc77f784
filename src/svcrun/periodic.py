"""Callbacks at a fixed interval."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from svcrun._schedule.runner import Schedule, ScheduleRunner
from svcrun._util.validation import number
from svcrun.errors import ParameterError
from svcrun.recurring import Recurring, find_clock

if TYPE_CHECKING:
    import asyncio

    from svcrun._schedule.clock import Clock
    from svcrun._schedule.runner import ExceptionsType, Overlap

__all__ = ("PeriodicCallback", "check_period")


class PeriodicCallback(Recurring):
    """Call a function every `interval` seconds.

    The attributes :attr:`calls`, :attr:`failures`, :attr:`skipped`, :attr:`last_start`,
    :attr:`last_duration` and :attr:`next_due` count and time the calls.

    :param coroutine_func: the function to call; a result that can be awaited is awaited.
    :param args: positional arguments of the function.
    :param kwargs: keyword arguments of the function.
    :param name: names the callback in log messages; the qualified name of the function by default.

    :raises TypeError: if `coroutine_func` is not callable.

    >>> import asyncio
    >>> from svcrun import PeriodicCallback
    >>> async def main():
    ...     ticks = PeriodicCallback(print, "tick")
    ...     ticks.start(0.1)
    ...     await asyncio.sleep(0.25)
    ...     await ticks.stop(return_exceptions=True)
    >>> asyncio.run(main())
    tick
    tick
    tick
    """

    def start(
        self,
        interval: float,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        delay: float = 0,
        shield: bool = False,
        suppress_exceptions: ExceptionsType = (),
        jitter: float = 0,
        overlap: Overlap = "skip",
        clock: Clock | None = None,
    ) -> None:
        """Start the calls.

        Calls are due `interval` seconds apart, however long a call takes and however late the event
        loop is. Calls that were due while the loop was blocked are one call.

        :param interval: seconds between the starts of two calls.
        :param loop: the event loop of the calls; the current one by default.
        :param delay: seconds until the first call; 0 by default.
        :param shield: whether a call in flight goes on when :meth:`stop` is called.
        :param suppress_exceptions: exceptions of the function that are not logged.
        :param jitter: the maximum number of seconds by which a call is late, at random, so that
            many processes do not call at the same time; 0 by default. It does not delay later
            calls.
        :param overlap: what happens when a call is due while another one is in flight: ``"skip"``
            it, ``"queue"`` it, or ``"cancel"`` the one in flight. The first overlap with a call is
            logged as a warning.
        :param clock: for tests; the clock of `loop` by default.

        :raises asyncio.InvalidStateError: if the callback was started and not stopped.
        :raises ValueError, TypeError: naming the parameter that has a wrong value.
        """
        check_period(self, interval, delay, jitter)
        clock = clock or find_clock(loop)
        schedule = FixedSchedule(
            clock.time() + delay, interval, jitter=jitter, keeps_missed=overlap == "queue"
        )
        runner = ScheduleRunner(
            self,
            schedule,
            clock,
            shield=shield,
            suppress_exceptions=suppress_exceptions,
            overlap=overlap,
        )
        self._start(runner)


class FixedSchedule(Schedule):
    """Times at a fixed interval.

    :param first: the first time, by the loop's clock.
    :param interval: seconds between two times.
    :param jitter: the maximum number of seconds by which a time is late, at random.
    :param keeps_missed: whether each time that passed while the loop was blocked has its call.
    """

    def __init__(
        self, first: float, interval: float, *, jitter: float = 0, keeps_missed: bool = False
    ) -> None:
        self._first = float(first)
        self._interval = interval
        self._jitter = jitter
        self._keeps_missed = keeps_missed
        self._index = -1

    def next(self) -> float:
        """Return the next time."""
        self._index += 1
        # A product, as a sum of many floats would drift.
        when = self._first + self._index * self._interval
        return when + random.random() * self._jitter if self._jitter else when  # noqa: S311 - no secret

    def is_due(self, runner: ScheduleRunner, due: float, now: float) -> bool:
        """Skip the times that passed while the loop was blocked, except the last one."""
        lag = now - due
        if lag >= self._interval and not self._keeps_missed:
            missed = int(lag // self._interval)
            self._index += missed
            runner.callback.skipped += missed
            runner.clock.blocked.add(
                "%r: event loop blocked for %.3g s; skipping missed calls", runner.callback, lag
            )
        return True


_above_zero = number(above=0, unit="seconds")
_seconds = number(low=0, unit="seconds")


def check_period(owner: object, interval: float, delay: float, jitter: float = 0) -> None:
    """Check the parameters of a fixed schedule.

    :raises ValueError, TypeError: naming `owner`, the parameter, the value and what is accepted.
    """
    _above_zero(owner, "interval", interval)
    _seconds(owner, "delay", delay)
    _seconds(owner, "jitter", jitter)
    check_jitter(owner, interval, jitter)


def check_jitter(owner: object, interval: float, jitter: float) -> None:
    """Check whether the jitter is shorter than the interval.

    :raises ValueError: naming `owner`, the jitter and the interval.
    """
    if jitter >= interval:
        raise ParameterError(owner, "jitter", jitter, f"less than interval ({interval:g})")
