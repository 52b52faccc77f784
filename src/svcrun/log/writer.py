"""A buffer of records and the thread that writes them.

Who logs shares no lock with the thread. It appends to a ``deque`` and, at most, opens a bare lock
that the thread sleeps on. Each is a single step of the interpreter, so a log call from a signal
handler or a destructor, in the middle of another log call, does no harm.
"""

from __future__ import annotations

import threading
from _thread import start_new_thread
from collections import deque
from contextlib import suppress
from itertools import count
from threading import get_ident, get_native_id
from time import monotonic

from svcrun._util.hints import TYPE_CHECKING, Final
from svcrun.log import forking
from svcrun.log.sinks import warn
from svcrun.log.streams import write_to_stderr

if TYPE_CHECKING:
    from logging import LogRecord

    from svcrun.log.sinks import Sink

__all__ = ("THREAD_NAME", "Writer", "writing_threads")

THREAD_NAME: Final = "svcrun-log"

#: Where no time limit is given: a writer that wrote nothing for so many seconds is given up.
PATIENCE: Final = 5.0

_LOOK: Final = 0.005  # seconds between two looks at whether a sink has become slow

_BATCH: Final = 1024  # records that are formatted between two looks at anything else

#: The threads that are in a sink. What a handler logs while it writes must not come back to it.
writing_threads: set[int] = set()


def _acquired_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


def _release(lock: threading.Lock) -> None:
    """Release a lock that anybody may release at any time."""
    if lock.locked():
        with suppress(RuntimeError):  # somebody was faster
            lock.release()


class _FlushMarker:
    """An entry among the records; it is reached when all records before it are written."""

    __slots__ = ("last", "reached")

    def __init__(self, *, last: bool = False) -> None:
        self.last = last  # the writer ends here
        self.reached = _acquired_lock()


