"""Buffer log records, and write them in a thread.

Invariant: a log call holds no lock. It appends to a ``deque`` and, if the thread sleeps, releases
the lock that the thread waits for. Both are atomic, so a signal handler or a destructor may log in
the middle of another log call.
"""

from __future__ import annotations

import threading
from _thread import start_new_thread
from collections import deque
from itertools import count
from threading import get_ident, get_native_id
from time import monotonic

from svcrun._util.hints import TYPE_CHECKING, Final
from svcrun.log import forking
from svcrun.log.counts import counts
from svcrun.log.sinks import warn
from svcrun.log.streams import write_to_stderr
from svcrun.log.wakeup import FlushMarker, acquired_lock, release

if TYPE_CHECKING:
    from logging import LogRecord

    from svcrun.log.sinks import Sink

__all__ = ("THREAD_NAME", "Writer", "writing_threads")

THREAD_NAME: Final = "svcrun-log"

#: Without a time limit, a writer is abandoned if it writes nothing for so many seconds.
PATIENCE: Final = 5.0

_POLL_INTERVAL: Final = 0.005  # seconds between two checks whether a sink has become slow

_BATCH: Final = 1024  # the most records of one call of a sink

#: The threads that are in a sink. A record that a handler logs while it writes would be written by
#: the same handler, and so on without end.
writing_threads: set[int] = set()


