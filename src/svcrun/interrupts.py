"""The signals that ask a process to end."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import logging
import os
import signal
import threading
import time
from contextlib import suppress
from contextvars import copy_context

from svcrun.current import current_service, on_behalf_of
from svcrun.eager import wakeup_descriptor
from svcrun.errors import ParameterError, show
from svcrun.guard import set_handler
from svcrun.hints import TYPE_CHECKING
from svcrun.loop_signals import Chain, close_ear, open_ear, owner_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from contextvars import Context
    from types import FrameType

    from svcrun.guard import Guard
    from svcrun.service.base import Service

log = logging.getLogger(__name__)

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
    :param services: returns those that may have installed a handler.
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
        services: Callable[[], Iterable[Service]] = tuple,
    ) -> None:
        self._loop = loop
        self.signals = tuple(signals)
        self._guard = guard
        self._on_caught = on_caught
        self._on_first = on_first
        self._on_insist = on_insist
        self._in_body = in_body
        self._services = services
        # Not that of the code that a handler interrupts.
        self._context = copy_context()
        self.first: int | None = None
        """The first signal that was caught."""
        self._first_time = 0.0
        self.repeats = 0
        """1 while :meth:`repeat` is under way, 2 when it is over."""
        self._replaced: dict[int, object] = {}
        self.caught = self._handle  # bound once
        self._shared: dict[int, tuple[Callable[..., object], tuple[object, ...], Context]] = {}
        self._warned: list[Service | None] = []
        self._descriptor: int | None = None
        self._previous = -1  # the descriptor that was there before
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
                self._replaced[signum] = set_handler(signum, self.caught)
        except (OSError, TypeError, ValueError):
            self.restore()
            raise ParameterError(
                "entrypoint", "catch_signals", self.signals, "signals that can be caught"
            ) from None
        self._open_wakeup()
        open_ear(self._loop, self)

    def detach(self) -> None:
        """Wake the loop no longer; to be called before it is closed."""
        close_ear(self._loop, self)
        self._shared.clear()
        if self._descriptor is None:
            return
        current = signal.set_wakeup_fd(self._previous)
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
            if signum == self.first and _is_ours(handler):
                outer = signum
        if outer is not None:
            # It was meant for the process: now the entrypoint around this one has its turn.
            signal.raise_signal(outer)

    def disown(self) -> None:
        """Put the handlers back in a child that was forked off, and leave the loop alone."""
        self._descriptor = self._pipe = None
        close_ear(self._loop, self)
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
        descriptor = wakeup_descriptor(self._loop)
        if descriptor == -1:
            return  # the loop does it whenever it runs
        if descriptor is not None:
            self._set_descriptor(descriptor)
            return
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        self._loop.add_reader(read, self._read, read)
        self._pipe = (read, write)
        self._set_descriptor(write)

    def _set_descriptor(self, descriptor: int) -> None:
        self._previous = signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
        self._descriptor = descriptor

    def reopen_wakeup(self) -> None:
        """Have signals wake the loop again, after another one has ended that."""
        if self._descriptor is not None:
            signal.set_wakeup_fd(self._descriptor, warn_on_full_buffer=False)

    def _read(self, descriptor: int) -> None:
        for signum in os.read(descriptor, 4096):
            self.heard(signum)

    # The handler, which may run at any point of the main thread.

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        is_repetition = self.repeats == 1
        try:
            self._react(signum)
        finally:
            shared = self._shared.get(signum)
            if shared is not None and not is_repetition:
                callback, args, context = shared
                self._call_soon(callback, *args, context=context)

    def _react(self, signum: int) -> None:
        block_is_busy = self._in_body() and not self._loop.is_running()
        if self.repeats == 1:
            self.repeats = 2
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

    def _call_soon(
        self, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> None:
        with suppress(RuntimeError):  # the loop is closed: all is over but for the last lines
            self._loop.call_soon_threadsafe(callback, *args, context=context or self._context)

    # Handlers that services install.

    def found(self, signum: int) -> object:
        """Return the handler from before the entrypoint."""
        return self._replaced.get(signum)

    def share(self, signum: int, callback: Callable[..., object], args: tuple[object, ...]) -> None:
        """Have `callback` called in the loop at each such signal as well."""
        self._shared[signum] = (callback, args, copy_context())
        self._warn(signum, current_service.get())

    def unshare(self, signum: int) -> bool:
        """Take that back, and return whether there was something to take back."""
        return self._shared.pop(signum, None) is not None

    def heard(self, signum: int) -> None:
        """React, in the loop, to a signal that may have another handler by now."""
        if self._take_back(signum):
            self.caught(signum, None)

    def check(self) -> None:
        """Look whether handlers were replaced."""
        for signum in self._replaced:
            self._take_back(signum)

    def _take_back(self, signum: int) -> bool:
        """Return whether the handler of a signal was another one, which is called as well now."""
        if signum not in self._replaced:
            return False
        theirs = _signal.getsignal(signum)
        if _is_ours(theirs):
            return False
        if theirs is signal.default_int_handler or theirs == signal.SIG_DFL:
            set_handler(signum, self.caught)  # taken away, not replaced
            return True
        if not callable(theirs):
            return False
        set_handler(signum, Chain(self, theirs))
        self._warn(signum, owner_of(theirs, self._services()))
        return True

    def _warn(self, signum: int, service: Service | None) -> None:
        if service in self._warned:
            return
        self._warned.append(service)
        with on_behalf_of(service):
            log.warning(
                "%s installed a handler of %s; the signal ends the entrypoint all the same",
                "the program" if service is None else show(service),
                signal.Signals(signum).name,
            )

    def repeat(self) -> None:
        """Have the handler interrupt a block whose code does not come to run the loop, once.

        Other threads may call this, if they end before the handlers are restored.
        """
        main = threading.main_thread().ident
        if self.first is not None and main is not None and not self.repeats:
            self.repeats = 1
            signal.pthread_kill(main, self.first)


def _is_ours(handler: object) -> bool:
    """Return whether a handler is that of an entrypoint, this one or another."""
    return isinstance(handler, Chain) or isinstance(getattr(handler, "__self__", None), Interrupts)