class Writer:
    """Writes records to a sink, in a thread that starts with the first of them.

    The life of the thread: it sleeps until a record comes, lets others join it for
    ``flush_interval`` seconds or until there are ``buffer_size``, writes what there is by then, and
    begins again.

    :param sink: where to write; it never raises.
    :param buffer_size: how many records end the wait for others.
    :param flush_interval: how long to wait for others, in seconds.
    :param buffer_limit: how many records may wait before new ones are dropped.
    :ivar buffer: where to append records; then, past the threshold, call :meth:`wake`.
    :ivar threshold: up to so many waiting records are no reason to wake the thread, which sets it.
        It does so before it looks at the buffer a last time and sleeps.
    """

    def __init__(
        self, sink: Sink, *, buffer_size: int, flush_interval: float, buffer_limit: int
    ) -> None:
        self._sink = sink
        self._size = buffer_size
        self._interval = flush_interval
        self._limit = buffer_limit
        self.buffer: deque[LogRecord | _FlushMarker] = deque()
        self._closing = threading.Lock()  # taken by the one who closes
        self._closed = False
        self.reset()

    def reset(self) -> None:
        """Begin anew, with an empty buffer and no thread."""
        writing_threads.clear()
        self.buffer.clear()
        self._sink.paused = False
        self._thread: threading.Thread | None = None
        self._launcher = 0  # the native identifier of the thread that started it
        self.threshold = 0
        self._flush_requested = False
        self._wake_lock = _acquired_lock()  # opened to make the thread look at the buffer
        self._thread_slot = threading.Lock()  # held as long as there is a thread, or may be none
        self._in_sink = threading.Lock()
        self._stop_lock = (
            _acquired_lock()
        )  # opened to ask the thread to end, even with records buffered
        self._stopped_lock = _acquired_lock()  # opened by the thread when it accepts that request
        self._batch = 0  # records in the sink
        self._written = 0
        self._drops = count()  # unlike `+= 1`, next() can't be interrupted
        self._drops_known = 0

    @property
    def abandoned(self) -> bool:
        """Whether the writer was closed before all was written."""
        return self._sink.abandoned

    def wake(self) -> None:
        """Make the thread look at the buffer, or start it; to be called past the threshold."""
        if len(self.buffer) > self._limit:
            self._drop()
        if self._closed:
            self._write_here()
        elif self._thread_slot.acquire(blocking=False):
            self._start()
        else:
            _release(self._wake_lock)

    def flush_soon(self) -> None:
        """Have what is buffered written now; do not wait for it."""
        if self.buffer:
            self._flush_requested = True
            self.wake()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all that was put before is written, and tell whether it is.

        :param timeout: how long to wait, in seconds; by default as long as something is written.
        """
        if self.abandoned or get_ident() in writing_threads:  # it would wait for itself
            return False
        if not self.buffer and not self._thread_slot.locked():
            return True
        return self._wait_for_marker(_FlushMarker(), timeout)

    def close(self, timeout: float | None = None) -> None:
        """Write all and end the thread; past the time limit, give up the rest and say so.

        From then on, records are written by the threads that put them.

        :param timeout: how long to wait, in seconds; by default as long as something is written.
        """
        if not self._closing.acquire(blocking=False):
            return
        if self._thread_slot.acquire(
            blocking=False
        ):  # no thread, and from now on there will be none
            self._closed = True
            self.threshold = -1
            self._write_here()
            forking.forget(self)
        elif get_ident() not in writing_threads and self._wait_for_marker(
            _FlushMarker(last=True), timeout
        ):
            self._join()
        else:
            self._abandon()

    def _drop(self) -> None:
        try:
            newest = self.buffer.pop()
        except IndexError:  # all has been written meanwhile
            return
        if isinstance(newest, _FlushMarker):
            self.buffer.append(newest)
        else:
            next(self._drops)

    def _start(self) -> None:
        """Start the thread without waiting for it.

        ``Thread.start`` waits, and takes locks that the code under a signal handler may hold; so a
        thread of its own does it.
        """
        try:
            forking.watch(self)
            start_new_thread(self._launch, ())
        except RuntimeError:  # no thread to be had, such as at the interpreter's end
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
        """Do once what the thread would do, in its place: who closes waits for it."""
        while True:
            self._write_here()
            self._thread_slot.release()
            # Who put a record there in the meantime took this for the thread.
            if not self.buffer or not self._thread_slot.acquire(blocking=False):
                return

    def _write_here(self) -> None:
        """Write in this thread, unless another one does: it goes on until the buffer is empty."""
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

    def _wait_for_marker(self, mark: _FlushMarker, timeout: float | None) -> bool:
        """Wait until a mark is reached, and tell whether it was."""
        self.buffer.append(mark)
        self.flush_soon()
        if timeout is not None:
            reached = mark.reached.acquire(timeout=min(max(timeout, 0), threading.TIMEOUT_MAX))
            return reached and not self.abandoned
        progress = self._progress
        while not mark.reached.acquire(timeout=PATIENCE):
            before, progress = progress, self._progress
            if progress == before:
                return False
        return not self.abandoned

    @property
    def _progress(self) -> int:
        return self._written + self._sink.done

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join(PATIENCE)  # it has nothing left to do

    def _abandon(self) -> None:
        """Give up what is not written; the thread ends as soon as its sink lets it."""
        lost = self._batch - self._sink.done
        self._sink.abandoned = True
        self._closed = True
        self.threshold = -1
        forking.forget(self)
        lost = max(0, lost) + self._discard()
        if lost:
            write_to_stderr(
                f"svcrun.log: {lost} log records were not written in time and are lost\n",
                unless=getattr(self._sink.handler, "stream", None),
            )

    def _discard(self) -> int:
        """Empty the buffer; nobody waits in vain. Tell how many records there were."""
        discarded = 0
        while self.buffer:
            records, mark = self._take()
            discarded += len(records)
            if mark is not None:
                _release(mark.reached)
        return discarded

    # The thread

    def _serve(self) -> None:
        """Write records until the last mark is reached or a fork stops the thread."""
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
            # Race: a caller that hurries appends its record, then sets the flag. So reset the flag
            # first and read the buffer then; in the other order the record could be missed.
            self._flush_requested = False
            self.threshold = self._limit
            # Leave records that arrive meanwhile to the next round: with a caller that logs without
            # a pause, this one would write them one by one.
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
            records, mark = self._take()
            if records:
                self._sink.done = 0
                self._batch = len(records)
                through = self._sink.write(records)
                self._written += through
                self._batch = self._sink.done = 0
                if through < len(records) and not self.abandoned:
                    self._put_back(records[through:], mark)
                    return through
                self._report_drops()
            if mark is not None:
                self._sink.flush()
                if mark.last:  # what comes now is written by those who log it
                    self._closed = True
                    self.threshold = -1
                _release(mark.reached)
        finally:
            writing_threads.discard(ident)
        return len(records) + (mark is not None)

    def _take(self) -> tuple[list[LogRecord], _FlushMarker | None]:
        """Take records out of the buffer, up to a mark."""
        records: list[LogRecord] = []
        popleft = self.buffer.popleft
        try:
            while len(records) < _BATCH:
                entry = popleft()
                if isinstance(entry, _FlushMarker):
                    return records, entry
                records.append(entry)
        except IndexError:
            pass
        return records, None

    def _put_back(self, records: list[LogRecord], mark: _FlushMarker | None) -> None:
        """Put records that a fork left unwritten back in front of those buffered since."""
        if mark is not None:
            self.buffer.appendleft(mark)
        self.buffer.extendleft(reversed(records))

    def _report_drops(self) -> None:
        calls = next(self._drops)
        dropped = calls - self._drops_known
        self._drops_known = calls + 1
        if dropped:
            message = "%d log records were dropped: more than %d waited to be written"
            self.buffer.append(warn(message, dropped, self._limit))

    # Forks

    def request_stop_for_fork(self) -> None:
        """Ask the thread to end after its current record."""
        self._sink.paused = True
        _release(self._stop_lock)
        _release(self._wake_lock)

    def wait_for_stop(self, deadline: float) -> bool:
        """Wait for the thread to end, and return whether it did; then no thread starts any more.

        Return at once while the sink is slow.
        """
        if self._thread_slot.acquire(blocking=False):
            self._stop_lock.acquire(blocking=False)  # no thread runs, so none has seen the request
            self._sink.paused = False
            return True
        while not self._stopped_lock.acquire(timeout=0 if self._is_stuck() else _LOOK):
            if self._is_stuck() or monotonic() >= deadline:
                # Race: the request belongs to the one that acquires the lock, the thread to accept
                # it or this fork to withdraw it.
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
        """Return whether the thread can't end soon: its sink is slow, or a handler forks in it."""
        return self._sink.is_slow() or self._thread is threading.current_thread()

    def renew_stream(self) -> None:
        """Open a new stream in a child that was forked during a write."""
        self._sink.renew_stream()

    def restart_after_fork(self) -> None:
        """Allow a thread again, and start one if records are buffered."""
        self._thread_slot.release()
        if self.buffer:
            self.wake()
