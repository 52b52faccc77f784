"""Signals whose handlers are replaced while an entrypoint catches them.

A service may install a handler of its own: by ``loop.add_signal_handler()``, as hypercorn and
aiogram do, or by ``signal.signal()``, as uvicorn does. Neither must take the signal away from the
entrypoint. So the first is not passed on to the loop: the entrypoint calls such handlers itself.
The second can't be seen when it happens, but the loop is woken by each signal, whatever its
handler, and its number can be heard there.
"""

from __future__ import annotations

import inspect
import threading
from contextlib import suppress
from functools import partial

from svcrun.eager import listen_to_signals
from svcrun.guard import set_handler
from svcrun.hints import TYPE_CHECKING, Any
from svcrun.per_loop import PerLoop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from types import FrameType

    from svcrun.interrupts import Interrupts
    from svcrun.service.base import Service

__all__ = ("Chain", "close_ear", "open_ear", "owner_of")

# The newest one of a loop counts: an entrypoint inside of another one.
_listeners: PerLoop[Interrupts] = PerLoop()
_undo: dict[asyncio.AbstractEventLoop, Callable[[], None] | None] = {}


class Chain:
    """A handler that a service installed, after that of the entrypoint.

    Whoever puts back the entrypoint's own handler has taken this one away again.
    """

    def __init__(self, interrupts: Interrupts, theirs: Callable[[int, Any], object]) -> None:
        self.interrupts = interrupts
        self._theirs = theirs

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Call both."""
        is_repetition = self.interrupts.repeats == 1
        try:
            self.interrupts.caught(signum, frame)
        finally:
            if not is_repetition:
                self._theirs(signum, frame)


def open_ear(loop: asyncio.AbstractEventLoop, interrupts: Interrupts) -> None:
    """Tell `interrupts` of signals that wake `loop`, and of handlers that are added to it."""
    is_first = _listeners.get(loop) is None
    _listeners.add(loop, interrupts)
    if not is_first:
        return
    add, remove = loop.add_signal_handler, loop.remove_signal_handler
    _undo[loop] = undo = listen_to_signals(loop, partial(_heard, loop))
    if undo is None and type(loop).__module__.partition(".")[0] == "uvloop":
        for signum in interrupts.signals:
            # If the program has installed one by the loop before, that one stays.
            if getattr(interrupts.found(signum), "__self__", None) is not loop:
                add(signum, _heard, loop, signum)
                set_handler(signum, interrupts.caught)
    with suppress(AttributeError):  # the loop may have slots
        loop.add_signal_handler = partial(_add, loop, add)  # type: ignore[method-assign, assignment]
        loop.remove_signal_handler = partial(_remove, loop, remove)  # type: ignore[method-assign]


def close_ear(loop: asyncio.AbstractEventLoop, interrupts: Interrupts) -> None:
    """Tell it no longer.

    uvloop keeps what was added to it: to remove that would give the signal its default action for
    a moment.
    """
    _listeners.discard(loop, interrupts)
    if _listeners.get(loop) is not None or loop not in _undo:
        return
    undo = _undo.pop(loop)
    if undo is not None:
        undo()
    for name in ("add_signal_handler", "remove_signal_handler"):
        with suppress(AttributeError):
            delattr(loop, name)


def _heard(loop: asyncio.AbstractEventLoop, signum: int) -> None:
    interrupts = _listeners.get(loop)
    if interrupts is not None:
        interrupts.heard(signum)


def _add(
    loop: asyncio.AbstractEventLoop,
    add: Callable[..., None],
    sig: int,
    callback: Any,
    *args: Any,
) -> None:
    interrupts = _listeners.get(loop)
    if (
        interrupts is None
        or sig not in interrupts.signals
        or threading.current_thread() is not threading.main_thread()
        or inspect.iscoroutine(callback)
        or inspect.iscoroutinefunction(callback)
        or loop.is_closed()
    ):
        add(sig, callback, *args)  # or complains
    else:
        interrupts.share(sig, callback, args)


def _remove(loop: asyncio.AbstractEventLoop, remove: Callable[[int], bool], sig: int) -> bool:
    interrupts = _listeners.get(loop)
    if interrupts is None or sig not in interrupts.signals:
        removed = remove(sig)
        if interrupts is not None:
            interrupts.reopen_wakeup()  # asyncio closes it with the last handler
        return removed
    if interrupts.unshare(sig):
        return True
    if _undo.get(loop) is None:
        return False  # what uvloop has is ours, or its removal would give the signal away
    removed = remove(sig)  # from before the entrypoint
    set_handler(sig, interrupts.caught)
    interrupts.reopen_wakeup()
    return removed


def owner_of(handler: Any, services: Iterable[Service]) -> Service | None:
    """Return the service that installed `handler`, as far as the handler tells."""
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
