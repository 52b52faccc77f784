"""Stop the writers of the log before ``os.fork()``, and restart them after it.

A child process has only the thread that forked. If a writer thread held the lock of a stream during
the fork, the child would inherit the lock and never release it. So each writer thread ends after
its current record, and the parent restarts it after the fork. The child starts with empty buffers,
because the parent writes the buffered records.

A fork does not wait for a slow sink, such as a full pipe. The writer of a slow sink keeps running
in the parent, and the child reopens the stream.

Invariants:

* Between the two handlers of a fork, no stopped writer starts a thread.
* A record is written by the parent or by the child, never by both.
"""

from __future__ import annotations

import os
import sys
import threading
from time import monotonic, sleep
from weakref import WeakSet

from svcrun._util.hints import TYPE_CHECKING, Final, Protocol
from svcrun.log.counts import counts

if TYPE_CHECKING:

    class Writer(Protocol):
        """A writer whose thread must not run during a fork; see :mod:`svcrun.log.writer`."""

        def request_stop_for_fork(self) -> None: ...
        def wait_for_stop(self, deadline: float) -> bool: ...
        def restart_after_fork(self) -> None: ...
        def reset(self) -> None: ...
        def reopen_stream(self) -> None: ...
        def wait(self) -> bool: ...


__all__ = ("forget", "wait_until_gone", "watch")

_STOP_TIMEOUT: Final = 0.2  # seconds that a fork waits for writers that make progress

# Seconds that a fork waits, after the last bytecode of a thread, until the kernel has removed it.
_EXIT_TIME: Final = 0.1
_EXIT_STEP: Final = 0.0002

_running: WeakSet[Writer] = WeakSet()
_stopped: list[Writer] = []
_child_exit_watched = 0  # the id of the process whose end flushes the writers


def watch(writer: Writer) -> None:
    """Register a writer before its thread starts."""
    _running.add(writer)
    _watch_child_exit()


def forget(writer: Writer) -> None:
    """Unregister a writer whose thread will not start again."""
    _running.discard(writer)


def wait_until_gone(*numbers: int | None) -> None:
    """Wait until the kernel has removed threads.

    Race: ``Thread.join()`` returns a moment before the kernel removes the thread, and Python warns
    of a fork while the kernel counts a second thread.

    :param numbers: the native identifiers of the threads; None and 0 are skipped.
    """
    end = monotonic() + _EXIT_TIME
    for number in filter(None, numbers):
        while os.path.exists(f"/proc/self/task/{number}") and monotonic() < end:
            sleep(_EXIT_STEP)


# Held during a fork. Race: if two threads forked at the same time, the first to finish would
# restart the writers that the second has stopped. The lock is reentrant, because a signal handler
# may fork while its thread forks.
_forking = threading.RLock()


def _before_fork() -> None:
    _forking.acquire()
    deadline = monotonic() + _STOP_TIMEOUT
    running = list(_running)
    for writer in running:
        writer.request_stop_for_fork()
    _stopped[:] = [writer for writer in running if writer.wait_for_stop(deadline)]


def _after_fork_in_parent() -> None:
    for writer in _stopped:
        writer.restart_after_fork()
    _stopped.clear()
    _forking.release()


def _after_fork_in_child() -> None:
    global _forking  # noqa: PLW0603 - each process has its own
    _forking = threading.RLock()
    counts.reset()
    for writer in list(_running):
        writer.reset()
        if writer not in _stopped:
            writer.reopen_stream()
    _stopped.clear()
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


def _watch_child_exit() -> None:
    """Flush the writers at the end of a ``multiprocessing`` child, which skips ``atexit``."""
    global _child_exit_watched  # noqa: PLW0603 - each process has its own
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None or _child_exit_watched == os.getpid():
        return
    _child_exit_watched = os.getpid()
    from multiprocessing.util import Finalize

    Finalize(None, _flush_running, exitpriority=0)


def _flush_running() -> None:
    for writer in list(_running):
        writer.wait()
