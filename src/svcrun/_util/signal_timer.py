"""The interval timers of the process, where the program does not use them."""

from __future__ import annotations

import _thread
import signal
import threading

from svcrun._util.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    Handler = Callable[[int, FrameType | None], object]

__all__ = ("SignalTimer",)


_ROUNDED = 0.1
"""Seconds that a timer may seem to have left beyond what it was set to; it counts ticks."""


class SignalTimer:
    """One of the timers of the process.

    It is taken only in the main thread, and only if it does not run and its signal has its default
    action. The program is free to take it over at any time.

    :param which: the timer, such as ``signal.ITIMER_REAL``.
    :param signum: the signal that the timer sends.
    """

    __slots__ = ("_handler", "_pause", "_signum", "_which")

    def __init__(self, which: int, signum: int) -> None:
        self._which = which
        self._signum = signum
        self._handler: Handler | None = None  # installed while the timer is taken
        self._pause = 0.0

    def set(self, pause: float, handler: Handler) -> bool:
        """Send the signal after `pause` seconds, and return whether the timer could be taken.

        :param handler: the handler of the signal, the same one in each call.
        """
        if self._handler is None:
            if _thread.get_ident() != threading.main_thread().ident:
                return False
            if signal.getitimer(self._which)[0]:
                return False
            if signal.getsignal(self._signum) is not signal.SIG_DFL:
                return False
            signal.signal(self._signum, handler)
            self._handler = handler
        elif signal.getsignal(self._signum) is not self._handler:
            return False  # the program uses it by now
        self._pause = pause
        signal.setitimer(self._which, pause)
        return True

    def give_back(self) -> None:
        """Stop the timer and restore the default action, as far as it is still ours."""
        handler, self._handler = self._handler, None
        if handler is None or signal.getsignal(self._signum) is not handler:
            return
        left, interval = signal.setitimer(self._which, 0)
        if interval or left > self._pause + _ROUNDED:  # the program has set it, not the handler
            signal.setitimer(self._which, left, interval)
        signal.signal(self._signum, signal.SIG_DFL)
