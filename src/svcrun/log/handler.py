"""A handler that only takes note of records, and the thread that writes them.

The calling thread shares no lock with the writer. It appends to a ``deque`` and, at most, releases
a bare lock that the writer sleeps on: both are single steps of the interpreter, so a log call from
a signal handler or a destructor in the middle of another log call does no harm.
"""

from __future__ import annotations

import logging
import sys
import threading
from _thread import start_new_thread
from collections import deque
from itertools import count
from threading import get_ident
from time import monotonic
from typing import Final

from svcrun.errors import ParameterError, ParameterTypeError
from svcrun.log import forking
from svcrun.log.records import ATOMS, Unrenderable, render, settle_extra
from svcrun.log.sinks import complain, make_sink, warn

__all__ = ("THREAD_NAME", "ThreadedHandler")

THREAD_NAME: Final = "svcrun-log"

#: Where no time limit is given: a writer that wrote nothing for so many seconds is given up.
PATIENCE: Final = 5.0

_BATCH: Final = 1024  # records that are formatted between two looks at anything else

# The threads that are writing. What a handler logs while it writes must not come back to it.
_writers: set[int] = set()


def _locked() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


def _open(lock: threading.Lock) -> None:
    """Release a lock that anybody may have released already."""
    if lock.locked():
        try:
            lock.release()
        except RuntimeError:  # somebody was faster
            pass


class _Mark:
    """An entry among the records; the writer opens it when all records before it are written."""

    __slots__ = ("last", "reached")

    def __init__(self, *, last: bool = False) -> None:
        self.last = last  # the writer ends here
        self.reached = _locked()


