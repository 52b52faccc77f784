"""The signals that ask a process to end."""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

from svcrun.eager import wakeup_descriptor
from svcrun.errors import ParameterError
from svcrun.guard import ANSWER_TIME, set_handler

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from types import FrameType

    from svcrun.guard import Guard

__all__ = ("BodyInterrupted", "Interrupts")

SAME_SIGNAL = 1.0
"""Seconds in which a repeated signal is the same signal: process managers send to the group and to the process."""


class BodyInterrupted(KeyboardInterrupt):
    """Raised in the code of a ``with`` block that a signal interrupts while the loop does not run."""


class Interrupts:
    """Catch `signals` while installed.

    :param on_first: called in the loop with the first signal.
    :param on_insist: called in the loop when somebody at a terminal insists.
    :param on_caught: called in the handler itself, at the first signal.
    :param in_body: tells, when the loop does not run, whether code of the ``with`` block does.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        signals: Iterable[int],
        guard: Guard,
        *,
        on_first: Callable[[int], object],
        on_insist: Callable[[], object],
        on_caught: Callable[[], object],
        in_body: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._signals = tuple(signals)
        self._guard = guard
        self._on_first = on_first
        self._on_insist = on_insist
        self._on_caught = on_caught
        self._in_body = in_body
        self._first: float | None = None
        self._replaced: dict[int, object] = {}
        self._descriptor: int | None = None
        self._pipe: tuple[int, int] | None = None

    def install(self) -> None:
        """Replace the handlers of the signals.

        :raises ValueError: outside of the main thread, or if a signal can't be caught.
        """
        if not self._signals:
            return
        if threading.current_thread() is not threading.main_thread():
            raise ParameterError(
                "entrypoint", "catch_signals", self._signals, "() outside of the main thread"
            )
        try:
            for signum in self._signals:
                self._replaced[signum] = set_handler(signum, self._caught)
        except (OSError, TypeError, ValueError):
            self.restore()
            raise ParameterError(
                "entrypoint", "catch_signals", self._signals, "signals that can be caught"
            ) from None
        self._open_wakeup()

    def restore(self) -> None:
        """Put everything back as it was."""
        self._close_wakeup()
        while self._replaced:
            signum, handler = self._replaced.popitem()
            # A handler that was not installed from Python reads as None and can't be put back.
            if handler is not None:
                set_handler(signum, handler)

    def _open_wakeup(self) -> None:
        """Have signals wake the loop.

        The Python handler runs between two bytecodes. A signal that comes after the last one before the loop goes to
        sleep would not be handled until something else wakes it, unless it writes to a descriptor that the loop reads.
        """
        previous = signal.set_wakeup_fd(-1)
        if previous != -1:
            signal.set_wakeup_fd(previous)  # the loop does it already
            return
        descriptor = wakeup_descriptor(self._loop)
        if descriptor is not None:
            self._set_descriptor(descriptor)
            return
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        self._loop.add_reader(read, os.read, read, 4096)
        self._pipe = (read, write)
        self._set_descriptor(write)

    def _set_descriptor(self, descriptor: int) -> None:
        signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
        self._descriptor = descriptor

    def _close_wakeup(self) -> None:
        if self._descriptor is None:
            return
        current = signal.set_wakeup_fd(-1)
        if current not in (-1, self._descriptor):
            signal.set_wakeup_fd(current)  # somebody else's by now
        self._descriptor = None
        if self._pipe is None:
            return
        read, write = self._pipe
        self._pipe = None
        self._loop.remove_reader(read)
        os.close(read)
        os.close(write)

    # The handler, which may run at any point of the main thread.

    def _caught(self, signum: int, frame: FrameType | None) -> None:
        guard = self._guard
        now = time.monotonic()
        if guard.blocked:
            if self._in_body() and not self._loop.is_running():
                raise BodyInterrupted
            guard.die(
                f"{signal.Signals(signum).name} came again and the event loop has not turned since"
            )
        guard.ask()
        try:
            if self._first is None:
                self._first = now
                self._on_caught()
                if self._in_body() and not self._loop.is_running():
                    _thread.start_new_thread(self._nudge, (signum,))
                self._loop.call_soon_threadsafe(self._on_first, signum)
            elif now - self._first > SAME_SIGNAL and signum == signal.SIGINT:
                self._loop.call_soon_threadsafe(self._on_insist)
        except RuntimeError:
            pass  # the loop is closed: all is over but for the last lines of the entrypoint

    def _nudge(self, signum: int) -> None:
        """Repeat the signal for a block whose code does not come to run the loop."""
        time.sleep(ANSWER_TIME + 0.05)
        main = threading.main_thread().ident
        if main is not None and self._replaced and self._guard.blocked and self._in_body():
            signal.pthread_kill(main, signum)
