"""End the process when a blocked event loop does not complete the shutdown.

Timers of the loop do not fire while a callback blocks the loop. So a thread, the exit watchdog,
enforces the deadline of each shutdown from outside of the loop. A shutdown may begin when no thread
or descriptor is left, so the thread starts when the entrypoint is entered. It sleeps on a lock.

Starting and joining a thread costs as much as the rest of a short life. So in a process that enters
many entrypoints, as tests do, only the first one has the thread from the beginning. A later one
starts it :data:`THREAD_DELAY` seconds after it was entered, at its first signal, or
:data:`SHUTDOWN_THREAD_DELAY` seconds after its shutdown began, whichever is first. If the loop is
blocked then, the handler of ``ITIMER_REAL`` starts the thread. If the program uses that timer, the
thread starts with the shutdown. If the system can't start a thread, the timer replaces it.

The thread and the timer cover different causes of a blocked loop:

* The thread covers all code that releases the GIL: Python code, system calls, locks.
* A C function that holds the GIL stops every thread, this one too. Some C functions check for
  signals, such as a search with a regular expression. They use processor time, so the timer
  ``ITIMER_VIRTUAL`` interrupts them, in the main thread. The program may take the timer over at any
  time. The thread goes on without it.
* A C function that holds the GIL and does not check for signals can't be interrupted from inside
  the process.

Invariants: a signal handler may interrupt any of this code and call it again, and the thread runs
beside the main thread. So no method holds a lock while it works on the state. Each alarm is called
once, because :meth:`list.remove` succeeds for one caller only. The process is ended once, by the
caller that acquires ``_exit_lock``.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from contextlib import suppress
from operator import itemgetter

from svcrun._util.hints import TYPE_CHECKING
from svcrun._util.signal_timer import SignalTimer
from svcrun._util.thread_stacks import thread_stacks, write_to_stderr

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from svcrun._util.signal_timer import Handler

    _Alarm = tuple[float, Callable[[], object]]  # the time by the monotonic clock, and a callback

__all__ = ("BLOCKED_AFTER", "EXIT_HUNG", "SHUTDOWN_THREAD_DELAY", "THREAD_DELAY", "ExitWatchdog")

EXIT_HUNG = 70
"""The exit code of a process that the exit watchdog ends: ``EX_SOFTWARE`` of sysexits.h."""

BLOCKED_AFTER = 0.3
"""Seconds without an iteration after which a loop counts as blocked."""

THREAD_DELAY = 0.1
"""Seconds after which a later entrypoint of a process starts its thread."""

SHUTDOWN_THREAD_DELAY = 0.05
"""Seconds after which the shutdown of a later entrypoint starts its thread."""

_TICK = 0.02
"""The minimum time of a timer, in seconds: of processor time, or of real time without a thread."""

_LINGER = 0.1
"""Seconds that a fork waits, at most, for the kernel to remove a thread that has ended."""

EXIT_TIME_LIMIT = 3.0
"""The time limit for writing the stacks to stderr, in seconds: stderr may be a full pipe."""

_process = 0  # the process that has entered an entrypoint; a forked child is another process


class ExitWatchdog:
    """Enforce the deadline of an entrypoint's shutdown.

    :param loop: the loop of the entrypoint.
    :param flush_log: called before the process ends; it writes the buffered log records.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, flush_log: Callable[[], object]) -> None:
        self._loop = loop
        self._flush_log = flush_log
        self._pinged_at: float | None = None
        self._exit_lock = _thread.allocate_lock()
        self._exiting_thread = 0
        # Deadlock: a signal handler may interrupt the threading module while it holds one of its
        # locks. So the handlers use plain locks, a list, and a thread of the _thread module.
        self._alarms: list[_Alarm] = []
        self._is_watching = False
        self._cpu_timer = SignalTimer(signal.ITIMER_VIRTUAL, signal.SIGVTALRM)
        self._fallback_timer = SignalTimer(signal.ITIMER_REAL, signal.SIGALRM)
        # The thread should run from this time on, so a later shutdown starts it at once.
        self._needs_thread_from = 0.0
        self._thread_timer: asyncio.TimerHandle | None = None
        self._released = False
        self._stopped_for_fork = False
        self._wake = _closed_lock()  # released to wake the thread after a change of the state
        self._has_thread = _thread.allocate_lock()  # held from the start of the thread to its join
        self._ended: _thread.LockType | None = None  # released at the end of the thread
        self._ident = self._native_id = 0

    # The thread.

    def start(self, on_failure: Callable[[], object]) -> None:
        """Start the thread, at once or later.

        The thread starts at once for the first entrypoint of a process and outside of the main
        thread, where no timer can be set.

        :param on_failure: called if the system could not start a thread.
        """
        global _process
        pid = os.getpid()
        is_first, _process = _process != pid, pid
        if is_first or _thread.get_ident() != threading.main_thread().ident:
            if not self.start_thread():
                on_failure()
            return
        self._needs_thread_from = time.monotonic() + THREAD_DELAY
        late = self._start_thread_late
        self._thread_timer = self._loop.call_later(THREAD_DELAY, late, on_failure)

    def start_thread(self) -> bool:
        """Start the thread unless it runs, and return whether the system could start one."""
        # Race: a signal handler may start the thread after the caller has found that there is none.
        # Only one of them acquires the lock.
        if not self._has_thread.acquire(blocking=False):
            return True
        self._ended = ended = _closed_lock()
        if _start_thread(self._run, ended):
            return True
        self._ended = None
        self._has_thread.release()
        return False

    def _start_thread_late(self, on_failure: Callable[[], object]) -> None:
        if not self.start_thread():
            on_failure()
        elif self._is_watching:
            self._hand_over()

    def _hand_over(self) -> None:
        """Pass the deadline on to the thread, which has started after the deadline was set."""
        self._fallback_timer.give_back()
        self._ring_at_next_alarm(self._cpu_timer, self._on_cpu_timer)

    def _ensure(self, *, at_once: bool) -> None:
        """Start the thread for a deadline, or set the timer that starts it later."""
        if self._ended is not None or self._stopped_for_fork:
            return
        if (
            at_once
            or time.monotonic() >= self._needs_thread_from
            or not self._fallback_timer.set(SHUTDOWN_THREAD_DELAY, self._on_fallback_timer)
        ):
            self._fallback_timer.give_back()
            if not self.start_thread():
                self._ring_at_next_alarm(self._fallback_timer, self._on_fallback_timer)

    def _run(self, ended: _thread.LockType) -> None:
        self._ident = _thread.get_ident()
        self._native_id = _thread.get_native_id()
        # Invariant: a caller changes the state first and opens the lock then. So the thread sees a
        # change that falls between its check and its wait.
        try:
            while not (self._released or self._stopped_for_fork):
                times = [when for when, _ in self._alarms]
                pause = max(min(times) - time.monotonic(), 0.0) if times else -1
                if not self._wake.acquire(timeout=min(pause, threading.TIMEOUT_MAX)):
                    self._call_due()
                elif self._exit_lock.locked():
                    _exit_after(EXIT_TIME_LIMIT)
        finally:
            ended.release()

    def stop_for_fork(self) -> None:
        """Stop the thread before a fork, which copies only the thread that forks."""
        self._stopped_for_fork = True
        if self._ended is None:
            return
        self._join()
        # Race: since 3.12, Python warns of a fork if the kernel counts a second thread. The kernel
        # counts a thread for a moment after its last bytecode.
        deadline = time.monotonic() + _LINGER
        while os.path.exists(f"/proc/self/task/{self._native_id}"):
            if time.monotonic() > deadline:
                break
            time.sleep(0)

    def restart_after_fork(self) -> None:
        """Start the thread again after a fork, in the parent."""
        if self._stopped_for_fork:
            self._stopped_for_fork = False
            if self._native_id and not self._released:
                self.start_thread()

    def reset_in_child(self) -> None:
        """Cancel the deadline in a forked child: it belongs to the parent."""
        # The thread does not exist in the child, so a join would wait for it without end.
        self._ended = None
        self._stopped_for_fork = False
        self._thread_timer = None
        self.disarm()

    def _join(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            _open(self._wake)
            ended.acquire()
            self._has_thread.release()

    # Whether the loop is blocked.

    def ping(self) -> None:
        """Schedule a call of :meth:`pong`; a signal handler and any thread may call this."""
        if self._pinged_at is None:
            self._pinged_at = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(self.pong)
            except RuntimeError:
                self._pinged_at = None  # the loop is closed, so the shutdown has completed

    def pong(self) -> None:
        """Record that the loop is not blocked."""
        self._pinged_at = None

    @property
    def is_blocked(self) -> bool:
        """Whether :meth:`pong` has not been called within :data:`BLOCKED_AFTER` of :meth:`ping`."""
        asked = self._pinged_at
        return asked is not None and time.monotonic() - asked >= BLOCKED_AFTER

    # Time limits.

    def arm(self, limit: float, grace: float) -> None:
        """End the process unless :meth:`disarm` is called in time.

        Calls after the first have no effect.

        :param limit: seconds after which the process is ended if the loop is blocked.
        :param grace: further seconds after which the process is ended in any case.
        """
        if self._is_watching:
            return
        self._is_watching = True

        def check() -> None:
            self._ping_or_exit()
            self.call_later(BLOCKED_AFTER, check_again)

        def check_again() -> None:
            self._ping_or_exit()
            overrun = f"the shutdown has not completed {grace:g} s after its time limit"
            self.call_later(grace, lambda: self.exit_process(overrun))

        self.call_later(limit, check)

    def arm_in_handler(self, limit: float, grace: float, if_blocked: Callable[[], object]) -> None:
        """Call :meth:`arm` in a signal handler, while the loop may already be blocked.

        :param if_blocked: called once, after :data:`BLOCKED_AFTER`, if the loop is blocked then.
        """

        def nudge() -> None:
            if self.is_blocked:
                if_blocked()

        self.call_later(BLOCKED_AFTER, nudge, at_once=True)
        self.arm(limit, grace)

    def disarm(self) -> None:
        """Cancel the deadline for good: a later signal must not set another one."""
        self._released = True
        self._alarms.clear()
        if self._thread_timer is not None:
            self._thread_timer.cancel()
        self._fallback_timer.give_back()
        self._cpu_timer.give_back()
        self._join()
        self.pong()

    def _ping_or_exit(self) -> None:
        if self.is_blocked:
            self.exit_process("the event loop is blocked and the shutdown timed out")
        self.ping()

    def call_later(
        self, pause: float, action: Callable[[], object], *, at_once: bool = False
    ) -> None:
        """Call `action` after `pause` seconds, in the thread or in the handler of a timer.

        :param at_once: whether to start the thread now if there is none.
        """
        if self._released:
            return
        self._alarms.append((time.monotonic() + pause, action))
        self._ensure(at_once=at_once)
        if self._ended is not None:
            self._ring_at_next_alarm(self._cpu_timer, self._on_cpu_timer)
            _open(self._wake)

    def _call_due(self) -> None:
        """Call the alarms that are due.

        Race: the thread and the handler of the timer may both run this. The one that removes an
        alarm from the list calls it.
        """
        now = time.monotonic()
        for alarm in sorted(self._alarms, key=itemgetter(0)):
            if alarm[0] > now:
                break
            with suppress(ValueError):  # the other caller has removed it, or disarm() has
                self._alarms.remove(alarm)
                alarm[1]()

    def _ring_at_next_alarm(self, timer: SignalTimer, handler: Handler) -> None:
        # Race: if there is no alarm, the thread has removed one and not yet set the next. It goes
        # on only when the handler of the timer has interrupted the function that holds the GIL.
        times = [when for when, _ in self._alarms]
        pause = min(times) - time.monotonic() if times else 0.0
        timer.set(max(pause, _TICK), handler)

    def _on_cpu_timer(self, _signum: int, _frame: object) -> None:
        self._call_due()
        if self._exiting_thread not in (0, _thread.get_ident()):
            _exit_after(EXIT_TIME_LIMIT)  # the thread writes the stacks meanwhile
        if not self._released:
            self._ring_at_next_alarm(self._cpu_timer, self._on_cpu_timer)

    def _on_fallback_timer(self, _signum: int, _frame: object) -> None:
        if self._exiting_thread:
            os._exit(EXIT_HUNG)  # writing to stderr blocks
        if self._released:
            return
        if self._stopped_for_fork:
            # Try again after the fork.
            self._fallback_timer.set(SHUTDOWN_THREAD_DELAY, self._on_fallback_timer)
        elif self._ended is not None or self.start_thread():
            self._hand_over()
        else:
            self._call_due()
            self._ring_at_next_alarm(self._fallback_timer, self._on_fallback_timer)

    # The end of the process.

    def exit_process(self, reason: str) -> None:
        """Write the stacks of all threads to stderr and end the process with exit code 70.

        Writing has a time limit of :data:`EXIT_TIME_LIMIT` seconds.

        :param reason: the first line of the output.
        """
        # Race: another thread, or the interrupted code, may be ending the process already.
        if not self._exit_lock.acquire(blocking=False):
            return
        self._exiting_thread = _thread.get_ident()
        if self._ended is not None and _thread.get_ident() != self._ident:
            _open(self._wake)  # the thread ends the process if writing to stderr blocks
        elif not _start_thread(_exit_after, EXIT_TIME_LIMIT):
            signal.setitimer(signal.ITIMER_REAL, EXIT_TIME_LIMIT)  # SIGALRM ends the process
        try:
            with suppress(OSError):
                write_to_stderr(f"svcrun: {reason}; exit with code {EXIT_HUNG}\n".encode())
                write_to_stderr(thread_stacks())
            self._flush_log()
        finally:
            os._exit(EXIT_HUNG)


def _closed_lock() -> _thread.LockType:
    lock = _thread.allocate_lock()
    lock.acquire()
    return lock


def _open(lock: _thread.LockType) -> None:
    """Release a lock that other threads and signal handlers may release at the same time."""
    if lock.locked():
        with suppress(RuntimeError):  # race: another caller has released it since the check
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