class ThreadedHandler(logging.Handler):
    """Pass records to another handler, in a thread of its own.

    A log call takes note of the record and returns; it never waits and never raises. The thread
    starts with the first record. It writes when ``buffer_size`` records wait, when the first of
    them has waited for ``flush_interval`` seconds, and at once when one is an error. Filters and
    formatters of the target run in that thread.

    Past ``buffer_limit`` records new ones are dropped; their number is logged when there is room.

    :param target: the handler that writes. It is flushed, but not closed, by :meth:`close`.
    :param buffer_size: how many records wake the writer, 1024 by default.
    :param flush_interval: how long a record waits for others, in seconds, 0.2 by default.
    :param buffer_limit: how many records may wait, 100 000 by default.
    :param passive: whether the target is known to log nothing itself while it writes. Only then it
        gets what other handlers log while they write.
    :raises ValueError: if a number is out of range.
    :raises TypeError: if the target is no handler.

    .. code-block:: python

        handler = ThreadedHandler(logging.FileHandler("/var/log/service.log"))
        logging.getLogger().addHandler(handler)
        ...
        handler.close(timeout=10)
    """

    def __init__(
        self,
        target: logging.Handler,
        *,
        buffer_size: int = 1024,
        flush_interval: float = 0.2,
        buffer_limit: int = 100_000,
        passive: bool = False,
    ) -> None:
        if not isinstance(target, logging.Handler):
            raise ParameterTypeError("ThreadedHandler", "target", target, "a logging.Handler")
        super().__init__()
        self.target = target
        self._limit = _check_count("buffer_limit", buffer_limit)
        self._size = min(_check_count("buffer_size", buffer_size), self._limit)
        self._interval = _check_interval(flush_interval)
        self._passive = passive
        self._sink = make_sink(target)
        # Our plain formats print nothing of `extra`.
        self._settles = not passive or type(target.formatter) is not logging.Formatter
        self._buffer: deque[logging.LogRecord | _Mark] = deque()
        self._closing = threading.Lock()
        self._closed = False
        self.reset()

    def reset(self) -> None:
        """Begin anew with an empty buffer and no thread, as it is right in a forked child."""
        self._buffer.clear()
        self._thread: threading.Thread | None = None
        # How many waiting records are no reason to wake the writer; the writer sets it.
        self._threshold = 0
        self._hurry = False
        self._wake = _locked()  # opened for the writer to look at the buffer
        self._taken = threading.Lock()  # held as long as there is a writer
        self._writing = threading.Lock()  # held while the sink is in use
        self._rest = _locked()  # opened to ask the writer to end although records are left
        self._resting = _locked()  # opened by the writer when it does so
        self._batch = 0  # how many records are being written
        self._written = 0
        self._drops = count()  # next() can't be interrupted, which `+= 1` could
        self._drops_known = 0

    def createLock(self) -> None:  # noqa: N802 - the name is logging's
        """Make no lock: the calling thread must never wait for one."""
        self.lock = None

    def setFormatter(self, fmt: logging.Formatter | None) -> None:  # noqa: N802 - the name is logging's
        """Give the target another formatter."""
        self.target.setFormatter(fmt)

    def handle(self, record: logging.LogRecord) -> bool:
        """Take note of a record if this handler's own filters let it through."""
        if get_ident() in _writers and not self._passive:
            return False
        if self.filters:
            try:
                kept: object = self.filter(record)
            except Exception as error:  # noqa: BLE001 - a log call never raises
                kept, record.msg = True, Unrenderable(record, error)  # type: ignore[assignment]
            if not kept:
                return False
            if isinstance(kept, logging.LogRecord):
                record = kept
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of a record, and wake the writer if it is time."""
        args = record.args
        if type(record.msg) is not str or (
            args and (type(args) is not tuple or not ATOMS.issuperset(map(type, args)))
        ):
            render(record)
        if self._settles:
            settle_extra(record)
        buffer = self._buffer
        buffer.append(record)
        if len(buffer) > self._threshold:
            self._nudge()
        elif record.levelno >= logging.ERROR:
            self.hurry()

    def hurry(self) -> None:
        """Have what is buffered written now; do not wait for it."""
        self._hurry = True
        self._nudge()

    def flush(self, timeout: float | None = None) -> None:
        """Wait until every record logged before this call is written.

        :param timeout: how long to wait, in seconds; by default as long as something is written.
        """
        self.wait_written(timeout)

    def wait_written(self, timeout: float | None = None) -> bool:
        """Do what :meth:`flush` does, and tell whether all was written in time."""
        if get_ident() in _writers:
            return False  # it would wait for itself
        if not self._buffer and not self._taken.locked():
            return True
        mark = _Mark()
        self._buffer.append(mark)
        self.hurry()
        return self._wait(mark, timeout)

    def close(self, timeout: float | None = None) -> None:
        """Write every buffered record and end the thread.

        What can't be written in time is given up, and its number is told to stderr. A record that
        comes after this is written by the thread that logs it.

        :param timeout: how long to wait, in seconds; by default as long as something is written.
        """
        if not self._closing.acquire(blocking=False):
            return
        if self._taken.acquire(blocking=False):  # there is no writer, and now there will be none
            self._closed = True
            self._threshold = -1
            self._write_here()
        else:
            mark = _Mark(last=True)
            self._buffer.append(mark)
            self.hurry()
            if get_ident() not in _writers and self._wait(mark, timeout):
                self._join()
            else:
                self._abandon()
        super().close()

    @property
    def abandoned(self) -> bool:
        """Whether :meth:`close` gave up before all was written."""
        return self._sink.abandoned

    # The calling thread's side

    def _nudge(self) -> None:
        if len(self._buffer) > self._limit:
            self._drop()
        if self._closed:
            self._write_here()
        elif self._taken.acquire(blocking=False):
            self._start()
        else:
            _open(self._wake)

    def _drop(self) -> None:
        try:
            newest = self._buffer.pop()
        except IndexError:
            return  # all has been written meanwhile
        if isinstance(newest, _Mark):
            self._buffer.append(newest)
        else:
            next(self._drops)

    def _start(self) -> None:
        """Start the writer, without waiting and without the locks that ``Thread.start`` takes."""
        forking.watch(self)
        try:
            start_new_thread(self._launch, ())
        except RuntimeError:  # no thread to be had, at the interpreter's end at the latest
            self._taken.release()
            self._write_here()
        except BaseException:  # KeyboardInterrupt of a signal
            self._taken.release()
            raise

    def _launch(self) -> None:
        try:
            threading.Thread(target=self._serve, name=THREAD_NAME, daemon=True).start()
        except RuntimeError:
            self._taken.release()
            self._write_here()

    def _write_here(self) -> None:
        """Write in the calling thread, unless another one is at it: that one will not stop before
        the buffer is empty.
        """
        while self._buffer and self._writing.acquire(blocking=False):
            try:
                self._drain()
            finally:
                self._writing.release()

    def _wait(self, mark: _Mark, timeout: float | None) -> bool:
        if timeout is not None:
            reached = mark.reached.acquire(timeout=min(max(timeout, 0), threading.TIMEOUT_MAX))
            return reached and not self.abandoned
        progress = -1
        while not mark.reached.acquire(timeout=PATIENCE):
            last, progress = progress, self._written + self._sink.done
            if progress == last:
                return False
        return not self.abandoned

    def _join(self) -> None:
        # It has nothing left to do, but it may not have had the time to do it.
        if self._thread is not None:
            self._thread.join(PATIENCE)

    def _abandon(self) -> None:
        """Give up what is not written; the writer ends as soon as its sink lets it."""
        self._sink.abandoned = True
        self._closed = True
        self._threshold = -1
        lost = max(0, self._batch - self._sink.done)
        while self._buffer:
            try:
                entry = self._buffer.popleft()
            except IndexError:
                break
            if isinstance(entry, _Mark):
                _open(entry.reached)
            else:
                lost += 1
        if lost:
            complain(
                f"svcrun.log: {lost} log records were not written in time and are lost\n",
                but_not_to=getattr(self.target, "stream", None),
            )

    # The writer's side

    def _serve(self) -> None:
        """Write what comes until a last mark is reached or a fork asks for a rest."""
        self._thread = threading.current_thread()
        buffer, wake = self._buffer, self._wake
        while not self.abandoned:
            self._threshold = 0
            if not buffer:
                wake.acquire()
            if self._rest.acquire(blocking=False):
                self._resting.release()
                return
            self._threshold = self._size - 1
            if buffer and not self._hurry and len(buffer) < self._size:
                wake.acquire(timeout=self._interval)
            # First this, then the buffer: who is in a hurry has put its record or mark there.
            self._hurry = False
            self._threshold = self._limit
            with self._writing:
                last = self._drain()
            if last is not None:
                self._end(last)
                return
        forking.forget(self)

    def _end(self, last: _Mark) -> None:
        self._closed = True
        self._threshold = -1
        self._write_here()  # what came in meanwhile; from now on others do so
        forking.forget(self)
        last.reached.release()

    def _drain(self) -> _Mark | None:
        """Write until the buffer is empty, a last mark is found, or somebody asks for a rest."""
        ident = get_ident()
        _writers.add(ident)
        try:
            while self._buffer and self._rest.locked() and not self.abandoned:
                records, mark = self._take()
                if records:
                    self._sink.done = 0
                    self._batch = len(records)
                    self._sink.write(records)
                    self._written += self._batch
                    self._batch = self._sink.done = 0
                    del records
                    self._report_drops()
                if mark is not None:
                    self._sink.flush()
                    if mark.last:
                        return mark
                    mark.reached.release()
        finally:
            _writers.discard(ident)
        return None

    def _take(self) -> tuple[list[logging.LogRecord], _Mark | None]:
        """Take a batch of records out of the buffer, up to a mark."""
        records: list[logging.LogRecord] = []
        take = self._buffer.popleft
        try:
            while len(records) < _BATCH:
                entry = take()
                if type(entry) is _Mark:
                    return records, entry
                records.append(entry)  # type: ignore[arg-type]  # mypy knows only isinstance
        except IndexError:
            pass
        return records, None

    def _report_drops(self) -> None:
        known, self._drops_known = self._drops_known, next(self._drops) + 1
        dropped = self._drops_known - 1 - known
        if dropped:
            message = "%d log records were dropped, more than %d were waiting to be written"
            self._buffer.append(warn(message, dropped, self._limit))

    # What a fork asks of a running handler, see svcrun.log.forking

    def ask_to_rest(self) -> None:
        """Ask the writer to end after the records that it has in hand."""
        _open(self._rest)
        self.hurry()

    def come_to_rest(self, deadline: float) -> bool:
        """Wait for the writer to end, and tell whether it did."""
        if not self._resting.acquire(timeout=max(0, deadline - monotonic())):
            if self._rest.acquire(blocking=False):
                return False  # the request is withdrawn
            self._resting.acquire()  # it has just found the request
        self._join()
        return True

    def resume(self) -> None:
        """Allow a writer again after the rest, and start one if there is something to write."""
        self._taken.release()
        if self._buffer:
            self._nudge()


def _check_count(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ParameterTypeError("log", name, value, "a number of records, such as 1024")
    if value < 1:
        raise ParameterError("log", name, value, "a number of records, 1 or more")
    return value


def _check_interval(value: float) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ParameterTypeError("log", "flush_interval", value, "seconds, such as 0.2")
    if not 0 <= value <= threading.TIMEOUT_MAX:
        raise ParameterError("log", "flush_interval", value, "seconds, 0 or more")
    return value
