"""The time of the event loop, the time on the wall, and alarms that ring at moments of either.

Ten thousand of what recurs may have their moments in one loop. A timer of the loop for each costs
more than the work of a small callback. So all of them share one timer.
"""

from __future__ import annotations

import logging
import time
import weakref
from contextvars import Context
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from svcrun._util.rate_limited_log import Tally

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

log = logging.getLogger("svcrun.recurring")

__all__ = ("Alarm", "Clock", "Ringer", "WallAlarm", "clock_of")

# Seconds by which an alarm may ring early. Loops may as well (uvloop counts in milliseconds), and
# moments that are so close are better had together.
TOGETHER = 0.0005

# Seconds for which an alarm rings before others have a turn.
SLICE = 0.005

# Seconds after which the wall clock is looked at again. Somebody may set it, and while the machine
# is suspended it goes on alone.
LOOK = 1.0

# Seconds by which somebody must have set the wall clock back at once; less comes from adjusting it.
SET_BACK = 0.5

# Fewer entries than this whose ringers are gone are not worth tidying up.
LITTER = 64


class Clock:
    """What shows the two times, with an alarm for each.

    :param loop: the loop that has the alarms; its time never goes back.
    :param wall: returns the time on the wall in seconds since the epoch; :func:`time.time` by
        default.

    Tests give another `wall`, and a loop whose time they move.
    """

    __slots__ = ("__weakref__", "by_loop", "by_wall", "late", "loop", "time", "wall")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, wall: Callable[[], float] | None = None
    ) -> None:
        self.loop = loop
        self.time = loop.time
        self.wall = _wall_time if wall is None else wall
        self.by_loop = Alarm(self)
        self.by_wall = WallAlarm(self)
        self.late = Tally(log)
        """Counts moments that passed while the loop was blocked."""


def _wall_time() -> float:
    return time.time()  # looked up when called, since there are tools that replace it in tests


_clocks: weakref.WeakValueDictionary[asyncio.AbstractEventLoop, Clock] = (
    weakref.WeakValueDictionary()
)


def clock_of(loop: asyncio.AbstractEventLoop) -> Clock:
    """Return the clock that all in `loop` share while anybody uses it."""
    clock = _clocks.get(loop)
    if clock is None:
        clock = _clocks[loop] = Clock(loop)
    return clock


class Ringer(Protocol):
    """What an :class:`Alarm` calls."""

    entry: list[Any] | None
    """Of the alarm; None to begin with."""

    def ring(self, now: float) -> None:
        """React to the moment that was set, at the time `now`. A call may set another."""

    def on_set_back(self, now: float) -> None:
        """React to a wall clock that was set back to `now`."""


class Alarm:
    """Call any number of ringers at their moments, by the time of the loop, with one timer.

    :param clock: shows the time.
    """

    __slots__ = ("_armed_for", "_context", "_entries", "_litter", "_numbers", "_timer", "clock")

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        # A heap of lists: the moment, a number for those of the same moment, the ringer or None.
        self._entries: list[list[Any]] = []
        self._litter = 0  # how many have None
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = 0.0
        self._context = Context()  # that of nobody: the timer is set by one for all

    def add(self, ringer: Ringer, moment: float) -> None:
        """Call `ringer` at `moment`, and no longer at another."""
        if ringer.entry is not None:
            self.discard(ringer)
        ringer.entry = entry = [moment, next(self._numbers), ringer]
        heappush(self._entries, entry)
        if self._timer is None or moment < self._armed_for:
            self._arm()

    def discard(self, ringer: Ringer) -> None:
        """Do not call `ringer` any more; idempotent."""
        entry, ringer.entry = ringer.entry, None
        if entry is None:
            return
        entry[2] = None
        self._litter += 1
        if self._litter == len(self._entries):
            self._entries.clear()
            self._litter = 0
            self._disarm()
        elif self._litter > LITTER and self._litter * 2 > len(self._entries):
            self._entries[:] = [entry for entry in self._entries if entry[2] is not None]
            heapify(self._entries)
            self._litter = 0

    def _ring(self) -> None:
        """Call those whose moment has come, as many as there is time for in one turn."""
        self._armed_for = -inf  # those who are called set their next moments before all were called
        end = time.monotonic() + SLICE
        try:
            now = self._latest()
            entries = self._entries
            while entries and entries[0][0] <= now:
                ringer = heappop(entries)[2]
                if ringer is None:
                    self._litter -= 1
                    continue
                ringer.entry = None
                ringer.ring(now)
                if time.monotonic() >= end:
                    break
        finally:
            self._arm()

    def _latest(self) -> float:
        """Return the latest moment that has come."""
        return self.clock.time() + TOGETHER

    def _arm(self) -> None:
        self._disarm()
        if self._entries:
            self._armed_for = self._entries[0][0]
            moment = self._turn_to_look()
            self._timer = self.clock.loop.call_at(moment, self._ring, context=self._context)

    def _turn_to_look(self) -> float:
        """Return when to look for the next moment, by the time of the loop."""
        return self._armed_for

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class WallAlarm(Alarm):
    """Call ringers by the wall clock, which is looked at in between."""

    __slots__ = ("_ahead",)

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._ahead = -inf  # what the wall clock was ahead of the loop's at the last look

    def _latest(self) -> float:
        now = self.clock.wall()
        ahead = now - self.clock.time()
        was_ahead, self._ahead = self._ahead, ahead
        if was_ahead - ahead > SET_BACK:
            for _, _, ringer in list(self._entries):
                if ringer is not None:
                    ringer.on_set_back(now)
        return now

    def _turn_to_look(self) -> float:
        now, wall = self.clock.time(), self.clock.wall()
        if self._ahead == -inf:
            self._ahead = wall - now
        left = self._armed_for - wall
        # Not a moment too early: a job that reads the time must find it to be its own.
        return now + min(max(left, 0.001), LOOK)

    def _disarm(self) -> None:
        super()._disarm()
        if not self._entries:
            self._ahead = -inf  # nobody looks any more