class Writer:
    """Write records to a sink, in a thread that the first record starts.

    The thread repeats three steps. It sleeps until the buffer has a record. It collects further
    records for ``flush_interval`` seconds, or until there are ``buffer_size``. It writes them.

    :param sink: the sink, which never raises.
    :param buffer_size: the number of records that ends the collection.
    :param flush_interval: the longest time of the collection, in seconds.
    :param buffer_limit: the most records in the buffer. Further records are dropped.
    :ivar buffer: the buffer. A log call appends a record; if the buffer then has more records than
        the threshold, it calls :meth:`wake`.
    :ivar threshold: the thread sets it to the number of records that it need not know of. It does
        so before it checks the buffer a last time and sleeps, so no record is missed.
    """

    def __init__(
        self, sink: Sink, *, buffer_size: int, flush_interval: float, buffer_limit: int
    ) -> None:
        self._sink = sink
        self._size = buffer_size
        self._interval = flush_interval
        self._limit = buffer_limit
        self.buffer: deque[LogRecord | FlushMarker] = deque()
        self._closing = threading.Lock()  # acquired by the first call of close()
        self._closed = False
        self.reset()

    def reset(self) -> None:
        """Start afresh with an empty buffer and no thread; a forked child calls this."""
        writing_threads.clear()
        self.buffer.clear()
        self._sink.paused = False
        self._thread: threading.Thread | None = None
        self._launcher = 0  # the native identifier of the thread that started the thread
        self.threshold = 0
        self._flush_requested = False
        self._wake_lock = acquired_lock()  # released to wake the thread
        self._thread_slot = threading.Lock()  # held while a thread runs, or must not start
        self._in_sink = threading.Lock()
        self._stop_lock = acquired_lock()  # released to request the end of the thread
        self._stopped_lock = acquired_lock()  # released by the thread when it accepts that request
        self._batch = 0  # the number of records in the sink
        self._written = 0
        self._drops = count()  # next() is atomic, unlike `+= 1`
        self._drops_known = 0

    @property
    def abandoned(self) -> bool:
        """Whether the writer was closed with records unwritten."""
        return self._sink.abandoned

    def wake(self) -> None:
        """Wake the thread, or start it; called if the buffer exceeds the threshold."""
        if len(self.buffer) > self._limit:
            self._drop()
        if self._closed:
            self._write_here()
        elif self._thread_slot.acquire(blocking=False):
            self._start()
        else:
            release(self._wake_lock)

    def flush_soon(self) -> None:
        """Make the thread write the buffered records now; return at once."""
        if self.buffer:
            self._flush_requested = True
            self.wake()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all records buffered before this call are written; return whether they are.

        :param timeout: seconds to wait; by default, wait as long as the sink makes progress.
        """
        if self.abandoned or get_ident() in writing_threads:  # the thread would wait for itself
            return False
        if not self.buffer and not self._thread_slot.locked():
            return True
        return self._wait_for_marker(FlushMarker(), timeout)

    def close(self, timeout: float | None = None) -> None:
        """Write all records and end the thread; after the time limit, abandon the thread.

        From then on, each log call writes its own record.

        :param timeout: seconds to wait; by default, wait as long as the sink makes progress.
        """
        if not self._closing.acquire(blocking=False):
            return
        if self._thread_slot.acquire(blocking=False):
            # There is no thread, and while the slot is held, none can start.
            self._closed = True
            self.threshold = -1
            self._write_here()
            forking.forget(self)
            return
        # A handler that closes itself while it writes would wait for its own thread.
        is_own_thread = get_ident() in writing_threads
        if not is_own_thread and self._wait_for_marker(FlushMarker(last=True), timeout):
            self._join()
        else:
            self._abandon()

    def _drop(self) -> None:
        try:
            # The newest entry, because the thread takes the oldest ones at the same time.
            newest = self.buffer.pop()
        except IndexError:  # the thread has just emptied the buffer
            return
        if isinstance(newest, FlushMarker):
            self.buffer.append(newest)
        else:
            next(self._drops)

    def _start(self) -> None:
        """Start the thread without waiting for it.

        Race: ``Thread.start()`` waits, and acquires locks. A signal handler that logs may have
        interrupted the thread that holds these locks. So another thread calls it.
        """
        try:
            forking.watch(self)
            start_new_thread(self._launch, ())
        except RuntimeError:  # no thread can start, for example at the end of the interpreter
            self._write_without_thread()
        except BaseException:  # KeyboardInterrupt
            self._thread_slot.release()
            raise

    def _launch(self) -> None:
        self._launcher = get_native_id()
        try:
            threading.Thread(target=self._serve, name=THREAD_NAME, daemon=True).start()
        except RuntimeError:
            self._write_without_thread()

    def _write_without_thread(self) -> None:
        """Write in place of the thread, because :meth:`close` may be waiting for the thread."""
        while True:
            self._write_here()
            self._thread_slot.release()
            # Race: a log call that found the slot taken relies on the thread to write its record.
            if not self.buffer or not self._thread_slot.acquire(blocking=False):
                return

    def _write_here(self) -> None:
        """Write in this thread, unless another thread does; that one empties the buffer."""
        while self.buffer:
            if self.abandoned:
                self._discard()
            elif self._in_sink.acquire(blocking=False):
                try:
                    self._write_batch()
                finally:
                    self._in_sink.release()
            else:
                return

    def _wait_for_marker(self, marker: FlushMarker, timeout: float | None) -> bool:
        """Put a marker into the buffer, and return whether it is reached in time."""
        self.buffer.append(marker)
        self.flush_soon()
        if timeout is not None:
            reached = marker.reached.acquire(timeout=min(max(timeout, 0), threading.TIMEOUT_MAX))
            return reached and not self.abandoned
        progress = self._progress
        # A slow sink may take any time, as long as it makes progress.
        while not marker.reached.acquire(timeout=PATIENCE):
            before, progress = progress, self._progress
            if progress == before:
                return False
        return not self.abandoned

    @property
    def _progress(self) -> int:
        return self._written + self._sink.done

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join(PATIENCE)  # the thread has nothing left to do

    def _abandon(self) -> None:
        """Discard the unwritten records; the thread ends when its sink returns."""
        # Race: the sink may write another record while its progress is read here. So the number of
        # lost records is an estimate, at most one too high.
        lost = self._batch - self._sink.done
        self._sink.abandoned = True
        self._closed = True
        self.threshold = -1
        forking.forget(self)
        lost = max(0, lost) + self._discard()
        if lost:
            counts.add(dropped=lost)
            write_to_stderr(
                f"svcrun.log: {lost} log records were not written in time and are lost\n",
                unless=getattr(self._sink.handler, "stream", None),
            )

    def _discard(self) -> int:
        """Empty the buffer, release the waiters of markers, and return the number of records."""
        discarded = 0
        while self.buffer:
            records, marker = self._take()
            discarded += len(records)
            if marker is not None:
                release(marker.reached)
        return discarded

    # In the thread

    def _serve(self) -> None:
        """Write records until the last marker is reached or a fork stops the thread."""
        self._thread = threading.current_thread()
        buffer, wake, stop = self.buffer, self._wake_lock, self._stop_lock
        while not self.abandoned:
            self.threshold = 0
            if not buffer and stop.locked():
                wake.acquire()
            if stop.acquire(blocking=False):
                self._stopped_lock.release()
                return
            self.threshold = self._size - 1
            wake.acquire(blocking=False)  # the next line checks each reason to open it
            if buffer and len(buffer) < self._size and not self._flush_requested and stop.locked():
                wake.acquire(timeout=self._interval)
            # Race: flush_soon() sets the flag after the record was appended. So reset the flag
            # before reading the buffer; in the other order, the record could be missed.
            self._flush_requested = False
            self.threshold = self._limit
            # Records that arrive from now on belong to the next round. Otherwise, a caller that
            # logs without a pause would make the thread write them one by one.
            left = len(buffer)
            while left > 0 and stop.locked() and not self.abandoned:
                with self._in_sink:
                    left -= self._write_batch()
            if self._closed:
                break
        forking.forget(self)

    def _write_batch(self) -> int:
        """Write some records of the buffer, and return their number."""
        ident = get_ident()
        writing_threads.add(ident)
        try:
            records, marker = self._take()
            if records:
                self._sink.done = 0
                self._batch = len(records)
                through = self._sink.write(records)
                self._written += through
                counts.add(written=through - self._sink.failed, dropped=self._sink.failed)
                self._batch = self._sink.done = 0
                # A fork paused the sink. The next write begins with the remaining records.
                if through < len(records) and not self.abandoned:
                    self._put_back(records[through:], marker)
                    return through
                self._report_drops()
            if marker is not None:
                self._sink.flush()
                if marker.last:  # from now on, log calls write
                    self._closed = True
                    self.threshold = -1
                release(marker.reached)
        finally:
            writing_threads.discard(ident)
        return len(records) + (marker is not None)

    def _take(self) -> tuple[list[LogRecord], FlushMarker | None]:
        """Take records out of the buffer, up to a marker."""
        records: list[LogRecord] = []
        popleft = self.buffer.popleft
        try:
            while len(records) < _BATCH:
                entry = popleft()
                if isinstance(entry, FlushMarker):
                    return records, entry
                records.append(entry)
        except IndexError:
            pass
        return records, None

    def _put_back(self, records: list[LogRecord], marker: FlushMarker | None) -> None:
        """Put records back that a fork left unwritten, in front of those buffered since."""
        if marker is not None:
            self.buffer.appendleft(marker)
        self.buffer.extendleft(reversed(records))

    def _report_drops(self) -> None:
        calls = next(self._drops)
        dropped = calls - self._drops_known
        self._drops_known = calls + 1
        if dropped:
            counts.add(dropped=dropped)
            message = "%d log records were dropped: more than %d waited to be written"
            self.buffer.append(warn(message, dropped, self._limit))

    # Around forks

    def request_stop_for_fork(self) -> None:
        """Ask the thread to end after its current record."""
        self._sink.paused = True
        release(self._stop_lock)
        release(self._wake_lock)

    def wait_for_stop(self, deadline: float) -> bool:
        """Wait for the thread to end, and return whether it did.

        If it did, no thread starts until :meth:`restart_after_fork`. Do not wait for a slow sink.
        """
        if self._thread_slot.acquire(blocking=False):
            self._stop_lock.acquire(blocking=False)  # withdraw the request; there is no thread
            self._sink.paused = False
            return True
        while not self._stopped_lock.acquire(timeout=0 if self._is_stuck() else _POLL_INTERVAL):
            if self._is_stuck() or monotonic() >= deadline:
                # Race: the thread acquires this lock to accept the request, and this fork acquires
                # it to withdraw the request. Only one of them succeeds.
                if self._stop_lock.acquire(blocking=False):
                    self._sink.paused = False
                    return False
                self._stopped_lock.acquire()  # the thread has just accepted the request
                break
        self._sink.paused = False
        self._join()
        thread = self._thread
        forking.wait_until_gone(self._launcher, 0 if thread is None else thread.native_id)
        self._launcher = 0
        return True

    def _is_stuck(self) -> bool:
        """Check whether the sink is slow or the thread itself forks, so it cannot end soon."""
        return self._sink.is_slow() or self._thread is threading.current_thread()

    def reopen_stream(self) -> None:
        """Reopen the stream, in a child that was forked during a write."""
        self._sink.reopen_stream()

    def restart_after_fork(self) -> None:
        """Allow the thread again, and start it if records are buffered."""
        self._thread_slot.release()
        if self.buffer:
            self.wake()
