"""Callbacks at the times of a cron expression."""

from __future__ import annotations

import logging
from math import inf
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from svcrun._schedule.cron_expression import CronSpec
from svcrun._schedule.runner import Schedule, ScheduleRunner, check_call_options
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

# Seconds by which a call may be late without being missed.
MISFIRE_GRACE = 1.0

# Seconds by which the wall clock may be set back without repeating calls at fixed times.
MAX_WAIT_AFTER_SET_BACK = 3 * 3600

# The maximum of missed times that are counted, since counting years of them would block the loop.
MAX_MISSED = 100


class CronCallback(Recurring):
    """Call a function at the times of a cron expression.

    The attributes :attr:`calls`, :attr:`failures`, :attr:`skipped`, :attr:`last_start`,
    :attr:`last_duration` and :attr:`next_due` count and time the calls.

    :param coroutine_func: the function to call; a result that can be awaited is awaited.
    :param args: positional arguments of the function.
    :param kwargs: keyword arguments of the function.
    :param name: names the callback in log messages; the qualified name of the function by default.

    :raises TypeError: if `coroutine_func` is not callable.

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
        """Start the calls.

        :param spec: the cron expression, as a text or a :class:`CronSpec`.
        :param loop: the event loop of the calls; the current one by default.
        :param shield: whether a call in flight goes on when :meth:`stop` is called.
        :param suppress_exceptions: exceptions of the function that are not logged.
        :param timezone: the time zone of a `spec` that is a text; UTC by default.
        :param misfire: what happens after times have passed without a call, because the loop was
            blocked, the machine was suspended or the clock was set forward: ``"skip"`` them, or
            call ``"once"`` for all of them. Both are logged as a warning.
        :param overlap: what happens when a call is due while another one is in flight: ``"skip"``
            it, ``"queue"`` it, or ``"cancel"`` the one in flight. The first overlap with a call is
            logged as a warning.
        :param clock: for tests; the clock of `loop` by default.

        :raises asyncio.InvalidStateError: if the callback was started and not stopped.
        :raises ValueError, TypeError: naming the parameter that has a wrong value.
        """
        if not isinstance(spec, CronSpec):
            spec = CronSpec(spec, timezone)
        suppress_exceptions = check_options(self, misfire, overlap, suppress_exceptions)
        clock = clock or find_clock(loop)
        runner = ScheduleRunner(
            self,
            CronSchedule(self, spec, misfire, clock.wall()),
            clock,
            shield=shield,
            suppress_exceptions=suppress_exceptions,
            overlap=overlap,
        )
        self._start(runner)

    def get_next(self, spec: CronSpec, after: float) -> float:
        """Return the seconds from `after` until the next call; a subclass may override it.

        :param spec: the cron expression that was passed to :meth:`start`.
        :param after: seconds since the epoch.
        """
        return spec.next(after) - after


class CronSchedule(Schedule):
    """The times of a cron expression, through changes of the wall clock.

    :param callback: finds the next time.
    :param spec: the cron expression.
    :param misfire: what happens to missed times.
    :param now: the wall-clock time, in seconds since the epoch.
    """

    uses_wall_clock: ClassVar[bool] = True

    def __init__(
        self, callback: CronCallback, spec: CronSpec, misfire: Misfire, now: float
    ) -> None:
        self._callback = callback
        self._spec = spec
        self._misfire = misfire
        # All times up to this one were called, skipped or counted as missed.
        self._done_until = now
        # The latest time that was reached. Invariant: it never goes back, so it is later than now
        # after the clock was set back.
        self._latest = -inf

    def next(self) -> float:
        """Return the next time."""
        return self._next(self._done_until)

    def _next(self, after: float) -> float:
        return after + self._callback.get_next(self._spec, after)

    def is_due(self, runner: ScheduleRunner, due: float, now: float) -> bool:
        """Return whether to call for `due`, or once for the times missed since."""
        self._done_until = due
        latest = self._latest
        if due <= latest <= now and now - due >= MISFIRE_GRACE:
            # The clock was set back and forward again. The times up to the latest one had their
            # calls before, and were not missed.
            due = self._next(latest)
            if due > now:
                self._done_until = now
                return False
            self._done_until = due
        if now - due < MISFIRE_GRACE:
            self._latest = max(latest, due)
            return True

        missed = [due]
        while len(missed) < MAX_MISSED and (following := self._next(missed[-1])) <= now:
            missed.append(following)
        is_complete = len(missed) < MAX_MISSED
        on_time = is_complete and now - missed[-1] < MISFIRE_GRACE
        self._done_until = missed[-1] if is_complete else now
        self._latest = max(latest, self._done_until)
        if on_time:
            missed.pop()
        calls_once = self._misfire == "once"
        runner.callback.skipped += len(missed) - (calls_once and not on_time)
        self._warn_of_missed(runner, missed, is_complete)
        return on_time or calls_once

    def _warn_of_missed(
        self, runner: ScheduleRunner, missed: list[float], is_complete: bool
    ) -> None:
        first, last = (self._spec.local(time).isoformat() for time in (missed[0], missed[-1]))
        runner.warn(
            "%r: missed calls: %d%s, from %s to %s; %s",
            len(missed),
            "" if is_complete else " or more",
            first,
            last,
            "calling once for all of them" if self._misfire == "once" else "skipping them",
            logger=log,
        )

    def follows_set_back(self, runner: ScheduleRunner, now: float) -> bool:
        """Decide whether to repeat calls after the wall clock was set back."""
        if self._done_until <= now:
            return False
        # The clock is read once a second, so a time may have been reached since the change.
        begin = now - MISFIRE_GRACE
        if self._latest <= now:  # no call would be repeated
            self._done_until = begin
            return True
        is_long = self._latest - now > MAX_WAIT_AFTER_SET_BACK
        if self._spec.has_wildcard or is_long:
            self._done_until = begin
            message = (
                "%r: the clock was set back%s; calls follow the new time,"
                " so those until %s may be repeated"
            )
        else:
            self._done_until = self._latest
            message = "%r: the clock was set back%s; calls until %s were made and are not repeated"
        by = " by more than three hours" if is_long else ""
        runner.warn(message, by, self._spec.local(self._latest).isoformat(), logger=log)
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
