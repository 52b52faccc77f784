"""Calls on a fixed schedule: every so many seconds."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from svcrun._schedule.runner import Schedule, Series
from svcrun._util.validation import check_number
from svcrun.errors import ParameterError
from svcrun.recurring import Recurring, find_clock

if TYPE_CHECKING:
    import asyncio

    from svcrun._schedule.clock import Clock
    from svcrun._schedule.runner import ExceptionsType, Overlap

__all__ = ("PeriodicCallback", "check_period")


class PeriodicCallback(Recurring):
    """A function to be called every so many seconds.

    It counts the calls: see :attr:`calls`, :attr:`failures`, :attr:`skipped`, :attr:`last_start`,
    :attr:`last_duration` and :attr:`next_due`.

    :param coroutine_func: what to call; what it returns is awaited if it can be.
    :param args: are given to it,
    :param kwargs: and so are these.
    :param name: tells it apart in the log; the name of the function by default.

    :raises TypeError: if it can't be called.

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

    __slots__ = ()

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
        """Begin to call.

        The moments are `interval` seconds apart, however long calls and the loop take.

        :param interval: seconds between the starts of two calls.
        :param loop: the loop to do it in; the current one by default.
        :param delay: seconds until the first call.
        :param shield: let a call under way go on when :meth:`stop` is called.
        :param suppress_exceptions: are not logged when the function raises them.
        :param jitter: seconds by which each call is late at most, at random, so that many
            processes don't do the same at the same time. It does not move those that follow.
        :param overlap: what to do when a call is due while another is under way: ``"skip"`` it,
            ``"queue"`` it, or ``"cancel"`` the other. The log has a warning when that begins.
        :param clock: another clock than that of the loop.

        :raises asyncio.InvalidStateError: if it was started and not stopped.
        :raises ValueError, TypeError: naming a parameter that has a wrong value.
        """
        check_period(self, interval, delay, jitter)
        clock = clock or find_clock(loop)
        schedule = FixedSchedule(
            clock.time() + delay, interval, jitter=jitter, keeps_late=overlap == "queue"
        )
        series = Series(
            self,
            schedule,
            clock,
            shield=shield,
            suppress_exceptions=suppress_exceptions,
            overlap=overlap,
        )
        self._begin(series)


class FixedSchedule(Schedule):
    """Moments with the same distance.

    :param first: the first of them.
    :param interval: the distance, in seconds.
    :param jitter: how late each may be, in seconds.
    :param keeps_late: whether none is left out when the loop is late.
    """

    def __init__(
        self, first: float, interval: float, *, jitter: float = 0, keeps_late: bool = False
    ) -> None:
        self._first = float(first)
        self._interval = interval
        self._jitter = jitter
        self._keeps_late = keeps_late
        self._number = -1

    def next(self, series: Series) -> float:  # noqa: ARG002 - for others
        """Return the next moment, by multiplication, as sums of floats would drift."""
        self._number += 1
        moment = self._first + self._number * self._interval
        return moment + random.random() * self._jitter if self._jitter else moment  # noqa: S311 - no secret

    def is_due(self, series: Series, moment: float, now: float) -> bool:
        """Leave out the moments that passed while the loop was blocked, but for the last."""
        late = now - moment
        if late >= self._interval and not self._keeps_late:
            missed = int(late // self._interval)
            self._number += missed
            series.callback.skipped += missed
            series.clock.late.add(
                "%r: the event loop is late by %.3g s, so calls are left out", series.callback, late
            )
        return True


def check_period(owner: object, interval: float, delay: float, jitter: float = 0) -> None:
    """Refuse what is no schedule.

    :raises ValueError, TypeError: naming `owner`, the parameter, the value and what is accepted.
    """
    check_number(owner, "interval", interval, "a number of seconds above 0", above=0)
    check_number(owner, "delay", delay, "a number of seconds, 0 for none", low=0)
    accepted = "a number of seconds below the interval, 0 for none"
    check_number(owner, "jitter", jitter, accepted, low=0)
    if jitter >= interval:
        raise ParameterError(owner, "jitter", jitter, accepted)
