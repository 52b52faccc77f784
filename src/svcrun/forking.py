"""Entrypoints across ``os.fork()``: the child process owns no entrypoint of its parent.

The child has a copy of the parent's memory, and one thread, the one that forked. Descriptors are
shared: if the child changed the event loop's selector, or wrote to the descriptor that wakes the
loop, it would change or wake the parent's loop.

Invariants:

* The exit watchdog does not run during a fork, so the child inherits no lock that it holds.
* Signals that an entrypoint catches are blocked from before the fork until the child has restored
  the previous handlers, so no signal of the child reaches the parent's loop.
"""

from __future__ import annotations

import asyncio
import os
import signal
from threading import get_ident, main_thread

from svcrun import stray
from svcrun.current import current_service
from svcrun.eager import current_loop
from svcrun.hints import TYPE_CHECKING, Any
from svcrun.per_loop import running_loop
from svcrun.tasks import current_work

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcrun.guard import Guard
    from svcrun.interrupts import Interrupts

    _Entered = tuple[Guard, Interrupts, asyncio.AbstractEventLoop, Callable[[], object]]
    _Found = tuple[
        set[int],
        asyncio.AbstractEventLoop | None,
        asyncio.Task[Any] | None,
        set[asyncio.Task[Any]],
        bool,
    ]

__all__ = ("forget", "watch")

_entered: list[_Entered] = []
# By thread, as several may fork at the same time: the mask of signals, the loop that runs there,
# the task that forks, all tasks of that loop, and whether the thread is the main one.
_found: dict[int, _Found] = {}


def watch(
    guard: Guard,
    interrupts: Interrupts,
    loop: asyncio.AbstractEventLoop,
    on_child: Callable[[], object],
) -> None:
    """Register an entrypoint, so that each forked child is detached from it.

    :param on_child: called in the child, after the handlers of signals are restored.
    """
    _entered.append((guard, interrupts, loop, on_child))


def forget(guard: Guard) -> None:
    """Unregister the entrypoint of `guard`."""
    _entered[:] = [entered for entered in _entered if entered[0] is not guard]


def _before_fork() -> None:
    if not _entered:
        return
    # Race: if a signal reached the child before its handlers are restored, the child would write it
    # to the wakeup descriptor that it shares with the parent, and the parent would shut down. The
    # signal stays pending until the child has restored the handlers.
    caught = {signum for _, interrupts, _, _ in _entered for signum in interrupts.signals}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, caught)
    loop = running_loop()
    task = None if loop is None else asyncio.current_task()
    tasks = set() if loop is None else asyncio.all_tasks()
    thread = get_ident()
    _found[thread] = (mask, loop, task, tasks, thread == main_thread().ident)
    for guard, _, _, _ in tuple(_entered):
        guard.stop_for_fork()


def _after_fork_in_parent() -> None:
    for guard, _, _, _ in tuple(_entered):
        guard.restart_after_fork()
    _unblock()


def _after_fork_in_child() -> None:
    if not _entered:
        return
    signal.set_wakeup_fd(-1)
    loops = {loop for _, _, loop, _ in _entered}
    # The innermost entrypoint first: each restores the handlers that it replaced.
    while _entered:
        guard, interrupts, _, on_child = _entered.pop()
        guard.reset_in_child()
        interrupts.reset_in_child()
        on_child()
    for loop in loops:
        stray.disown(loop)
    if (found := _found.get(get_ident())) is not None:
        _, running, task, tasks, is_main = found
        if running in loops:
            stray.catch(running, task, tasks)
        elif not is_main:
            stray.mark_thread()
    current_service.set(None)
    current_work.set(None)
    if current_loop() is not None:  # Python 3.12 and later do this themselves
        asyncio.set_event_loop(None)
    _unblock()


def _unblock() -> None:
    found = _found.pop(get_ident(), None)
    if found is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, found[0])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
