"""Writers across ``os.fork()``, which takes no threads along.

Before a fork the writers end after the records that they have in hand, so that none of them is
inside a stream whose locks the child would inherit. The parent then starts them again. The child
begins with empty buffers: what was buffered is the parent's to write.
"""

from __future__ import annotations

import os
import sys
from time import monotonic
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

if TYPE_CHECKING:
    from svcrun.log.handler import ThreadedHandler

__all__ = ("forget", "watch")

_PATIENCE: Final = 0.2  # seconds that a fork waits for writers that are stuck

_running: WeakSet[ThreadedHandler] = WeakSet()
_resting: list[ThreadedHandler] = []


def watch(handler: ThreadedHandler) -> None:
    """Take note of a handler that starts its writer."""
    _running.add(handler)
    _flush_at_child_exit()


def forget(handler: ThreadedHandler) -> None:
    """Forget a handler whose writer ended for good."""
    _running.discard(handler)


def _before_fork() -> None:
    deadline = monotonic() + _PATIENCE
    running = list(_running)
    for handler in running:
        handler.ask_to_rest()
    _resting[:] = [handler for handler in running if handler.come_to_rest(deadline)]


def _after_fork_in_parent() -> None:
    for handler in _resting:
        handler.resume()
    _resting.clear()


def _after_fork_in_child() -> None:
    _resting.clear()
    for handler in list(_running):
        handler.reset()
    _running.clear()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
