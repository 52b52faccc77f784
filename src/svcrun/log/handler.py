"""A logging handler that buffers records, for a thread that passes them to another handler."""

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

__all__ = ("ServiceNameHandler", "ThreadedHandler")

_ERROR: Final = logging.ERROR
_root_logger: Final = logging.getLogger()

# The number of buffered records that may keep their exceptions. A traceback keeps the local
# variables of its frames, so in a flood of errors the garbage collector would block the program.
MAX_EXCEPTIONS: Final = 500


class ServiceNameHandler(logging.NullHandler):
    """Add the name of the current service to records, for the handlers after this one."""

    def handle(self, record: logging.LogRecord) -> bool:
        """Add the name; a lazy record has it already."""
        if not isinstance(record, LazyRecord):
            name_service(record)
        return True


class ThreadedHandler(SessionHandler):
    """Pass records to another handler in a separate thread.

    A log call appends its record to a buffer and returns. It never waits and never raises. The
    first record starts the thread. The thread writes when the buffer has ``buffer_size`` records,
    when the oldest is ``flush_interval`` seconds old, and at once after an error.

    The filters of the target run in the log call. Its formatter and its ``emit()`` run in the
    thread, with the context variables of the log call.

    The record itself does not change, so the handlers after this one receive it as it was logged.
    The target receives a copy with the same message and arguments, whose ``getMessage()`` returns
    the text that the message had in the log call.

    While the buffer has ``buffer_limit`` records, new records are dropped. Their number is logged
    as soon as there is room. While the buffer of a stream has 500 records or more, a log call
    formats its own traceback.

    :param target: the handler that writes. :meth:`close` flushes it and does not close it.
    :param flush_interval: seconds from a record until it is written; 0.2 by default.
    :param buffered: False wakes the thread for each record.
    :param queue_size: another name for `buffer_limit`; 0 has no effect.
    :param buffer_size: the number of records that wakes the thread; 1024 by default.
    :param buffer_limit: the most records in the buffer; 100 000 by default.
    :param passive: whether the target logs nothing itself while it writes, and uses no context
        variables. Only such a target receives records that other targets log while they write.
    :param extra: whether the target may show ``extra=``. Then the log call copies lists,
        dictionaries and sets in it.
    :raises ValueError: if a number is out of range.
    :raises TypeError: if a parameter has a wrong type.

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
            _check_records("log", "queue_size", queue_size)
            buffer_limit = queue_size
        check_buffer(buffer_size, flush_interval, buffer_limit)
        if not buffered:
            buffer_size, flush_interval = 1, 0
        super().__init__()
        self.target = target
        self._passive = passive
        self._extra = extra
        # A handler of another class may need the exception itself, and not only its text.
        self._is_text = type(target) is logging.StreamHandler
        # If the class of the target overrides handle(), the override decides about the filters.
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
        """Create no lock, because a log call never waits for one."""
        self.lock = None

    def setFormatter(  # noqa: N802 - the name is logging's
        self, fmt: logging.Formatter | None
    ) -> None:
        """Set the formatter of the target."""
        self.target.setFormatter(fmt)

    def handle(self, record: logging.LogRecord) -> bool:
        """Buffer a record that passes the filters."""
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
                # Since Python 3.12, a filter may return another record.
                passed: object = filterer.filter(copy)
                if not passed:
                    return False
                if isinstance(passed, logging.LogRecord):
                    copy = passed
        except Exception as error:  # noqa: BLE001 - a log call never raises
            copy = logging.makeLogRecord(vars(record))
            copy.msg, copy.args = Unrenderable(record, error), None
        self.emit(copy)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Buffer a record, or a copy of it if anything may still change it."""
        if not isinstance(record, LazyRecord):
            name_service(record)
            # The thread can render immutable values as well. All others may change until then.
            args = record.args
            immutable = type(record.msg) is str and (not args or type(args) is tuple)
            if immutable and args:
                for value in args:
                    if type(value) not in IMMUTABLE_TYPES:
                        immutable = False
                        break
            has_extra = self._extra and len(record.__dict__) > NAMED_COUNT
            handlers = _root_logger.handlers
            if (
                not immutable
                or has_extra
                or record.exc_info
                or not self._passive
                or not handlers
                or handlers[-1] is not self  # the next handler may change the record
            ):
                context = None if self._passive else copy_context()
                record = capture(record, immutable=immutable, extra=has_extra, context=context)
                if record.exc_info and self._is_text and len(self._buffer) >= MAX_EXCEPTIONS:
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
        """Make the thread write all buffered records now; return at once."""
        self._writer.flush_soon()

    def flush(self, timeout: float | None = None) -> None:
        """Wait until every record logged before this call is written.

        :param timeout: seconds to wait; by default, wait as long as the target makes progress.
        """
        self._writer.wait(timeout)

    def wait_written(self, timeout: float | None = None) -> bool:
        """Flush as :meth:`flush` does, and return whether all records were written in time."""
        return self._writer.wait(timeout)

    def close(self, timeout: float | None = None) -> None:
        """Write every buffered record and end the thread.

        Records that are not written in time are lost; a line on stderr says how many. After this
        call, each log call writes its own record.

        :param timeout: seconds to wait; by default, wait as long as the target makes progress.
        """
        if self.in_use:
            return
        self._writer.close(timeout)
        super().close()

    @property
    def abandoned(self) -> bool:
        """Whether :meth:`close` reached its time limit with records unwritten."""
        return self._writer.abandoned


_handle: Final = logging.Handler.handle


_check_records: Final = number(low=1, whole=True, unit="records")
_check_seconds: Final = number(low=0, high=TIMEOUT_MAX, unit="seconds")


def check_buffer(buffer_size: object, flush_interval: object, buffer_limit: object) -> None:
    """Check the size, the flush interval and the limit of a buffer."""
    _check_records("log", "buffer_size", buffer_size)
    _check_records("log", "buffer_limit", buffer_limit)
    _check_seconds("log", "flush_interval", flush_interval)
