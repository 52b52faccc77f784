"""End the process when the event loop does not get to it.

Time limits that the loop keeps are of no use when a callback blocks the loop. So each shutdown is also watched from
outside of the loop, by a timer signal where that can be had (it costs nearly nothing) or by a thread.
"""

from __future__ import annotations

import _signal
import _thread
import faulthandler
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ("ANSWER_TIME", "EXIT_HUNG", "Guard", "set_handler")

# signal.signal() without the conversion of numbers to enum members and back, which takes ten times as long.
set_handler: Callable[[int, Any], Any] = _signal.signal

EXIT_HUNG = 70
"""The exit code of a process that had to be ended: ``EX_SOFTWARE`` of sysexits.h."""

ANSWER_TIME = 0.3
"""Seconds without a turn after which a loop counts as blocked."""


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

    # Whether the loop turns.

    def ask(self) -> None:
        """Have the loop show that it turns; safe in a signal handler and in other threads."""
        if self._asked is None:
            self._asked = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:
                self._asked = None  # the loop is closed, and all is over

    def _answer(self) -> None:
        self._asked = None

    @property
    def blocked(self) -> bool:
        """Whether the loop has not turned for a while since it was asked to."""
        return self._asked is not None and time.monotonic() - self._asked >= ANSWER_TIME

    # Time limits.

    def watch(self, limit: float, grace: float, *, in_thread: bool) -> None:
        """End the process if :meth:`release` is not called in time.

        :param limit: seconds after which a loop that is blocked is not waited for any longer.
        :param grace: further seconds that a loop which turns has to come to an end by itself.
        :param in_thread: whether to use a thread in any case; only a thread notices a main thread that is blocked in
            a system call which a signal does not interrupt.
        """
        if in_thread or not self._watch_by_timer(limit, grace):
            self._watch_by_thread(limit, grace)

    def release(self) -> None:
        """End the watch."""
        while self._ends:
            self._ends.pop()()

    def _watch_by_timer(self, limit: float, grace: float) -> bool:
        if threading.current_thread() is not threading.main_thread():
            return False
        if signal.getitimer(signal.ITIMER_REAL)[0]:
            return False  # somebody else uses it

        stages = iter((ANSWER_TIME, grace))

        def rung(signum: int, frame: object) -> None:
            self._ask_or_die()
            pause = next(stages, None)
            if pause is None:
                self.die(f"the shutdown is not over {grace:g} s past its time limit")
            signal.setitimer(signal.ITIMER_REAL, pause)

        def end() -> None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            set_handler(signal.SIGALRM, _signal.SIG_DFL)

        previous = set_handler(signal.SIGALRM, rung)
        if previous is not _signal.SIG_DFL:
            if previous is not None:
                set_handler(signal.SIGALRM, previous)
            return False
        signal.setitimer(signal.ITIMER_REAL, max(limit, 0.001))
        self._ends.append(end)
        return True

    def _watch_by_thread(self, limit: float, grace: float) -> None:
        # Plain locks and a bare thread: this may run in a signal handler, which may have interrupted the threading
        # module while that held a lock of its own.
        released = _thread.allocate_lock()
        ended = _thread.allocate_lock()
        released.acquire()
        ended.acquire()

        def watch() -> None:
            try:
                for pause in (limit, ANSWER_TIME, grace):
                    if released.acquire(timeout=min(max(pause, 0), threading.TIMEOUT_MAX)):
                        return
                    self._ask_or_die()
                self.die(f"the shutdown is not over {grace:g} s past its time limit")
            finally:
                ended.release()

        def end() -> None:
            released.release()
            ended.acquire()

        _thread.start_new_thread(watch, ())
        self._ends.append(end)

    def _ask_or_die(self) -> None:
        if self.blocked:
            self.die("the event loop is blocked, and the time for the shutdown is over")
        self.ask()

    def die(self, reason: str) -> None:
        """Write the stacks of all threads to stderr and end the process with exit code 70."""
        # Straight to the descriptor: what sys.stderr is may wait for a lock.
        try:
            os.write(2, f"svcrun: {reason}; exit with code {EXIT_HUNG}\n".encode())
            faulthandler.dump_traceback(file=2, all_threads=True)
        except OSError:
            pass
        try:
            self._last_words()
        finally:
            os._exit(EXIT_HUNG)
