"""Locks that any thread may release, to wake the thread of a writer."""

from __future__ import annotations

import threading
from contextlib import suppress

__all__ = ("FlushMarker", "acquired_lock", "release")

# Not threading.Event: its set() acquires a lock. A signal handler that logs may interrupt set() in
# its own thread, and would then wait for this lock without end.


def acquired_lock() -> threading.Lock:
    """Return a lock that is acquired, so that the next ``acquire()`` waits for :func:`release`."""
    lock = threading.Lock()
    lock.acquire()
    return lock


def release(lock: threading.Lock) -> None:
    """Release a lock, if it is acquired."""
    if lock.locked():
        with suppress(RuntimeError):  # another thread has just released it
            lock.release()


class FlushMarker:
    """An entry in the buffer that is reached when all records before it are written.

    :param last: whether the writer ends at the marker.
    :ivar reached: a lock that is released when the marker is reached.
    """

    __slots__ = ("last", "reached")

    def __init__(self, *, last: bool = False) -> None:
        self.last = last
        self.reached = acquired_lock()
