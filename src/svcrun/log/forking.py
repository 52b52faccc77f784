"""Writers across ``os.fork()``, which takes no threads along.

Before a fork the writers end after the record that they have in hand, so that none of them is
inside a stream whose locks the child would inherit. The parent then starts them again. The child
begins with empty buffers: what was buffered is the parent's to write.

A fork does not wait for a slow sink, such as a pipe that is full. Its writer goes on in the parent,
and the child opens the stream anew.
"""

from __future__ import annotations

import os
import sys
import threading
from time import monotonic, sleep
from weakref import WeakSet

from svcrun.hints import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from svcrun.log.writer import Writer

__all__ = ("forget", "see_off", "watch")

_PATIENCE: Final = 0.2  # seconds that a fork waits for writers that are making progress

# How long a thread may take from its last line of ours until it is gone, in seconds.
_EXIT_TIME: Final = 0.1
_EXIT_STEP: Final = 0.0002

_running: WeakSet[Writer] = WeakSet()
_resting: list[Writer] = []
_child_exit_watched = 0  # the process that flushes when it ends


def watch(writer: Writer) -> None:
    """Take note of a writer whose thread starts."""
    _running.add(writer)
    _watch_child_exit()


def forget(writer: Writer) -> None:
    """Forget a writer whose thread ended for good."""
    _running.discard(writer)


def see_off(*numbers: int | None) -> None:
    """Wait until threads are gone, by their native identifiers; a fork warns of those that are not.

    Python knows of their end a moment earlier than the system, which is asked for their number.
    """
    end = monotonic() + _EXIT_TIME
    for number in filter(None, numbers):
        while os.path.exists(f"/proc/self/task/{number}") and monotonic() < end:
            sleep(_EXIT_STEP)


# From before a fork until after it: of two forks at a time, each would take the rest of the writers
# for its own. A signal handler may fork in the middle of another fork of its thread.
_forking = threading.RLock()


def _before_fork() -> None:
    _forking.acquire()
    deadline = monotonic() + _PATIENCE
    running = list(_running)
    for writer in running:
        writer.ask_to_rest()
    _resting[:] = [writer for writer in running if writer.come_to_rest(deadline)]


def _after_fork_in_parent() -> None:
    for writer in _resting:
        writer.resume()
    _resting.clear()
    _forking.release()


def _after_fork_in_child() -> None:
    global _forking  # noqa: PLW0603 - it belongs to the process
    _forking = threading.RLock()
    for writer in list(_running):
        writer.reset()
        if writer not in _resting:
            writer.renew_stream()
    _resting.clear()
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


def _watch_child_exit() -> None:
    """Have a process of ``multiprocessing`` write its records: it ends without ``atexit``."""
    global _child_exit_watched  # noqa: PLW0603 - it belongs to the process
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None or _child_exit_watched == os.getpid():
        return
    _child_exit_watched = os.getpid()
    from multiprocessing.util import Finalize

    Finalize(None, _flush_running, exitpriority=0)


def _flush_running() -> None:
    for writer in list(_running):
        writer.wait()
