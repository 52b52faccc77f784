"""Catch signals although a service replaces the handler of the entrypoint.

A service may install a handler of its own: by ``loop.add_signal_handler()``, as hypercorn and
aiogram do, or by ``signal.signal()``, as uvicorn does. The entrypoint must receive the signal in
both cases. The loop's method is wrapped, so that the entrypoint calls such handlers itself. A call
of ``signal.signal()`` can't be intercepted. But Python writes the number of each signal to the
wakeup descriptor of the loop, even if the handler is foreign. The entrypoint reads the number
there.

Race: a signal between ``signal.signal()`` and the next iteration of the loop runs the foreign
handler alone. The wakeup then reports it, and the entrypoint reacts one iteration later.
"""

from __future__ import annotations

import inspect
import signal
import threading
from contextlib import suppress
from functools import partial

from svcrun._util.hints import TYPE_CHECKING, Any, Protocol
from svcrun._util.loop_internals import listen_to_signals
from svcrun._util.per_loop import PerLoop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from types import FrameType

    from svcrun.service.base import Service

__all__ = ("ChainedHandler", "SignalOwner", "owner_of", "unwatch_signals", "watch_signals")


class SignalOwner(Protocol):
    """The signals that one entrypoint catches: :class:`svcrun._runtime.os_signals.OSSignals`."""

    signals: tuple[int, ...]
    repeats: int

    def handle(self, signum: int, frame: FrameType | None, /) -> None:
        """React to a signal, in its handler."""

    def on_wakeup(self, signum: int) -> None:
        """React, in the loop, to a signal that woke the loop."""

    def previous_handler(self, signum: int) -> object:
        """Return the handler from before the entrypoint."""

    def add_handler(
        self, signum: int, callback: Callable[..., object], args: tuple[object, ...]
    ) -> None:
        """Call `callback` in the loop at each such signal."""

    def remove_handler(self, signum: int) -> bool:
        """Remove the callback for a signal, and return whether there was one."""

    def reset_wakeup(self) -> None:
        """Set the wakeup descriptor again."""


# Entrypoints may be nested: the innermost one of a loop receives the signals.
_listeners: PerLoop[SignalOwner] = PerLoop()
# The loops that are watched, each with the function that ends listen_to_signals(), or None if the
# loop is not asyncio's own.
_undo: dict[asyncio.AbstractEventLoop, Callable[[], None] | None] = {}


class ChainedHandler:
    """Call the entrypoint's handler, then the handler that a service installed.

    A service may later restore the handler that it found. That is the entrypoint's own handler, so
    the restoration removes this object.
    """

    def __init__(self, os_signals: SignalOwner, theirs: Callable[[int, Any], object]) -> None:
        self.os_signals = os_signals
        self._theirs = theirs

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Call both handlers, the second one even if the first one raises.

        A signal that the entrypoint has sent again is for its own handler alone: the service has
        received it already.
        """
        is_repetition = self.os_signals.repeats == 1
        try:
            self.os_signals.handle(signum, frame)
        finally:
            if not is_repetition:
                self._theirs(signum, frame)


def watch_signals(loop: asyncio.AbstractEventLoop, os_signals: SignalOwner) -> None:
    """Report to `os_signals` the signals that wake `loop`, and the handlers added to the loop."""
    is_first = _listeners.get(loop) is None
    _listeners.add(loop, os_signals)
    if not is_first:
        return
    add, remove = loop.add_signal_handler, loop.remove_signal_handler
    _undo[loop] = undo = listen_to_signals(loop, partial(_on_wakeup, loop))
    if undo is None and type(loop).__module__.partition(".")[0] == "uvloop":
        for signum in os_signals.signals:
            # Keep a handler that the program added to the loop before the entrypoint.
            if getattr(os_signals.previous_handler(signum), "__self__", None) is not loop:
                add(signum, _on_wakeup, loop, signum)
                signal.signal(signum, os_signals.handle)
    with suppress(AttributeError):  # the loop may have slots
        loop.add_signal_handler = partial(_add, loop, add)  # type: ignore[method-assign, assignment]
        loop.remove_signal_handler = partial(_remove, loop, remove)  # type: ignore[method-assign]


def unwatch_signals(loop: asyncio.AbstractEventLoop, os_signals: SignalOwner) -> None:
    """Stop reporting signals and handlers of `loop` to `os_signals`.

    Race: removing a handler from uvloop sets the default action for a moment. A signal within that
    moment would kill the process, so handlers added to uvloop stay there.
    """
    _listeners.discard(loop, os_signals)
    if _listeners.get(loop) is not None or loop not in _undo:
        return
    undo = _undo.pop(loop)
    if undo is not None:
        undo()
    for name in ("add_signal_handler", "remove_signal_handler"):
        with suppress(AttributeError):
            delattr(loop, name)


def _on_wakeup(loop: asyncio.AbstractEventLoop, signum: int) -> None:
    os_signals = _listeners.get(loop)
    if os_signals is not None:
        os_signals.on_wakeup(signum)


def _add(
    loop: asyncio.AbstractEventLoop,
    add: Callable[..., None],
    sig: int,
    callback: Any,
    *args: Any,
) -> None:
    os_signals = _listeners.get(loop)
    if (
        os_signals is None
        or sig not in os_signals.signals
        or threading.current_thread() is not threading.main_thread()
        or inspect.iscoroutine(callback)
        or inspect.iscoroutinefunction(callback)
        or loop.is_closed()
    ):
        add(sig, callback, *args)  # raises for arguments that are not accepted
    else:
        os_signals.add_handler(sig, callback, args)


def _remove(loop: asyncio.AbstractEventLoop, remove: Callable[[int], bool], sig: int) -> bool:
    os_signals = _listeners.get(loop)
    if os_signals is None or sig not in os_signals.signals:
        removed = remove(sig)
        if os_signals is not None:
            # asyncio resets the wakeup descriptor when it removes its last handler.
            os_signals.reset_wakeup()
        return removed
    if os_signals.remove_handler(sig):
        return True
    if _undo.get(loop) is None:
        # Race: uvloop has the entrypoint's handler. Removing it would set the default action for a
        # moment, in which the signal would kill the process.
        return False
    removed = remove(sig)  # the program added it before the entrypoint
    signal.signal(sig, os_signals.handle)
    os_signals.reset_wakeup()
    return removed


def owner_of(handler: Any, services: Iterable[Service]) -> Service | None:
    """Return the service that has installed `handler`, or None if the handler does not show it.

    A handler shows its service if it is a method of the service or of an object in an attribute of
    the service, or if it is a function that is defined in the class of the service or in a base.
    """
    bound_to: object = getattr(handler, "__self__", None)
    function: object = getattr(handler, "__func__", handler)
    name: str = getattr(function, "__qualname__", "")
    module: object = getattr(function, "__module__", None)
    for service in services:
        if bound_to is service:
            return service
        if bound_to is not None and any(one is bound_to for one in vars(service).values()):
            return service
        for cls in type(service).__mro__:
            if cls.__module__.startswith("svcrun."):
                break
            if cls.__module__ == module and name.startswith(f"{cls.__qualname__}."):
                return service
    return None
