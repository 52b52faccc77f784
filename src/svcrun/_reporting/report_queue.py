"""Reports of what is logged: taken note of by the log call, made by a thread.

To make a report, with the source and the variables of each frame, takes a millisecond or more. So a
log call only settles what may have changed a moment later, and appends to a queue that is bounded.
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
    "hand_over",
    "make_unhandled",
    "unreported",
)

log = logging.getLogger("svcrun.reporting")

QUEUE_SIZE = 500
"""Records that may wait. Each may keep a traceback, and with it what its functions had in hand."""

_THREAD_NAME = "svcrun-reports"
_REPORTED_BY = "_svcrun_reported_by"

# Whether what is logged comes from the reporting itself: a thread or task of a reporter, or what
# these began.
_is_reporting: ContextVar[bool] = ContextVar("svcrun_is_reporting", default=False)

# The attribute `handler` is the handler for which the current thread makes reports.
_maker = threading.local()


@contextmanager
def unreported() -> Iterator[None]:
    """Have no reporter report what is logged in the block, and by the tasks begun in it."""
    token = _is_reporting.set(True)
    try:
        yield
    finally:
        _is_reporting.reset(token)


class Report(NamedTuple):
    """What is to be reported."""

    record: logging.LogRecord
    """A copy, with the text of that moment as ``message``, and ``msg`` and ``args`` to group by."""
    stack: Stack | None
    """If wanted: the frames of the log call and their lines, the innermost last."""
    context: Context
    """That of the log call; the report is made in it."""
    note: Any = None
    """What ``take_note`` returned."""


def hand_over() -> bool:
    """Return whether a transport may accept an event, which the transport counts from then on.

    A transport calls this in the thread that made the event. Race: if that is the thread of a
    handler, a stop may have abandoned and counted its current report meanwhile.
    """
    handler: ReportHandler | None = getattr(_maker, "handler", None)
    return handler is None or handler.hand_over()


class ReportHandler(logging.Handler):
    """Have a thread make reports of records, one at a time.

    A log call never waits and never raises. What more than `queue_size` records leave no room for
    is dropped, and counted; the count is logged now and then. So that the event loop gets its turns
    the thread rests after each report for as long as that took, except at the end.

    In a forked child the handler does nothing.

    :param make: makes a report and passes it on; called in the thread, and in the context of the
        log call, so that context variables tell whose it was. It returns False if there was no
        room to pass it on. What it raises is logged, and the record counted as failed.
    :param level: the lowest level that is reported.
    :param filters: tell of a record whether it is to be reported.
    :param queue_size: how many records may wait.
    :param stacks: whether to take note of the stack of log calls without an exception. Otherwise
        only those have one that are given ``extra={"stack": True}``.
    :param take_note: called by the log call, for what else may have changed a moment later.
    """

    def __init__(
        self,
        make: Callable[[Report], object],
        *,
        level: int,
        filters: Iterable[Filter] = (),
        queue_size: int = QUEUE_SIZE,
        stacks: bool = False,
        take_note: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__(level)
        for one in filters:
            self.addFilter(one)
        self._make = make
        self._size = queue_size
        self._stacks = stacks
        self._take_note = take_note
        self._queue: SimpleQueue[Report | None] = SimpleQueue()
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._hurry = threading.Event()
        # Invariant: each record is counted once, by this handler if it is dropped or fails, by the
        # transport if its event is handed over. Race: the stop, which abandons the other records,
        # and the thread both count the current record. The lock decides which of the two does. It
        # is reentrant, because a signal handler may log.
        self._counts = threading.RLock()
        self._pending = 0  # records that are neither counted nor handed over
        self._in_hand = False  # whether the thread is making a report of one of these
        self._abandoned = False
        self._ended = asyncio.Event()
        self._drops = RateLimitedLog(log)
        self._failures = RateLimitedLog(log)
        self._key = object()  # marks exceptions
        self.dropped = 0
        """How many records were not made a report of: there was no room, or no time."""
        self.failed = 0
        """How many could not be made a report of."""

    @property
    def is_attached(self) -> bool:
        """Whether it reports what gets to the root logger."""
        return self._thread is not None

    # In the thread that logs

    def attach(self) -> None:
        """Begin to report what gets to the root logger."""
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._serve, args=(loop,), name=_THREAD_NAME, daemon=True)
        thread.start()
        self._thread = thread
        root = logging.getLogger()
        # In front of those that put the text in place of message and arguments. It is a new list:
        # a log call of another thread may be going through the old one.
        root.handlers = [self, *root.handlers]

    def detach(self) -> None:
        """Report nothing more that is logged."""
        root = logging.getLogger()
        root.handlers = [handler for handler in root.handlers if handler is not self]

    def handle(self, record: logging.LogRecord) -> bool:
        """Take note of a record if it is to be reported."""
        if _is_reporting.get() or os.getpid() != self._pid:
            return False
        kept: object = self._filter(record)
        if isinstance(kept, logging.LogRecord):
            record = kept
        if kept:
            try:
                self.emit(record)
            except Exception as error:  # noqa: BLE001 - code of the user's, and a log call never raises
                self._drop()
                with unreported():
                    self._failures.add("no note could be taken of a record: %r", error)
        return bool(kept)

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of a record."""
        if self._queue.qsize() >= self._size:
            self._drop()
            return
        wanted = getattr(record, "stack", None) is True or (self._stacks and not record.exc_info)
        stack = _take_stack(record) if wanted else None
        note = None if self._take_note is None else self._take_note()
        report = Report(_settle(record), stack, copy_context(), note)
        with self._counts:
            if self._abandoned:  # race: the stop has abandoned the records since this call began
                self.dropped += 1
                return
            self._pending += 1
        self._queue.put(report)
        if record.exc_info and isinstance(error := record.exc_info[1], BaseException):
            vars(error).setdefault(_REPORTED_BY, set()).add(self._key)

    def report_unhandled(self, error: BaseException | None) -> None:
        """Report what ended a program, unless it was logged, or does so on purpose."""
        if isinstance(error, Exception) and not self.has_reported(error):
            record = make_unhandled(error)
            if record.levelno >= self.level:
                self.handle(record)

    def has_reported(self, error: BaseException) -> bool:
        """Tell whether a record with this exception was taken note of."""
        return self._key in getattr(error, _REPORTED_BY, ())

    def _filter(self, record: logging.LogRecord) -> object:
        try:
            return self.filter(record)
        except Exception as error:  # noqa: BLE001 - code of the user's, and a log call never raises
            with unreported():
                self._failures.add("a filter failed, and its record is reported: %r", error)
            return True

    def _drop(self) -> None:
        with self._counts:
            self.dropped += 1

    # In the event loop

    async def finish(self, timeout: float) -> None:
        """Take the handler away, and end the thread when it has made what waits.

        :param timeout: seconds after which the rest is dropped, and a report that still is being
            made is given up.
        """
        self.detach()
        thread = self._thread
        if thread is None:
            return
        self._hurry.set()
        self._queue.put(None)
        try:
            async with asyncio.timeout(timeout):
                await self._ended.wait()
        except TimeoutError:
            pass
        finally:
            if self._thread is not None:  # else it was ended meanwhile
                self._end(thread)

    def _end(self, thread: threading.Thread) -> None:
        self._thread = None
        if self._ended.is_set():
            thread.join()  # it has nothing left to do
        with self._counts:
            self._abandoned = True
            self.dropped += self._pending
            self._pending = 0
        self._discard()
        with unreported():
            self._tell_drops()
            self._drops.close()
            self._failures.close()

    def _discard(self) -> None:
        with suppress(Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put(None)  # the thread may be about to wait for one

    # In the thread that makes reports

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        _is_reporting.set(True)
        _maker.handler = self
        while not self._abandoned and (report := self._queue.get()) is not None:
            begin = monotonic()
            report.context.run(self._attempt, report)
            del report  # with all that its traceback keeps
            self._tell_drops()
            self._hurry.wait(monotonic() - begin)
        with suppress(RuntimeError):  # closed meanwhile, and nobody waits
            loop.call_soon_threadsafe(self._ended.set)

    def _attempt(self, report: Report) -> None:
        _is_reporting.set(True)
        self._in_hand = True
        try:
            if self._make(report) is False and self._put_down():
                self._drop()
        except BaseException as error:  # noqa: BLE001 - it runs code of the user's; the thread goes on
            self.failed += self._put_down()
            self._failures.add("a report could not be made: %r", error)
        else:
            self._put_down()

    def hand_over(self) -> bool:
        """Return whether a transport may count the current report, which a stop may have done."""
        return not self._in_hand or self._put_down()

    def _put_down(self) -> bool:
        """Return whether the current report is not counted yet; the caller has to count it then."""
        with self._counts:
            if not self._in_hand or self._abandoned:
                return False
            self._in_hand = False
            self._pending -= 1
            return True

    def _tell_drops(self) -> None:
        new = self.dropped - self._drops.total
        if new:
            message = "records were dropped and not reported: at most %d wait"
            self._drops.add(message, self._size, count=new)


def _settle(record: logging.LogRecord) -> logging.LogRecord:
    """Copy a record, with what may change later as it is now."""
    settled = logging.makeLogRecord(vars(record))
    settled.message = str(render_text(record))
    args: Any = settled.args
    if type(settled.msg) is not str:
        settled.msg, settled.args = settled.message, None
    elif isinstance(args, Mapping):
        settled.args = {key: _settle_argument(value) for key, value in args.items()}
    elif args:
        settled.args = tuple(map(_settle_argument, args))
    copy_extra(settled)
    return settled


def _settle_argument(value: object) -> object:
    return value if type(value) in IMMUTABLE_TYPES else show(value)


def _take_stack(record: logging.LogRecord) -> Stack:
    """Return the frames of this moment, up to the one that the record tells to have logged it."""
    here: FrameType | None = sys._getframe(1)  # noqa: SLF001 - inspect.stack() reads source files
    frame = here
    while frame is not None and (frame.f_code.co_filename, frame.f_lineno) != (
        record.pathname,
        record.lineno,
    ):
        frame = frame.f_back
    if frame is None:  # it was made elsewhere
        frame = here
    stack = []
    while frame is not None:
        stack.append((frame, frame.f_lineno))
        frame = frame.f_back
    stack.reverse()
    return stack


def make_unhandled(error: BaseException) -> logging.LogRecord:
    """Make a record of an exception that nobody has logged."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    path, line = ("", 0) if trace is None else (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
    exc_info = (type(error), error, error.__traceback__)
    return logging.LogRecord(
        "unhandled", logging.CRITICAL, path, line, "Unhandled exception", (), exc_info
    )
