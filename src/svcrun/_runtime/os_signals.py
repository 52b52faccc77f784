"""Catch the signals that ask a process to end, and pass them on to the event loop.

A Python signal handler runs in the main thread, between two bytecodes of any code there, and that
code may hold locks. So the handler acquires no lock: it records the signal and schedules a callback
in the loop. While the code of a ``with`` block runs and the loop does not, a signal interrupts the
block with an exception. If the loop is blocked at a further signal, the handler ends the process.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import suppress
from contextvars import copy_context

from svcrun._runtime.foreign_handlers import (
    ChainedHandler,
    owner_of,
    unwatch_signals,
    watch_signals,
)
from svcrun._util.current_service import current_service, on_behalf_of
from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.loop_internals import wakeup_descriptor
from svcrun.errors import ParameterError, show

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from contextvars import Context
    from types import FrameType

    from svcrun._runtime.drain_delay import DrainDelay
    from svcrun._runtime.exit_watchdog import ExitWatchdog
    from svcrun.service.base import Service

log = logging.getLogger("svcrun.entrypoint")

__all__ = ("BlockInterrupted", "OSSignals")

SAME_SIGNAL = 1.0
"""Seconds after a signal within which another one is a duplicate.

Some process managers send a signal both to the process group and to the process.
"""


class BlockInterrupted(KeyboardInterrupt):
    """Interrupt the code of a ``with`` block at a signal, while the loop does not run."""


class OSSignals:
    """Catch signals from :meth:`install` to :meth:`restore`.

    :param loop: the loop of the entrypoint.
    :param signals: the numbers of the signals.
    :param watchdog: receives a ping at each signal, to check whether the loop is blocked.
    :param on_caught: called in the handler itself, at the first signal.
    :param on_first: called in the loop with the first signal.
    :param on_second_sigint: called in the loop at each further SIGINT that is no duplicate.
    :param in_block: returns whether the code of the block runs.
    :param services: returns the services that may have installed a handler.
    :param delay: the delay of the shutdown, which a second signal ends.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        signals: Iterable[int],
        watchdog: ExitWatchdog,
        *,
        on_caught: Callable[[], object],
        on_first: Callable[[int], object],
        on_second_sigint: Callable[[], object],
        in_block: Callable[[], bool],
        services: Callable[[], Iterable[Service]] = tuple,
        delay: DrainDelay | None = None,
    ) -> None:
        self._loop = loop
        self.signals = tuple(signals)
        self._watchdog = watchdog
        self._on_caught = on_caught
        self._on_first = on_first
        self._on_second_sigint = on_second_sigint
        self._in_block = in_block
        self._services = services
        self._delay = delay
        # The handler runs in the context of the code that it interrupts. Callbacks must not.
        self._context = copy_context()
        self.first: int | None = None
        """The first signal that was caught."""
        # The time of the last signal that was no duplicate and had an effect on the shutdown.
        self._counted_at = 0.0
        self.repeats = 0
        """1 once :meth:`repeat` has sent the signal again, 2 once the handler has received it."""
        self._replaced: dict[int, Any] = {}
        self._added: dict[int, tuple[Callable[..., object], tuple[object, ...], Context]] = {}
        self._warned: list[object] = []
        self._descriptor: int | None = None
        self._previous = -1  # the wakeup descriptor from before the entrypoint
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
                self._replaced[signum] = signal.signal(signum, self.handle)
        except (OSError, TypeError, ValueError):
            self.restore()
            raise ParameterError(
                "entrypoint", "catch_signals", self.signals, "signals that can be caught"
            ) from None
        self._open_wakeup()
        watch_signals(self._loop, self)

    def detach(self) -> None:
        """Stop waking the loop; call this before the loop is closed.

        The handlers stay installed, because signals may still arrive.
        """
        unwatch_signals(self._loop, self)
        self._added.clear()
        if self._descriptor is None:
            return
        current = signal.set_wakeup_fd(self._previous)
        if current not in (-1, self._descriptor):
            signal.set_wakeup_fd(current)  # other code has replaced the descriptor meanwhile
        self._descriptor = None
        if self._pipe is None:
            return
        read, write = self._pipe
        self._pipe = None
        with suppress(RuntimeError):  # the program has already closed the loop
            self._loop.remove_reader(read)
        os.close(read)
        os.close(write)

    def restore(self) -> None:
        """Restore the previous handlers; call this last, because signals may still arrive."""
        self.detach()
        outer = None
        while self._replaced:
            signum, handler = self._replaced.popitem()
            # Python reports a handler that C code has installed as None, and can't restore it.
            if handler is not None:
                signal.signal(signum, handler)
            if signum == self.first and _is_ours(handler):
                outer = signum
        if outer is not None:
            # The signal was sent to the process, so the outer entrypoint has to end as well.
            signal.raise_signal(outer)

    def reset_in_child(self) -> None:
        """Restore the previous handlers in a forked child, without touching the loop.

        Parent and child share the descriptors, so closing or changing one of them here would
        change the parent's loop.
        """
        self._descriptor = self._pipe = None
        unwatch_signals(self._loop, self)
        for signum, handler in self._replaced.items():
            if handler is not None:
                signal.signal(signum, handler)
        self._replaced.clear()

    def _open_wakeup(self) -> None:
        """Set the descriptor by which signals wake the loop.

        Race: Python runs a handler between two bytecodes. If a signal arrives after the last
        bytecode before ``select()``, its handler would wait until another event wakes the loop. The
        C handler of Python writes to this descriptor at once, so ``select()`` returns.
        """
        descriptor = wakeup_descriptor(self._loop)
        if descriptor == -1:
            return  # the loop sets a descriptor of its own whenever it runs
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

    def reset_wakeup(self) -> None:
        """Set the wakeup descriptor again after the loop has reset it."""
        if self._descriptor is not None:
            signal.set_wakeup_fd(self._descriptor, warn_on_full_buffer=False)

    def _read(self, descriptor: int) -> None:
        for signum in os.read(descriptor, 4096):
            self.on_wakeup(signum)

    # Invariant: the handler acquires no lock. It may run between any two bytecodes of the main
    # thread, even while that thread holds the lock.

    def handle(self, signum: int, _frame: FrameType | None) -> None:
        is_repetition = self.repeats == 1
        try:
            self._react(signum)
        finally:
            added = self._added.get(signum)
            if added is not None and not is_repetition:
                callback, args, context = added
                self._call_soon(callback, *args, context=context)

    def _react(self, signum: int) -> None:
        block_is_busy = self._in_block() and not self._loop.is_running()
        if self.repeats == 1:
            self.repeats = 2
            if block_is_busy:
                raise BlockInterrupted
            return

        now = time.monotonic()
        if self.first is None:
            self.first, self._counted_at = signum, now
            # The ping comes first: on_caught() sets an alarm that checks whether the loop answered.
            self._watchdog.ping()
            self._call_soon(self._on_first, signum)
            self._on_caught()
            return
        is_duplicate = now - self._counted_at <= SAME_SIGNAL
        insists = signum == signal.SIGINT and not is_duplicate
        if not block_is_busy and self._watchdog.is_blocked:
            name = signal.Signals(signum).name
            self._watchdog.exit_process(
                f"{name} came again and the event loop has not turned since"
            )
        if self._delay is not None and self._delay.is_running and not is_duplicate:
            self._counted_at = now
            self._delay.cut()
            self._call_soon(self._delay.end)
        elif not block_is_busy:
            self._watchdog.ping()
            if insists:
                self._call_soon(self._on_second_sigint)
        elif insists:
            raise BlockInterrupted
        # Without a further signal, repeat() interrupts a busy block with the first one.

    def _call_soon(
        self, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> None:
        with suppress(RuntimeError):  # the loop is closed, so the shutdown has completed
            self._loop.call_soon_threadsafe(callback, *args, context=context or self._context)

    # The handlers that services install.

    def previous_handler(self, signum: int) -> object:
        """Return the handler from before the entrypoint."""
        return self._replaced.get(signum)

    def add_handler(
        self, signum: int, callback: Callable[..., object], args: tuple[object, ...]
    ) -> None:
        """Call `callback` in the loop at each signal `signum`, after the entrypoint has reacted."""
        self._added[signum] = (callback, args, copy_context())
        self._warn(signum, current_service.get())

    def remove_handler(self, signum: int) -> bool:
        """Remove the callback for a signal, and return whether there was one."""
        return self._added.pop(signum, None) is not None

    def on_wakeup(self, signum: int) -> None:
        """React, in the loop, to a signal that woke it, unless :meth:`handle` has reacted.

        A service that calls ``signal.signal()`` replaces that handler.
        """
        if self._take_back(signum):
            self.handle(signum, None)

    def check(self) -> None:
        """Take back the signals whose handlers were replaced, and call the replacements as well."""
        for signum in self._replaced:
            self._take_back(signum)

    def _take_back(self, signum: int) -> bool:
        """Install the entrypoint's handler again, and return whether it had been replaced.

        From then on, the replacement is called as well, unless it is the default action.
        """
        if signum not in self._replaced:
            return False
        theirs = signal.getsignal(signum)
        if _is_ours(theirs):
            return False
        if theirs is signal.default_int_handler or theirs == signal.SIG_DFL:
            signal.signal(signum, self.handle)  # a service has removed the handler
            return True
        if not callable(theirs):
            return False
        signal.signal(signum, ChainedHandler(self, theirs))
        self._warn(signum, owner_of(theirs, self._services()))
        return True

    def _warn(self, signum: int, service: object) -> None:
        if service in self._warned:
            return
        self._warned.append(service)
        with on_behalf_of(service):
            log.warning(
                "%s installed a handler for %s; the signal still stops the entrypoint",
                "the program" if service is None else show(service),
                signal.Signals(signum).name,
            )

    def repeat(self) -> None:
        """Send the first signal again, once, to interrupt a block that does not run the loop.

        Only the main thread can raise an exception in the block, so the signal goes to that thread.
        Any thread may call this.

        Race: the call has to end before the handlers are restored. A signal that is sent later
        would run the previous handler, which may be the default action.
        """
        main = threading.main_thread().ident
        if self.first is not None and main is not None and not self.repeats:
            self.repeats = 1
            signal.pthread_kill(main, self.first)


def _is_ours(handler: object) -> bool:
    """Return whether a handler belongs to an entrypoint, this one or an outer one."""
    return isinstance(handler, ChainedHandler) or isinstance(
        getattr(handler, "__self__", None), OSSignals
    )
