"""End the process when a blocked event loop does not complete the shutdown.

Timers of the loop do not fire while a callback blocks the loop. So a thread, the exit watchdog,
enforces the deadline of each shutdown from outside of the loop. A shutdown may begin when no thread
or descriptor is left, so the thread starts when the entrypoint is entered. It sleeps on a lock.

Each watcher covers other causes:

* The thread covers all code that releases the GIL: Python code, system calls, locks.
* A C function that holds the GIL stops every thread, this one too. Some C functions check for
  signals, such as a search with a regular expression. They use processor time, so the timer
  ``ITIMER_VIRTUAL`` interrupts them, in the main thread. The program may take the timer over at any
  time; the thread goes on without it.
* A C function that holds the GIL and does not check for signals can't be interrupted from inside
  the process.

Invariants: a signal handler may interrupt any of this code and call it again, and the thread runs
beside the main thread. So no method holds a lock while it works on the state. Each alarm is called
once, because :meth:`list.remove` succeeds for one caller only. The process is ended once, by the
caller that acquires ``_dying``.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _thread
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from operator import itemgetter

from svcrun.hints import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator
    from types import FrameType

    _Alarm = tuple[float, Callable[[], object]]  # the time by the monotonic clock, and a callback

__all__ = ("ANSWER_TIME", "DEFAULT_ACTION", "EXIT_HUNG", "Guard", "set_handler")

# signal.signal() without the conversion of numbers to enum members and back, which takes ten times
# as long.
set_handler: Callable[[int, Any], Any] = _signal.signal
DEFAULT_ACTION: Any = _signal.SIG_DFL

EXIT_HUNG = 70
"""The exit code of a process that had to be ended: ``EX_SOFTWARE`` of sysexits.h."""

ANSWER_TIME = 0.3
"""Seconds without an iteration after which a loop counts as blocked."""

_TICK = 0.02
"""The minimum of seconds of processor time between two signals of the timer."""

_LINGER = 0.1
"""The maximum of seconds that a fork waits for the kernel to remove a thread that has ended."""

LAST_WORDS_TIME = 3.0
"""Seconds within which a process has to write the stacks to stderr, which may be a full pipe."""

MAX_DEPTH = 100
"""The maximum of frames written for each stack: an endless recursion has thousands."""


class Guard:
    """Enforce the deadline of an entrypoint's shutdown.

    :param loop: the loop of the entrypoint.
    :param last_words: called before the process is ended, to write log records still buffered.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, last_words: Callable[[], object]) -> None:
        self._loop = loop
        self._last_words = last_words
        self._asked: float | None = None
        self._dying = _thread.allocate_lock()
        self._killer = 0
        # Plain locks, a list and a bare thread: signal handlers use them, and may have interrupted
        # the threading module while it held a lock of its own. Its locks would deadlock here.
        self._alarms: list[_Alarm] = []
        self._is_watching = False
        self._has_timer = False
        self._timer_handler = self._on_timer  # bound once, so that it can be compared by identity
        self._released = False
        self._stopped_for_fork = False
        self._wake = _closed_lock()  # opened to wake the thread after a change of the state
        self._ended: _thread.LockType | None = None  # held by the thread while it lives
        self._ident = self._native_id = 0

    # The thread.

    def start(self) -> bool:
        """Start the exit watchdog, and return whether the system could start a thread."""
        ended = _closed_lock()
        if not _start_thread(self._run, ended):
            return False
        self._ended = ended
        return True

    def _run(self, ended: _thread.LockType) -> None:
        self._ident = _thread.get_ident()
        self._native_id = _thread.get_native_id()
        try:
            while not (self._released or self._stopped_for_fork):
                times = [when for when, _ in self._alarms]
                pause = max(min(times) - time.monotonic(), 0.0) if times else -1
                if not self._wake.acquire(timeout=min(pause, threading.TIMEOUT_MAX)):
                    self._call_due()
                elif self._dying.locked():
                    _exit_after(LAST_WORDS_TIME)
        finally:
            ended.release()

    def stop_for_fork(self) -> None:
        """Stop the thread before a fork, which copies only the thread that forks."""
        if self._ended is None:
            return
        self._stopped_for_fork = True
        self._join()
        # Race: Python warns of a fork if the kernel counts a second thread, and the kernel counts a
        # thread for a moment after its last bytecode.
        deadline = time.monotonic() + _LINGER
        while os.path.exists(f"/proc/self/task/{self._native_id}"):
            if time.monotonic() > deadline:
                break
            time.sleep(0)

    def restart_after_fork(self) -> None:
        """Start the thread again after a fork, in the parent."""
        if self._stopped_for_fork:
            self._stopped_for_fork = False
            if not self._released:
                self.start()

    def reset_in_child(self) -> None:
        """Cancel the deadline in a forked child: it belongs to the parent."""
        self._ended = None
        self._stopped_for_fork = False
        self.release()

    def _join(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            _open(self._wake)
            ended.acquire()

    # Whether the loop is blocked.

    def ask(self) -> None:
        """Schedule a call of :meth:`answer`; safe in a signal handler and in other threads."""
        if self._asked is None:
            self._asked = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(self.answer)
            except RuntimeError:
                self._asked = None  # the loop is closed, so the shutdown has completed

    def answer(self) -> None:
        """Record that the loop is not blocked."""
        self._asked = None

    @property
    def blocked(self) -> bool:
        """Whether :meth:`answer` has not been called within :data:`ANSWER_TIME` of :meth:`ask`."""
        asked = self._asked
        return asked is not None and time.monotonic() - asked >= ANSWER_TIME

    # Time limits.

    def watch(self, limit: float, grace: float) -> None:
        """End the process if :meth:`release` is not called in time.

        Calls after the first have no effect.

        :param limit: seconds after which the process is ended if the loop is blocked.
        :param grace: further seconds after which the process is ended in any case.
        """
        if self._is_watching:
            return
        self._is_watching = True

        def check() -> None:
            self._ask_or_die()
            self._call_later(ANSWER_TIME, check_again)

        def check_again() -> None:
            self._ask_or_die()
            overrun = f"the shutdown has not completed {grace:g} s after its time limit"
            self._call_later(grace, lambda: self.die(overrun))

        self._call_later(limit, check)

    def watch_from_handler(
        self, limit: float, grace: float, if_blocked: Callable[[], object]
    ) -> None:
        """Call :meth:`watch` in a signal handler, when the loop may be blocked already.

        :param if_blocked: called once, after :data:`ANSWER_TIME`, if the loop is blocked then.
        """

        def nudge() -> None:
            if self.blocked:
                if_blocked()

        self._call_later(ANSWER_TIME, nudge)
        self.watch(limit, grace)

    def release(self) -> None:
        """Cancel the deadline for good: a later signal must not set another."""
        self._released = True
        self._alarms.clear()
        self._stop_timer()
        self._join()
        self.answer()

    def _ask_or_die(self) -> None:
        if self.blocked:
            self.die("the event loop is blocked and the shutdown timed out")
        self.ask()

    def _call_later(self, pause: float, action: Callable[[], object]) -> None:
        if self._released:
            return
        self._alarms.append((time.monotonic() + pause, action))
        self._set_timer()
        _open(self._wake)

    def _call_due(self) -> None:
        """Call the alarms that are due.

        Race: the thread and the timer's handler may both run this. The one that removes an alarm
        from the list calls it.
        """
        now = time.monotonic()
        for alarm in sorted(self._alarms, key=itemgetter(0)):
            if alarm[0] > now:
                break
            with suppress(ValueError):  # the other caller removed it, or release() did
                self._alarms.remove(alarm)
                alarm[1]()

    def _set_timer(self) -> None:
        if not self._has_timer:
            if _thread.get_ident() != threading.main_thread().ident:
                return
            if signal.getitimer(signal.ITIMER_VIRTUAL)[0]:
                return
            if _signal.getsignal(signal.SIGVTALRM) is not DEFAULT_ACTION:
                return
            set_handler(signal.SIGVTALRM, self._timer_handler)
            self._has_timer = True
        if _signal.getsignal(signal.SIGVTALRM) is self._timer_handler:
            # Race: without an alarm, the thread is between removing one and setting the next. It
            # can go on only when this handler has interrupted the function that holds the GIL.
            times = [when for when, _ in self._alarms]
            pause = min(times) - time.monotonic() if times else 0.0
            signal.setitimer(signal.ITIMER_VIRTUAL, max(pause, _TICK))

    def _on_timer(self, _signum: int, _frame: object) -> None:
        self._call_due()
        if self._killer not in (0, _thread.get_ident()):
            _exit_after(LAST_WORDS_TIME)  # the thread is writing the stacks meanwhile
        if not self._released:
            self._set_timer()

    def _stop_timer(self) -> None:
        if not self._has_timer:
            return
        self._has_timer = False
        if (
            _signal.getsignal(signal.SIGVTALRM) is self._timer_handler
        ):  # else the program has taken it over
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            set_handler(signal.SIGVTALRM, DEFAULT_ACTION)

    # The end of the process.

    def die(self, reason: str) -> None:
        """Write the stacks of all threads to stderr and end the process with exit code 70."""
        if not self._dying.acquire(blocking=False):
            return  # another thread ends the process, or the code that this handler interrupted
        self._killer = _thread.get_ident()
        if self._ended is not None and _thread.get_ident() != self._ident:
            _open(self._wake)  # the thread ends the process if writing to stderr blocks
        elif not _start_thread(_exit_after, LAST_WORDS_TIME):
            signal.setitimer(signal.ITIMER_REAL, LAST_WORDS_TIME)  # SIGALRM ends the process
        try:
            with suppress(OSError):
                _write_to_stderr(f"svcrun: {reason}; exit with code {EXIT_HUNG}\n".encode())
                _write_to_stderr(_stacks())
            self._last_words()
        finally:
            os._exit(EXIT_HUNG)


def _closed_lock() -> _thread.LockType:
    lock = _thread.allocate_lock()
    lock.acquire()
    return lock


def _open(lock: _thread.LockType) -> None:
    """Release a lock that other threads and signal handlers may release at the same time."""
    if lock.locked():
        with suppress(RuntimeError):  # another caller has released it since the check
            lock.release()


def _start_thread(function: Callable[..., object], *args: object) -> bool:
    """Start a thread, and return whether the system could start one."""
    try:
        _thread.start_new_thread(function, args)
    except RuntimeError:
        return False
    return True


def _exit_after(seconds: float) -> None:
    time.sleep(seconds)
    os._exit(EXIT_HUNG)


def _stacks() -> bytes:
    """Return the stacks of all threads, in the format of :mod:`faulthandler`.

    That module needs a descriptor. Since Python 3.14 it stops at a thread that is being started or
    has just ended, and so omits the stacks of the others. This function imports nothing, opens
    nothing and takes no lock: the blocked thread may hold it.
    """
    lines: list[str] = []
    for thread, frame in sys._current_frames().items():  # noqa: SLF001 - documented
        lines.append(f"Thread 0x{thread:016x} (most recent call first):")
        lines.extend(_stack(frame))
        lines.append("")
    return "\n".join(lines).encode(errors="backslashreplace")


def _stack(frame: FrameType | None) -> Iterator[str]:
    for _ in range(MAX_DEPTH):
        if frame is None:
            return
        code = frame.f_code
        yield f'  File "{code.co_filename}", line {frame.f_lineno or 0} in {code.co_name}'
        frame = frame.f_back
    if frame is not None:
        yield "  ..."


def _write_to_stderr(text: bytes) -> None:
    """Write to the descriptor: a write to ``sys.stderr`` may wait for a lock."""
    if sys.__stderr__ is None:
        return  # the process began without stderr, so a client's socket may be descriptor 2
    while text:
        text = text[os.write(2, text) :]
