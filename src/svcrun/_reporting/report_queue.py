"""Queue log records, and make reports of them in a thread.

Making a report, with the source lines and variables of each frame, takes a millisecond or more. So
a log call only renders the parts of the record that could change later, and adds the record to a
bounded queue::

    log call -> ReportHandler.handle() -> queue -> thread -> make(report) -> transport
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from svcrun._util.rate_limited_log import RateLimitedLog
from svcrun.errors import show
from svcrun.log.capture import copy_extra, render_text
from svcrun.log.records import IMMUTABLE_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    Filter = logging.Filter | Callable[[logging.LogRecord], Any]
    Stack = list[tuple[FrameType, int]]

__all__ = (
    "QUEUE_SIZE",
    "Report",
    "ReportHandler",
    "claim_report",
    "make_unhandled",
    "unreported",
)

log = logging.getLogger("svcrun.reporting")

QUEUE_SIZE = 500
"""The maximum number of waiting records. Each may keep a traceback, with all objects in its frames.

That is why the queue is short.
"""

_THREAD_NAME = "svcrun-reports"
# The attribute of an exception with the keys of the handlers that have queued a record of it.
_REPORTED_BY = "_svcrun_reported_by"

# Whether the current code is a thread or task of a sender, or was started by one. Its log records
# are not reported: a report of a failed report would be an endless loop.
_is_reporting: ContextVar[bool] = ContextVar("svcrun_is_reporting", default=False)

# `handler` is the handler for which the current thread makes reports.
_current = threading.local()


@contextmanager
def unreported() -> Iterator[None]:
    """Exclude log records of the block, and of the tasks that it starts, from reports."""
    token = _is_reporting.set(True)
    try:
        yield
    finally:
        _is_reporting.reset(token)


class Report(NamedTuple):
    """A log record, and the surroundings of its log call."""

    record: logging.LogRecord
    """A copy, with the rendered text as ``message``; ``msg`` and ``args`` group equal events."""
    stack: Stack | None
    """The frames of the log call and their lines, the innermost last; None unless requested."""
    context: Context
    """The context of the log call; the report is made in it."""
    snapshot: Any = None
    """The result of the `snapshot` function of the handler."""


def claim_report() -> bool:
    """Return whether a transport may accept the current event.

    A transport calls this in the thread that made the event. If the result is True, the transport
    counts the event from then on. Race: if that is the thread of a handler, a stop may have
    abandoned and counted the current report in the meantime.
    """
    handler: ReportHandler | None = getattr(_current, "handler", None)
    return handler is None or handler.claim_report()


class ReportHandler(logging.Handler):
    """Make reports of log records in a thread, one at a time.

    A log call never waits and never raises. Records beyond `queue_size` are dropped and counted;
    the count is logged at intervals. After each report the thread sleeps for as long as the report
    took, except during the stop, so that the event loop gets half of the interpreter's time.

    In a forked child, the handler does nothing.

    :param make: makes a report and passes it to a transport. It is called in the thread, in the
        context of the log call. It returns False if the transport has no room. An error that it
        raises is logged, and the record is counted as failed.
    :param level: the lowest level that is reported.
    :param filters: filters of records, as for :meth:`logging.Handler.addFilter`.
    :param queue_size: the maximum number of waiting records.
    :param stacks: whether to keep the stack of each log call without an exception. Otherwise only
        log calls with ``extra={"stack": True}`` keep their stack.
    :param snapshot: called in each log call that queues a record, to copy state that may change
        later.
    """

    def __init__(
        self,
        make: Callable[[Report], object],
        *,
        level: int,
        filters: Iterable[Filter] = (),
        queue_size: int = QUEUE_SIZE,
        stacks: bool = False,
        snapshot: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__(level)
        for one in filters:
            self.addFilter(one)
        self._make = make
        self._size = queue_size
        self._stacks = stacks
        self._snapshot = snapshot
        self._queue: SimpleQueue[Report | None] = SimpleQueue()
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        # Invariant: each record is counted once, by this handler if it is dropped or fails, by the
        # transport if its event is claimed. Race: the stop, which abandons the other records, and
        # the thread both count the current record. The lock decides which of the two does. It is
        # reentrant, because a signal handler may log.
        self._counts = threading.RLock()
        self._pending = 0  # records that are neither counted nor claimed
        self._is_making = False  # whether the thread is making a report of one of these
        self._abandoned = False
        self._ended = asyncio.Event()
        self._drops = RateLimitedLog(log)
        self._failures = RateLimitedLog(log)
        self._key = object()  # marks exceptions that this handler has reported
        self.dropped = 0
        """The number of records without a report, because there was no room or no time."""
        self.failed = 0
        """The number of records whose report raised an error."""

    @property
    def is_attached(self) -> bool:
        """Whether the handler reports records that reach the root logger."""
        return self._thread is not None

    # In the thread of the log call.

    def attach(self) -> None:
        """Start the thread, and add the handler to the root logger."""
        loop = asyncio.get_running_loop()
        # A daemon thread: a report that never ends must not keep the process alive.
        thread = threading.Thread(target=self._run, args=(loop,), name=_THREAD_NAME, daemon=True)
        thread.start()
        self._thread = thread
        root = logging.getLogger()
        # The handler comes first, because other handlers may replace message and arguments by the
        # text. Race: a log call of another thread may be iterating over the list, so replace it.
        root.handlers = [self, *root.handlers]

    def detach(self) -> None:
        """Remove the handler from the root logger."""
        root = logging.getLogger()
        root.handlers = [handler for handler in root.handlers if handler is not self]

    def handle(self, record: logging.LogRecord) -> bool:
        """Queue a record that passes the filters; called by logging."""
        # A forked child has a copy of the queue, and no thread that empties it.
        if _is_reporting.get() or os.getpid() != self._pid:
            return False
        kept: object = self._filter(record)
        if isinstance(kept, logging.LogRecord):
            record = kept
        if kept:
            try:
                self.emit(record)
            except Exception as error:  # noqa: BLE001 - the user's code; a log call never raises
                self._drop()
                with unreported():
                    self._failures.add("could not queue a log record: %r", error)
        return bool(kept)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record, or drop it if the queue is full."""
        # Race: several threads may pass this check at once, so the queue may exceed its limit by
        # a record for each thread.
        if self._queue.qsize() >= self._size:
            self._drop()
            return
        has_stack = getattr(record, "stack", None) is True or (self._stacks and not record.exc_info)
        stack = _find_stack(record) if has_stack else None
        snapshot = None if self._snapshot is None else self._snapshot()
        report = Report(_freeze(record), stack, copy_context(), snapshot)
        with self._counts:
            if self._abandoned:  # race: the stop has abandoned the records since this call began
                self.dropped += 1
                return
            # Invariant: a record is counted as pending before the thread can take it.
            self._pending += 1
        self._queue.put(report)
        if record.exc_info and isinstance(error := record.exc_info[1], BaseException):
            vars(error).setdefault(_REPORTED_BY, set()).add(self._key)

    def report_unhandled(self, error: BaseException | None) -> None:
        """Report the error that ended a program, unless it was logged, or is an exit."""
        if isinstance(error, Exception) and not self.has_reported(error):
            record = make_unhandled(error)
            if record.levelno >= self.level:
                self.handle(record)

    def has_reported(self, error: BaseException) -> bool:
        """Return whether a record with this exception was queued."""
        return self._key in getattr(error, _REPORTED_BY, ())

    def _filter(self, record: logging.LogRecord) -> object:
        try:
            return self.filter(record)
        except Exception as error:  # noqa: BLE001 - the user's code; a log call never raises
            with unreported():
                self._failures.add("a filter failed; reporting its record: %r", error)
            return True

    def _drop(self) -> None:
        with self._counts:
            self.dropped += 1

    # In the event loop.

    async def finish(self, timeout: float) -> None:
        """Remove the handler, and end the thread when it has made reports of all records.

        :param timeout: seconds to wait for the thread. Then the waiting records are dropped, and
            the report in progress is abandoned.
        """
        self.detach()
        thread = self._thread
        if thread is None:
            return
        self._stopping.set()
        self._queue.put(None)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._ended.wait()
        finally:
            if self._thread is not None:  # race: another call of this method ended it
                self._end(thread)

    def _end(self, thread: threading.Thread) -> None:
        self._thread = None
        if self._ended.is_set():
            thread.join()  # returns soon: the thread has left its loop
        with self._counts:
            self._abandoned = True
            self.dropped += self._pending
            self._pending = 0
        with suppress(Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put(None)  # race: the thread is about to wait for a record
        with unreported():
            self._log_drops()
            self._drops.close()
            self._failures.close()

    # In the thread that makes reports.

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        _is_reporting.set(True)
        _current.handler = self
        while not self._abandoned and (report := self._queue.get()) is not None:
            start = monotonic()
            report.context.run(self._make_report, report)
            del report  # otherwise its frames stay alive while the thread waits for a record
            self._log_drops()
            self._stopping.wait(monotonic() - start)
        with suppress(RuntimeError):  # race: the loop was closed, so no task waits for the event
            loop.call_soon_threadsafe(self._ended.set)

    def _make_report(self, report: Report) -> None:
        _is_reporting.set(True)
        self._is_making = True
        try:
            accepted = self._make(report)
        except BaseException as error:  # noqa: BLE001 - the user's code; the thread goes on
            self.failed += self._take_over()
            self._failures.add("could not make a report: %r", error)
        else:
            if self._take_over() and accepted is False:
                self._drop()

    def claim_report(self) -> bool:
        """Return whether a transport has to count the current report.

        The result is False if a stop has counted it already.
        """
        return not self._is_making or self._take_over()

    def _take_over(self) -> bool:
        """Return whether the caller has to count the current report; True once for each report."""
        with self._counts:
            if not self._is_making or self._abandoned:
                return False
            self._is_making = False
            self._pending -= 1
            return True

    def _log_drops(self) -> None:
        new = self.dropped - self._drops.total
        if new:
            self._drops.add("dropped log records; at most %d wait", self._size, count=new)


def _freeze(record: logging.LogRecord) -> logging.LogRecord:
    """Copy a record, and render the parts that may change after the log call."""
    frozen = logging.makeLogRecord(vars(record))
    frozen.message = str(render_text(record))
    args: Any = frozen.args
    if type(frozen.msg) is not str:
        frozen.msg, frozen.args = frozen.message, None
    elif isinstance(args, Mapping):
        frozen.args = {key: _freeze_argument(value) for key, value in args.items()}
    elif args:
        frozen.args = tuple(map(_freeze_argument, args))
    copy_extra(frozen)
    return frozen


def _freeze_argument(value: object) -> object:
    return value if type(value) in IMMUTABLE_TYPES else show(value)


def _find_stack(record: logging.LogRecord) -> Stack:
    """Return the frames of the current thread from the outermost to that of the log call."""
    current: FrameType | None = sys._getframe(1)  # noqa: SLF001 - inspect.stack() reads source files
    frame = current
    while frame is not None and (frame.f_code.co_filename, frame.f_lineno) != (
        record.pathname,
        record.lineno,
    ):
        frame = frame.f_back
    if frame is None:  # the record was made elsewhere
        frame = current
    stack = []
    while frame is not None:
        stack.append((frame, frame.f_lineno))
        frame = frame.f_back
    stack.reverse()
    return stack


def make_unhandled(error: BaseException) -> logging.LogRecord:
    """Create a log record of an exception that was not logged."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    path, line = ("", 0) if trace is None else (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
    exc_info = (type(error), error, error.__traceback__)
    return logging.LogRecord(
        "unhandled", logging.CRITICAL, path, line, "Unhandled exception", (), exc_info
    )
