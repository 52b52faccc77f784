"""End the process when the event loop does not get to it.

Time limits that the loop keeps are of no use when a callback blocks the loop. So each shutdown is
also watched from outside of the loop, by a timer signal where that can be had (it costs nearly
nothing) or by a thread.
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

from svcrun.hints import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator
    from types import FrameType

    _Stage = tuple[float, Callable[[], object]]  # what to do after so many seconds

__all__ = ("ANSWER_TIME", "DEFAULT_ACTION", "EXIT_HUNG", "Guard", "set_handler")

# signal.signal() without the conversion of numbers to enum members and back, which takes ten times
# as long.
set_handler: Callable[[int, Any], Any] = _signal.signal
DEFAULT_ACTION: Any = _signal.SIG_DFL

EXIT_HUNG = 70
"""The exit code of a process that had to be ended: ``EX_SOFTWARE`` of sysexits.h."""

ANSWER_TIME = 0.3
"""Seconds without a turn after which a loop counts as blocked."""

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
        self._ends: list[Callable[[], None]] = []
        self._asked: float | None = None
        self._released = False
        self._dying = _thread.allocate_lock()

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
        """End the process if :meth:`release` is not called in time.

        :param limit: seconds after which a loop that is blocked is not waited for any longer.
        :param grace: further seconds that a loop which turns has to come to an end by itself.
        """
        if self._released:
            return
        stages = self._stages(limit, grace)
        if not self._ends and not self._watch_by_timer(stages):
            self._watch_by_thread(stages)

    def watch_from_handler(
        self, limit: float, grace: float, if_blocked: Callable[[], object]
    ) -> None:
        """Do what :meth:`watch` does in a signal handler, when the loop may be blocked already.

        A thread also notices that the main thread is blocked in a call of the system that goes on
        after signals. A timer also works while the main thread keeps all others from running, as a
        search with a regular expression does.

        :param if_blocked: called by each of them if the loop has not turned for a while.
        """
        if self._released:
            return

        def nudge() -> None:
            if self.blocked:
                if_blocked()

        stages = [(ANSWER_TIME, nudge), *self._stages(max(limit - ANSWER_TIME, 0.0), grace)]
        if not self._ends:
            self._watch_by_timer(stages)
        self._watch_by_thread(stages)

    def release(self) -> None:
        """End the watch, for good: a signal that comes later must not begin another."""
        self._released = True
        while self._ends:
            self._ends.pop()()
        self.answer()

    def _stages(self, limit: float, grace: float) -> list[_Stage]:
        overrun = f"the shutdown is not over {grace:g} s past its time limit"
        return [
            (limit, self._ask_or_die),
            (ANSWER_TIME, self._ask_or_die),
            (grace, lambda: self.die(overrun)),
        ]

    def _ask_or_die(self) -> None:
        if self.blocked:
            self.die("the event loop is blocked, and the time for the shutdown is over")
        self.ask()

    def _watch_by_timer(self, stages: list[_Stage]) -> bool:
        if threading.current_thread() is not threading.main_thread():
            return False
        if signal.getitimer(signal.ITIMER_REAL)[0]:
            return False  # somebody else uses it

        waiting = iter(stages)
        pause, action = next(waiting)

        def rung(_signum: int, _frame: object) -> None:
            nonlocal pause, action
            action()
            pause, action = next(waiting, (pause, action))
            signal.setitimer(signal.ITIMER_REAL, pause)

        def end() -> None:
            if _signal.getsignal(signal.SIGALRM) is rung:  # else somebody else uses it by now
                signal.setitimer(signal.ITIMER_REAL, 0)
                set_handler(signal.SIGALRM, DEFAULT_ACTION)

        previous = set_handler(signal.SIGALRM, rung)
        if previous is not DEFAULT_ACTION:
            if previous is not None:
                set_handler(signal.SIGALRM, previous)
            return False
        signal.setitimer(signal.ITIMER_REAL, max(pause, 0.001))
        self._ends.append(end)
        return True

    def _watch_by_thread(self, stages: list[_Stage]) -> None:
        # Plain locks and a bare thread: this may run in a signal handler, which may have
        # interrupted the threading module while that held a lock of its own.
        released = _thread.allocate_lock()
        ended = _thread.allocate_lock()
        released.acquire()
        ended.acquire()

        def watch() -> None:
            try:
                for pause, action in stages:
                    if released.acquire(timeout=min(pause, threading.TIMEOUT_MAX)):
                        return
                    action()
            finally:
                ended.release()

        def end() -> None:
            released.release()
            ended.acquire()

        _thread.start_new_thread(watch, ())
        self._ends.append(end)

    # The end of the process.

    def die(self, reason: str) -> None:
        """Write the stacks of all threads to stderr and end the process with exit code 70."""
        if not self._dying.acquire(blocking=False):
            return  # another thread is at it, or what this signal handler has interrupted
        _start_thread(_exit_after, LAST_WORDS_TIME)
        try:
            with suppress(OSError):
                _write_to_stderr(f"svcrun: {reason}; exit with code {EXIT_HUNG}\n".encode())
                _write_to_stderr(_stacks())
            self._last_words()
        finally:
            os._exit(EXIT_HUNG)


def _start_thread(function: Callable[..., object], *args: object) -> None:
    with suppress(RuntimeError):  # there are no more threads to be had
        _thread.start_new_thread(function, args)


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
        yield f'  File "{code.co_filename}", line {frame.f_lineno} in {code.co_name}'
        frame = frame.f_back
    if frame is not None:
        yield "  ..."


def _write_to_stderr(text: bytes) -> None:
    """Write to the descriptor: what ``sys.stderr`` is may wait for a lock."""
    if sys.__stderr__ is None:
        return  # the process began without, and the descriptor may be that of a client by now
    while text:
        text = text[os.write(2, text) :]
