"""A logging handler that only takes note of records; a thread passes them to another handler."""

from __future__ import annotations

import logging
from contextvars import copy_context
from threading import TIMEOUT_MAX, get_ident

from svcrun._util.hints import Final
from svcrun._util.validation import number
from svcrun.errors import ParameterTypeError
from svcrun.log.capture import capture, copy_record, render_exception
from svcrun.log.records import IMMUTABLE_TYPES, NAMED_COUNT, LazyRecord, Unrenderable, name_service
from svcrun.log.session_handler import SessionHandler
from svcrun.log.sinks import make_sink
from svcrun.log.writer import Writer, writing_threads

__all__ = ("NamingHandler", "ThreadedHandler")

_ERROR: Final = logging.ERROR
_RECORD: Final = logging.LogRecord
_root_logger: Final = logging.getLogger()

# So many records may wait together with their exceptions. A traceback keeps all that its functions
# had in hand: in a flood of errors it is the garbage collector that would stop the program.
EXCEPTIONS: Final = 500


class NamingHandler(logging.NullHandler):
    """Have records tell which service is at work, for the handlers that come after this one."""

    def handle(self, record: logging.LogRecord) -> bool:
        """Name the service; a record that is filled in late has it named already."""
        if not isinstance(record, LazyRecord):
            name_service(record)
        return True


