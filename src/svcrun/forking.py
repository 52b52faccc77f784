"""Entrypoints across ``os.fork()``: a child process owns nothing of its parent's.

It has the parent's memory, and one thread, the one that forked. Descriptors are shared: what the
child would do to an event loop, or write to the descriptor that wakes it, the parent would feel.
"""

from __future__ import annotations

import asyncio
import os
import signal
from threading import get_ident

from svcrun.current import current_service
from svcrun.eager import current_loop, let_exits_out
from svcrun.hints import TYPE_CHECKING
from svcrun.tasks import current_work

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcrun.guard import Guard
    from svcrun.interrupts import Interrupts

    _Entered = tuple[Guard, Interrupts, asyncio.AbstractEventLoop, Callable[[], object]]

__all__ = ("forget", "watch")

_entered: list[_Entered] = []
# By thread: several may fork at the same time.
_found_masks: dict[int, set[int]] = {}


def watch(
    guard: Guard,
    interrupts: Interrupts,
    loop: asyncio.AbstractEventLoop,
    on_child: Callable[[], object],
) -> None:
    """Take what belongs to an entrypoint across every fork from now on.

    :param on_child: called in the child.
    """
    _entered.append((guard, interrupts, loop, on_child))


def forget(guard: Guard) -> None:
    """Do so no longer."""
    _entered[:] = [entered for entered in _entered if entered[0] is not guard]


def _before_fork() -> None:
    if not _entered:
        return
    # A signal that reached the child before its handlers are restored would be taken for the
    # parent's, which reads the descriptor that both have. It waits until they are.
    caught = {signum for _, interrupts, _, _ in _entered for signum in interrupts.signals}
    _found_masks[get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, caught)
    for guard, _, _, _ in tuple(_entered):
        guard.rest()


def _after_fork_in_parent() -> None:
    for guard, _, _, _ in tuple(_entered):
        guard.resume()
    _unblock()


def _after_fork_in_child() -> None:
    if not _entered:
        return
    signal.set_wakeup_fd(-1)
    # The newest one first: each puts back the handlers that it found.
    while _entered:
        guard, interrupts, loop, on_child = _entered.pop()
        guard.disown()
        interrupts.disown()
        let_exits_out(loop)
        on_child()
    current_service.set(None)
    current_work.set(None)
    if current_loop() is not None:  # Python 3.12 and later do this themselves
        asyncio.set_event_loop(None)
    _unblock()


def _unblock() -> None:
    found = _found_masks.pop(get_ident(), None)
    if found is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, found)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
