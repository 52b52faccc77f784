"""Calls at the times that a cron line names."""

from __future__ import annotations

import logging
from math import inf
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from svcrun._schedule.cron_expression import CronSpec
from svcrun._schedule.runner import Schedule, Series, check_call_options
from svcrun._util.current_service import on_behalf_of
from svcrun.errors import ParameterError
from svcrun.recurring import Recurring, find_clock

if TYPE_CHECKING:
    import asyncio
    from datetime import tzinfo

    from svcrun._schedule.clock import Clock
    from svcrun._schedule.runner import ExceptionsType, Overlap

__all__ = ("CronCallback", "CronSpec", "Misfire")

log = logging.getLogger(__name__)

Misfire: TypeAlias = Literal["skip", "once"]

# Seconds by which a call may be late and is still in time.
IN_TIME = 1.0

# The maximum of seconds by which the clock may be set back without repeating calls at fixed times.
WAITED_OUT = 3 * 3600

# So many missed times are counted; more would take too long.
COUNTED = 100


class CronCallback(Recurring):
    """A function to be called at the times that a cron line names.

    It counts the calls: see :attr:`calls`, :attr:`failures`, :attr:`skipped`, :attr:`last_start`,
    :attr:`last_duration` and :attr:`next_due`.

    :param coroutine_func: what to call; what it returns is awaited if it can be.
    :param args: are given to it,
    :param kwargs: and so are these.
    :param name: tells it apart in the log; the name of the function by default.

    :raises TypeError: if it can't be called.

    >>> import asyncio
    >>> from svcrun.cron import CronCallback
    >>> async def main():
    ...     second_begins = asyncio.Event()
    ...     every_second = CronCallback(second_begins.set)
    ...     every_second.start("* * * * * *")
    ...     await second_begins.wait()
    ...     await every_second.stop(return_exceptions=True)
    ...     print(every_second.calls, "call")
    >>> asyncio.run(main())
    1 call
    """

    __slots__ = ()

    def start(
        self,
        spec: str | CronSpec,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        shield: bool = False,
        suppress_exceptions: ExceptionsType = (),
        timezone: str | tzinfo = "UTC",
        misfire: Misfire = "once",
        overlap: Overlap = "skip",
        clock: Clock | None = None,
    ) -> None:
        """Begin to call.

        :param spec: the cron line; see :class:`CronSpec`, which can be given as well.
        :param loop: the loop to do it in; the current one by default.
        :param shield: let a call under way go on when :meth:`stop` is called.
        :param suppress_exceptions: are not logged when the function raises them.
        :param timezone: the zone that the line is meant in.
        :param misfire: what to do after the loop was blocked, the machine suspended or the clock
            set forward, and times passed without a call: ``"skip"`` them, or call ``"once"`` for
            all of them. Either way, the log tells which.
        :param overlap: what to do when a call is due while another is under way: ``"skip"`` it,
            ``"queue"`` it, or ``"cancel"`` the other. The log has a warning when that begins.
        :param clock: another clock than that of the loop.

        :raises asyncio.InvalidStateError: if it was started and not stopped.
        :raises ValueError, TypeError: naming a parameter that has a wrong value.
        """
        if not isinstance(spec, CronSpec):
            spec = CronSpec(spec, timezone)
        suppress_exceptions = check_options(self, misfire, overlap, suppress_exceptions)
        clock = clock or find_clock(loop)
        series = Series(
            self,
            CronSchedule(self, spec, misfire, clock.wall()),
            clock,
            shield=shield,
            suppress_exceptions=suppress_exceptions,
            overlap=overlap,
        )
        self._begin(series)

    def get_next(self, spec: CronSpec, after: float) -> float:
        """Return how many seconds past `after` the next call is due; for subclasses.

        :param spec: the cron line that was given.
        :param after: seconds since the epoch.
        """
        return spec.next(after) - after


class CronSchedule(Schedule):
    """The times of a cron line.

    :param owner: finds the next one.
    :param spec: the line.
    :param misfire: what to do about missed ones.
    :param now: the time, in seconds since the epoch.
    """

    by_wall: ClassVar[bool] = True

    def __init__(self, owner: CronCallback, spec: CronSpec, misfire: Misfire, now: float) -> None:
        self._owner = owner
        self._spec = spec
        self._misfire = misfire
        self._after = now  # all until then is settled
        self._latest = -inf  # the latest time reached; later than now after the clock was set back

    def next(self, series: Series) -> float:  # noqa: ARG002 - for others
        """Return the next time."""
        return self._next(self._after)

    def _next(self, after: float) -> float:
        return after + self._owner.get_next(self._spec, after)

    def is_due(self, series: Series, moment: float, now: float) -> bool:
        """Tell whether to call for `moment`, or for the last one missed."""
        self._after = moment
        latest = self._latest
        if moment <= latest <= now and now - moment >= IN_TIME:
            # If the clock is set forward again, times up to the latest one were not missed.
            moment = self._next(latest)
            if moment > now:
                self._after = now
                return False
            self._after = moment
        if now - moment < IN_TIME:
            self._latest = max(latest, moment)
            return True

        missed = [moment]
        while len(missed) < COUNTED and (following := self._next(missed[-1])) <= now:
            missed.append(following)
        is_complete = len(missed) < COUNTED
        if is_complete and now - missed[-1] < IN_TIME:
            in_time = missed.pop()
            self._after = in_time
        else:
            in_time = None
            self._after = missed[-1] if is_complete else now

        self._latest = max(latest, self._after)
        calls = in_time is not None or self._misfire == "once"
        uncalled = len(missed) - (calls and in_time is None)
        series.callback.skipped += uncalled
        first, last = (self._spec.local(time).isoformat() for time in (missed[0], missed[-1]))
        consequence = (
            "there is one call for all of them" if self._misfire == "once" else "they are skipped"
        )
        with on_behalf_of(series.service):
            log.warning(
                "%r: %s missed, from %s to %s; %s",
                series.callback,
                f"{len(missed)}{'' if is_complete else ' or more'} calls were",
                first,
                last,
                consequence,
            )
        return calls

    def is_to_replan(self, series: Series, now: float) -> bool:
        """Decide whether to repeat calls after the clock was set back."""
        if self._after <= now:
            return False
        # The clock is checked once a second, so a time may have been reached since the change.
        begin = now - IN_TIME
        if self._latest <= now:  # no call would be repeated
            self._after = begin
            return True
        is_long = self._latest - now > WAITED_OUT
        if self._spec.has_wildcard or is_long:
            self._after = begin
            message = (
                "%r: the clock was set back%s; calls follow the new time,"
                " so those until %s may be repeated"
            )
        else:
            self._after = self._latest
            message = "%r: the clock was set back%s; calls until %s were made and are not repeated"
        by = " by more than three hours" if is_long else ""
        last = self._spec.local(self._latest).isoformat()
        with on_behalf_of(series.service):
            log.warning(message, series.callback, by, last)
        return True


def check_options(
    owner: object, misfire: Misfire, overlap: Overlap, suppress_exceptions: ExceptionsType
) -> tuple[type[BaseException], ...]:
    """Return the exceptions to suppress as a tuple, and check the other options of calls.

    :raises ValueError, TypeError: naming `owner`, the parameter, the value and what is accepted.
    """
    if misfire not in ("skip", "once"):
        raise ParameterError(owner, "misfire", misfire, "'skip' or 'once'")
    return check_call_options(owner, overlap, suppress_exceptions)
