"""End the process when the event loop does not get to it.

Time limits that the loop keeps are of no use while a callback blocks the loop. So each shutdown is
also watched from outside of the loop. Nothing can be counted on to be had when the shutdown begins,
so the exit watchdog, a thread, starts when the entrypoint is entered. It sleeps on a lock.

What each of the watchers can see:

* The thread sees everything that lets other threads run: Python code, system calls, locks.
* A C function that keeps the interpreter's lock stops every thread, this one too. Some of them look
  for signals meanwhile, such as a search with a regular expression. They are busy, so a timer of
  processor time gets through to them: ``ITIMER_VIRTUAL``, where the program does not use it, in the
  main thread. The program is free to take it over at any time; the thread goes on without it.
* A C function that keeps the lock and does not look for signals can't be seen from inside of the
  process.
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

    _Alarm = tuple[float, Callable[[], object]]  # what to call at a time of the monotonic clock

__all__ = ("ANSWER_TIME", "DEFAULT_ACTION", "EXIT_HUNG", "Guard", "set_handler")

# signal.signal() without the conversion of numbers to enum members and back, which takes ten times
# as long.
set_handler: Callable[[int, Any], Any] = _signal.signal
DEFAULT_ACTION: Any = _signal.SIG_DFL

EXIT_HUNG = 70
"""The exit code of a process that had to be ended: ``EX_SOFTWARE`` of sysexits.h."""

ANSWER_TIME = 0.3
"""Seconds without a turn after which a loop counts as blocked."""

_TICK = 0.02
"""The least number of seconds of processor time between two rings of the timer."""

_LINGER = 0.1
"""Seconds that a fork waits at most for the kernel to forget a thread that has ended."""

LAST_WORDS_TIME = 3.0
"""Seconds that a process has to write its last words, to a stderr that may be a full pipe."""

MAX_DEPTH = 100
"""Frames that are written of each stack: an endless recursion has thousands."""


class Guard:
    """Watch over the end of an entrypoint.

    :param loop: the loop that has to turn.
    :param last_words: called before the process is ended, to write what is still buffered.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, last_words: Callable[[], object]) -> None:
        self._loop = loop
        self._last_words = last_words
        self._asked: float | None = None
        self._dying = _thread.allocate_lock()
        self._killer = 0
        # Plain locks, a list and a bare thread: all of this is used in signal handlers, which may
        # have interrupted the threading module while that held a lock of its own.
        self._alarms: list[_Alarm] = []
        self._is_watching = False
        self._has_timer = False
        self._ring = self._on_timer  # bound once, to be recognized
        self._released = False
        self._resting = False
        self._wake = _closed_lock()  # opened to make the thread look at all of this
        self._ended: _thread.LockType | None = None  # held by the thread while it lives
        self._ident = self._native_id = 0

    # The thread.

    def start(self) -> bool:
        """Start the exit watchdog, and return whether there was a thread to be had."""
        ended = _closed_lock()
        if not _start_thread(self._live, ended):
            return False
        self._ended = ended
        return True

    def _live(self, ended: _thread.LockType) -> None:
        self._ident = _thread.get_ident()
        self._native_id = _thread.get_native_id()
        try:
            while not (self._released or self._resting):
                times = [when for when, _ in self._alarms]
                pause = max(min(times) - time.monotonic(), 0.0) if times else -1
                if not self._wake.acquire(timeout=min(pause, threading.TIMEOUT_MAX)):
                    self._call_due()
                elif self._dying.locked():
                    _exit_after(LAST_WORDS_TIME)
        finally:
            ended.release()

    def rest(self) -> None:
        """End the thread before a fork, which can't take it along; :meth:`resume` undoes that."""
        if self._ended is None:
            return
        self._resting = True
        self._join()
        # Python warns of a fork if the kernel counts a second thread, and a thread that has run
        # all its code is still counted for a moment.
        deadline = time.monotonic() + _LINGER
        while os.path.exists(f"/proc/self/task/{self._native_id}"):
            if time.monotonic() > deadline:
                break
            time.sleep(0)

    def resume(self) -> None:
        """Start the thread again, if it was at rest."""
        if self._resting:
            self._resting = False
            if not self._released:
                self.start()

    def disown(self) -> None:
        """Leave everything to the parent process, in a child that was forked off."""
        self._ended = None
        self._resting = False
        self.release()

    def _join(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            _open(self._wake)
            ended.acquire()

    # Whether the loop turns.

    def ask(self) -> None:
        """Have the loop show that it turns; safe in a signal handler and in other threads."""
        if self._asked is None:
            self._asked = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(self.answer)
            except RuntimeError:
                self._asked = None  # the loop is closed, and all is over

    def answer(self) -> None:
        """Take note that the loop turns, or is about to."""
        self._asked = None

    @property
    def blocked(self) -> bool:
        """Whether the loop has not turned for a while since it was asked to."""
        asked = self._asked
        return asked is not None and time.monotonic() - asked >= ANSWER_TIME

    # Time limits.

    def watch(self, limit: float, grace: float) -> None:
        """End the process if :meth:`release` is not called in time; the first call counts.

        :param limit: seconds after which a loop that is blocked is not waited for any longer.
        :param grace: further seconds that a loop which turns has to come to an end by itself.
        """
        if self._is_watching:
            return
        self._is_watching = True

        def check() -> None:
            self._ask_or_die()
            self._call_later(ANSWER_TIME, check_again)

        def check_again() -> None:
            self._ask_or_die()
            overrun = f"the shutdown is not over {grace:g} s past its time limit"
            self._call_later(grace, lambda: self.die(overrun))

        self._call_later(limit, check)

    def watch_from_handler(
        self, limit: float, grace: float, if_blocked: Callable[[], object]
    ) -> None:
        """Do what :meth:`watch` does in a signal handler, when the loop may be blocked already.

        :param if_blocked: called if the loop has not turned for a while.
        """

        def nudge() -> None:
            if self.blocked:
                if_blocked()

        self._call_later(ANSWER_TIME, nudge)
        self.watch(limit, grace)

    def release(self) -> None:
        """End the watch, for good: a signal that comes later must not begin another."""
        self._released = True
        self._alarms.clear()
        self._stop_timer()
        self._join()
        self.answer()

    def _ask_or_die(self) -> None:
        if self.blocked:
            self.die("the event loop is blocked, and the time for the shutdown is over")
        self.ask()

    def _call_later(self, pause: float, action: Callable[[], object]) -> None:
        if self._released:
            return
        self._alarms.append((time.monotonic() + pause, action))
        self._set_timer()
        _open(self._wake)

    def _call_due(self) -> None:
        """Call what is due, each once: the thread and the timer's handler both come here."""
        now = time.monotonic()
        for alarm in sorted(self._alarms, key=itemgetter(0)):
            if alarm[0] > now:
                break
            with suppress(ValueError):  # the other one was faster, or the watch is over
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
            set_handler(signal.SIGVTALRM, self._ring)
            self._has_timer = True
        if _signal.getsignal(signal.SIGVTALRM) is self._ring:
            # Without an alarm, the thread is about to call one, or to set the next, and gets to it
            # when the handler interrupts a function that keeps the lock.
            times = [when for when, _ in self._alarms]
            pause = min(times) - time.monotonic() if times else 0.0
            signal.setitimer(signal.ITIMER_VIRTUAL, max(pause, _TICK))

    def _on_timer(self, _signum: int, _frame: object) -> None:
        self._call_due()
        if self._killer not in (0, _thread.get_ident()):
            _exit_after(LAST_WORDS_TIME)  # while the thread writes
        if not self._released:
            self._set_timer()

    def _stop_timer(self) -> None:
        if not self._has_timer:
            return
        self._has_timer = False
        if _signal.getsignal(signal.SIGVTALRM) is self._ring:  # else the program uses it by now
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            set_handler(signal.SIGVTALRM, DEFAULT_ACTION)

    # The end of the process.

    def die(self, reason: str) -> None:
        """Write the stacks of all threads to stderr and end the process with exit code 70."""
        if not self._dying.acquire(blocking=False):
            return  # another thread is at it, or what this signal handler has interrupted
        self._killer = _thread.get_ident()
        if self._ended is not None and _thread.get_ident() != self._ident:
            _open(self._wake)  # the thread limits the time that all of this takes
        elif not _start_thread(_exit_after, LAST_WORDS_TIME):
            signal.setitimer(signal.ITIMER_REAL, LAST_WORDS_TIME)  # better any end than none
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
    """Release a lock that any thread, and any signal handler, may release at any time."""
    if lock.locked():
        with suppress(RuntimeError):  # another one was faster
            lock.release()


def _start_thread(function: Callable[..., object], *args: object) -> bool:
    """Start a thread, and return whether there was one to be had."""
    try:
        _thread.start_new_thread(function, args)
    except RuntimeError:
        return False
    return True


def _exit_after(seconds: float) -> None:
    time.sleep(seconds)
    os._exit(EXIT_HUNG)


def _stacks() -> bytes:
    """Return where all threads are, in the form of :mod:`faulthandler`.

    That module needs a descriptor, and since Python 3.14 it gives up at a thread that is just being
    started or has just ended, which hides the stacks of all others. This imports nothing, opens
    nothing and takes no lock of Python's: the thread that holds one may be the one that is blocked.
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
    """Write to the descriptor: what ``sys.stderr`` is may wait for a lock."""
    if sys.__stderr__ is None:
        return  # the process began without, and the descriptor may be that of a client by now
    while text:
        text = text[os.write(2, text) :]
