"""A service that notices when the event loop is blocked, and tells by what."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from svcrun._util.tasks import CALLBACK, running_task_and_service
from svcrun._util.validation import number
from svcrun.errors import AlreadyRunning, ParameterError, show
from svcrun.service._internals import overridable, part_of
from svcrun.service.base import Service
from svcrun.thread_pool.separate_threads import run_in_new_thread
from svcrun.thread_pool.thread_group import stoppable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import CodeType, FrameType

    Call = tuple[FrameType, int]  # and the line it is at

log = logging.getLogger(__name__)

__all__ = ("LoopLag", "LoopWatchdog")

# Seconds between two turns of the timer at the least: each costs some microseconds.
SHORTEST_INTERVAL = 0.005

# Seconds between two looks of the thread at the most.
LONGEST_PAUSE = 1.0

# Of a deep stack, the innermost calls tell what goes on.
DEEPEST = 50

# A program that somebody debugs stands still because it is told to.
DEBUGGERS = frozenset({"bdb", "pdb", "pydevd"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopLag:
    """By how much an event loop was late with what was due; in seconds, since the start.

    The counters only ever grow, so that an exporter can leave averages over a while to who reads
    them: the growth of `total` by that of `count`.
    """

    last: float = 0.0
    """By how much it was late most recently, or is late now."""
    max: float = 0.0
    """The longest it was late."""
    total: float = 0.0
    """All of it together."""
    count: int = 0
    """How often it was measured."""
    incidents: int = 0
    """How often it was late by the threshold or more."""
    blocked: float = 0.0
    """All of that together."""

    @property
    def mean(self) -> float:
        """By how much it was late on average."""
        return self.total / self.count if self.count else 0.0


class LoopWatchdog(Service):
    """Log what blocks the event loop, while it does, and for how long it did.

    A thread watches a timer of the loop. When that is late by `threshold` seconds, the log gets a
    warning with the stack of what runs in the loop, its task and its service, once; and another
    when the loop turns again. A process that did not run, since it was suspended or the machine had
    no time for it, is told apart, and so is one that a debugger holds.

    :param threshold: seconds for which the loop may be late; 0.5 by default.
    :param interval: seconds between two turns of the timer, by which a delay may be longer than it
        is said to be; a fifth of the threshold by default, though at least 0.005.
    :param name: tells it apart in the log.

    :raises ValueError, TypeError: naming a parameter that has a wrong value.

    >>> from svcrun.service import LoopWatchdog
    >>> LoopWatchdog(threshold=0.2).lag.incidents
    0
    """

    name: str | None = "loop-watchdog"
    threshold: float = 0.5
    interval: float | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.__check()

    def __check(self) -> None:
        check = number(above=0, unit="seconds")
        check(self, "threshold", self.threshold)
        if self.interval is not None:
            check(self, "interval", self.interval)
            if self.interval > self.threshold:
                accepted = f"at most threshold ({self.threshold:g})"
                raise ParameterError(self, "interval", self.interval, accepted)

    @overridable
    def lag(self) -> LoopLag:
        """By how much the loop was late, and is; any thread may ask, also after the stop."""
        watch = part_of(self, _Watching).watch
        return LoopLag() if watch is None else watch.tell()

    async def start(self) -> None:
        """Begin to watch the running loop.

        :raises AlreadyRunning: if it was started and not stopped.
        :raises RuntimeError: if the system has no more threads to give.
        """
        own = part_of(self, _Watching)
        if own.watch is not None and not own.watch.is_over:
            raise AlreadyRunning(self)
        self.__check()
        interval = self.interval or max(self.threshold / 5, SHORTEST_INTERVAL)
        watch = _Watch(asyncio.get_running_loop(), self.threshold, interval)
        watch.start(self.name or "loop-watchdog")
        own.watch = watch

    async def stop(self, exception: Any = None) -> None:
        """End the watch; its thread has ended then."""
        watch = part_of(self, _Watching).watch
        if watch is not None:
            await watch.end()
        await super().stop(exception)


class _Watching:
    """The current or last watch of a service."""

    def __init__(self, _: LoopWatchdog) -> None:
        self.watch: _Watch | None = None


class _Watch:
    """The watch over one loop, from a start to a stop.

    The loop has no more to do than to write down when its timer was due and when it came. All that
    is made of it is made in the thread, which alone changes the figures.

    :param loop: the loop, which runs in this thread.
    :param threshold: seconds by which it may be late.
    :param interval: seconds between two turns that it has to show.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, threshold: float, interval: float) -> None:
        self._loop = loop
        self._threshold = threshold
        self._interval = interval
        self._thread: asyncio.Future[None] | None = None
        self._over = threading.Event()

        # What the loop writes.
        self._loop_thread = 0
        self._caller: CodeType | None = None  # what is outside of all that runs in the loop
        self._due = 0.0
        self._turns: deque[tuple[float, float]] = deque()  # when each was due, and when it came
        self._timer: asyncio.Handle | None = None

        self._figures = LoopLag()
        self._excused = 0.0  # seconds of the present delay that are not the fault of the loop
        self._is_reported = False  # whether the present delay has had its warning

    # In the loop.

    def start(self, name: str) -> None:
        """Begin to watch, in a thread of that name."""
        self._due = time.monotonic()
        self._timer = self._loop.call_soon(self._turn)
        try:
            self._thread = run_in_new_thread(self._loop, self._run, name=name, detach=False)
        except BaseException:
            self._stop_timer()
            raise

    def _turn(self) -> None:
        if self.is_over:
            return
        self._loop_thread = threading.get_ident()
        self._caller = sys._getframe(1).f_code  # noqa: SLF001 - documented
        now = time.monotonic()
        due, self._due = self._due, now + self._interval  # before the thread learns of the turn
        self._turns.append((due, now))
        self._timer = self._loop.call_later(self._interval, self._turn)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def end(self) -> None:
        """End the watch, and wait for the thread."""
        self._turn()  # for a delay that the timer has not seen the end of
        self._stop_timer()
        self._over.set()
        if self._thread is not None and not self._loop.is_closed():
            await asyncio.shield(self._thread)

    @property
    def is_over(self) -> bool:
        """Whether the thread watches no longer."""
        return self._over.is_set()

    # In the thread.

    def _run(self) -> None:
        with stoppable(self._over.set):
            try:
                self._look_on()
            finally:
                self._over.set()

    def _look_on(self) -> None:
        while not self._is_abandoned():
            pause = self._pause()
            began, worked = time.monotonic(), time.process_time()
            if self._over.wait(pause):
                break
            self._excuse(time.monotonic() - began, pause, time.process_time() - worked)
            self._look()
        self._settle()

    def _pause(self) -> float:
        """Return the seconds until the next look: it is not to come late to a loop that is."""
        usual = min(self._threshold / 4, LONGEST_PAUSE)
        left = self._due + self._excused + self._threshold - time.monotonic()
        return max(left, SHORTEST_INTERVAL) if 0 < left < usual else usual

    def _is_abandoned(self) -> bool:
        """Tell whether nobody will run the loop again, nor stop the service."""
        return self._loop.is_closed() or not (
            self._loop.is_running() or threading.main_thread().is_alive()
        )

    def _excuse(self, slept: float, pause: float, worked: float) -> None:
        """Take note if the loop had no chance to turn.

        :param slept: seconds for which this thread has slept,
        :param pause: for which it wanted to,
        :param worked: and of processor time that the process took meanwhile.
        """
        if not self._loop.is_running():
            self._excused += slept
            return
        # Who keeps this thread waiting, holds the interpreter's lock, and works. Else the process
        # has not run.
        overslept = slept - pause
        if overslept > self._interval and worked < overslept / 2:
            self._excused += overslept
            if overslept >= self._threshold:
                log.warning(
                    "the process did not run for %.3g s: it was suspended, or the machine had no "
                    "time for it",
                    overslept,
                )

    def _look(self) -> None:
        """Make up the account of the turns, and see whether the loop is late with the next."""
        self._settle()
        due = self._due
        lag = time.monotonic() - due - self._excused
        if lag < 0:
            self._excused = 0.0
        elif lag >= self._threshold and not self._is_reported:
            self._report(due, lag)

    def _report(self, due: float, lag: float) -> None:
        """Tell what blocks the loop."""
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - documented
        task, service = running_task_and_service(self._loop, frame)
        calls = list(_calls(frame, self._caller))
        # Up to here nothing has given up the interpreter's lock, which who blocks the loop may wait
        # for as well.
        if self._due != due:
            # The loop turns again, and the calls may be those of something else. The delay is over:
            # if this thread sleeps too long from now on, that does not excuse it.
            self._settle()
            return
        if _is_debugger(calls):
            self._excused += lag
            return
        self._is_reported = True
        self._figures = replace(self._figures, incidents=self._figures.incidents + 1)
        log.warning(
            "the event loop has not turned for %.3g s; %s is at\n%s",
            lag,
            _name(task, service),
            _format(calls) or f"  {_callback(frame)}",
        )

    def _settle(self) -> None:
        """Make up the account of the turns that the loop has shown."""
        while self._turns:
            due, came = self._turns.popleft()
            late = max(0.0, came - due)
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
            log.warning("the event loop turns again; it had not turned for %.3g s", lag)
        elif is_incident:
            log.warning(
                "the event loop did not turn for %.3g s; it turned again before it could be seen "
                "what blocked it",
                lag,
            )
        self._is_reported = False

    # In any thread.

    def tell(self) -> LoopLag:
        """Return the figures, with a delay that is not over."""
        figures = self._figures
        now = time.monotonic() - self._due - self._excused
        if now <= 0 or self.is_over or not self._loop.is_running():
            return figures
        return replace(figures, last=now, max=max(figures.max, now))


def _calls(frame: FrameType | None, caller: CodeType | None) -> Iterator[Call]:
    """Go outwards through the calls in a thread, as far as `caller`."""
    while frame is not None and frame.f_code is not caller:
        yield frame, frame.f_lineno
        frame = frame.f_back


def _name(task: asyncio.Task[Any] | None, service: object) -> str:
    if task is None:
        return "it" if service is None else f"a callback of {show(service)}"
    name = f"task {task.get_name()!r}"
    return name if service is None else f"{name} of {show(service)}"


def _format(calls: Sequence[Call]) -> str:
    """Return what :mod:`traceback` shows of calls, the innermost last."""
    stack = traceback.StackSummary.extract(iter(calls), limit=DEEPEST)
    stack.reverse()
    return "".join(stack.format()).rstrip()


def _callback(frame: FrameType | None) -> str:
    """Return what the loop calls, if that is not written in Python."""
    if frame is None or frame.f_code is not CALLBACK:
        return "(something that is not written in Python)"
    return show(frame.f_locals["self"])


def _is_debugger(calls: Iterable[Call]) -> bool:
    names = (str(frame.f_globals.get("__name__")) for frame, _ in calls)
    return any(name.partition(".")[0] in DEBUGGERS for name in names)
