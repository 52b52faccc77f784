"""Detach a forked child process from the entrypoints of its parent.

The child has a copy of the parent's memory, and one thread, the one that forked. Parent and child
share the descriptors. If the child changed the selector of the event loop, or wrote to the
descriptor that wakes the loop, it would change or wake the parent's loop.

Invariants:

* The thread of the exit watchdog does not run during a fork, so the child inherits no lock that
  this thread holds.
* Signals that an entrypoint catches are blocked from before the fork until the child has restored
  the previous handlers, so no signal of the child reaches the parent's loop.
"""

from __future__ import annotations

import asyncio
import os
import signal
from threading import get_ident

from svcrun._util.current_service import current_service
from svcrun._util.hints import TYPE_CHECKING
from svcrun._util.loop_internals import current_loop, propagate_exits
from svcrun._util.tasks import current_work

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcrun._runtime.exit_watchdog import ExitWatchdog
    from svcrun._runtime.os_signals import OSSignals

    _Entered = tuple[ExitWatchdog, OSSignals, asyncio.AbstractEventLoop, Callable[[], object]]

__all__ = ("register", "unregister")

# In the order in which the entrypoints were entered: an outer one is before its inner ones.
_entered: list[_Entered] = []
# The signal masks from before the fork, by thread: several threads may fork at the same time.
_saved_masks: dict[int, set[int]] = {}


def register(
    watchdog: ExitWatchdog,
    os_signals: OSSignals,
    loop: asyncio.AbstractEventLoop,
    on_child: Callable[[], object],
) -> None:
    """Register an entrypoint, so that each forked child is detached from it.

    :param on_child: called in the child, after the handlers of signals are restored.
    """
    _entered.append((watchdog, os_signals, loop, on_child))


def unregister(watchdog: ExitWatchdog) -> None:
    """Unregister the entrypoint of `watchdog`; do nothing if it is not registered."""
    _entered[:] = [entered for entered in _entered if entered[0] is not watchdog]


def _before_fork() -> None:
    if not _entered:
        return
    # Race: if a signal reached the child before it has restored the handlers, the child would write
    # the signal to the wakeup descriptor that it shares with the parent, and the parent would shut
    # down. A blocked signal stays pending until the child has restored the handlers.
    caught = {signum for _, os_signals, _, _ in _entered for signum in os_signals.signals}
    _saved_masks[get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, caught)
    for watchdog, _, _, _ in tuple(_entered):
        watchdog.stop_for_fork()


def _after_fork_in_parent() -> None:
    for watchdog, _, _, _ in tuple(_entered):
        watchdog.restart_after_fork()
    _unblock()


def _after_fork_in_child() -> None:
    if not _entered:
        return
    signal.set_wakeup_fd(-1)
    # Invariant: the innermost entrypoint is the first, because each restores the handlers that it
    # has replaced.
    while _entered:
        watchdog, os_signals, loop, on_child = _entered.pop()
        watchdog.reset_in_child()
        os_signals.reset_in_child()
        propagate_exits(loop)
        on_child()
    current_service.set(None)
    current_work.set(None)
    if current_loop() is not None:  # Python 3.12 and later do this themselves
        asyncio.set_event_loop(None)
    _unblock()


def _unblock() -> None:
    found = _saved_masks.pop(get_ident(), None)
    if found is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, found)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
