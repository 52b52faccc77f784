"""Count the log records that the writers of this process have written and dropped."""

from __future__ import annotations

import threading

__all__ = ("RecordCounts", "counts")


class RecordCounts:
    """The records of all writers, those of closed ones included. Any thread may use it.

    A record that is written by two handlers counts twice.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start at 0; a forked child calls this, because another thread may have held the lock."""
        self._lock = threading.Lock()
        self.written = 0
        """The number of records that were passed to a stream or a handler."""
        self.dropped = 0
        """The number of records that were lost: too many waited, or a write failed."""

    def add(self, *, written: int = 0, dropped: int = 0) -> None:
        """Count further records."""
        with self._lock:
            self.written += written
            self.dropped += dropped


counts = RecordCounts()
