"""Watch an event loop from a thread: how late its timers are, and the code that blocks it."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from svcrun._util.tasks import CALLBACK_CODE, running_task_and_service
from svcrun.errors import show
from svcrun.thread_pool.separate_threads import start_in_new_thread
from svcrun.thread_pool.thread_group import stoppable

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterable, Iterator, Sequence
    from types import CodeType, FrameType

    Call = tuple[FrameType, int]  # and the line it is at

__all__ = ("MIN_INTERVAL", "Blocker", "LoopLag", "LoopWatch")

MIN_INTERVAL: Final = 0.005
"""The least number of seconds between two timers, each of which costs some microseconds."""

# The greatest number of seconds between two checks of the thread.
MAX_PAUSE: Final = 1.0

# The number of innermost calls that are shown of a deep stack.
MAX_FRAMES: Final = 50

# The modules of debuggers. A loop that a debugger has halted is not reported as blocked.
DEBUGGERS: Final = frozenset({"bdb", "pdb", "pydevd"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopLag:
    """The lag of an event loop since the start: by how many seconds a timer was late.

    Counters only grow, so that an exporter of metrics can leave averages to its readers: the growth
    of `total` divided by that of `count`.
    """

    last: float = 0.0
    """The latest lag, or the current one of a timer that is due."""
    max: float = 0.0
    """The maximum of all lags."""
    total: float = 0.0
    """The sum of all lags."""
    count: int = 0
    """The number of measurements."""
    incidents: int = 0
    """The number of lags of the threshold or more."""
    blocked: float = 0.0
    """The sum of the lags of the threshold or more."""

    @property
    def mean(self) -> float:
        """The average of all lags."""
        return self.total / self.count if self.count else 0.0


class Blocker(NamedTuple):
    """The code that blocks an event loop."""

    lag: float
    """The seconds for which it has blocked the loop."""
    name: str
    """The task and the service, as log messages show them."""
    service: object
    """The service, None if it is not known."""
    stack: str
    """Its calls in the format of a traceback, the innermost last."""
    is_debugger: bool
    """Whether a debugger has halted the loop."""


class LoopWatch:
    """The watch over one loop, from a start to a stop.

    The loop only records when each timer was due and when it fired. The thread evaluates that.
    Invariant: only the thread changes the figures.

    :param loop: the loop, which runs in the calling thread.
    :param threshold: seconds by which the timer may be late.
    :param interval: seconds between two timers.
    :param log: gets a warning about each lag of the threshold or more; None for no warnings.
    """

    # Set by start().
    _thread: asyncio.Future[None]
    _timer: asyncio.Handle

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        threshold: float,
        interval: float,
        log: logging.Logger | None,
    ) -> None:
        self._loop = loop
        self._log = log
        self._threshold = threshold
        self._interval = interval
        self._over = threading.Event()

        # Written by the loop.
        self._loop_thread = 0
        self._caller: CodeType | None = None  # the function that calls all callbacks of the loop
        self._due = 0.0
        self._timings: deque[tuple[float, float]] = deque()  # when timers were due and fired

        self._figures = LoopLag()
        self._excused = 0.0  # seconds of the current lag in which the loop could not run
        self._next_check = 0.0  # when the thread is due to check, unless the process does not run
        self._is_reported = False  # whether the current lag was logged

    # In the loop.

    def start(self, name: str) -> None:
        """Start to watch, in a thread of that name."""
        self._due = time.monotonic()
        # The thread comes first. If the system can't start it, there is no timer to cancel.
        self._thread = start_in_new_thread(self._loop, self._run, name=name, detach=False)
        self._timer = self._loop.call_soon(self._on_timer)

    def _on_timer(self) -> None:
        if self.is_over:
            return
        self._loop_thread = threading.get_ident()
        self._caller = sys._getframe(1).f_code  # noqa: SLF001 - documented
        now = time.monotonic()
        due = self._due
        # Race: the thread must not see the timing while this timer still seems to be due. It would
        # count the same lag twice.
        self._due = now + self._interval
        self._timings.append((due, now))
        self._timer = self._loop.call_later(self._interval, self._on_timer)

    def cancel(self) -> None:
        """End the watch, without waiting for the thread."""
        self._on_timer()  # ends the current lag
        self._timer.cancel()
        self._over.set()

    async def end(self) -> None:
        """End the watch, and wait for the thread."""
        self.cancel()
        if not self._loop.is_closed():
            await asyncio.shield(self._thread)

    @property
    def is_over(self) -> bool:
        """Whether the watch has ended."""
        return self._over.is_set()

    # In the thread.

    def _run(self) -> None:
        with stoppable(self._over.set):
            try:
                self._watch()
            finally:
                self._over.set()

    def _watch(self) -> None:
        while not self._is_abandoned():
            pause = self._pause()
            began, worked = time.monotonic(), time.process_time()
            self._next_check = began + pause
            if self._over.wait(pause):
                break
            self._excuse(time.monotonic() - began, pause, time.process_time() - worked)
            self._check()
        self._settle()

    def _pause(self) -> float:
        """Return the seconds until the next check, which is in time for the threshold."""
        usual = min(self._threshold / 4, MAX_PAUSE)
        left = self._due + self._excused + self._threshold - time.monotonic()
        return max(left, MIN_INTERVAL) if 0 < left < usual else usual

    def _is_abandoned(self) -> bool:
        """Return whether the loop will not run again, although the service was not stopped."""
        return self._loop.is_closed() or not (
            self._loop.is_running() or threading.main_thread().is_alive()
        )

    def _excuse(self, slept: float, pause: float, worked: float) -> None:
        """Excuse a lag during which the loop could not run.

        :param slept: seconds for which this thread has slept.
        :param pause: seconds for which it should have slept.
        :param worked: seconds of processor time of the process in this time.
        """
        if not self._loop.is_running():
            self._excused += slept
            return
        # Code that delays this thread holds the interpreter's lock and takes processor time.
        # Otherwise the process has not run.
        overslept = slept - pause
        if overslept > self._interval and worked < overslept / 2:
            self._excused += overslept
            if overslept >= self._threshold:
                self._warn(
                    "process did not run for %.3g s: it was suspended or got no processor time",
                    overslept,
                )

    def _check(self) -> None:
        """Evaluate the timings, and log a timer that is late by the threshold."""
        self._settle()
        due = self._due
        lag = time.monotonic() - due - self._excused
        if lag < 0:
            self._excused = 0.0
        elif lag >= self._threshold and not self._is_reported:
            self._report(due, lag)

    def _report(self, due: float, lag: float) -> None:
        """Log the code that blocks the loop."""
        blocker = self._find_blocker(due, lag)
        if blocker is None:
            # The lag is over; a later pause of this thread does not excuse it.
            self._settle()
        elif blocker.is_debugger:
            self._excused += lag
        else:
            self._is_reported = True
            self._figures = replace(self._figures, incidents=self._figures.incidents + 1)
            self._warn(
                "event loop blocked for %.3g s; %s is at\n%s", lag, blocker.name, blocker.stack
            )

    def _warn(self, message: str, *args: object) -> None:
        if self._log is not None:
            self._log.warning(message, *args)

    def _settle(self) -> None:
        """Evaluate the timings that the loop has recorded."""
        while self._timings:
            due, fired = self._timings.popleft()
            late = max(0.0, fired - due)
            excused = min(late, self._excused)
            self._excused -= excused
            self._count(late - excused)

    def _count(self, lag: float) -> None:
        is_incident = self._is_reported or lag >= self._threshold
        is_new = is_incident and not self._is_reported
        was = self._figures
        self._figures = LoopLag(
            last=lag,
            max=max(was.max, lag),
            total=was.total + lag,
            count=was.count + 1,
            incidents=was.incidents + is_new,
            blocked=was.blocked + lag * is_incident,
        )
        if self._is_reported:
            self._warn("event loop unblocked after %.3g s", lag)
        elif is_incident:
            self._warn(
                "event loop was blocked for %.3g s, and unblocked before its stack could be read",
                lag,
            )
        self._is_reported = False

    # In any thread.

    def figures(self) -> LoopLag:
        """Return the figures, including the current lag."""
        figures = self._figures
        now = time.monotonic() - self._due - self._excused
        if now <= 0 or self.is_over or not self._loop.is_running():
            return figures
        return replace(figures, last=now, max=max(figures.max, now))

    def blocker(self, threshold: float) -> Blocker | None:
        """Return the code that has blocked the loop for at least `threshold` seconds, or None.

        Race: when the process continues after a suspension, this may be called before the thread
        has excused the pause. So time after the next check of the thread does not count.
        """
        due = self._due
        lag = min(time.monotonic(), self._next_check + self._interval) - due - self._excused
        if lag < threshold or self.is_over or not self._loop.is_running():
            return None
        blocker = self._find_blocker(due, lag)
        return None if blocker is None or blocker.is_debugger else blocker

    def _find_blocker(self, due: float, lag: float) -> Blocker | None:
        """Return the code that blocks the loop since `due`, None if the loop was unblocked."""
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - documented
        task, service = running_task_and_service(self._loop, frame)
        calls = list(_calls(frame, self._caller))
        # Invariant: nothing above releases the interpreter's lock. Otherwise the blocking code
        # could go on, and the calls would be those of other code.
        if self._due != due:
            return None  # race: the loop was unblocked before the stack was read
        stack = _format(calls) or f"  {_callback(frame)}"
        return Blocker(lag, _name(task, service), service, stack, _is_debugger(calls))


def _calls(frame: FrameType | None, caller: CodeType | None) -> Iterator[Call]:
    """Yield the calls in a thread from the innermost one outwards, as far as `caller`."""
    while frame is not None and frame.f_code is not caller:
        yield frame, frame.f_lineno
        frame = frame.f_back


def _name(task: asyncio.Task[Any] | None, service: object) -> str:
    if task is None:
        return "it" if service is None else f"a callback of {show(service)}"
    name = f"task {task.get_name()!r}"
    return name if service is None else f"{name} of {show(service)}"


def _format(calls: Sequence[Call]) -> str:
    """Return calls in the format of :mod:`traceback`, the innermost last."""
    stack = traceback.StackSummary.extract(iter(calls), limit=MAX_FRAMES)
    stack.reverse()
    return "".join(stack.format()).rstrip()


def _callback(frame: FrameType | None) -> str:
    """Return a description of a callback that is not written in Python."""
    if frame is None or frame.f_code is not CALLBACK_CODE:
        return "(code not written in Python)"
    return show(frame.f_locals["self"])


def _is_debugger(calls: Iterable[Call]) -> bool:
    names = (str(frame.f_globals.get("__name__")) for frame, _ in calls)
    return any(name.partition(".")[0] in DEBUGGERS for name in names)