class ThreadedHandler(SessionHandler):
    """Pass records to another handler, in a thread of its own.

    A log call takes note of the record and returns: it never waits and never raises. The thread
    starts with the first record. It writes when ``buffer_size`` records wait, when the first of
    them has waited for ``flush_interval`` seconds, and at once when one is an error. Filters of the
    target run in the log call. Its formatter and its ``emit()`` run in that thread, with the
    context variables of the log call.

    The record itself is not changed, for the handlers after this one. The target receives a copy
    with the same message and arguments. Its ``getMessage()`` returns the text of the log call.

    Past ``buffer_limit`` records new ones are dropped; their number is logged when there is room.
    While 500 records or more wait for a stream, a log call puts its traceback into text itself.

    :param target: the handler that writes. It is flushed, but not closed, by :meth:`close`.
    :param flush_interval: how long a record waits for others, in seconds, 0.2 by default.
    :param buffered: whether records are buffered; if not, each record wakes the thread.
    :param queue_size: another name for `buffer_limit`; 0 has no effect.
    :param buffer_size: the number of records that wakes the thread, 1024 by default.
    :param buffer_limit: how many records may wait, 100 000 by default.
    :param passive: whether the target logs nothing itself while it writes, and uses no context
        variables. Only such a target receives records that other targets log while they write.
    :param extra: whether the target may show what was given as ``extra=``; then lists, dictionaries
        and sets in it are copied in the log call.
    :raises ValueError: if a number is out of range.
    :raises TypeError: if a parameter is of a wrong type.

    .. code-block:: python

        handler = ThreadedHandler(logging.FileHandler("service.log"))
        logging.getLogger().addHandler(handler)
        logging.warning("written by a thread")
        handler.close(timeout=10)
    """

    # logging.shutdown() need not flush before it closes.
    flushOnClose = False  # noqa: N815 - the name is logging's

    def __init__(
        self,
        target: logging.Handler,
        flush_interval: float = 0.2,
        buffered: bool = True,
        queue_size: int = 0,
        *,
        buffer_size: int = 1024,
        buffer_limit: int = 100_000,
        passive: bool = False,
        extra: bool = True,
    ) -> None:
        if not isinstance(target, logging.Handler):
            raise ParameterTypeError("ThreadedHandler", "target", target, "a logging.Handler")
        if type(queue_size) is not int or queue_size:
            check_number_of_records("queue_size", queue_size)
            buffer_limit = queue_size
        check_buffer(buffer_size, flush_interval, buffer_limit)
        if not buffered:
            buffer_size, flush_interval = 1, 0
        super().__init__()
        self.target = target
        self._passive = passive
        self._extra = extra
        self._is_text = type(target) is logging.StreamHandler  # others may need an exception itself
        # A handle() of the program's own may skip the filters, or add behaviour.
        self._has_standard_handle = getattr(target.handle, "__func__", None) is _handle
        self._writer = Writer(
            make_sink(target, in_context=not passive),
            buffer_size=min(buffer_size, buffer_limit),
            flush_interval=flush_interval,
            buffer_limit=buffer_limit,
        )
        self._buffer = self._writer.buffer

    def start(self) -> None:
        """Return at once: the thread starts with the first record."""

    def createLock(self) -> None:  # noqa: N802 - the name is logging's
        """Make no lock: the calling thread must never wait for one."""
        self.lock = None

    def setFormatter(  # noqa: N802 - the name is logging's
        self, fmt: logging.Formatter | None
    ) -> None:
        """Give the target another formatter."""
        self.target.setFormatter(fmt)

    # handle() and emit() are one function in two: each call costs what it is there to save.

    def handle(self, record: logging.LogRecord) -> bool:
        """Take note of a record if this handler's own filters let it through."""
        if writing_threads and get_ident() in writing_threads and not self._passive:
            return False
        if self.filters or self.target.filters:
            return self._emit_filtered(record)
        self.emit(record)
        return True

    def _emit_filtered(self, record: logging.LogRecord) -> bool:
        """Buffer a copy of the record unless a filter rejects it; filters may change the copy."""
        if not isinstance(record, LazyRecord):
            name_service(record)
        target = self.target
        try:
            copy = copy_record(record)
            filterers: list[logging.Filterer] = [self]
            if self._has_standard_handle:
                if record.levelno < target.level:
                    return False
                filterers.append(target)
            for filterer in filterers:
                kept: object = filterer.filter(copy)
                if not kept:
                    return False
                if isinstance(kept, logging.LogRecord):
                    copy = kept
        except Exception as error:  # noqa: BLE001 - a log call never raises
            copy = logging.makeLogRecord(vars(record))
            copy.msg, copy.args = Unrenderable(record, error), None
        self.emit(copy)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of a record."""
        # The first check is fast, and decides for nearly all records.
        if type(record) is _RECORD or not isinstance(record, LazyRecord):
            name_service(record)
            args = record.args
            settled = type(record.msg) is str and (not args or type(args) is tuple)
            if settled and args:
                for value in args:
                    if type(value) not in IMMUTABLE_TYPES:
                        settled = False
                        break
            has_extra = self._extra and len(record.__dict__) > NAMED_COUNT
            handlers = _root_logger.handlers
            if (
                not settled
                or has_extra
                or record.exc_info
                or not self._passive
                or not handlers
                or handlers[-1] is not self  # the next handler may change the record
            ):
                context = None if self._passive else copy_context()
                record = capture(record, settled=settled, extra=has_extra, context=context)
                if record.exc_info and self._is_text and len(self._buffer) >= EXCEPTIONS:
                    render_exception(record, self.target.formatter)
        else:
            record = self._take_lazy(record)
        buffer = self._buffer
        buffer.append(record)
        writer = self._writer
        if record.levelno >= _ERROR:
            writer.flush_soon()
        elif len(buffer) > writer.threshold:
            writer.wake()

    def _take_lazy(self, record: LazyRecord) -> logging.LogRecord:
        """Return the record itself, or a copy if another handler or filter may have changed it."""
        if record.was_read():
            return logging.makeLogRecord(vars(record))
        if not self._passive:
            record.context_of_call = copy_context()
        return record

    def flush_soon(self) -> None:
        """Have what is buffered written now; do not wait for it."""
        self._writer.flush_soon()

    def flush(self, timeout: float | None = None) -> None:
        """Wait until every record logged before this call is written.

        :param timeout: how long to wait, in seconds; by default as long as something is written.
        """
        self._writer.wait(timeout)

    def wait_written(self, timeout: float | None = None) -> bool:
        """Do what :meth:`flush` does, and tell whether all was written in time."""
        return self._writer.wait(timeout)

    def close(self, timeout: float | None = None) -> None:
        """Write every buffered record and end the thread.

        What can't be written in time is given up, and its number is told to stderr. A record that
        comes after this is written by the thread that logs it.

        :param timeout: how long to wait, in seconds; by default as long as something is written.
        """
        if self.in_use:
            return
        self._writer.close(timeout)
        super().close()

    @property
    def abandoned(self) -> bool:
        """Whether :meth:`close` gave up before all was written."""
        return self._writer.abandoned


_handle: Final = logging.Handler.handle


_check_seconds: Final = number(low=0, high=TIMEOUT_MAX, unit="seconds")


def check_buffer(buffer_size: object, flush_interval: object, buffer_limit: object) -> None:
    """Refuse values that no buffer can have."""
    check_number_of_records("buffer_size", buffer_size)
    check_number_of_records("buffer_limit", buffer_limit)
    _check_seconds("log", "flush_interval", flush_interval)


def check_number_of_records(name: str, value: object) -> None:
    """Check whether `value` is a positive number of records."""
    number(low=1, whole=True, unit="records")("log", name, value)
