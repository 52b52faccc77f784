"""The signals that ask a process to end."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from contextvars import copy_context

from svcrun.eager import wakeup_descriptor
from svcrun.errors import ParameterError
from svcrun.guard import set_handler
from svcrun.hints import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from types import FrameType

    from svcrun.guard import Guard

__all__ = ("BodyInterrupted", "Interrupts")

SAME_SIGNAL = 1.0
"""Seconds in which a repeated signal is the same: some send it to the group and to the process."""


class BodyInterrupted(KeyboardInterrupt):
    """Raised in the code of a ``with`` block by a signal, while the loop does not run."""


class Interrupts:
    """Catch `signals` while installed.

    :param on_caught: called in the handler itself, at the first signal.
    :param on_first: called in the loop with the first signal.
    :param on_insist: called in the loop when somebody at a terminal insists.
    :param in_body: tells, when the loop does not run, whether code of the ``with`` block does.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        signals: Iterable[int],
        guard: Guard,
        *,
        on_caught: Callable[[], object],
        on_first: Callable[[int], object],
        on_insist: Callable[[], object],
        in_body: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self.signals = tuple(signals)
        self._guard = guard
        self._on_caught = on_caught
        self._on_first = on_first
        self._on_insist = on_insist
        self._in_body = in_body
        # Not that of the code that a handler interrupts.
        self._context = copy_context()
        self.first: int | None = None
        """The first signal that was caught."""
        self._first_time = 0.0
        self._repeats = 0  # 1 while repeat() is under way, 2 when it is over
        self._replaced: dict[int, object] = {}
        self._descriptor: int | None = None
        self._pipe: tuple[int, int] | None = None

    def install(self) -> None:
        """Replace the handlers of the signals.

        :raises ValueError: outside of the main thread, or if a signal can't be caught.
        """
        if not self.signals:
            return
        if threading.current_thread() is not threading.main_thread():
            raise ParameterError(
                "entrypoint", "catch_signals", self.signals, "() outside of the main thread"
            )
        try:
            for signum in self.signals:
                self._replaced[signum] = set_handler(signum, self._caught)
        except (OSError, TypeError, ValueError):
            self.restore()
            raise ParameterError(
                "entrypoint", "catch_signals", self.signals, "signals that can be caught"
            ) from None
        self._open_wakeup()

    def detach(self) -> None:
        """Wake the loop no longer; to be called before it is closed."""
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
        with suppress(RuntimeError):  # somebody has closed the loop already
            self._loop.remove_reader(read)
        os.close(read)
        os.close(write)

    def restore(self) -> None:
        """Put the handlers back; to be called last of all, as signals may still come."""
        self.detach()
        outer = None
        while self._replaced:
            signum, handler = self._replaced.popitem()
            # A handler that was not installed from Python reads as None and can't be put back.
            if handler is not None:
                set_handler(signum, handler)
            if signum == self.first and isinstance(getattr(handler, "__self__", None), Interrupts):
                outer = signum
        if outer is not None:
            # It was meant for the process: now the entrypoint around this one has its turn.
            signal.raise_signal(outer)

    def disown(self) -> None:
        """Put the handlers back in a child that was forked off, and leave the loop alone."""
        self._descriptor = self._pipe = None
        for signum, handler in self._replaced.items():
            if handler is not None:
                set_handler(signum, handler)
        self._replaced.clear()

    def _open_wakeup(self) -> None:
        """Have signals wake the loop.

        The Python handler runs between two bytecodes. A signal that comes after the last one before
        the loop goes to sleep would not be handled until something else wakes it, unless it writes
        to a descriptor that the loop reads.
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

    # The handler, which may run at any point of the main thread.

    def _caught(self, signum: int, _frame: FrameType | None) -> None:
        block_is_busy = self._in_body() and not self._loop.is_running()
        if self._repeats == 1:
            self._repeats = 2
            if block_is_busy:
                raise BodyInterrupted
            return

        now = time.monotonic()
        if self.first is None:
            self.first, self._first_time = signum, now
            self._guard.ask()
            self._call_soon(self._on_first, signum)
            self._on_caught()
            return
        insists = signum == signal.SIGINT and now - self._first_time > SAME_SIGNAL
        if block_is_busy:
            if insists:
                raise BodyInterrupted
            return  # the first signal will get through to it, see repeat()
        if self._guard.blocked:
            name = signal.Signals(signum).name
            self._guard.die(f"{name} came again and the event loop has not turned since")
        self._guard.ask()
        if insists:
            self._call_soon(self._on_insist)

    def _call_soon(self, callback: Callable[..., object], *args: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: all is over but for the last lines
            self._loop.call_soon_threadsafe(callback, *args, context=self._context)

    def repeat(self) -> None:
        """Have the handler interrupt a block whose code does not come to run the loop, once.

        Other threads may call this, if they end before the handlers are restored.
        """
        main = threading.main_thread().ident
        if self.first is not None and main is not None and not self._repeats:
            self._repeats = 1
            signal.pthread_kill(main, self.first)
