"""Sinks of a writer: a plain stream, written in large pieces, or any other handler.

A sink never raises. It reports records that it cannot format or write, and counts the lost ones.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import sys
import time
import traceback

from svcrun._util.hints import TYPE_CHECKING, Any, TextIO, TypeVar
from svcrun.log.line_templates import LineTemplates
from svcrun.log.records import LazyRecord, Unrenderable, make_record
from svcrun.log.streams import (
    describe_error,
    is_writable,
    raw_encoding,
    reopen,
    write_descriptor,
    write_to_stderr,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = (
    "HandlerSink",
    "Sink",
    "StreamSink",
    "close_handler",
    "flush_handler",
    "make_sink",
    "warn",
)

T = TypeVar("T")

# Bytes of one write. A pipe accepts PIPE_BUF bytes without mixing them with the output of other
# processes. Files get larger pieces, because each write gives the interpreter to other threads.
_PIPE_PIECE = getattr(select, "PIPE_BUF", 512)
_FILE_PIECE = 1 << 18

# How to encode characters that the stream cannot represent.
_ERRORS = "backslashreplace"

# Seconds of sleep after a traceback, which takes long to format. A thread that computes without a
# break delays the event loop by 5 ms, the switch interval, after each of the loop's system calls.
_BREAK = 0.00005

# A fork does not wait for a record that is being written for more than so many seconds.
_SLOW = 0.05


class Sink:
    """Write records to a handler, in the thread of a writer.

    :param handler: the handler to write to. Its filters have run in the log call.
    :param in_context: whether to write each record in the context of its log call.
    :ivar handler: the handler that is written to.
    :ivar done: the number of records that the current call of :meth:`write` has processed.
    :ivar failed: the number of records that the last call could not write.
    :ivar abandoned: set when the program stops waiting for the thread.
    :ivar paused: set before a fork, so that :meth:`write` returns after the current record.
    """

    def __init__(self, handler: logging.Handler, *, in_context: bool = False) -> None:
        self.handler = handler
        self.done = self.failed = 0
        self.abandoned = False
        self.paused = False
        self._began = 0.0  # the time when the current record began; 0 if there is none
        self._in_context = in_context

    def _call(
        self, function: Callable[[logging.LogRecord], T], given: logging.LogRecord
    ) -> T | None:
        """Call `function` with a record that has at least the level of the handler.

        An error is reported; then the result is None.

        :param given: the record that the log call has buffered.
        """
        record = given.to_record() if isinstance(given, LazyRecord) else given
        if type(record.msg) is Unrenderable:
            self.failed += 1
            report(record, record.msg.error)
            return None
        try:
            if record.levelno < self.handler.level:
                return None
            # If a LazyRecord has no context, getattr() computes all its attributes. So a handler
            # that uses no context does not look for one.
            context = getattr(given, "context_of_call", None) if self._in_context else None
            # Race: the thread of another handler may write the same record, and a context cannot
            # be entered twice at the same time. So enter a copy.
            result = function(record) if context is None else context.copy().run(function, record)
            if record.exc_info:
                time.sleep(_BREAK)
        except BaseException as error:  # noqa: BLE001 - no error may end the thread
            self.failed += 1
            report(record, error)
            return None
        return result

    def write(self, records: Sequence[logging.LogRecord]) -> int:
        """Write records in order, and return their number: fewer than all if a fork pauses."""
        raise NotImplementedError

    def flush(self) -> None:
        """Flush the handler."""
        raise NotImplementedError

    def is_slow(self) -> bool:
        """Check whether the current record takes so long that a fork must not wait for it."""
        moved = self._began
        return bool(moved) and time.monotonic() - moved > _SLOW

    def reopen_stream(self) -> None:
        """Replace the stream of the handler, in a child that was forked during a write.

        The thread that holds the lock of the old stream does not exist in the child, so a write
        would deadlock. The parent writes the buffer of the old stream.
        """
        handler = self.handler
        if isinstance(handler, logging.StreamHandler):
            reopened = reopen(handler.stream)
            if reopened is not None:
                handler.stream = reopened


class HandlerSink(Sink):
    """Write to any handler, one record at a time."""

    def __init__(self, handler: logging.Handler, *, in_context: bool = False) -> None:
        super().__init__(handler, in_context=in_context)
        # The standard handle() would run the filters again. An override is called instead.
        standard = getattr(handler.handle, "__func__", None) is logging.Handler.handle
        self._emit = self._emit_locked if standard else handler.handle

    def _emit_locked(self, record: logging.LogRecord) -> None:
        self.handler.acquire()
        try:
            self.handler.emit(record)
        finally:
            self.handler.release()

    def write(self, records: Sequence[logging.LogRecord]) -> int:
        """Pass on the records that have at least the level of the handler."""
        self.done = self.failed = 0
        for record in records:
            if self.abandoned:
                break
            self._began = time.monotonic()
            self._call(self._emit, record)
            self.done += 1
            if self.paused:
                break
        self._began = 0.0
        return self.done

    def flush(self) -> None:
        """Flush the handler."""
        self._began = time.monotonic()
        flush_handler(self.handler)
        self._began = 0.0


class StreamSink(Sink):
    """Write to a plain ``logging.StreamHandler``: format many records, then write them at once.

    The original stderr is written through its file descriptor, for three reasons. No text stays in
    the buffer of the stream, where a forked child would write it again, and where a full disk would
    make the interpreter exit with an error. And no thread waits for the lock of the stream while a
    write blocks.
    """

    handler: logging.StreamHandler[TextIO]

    def __init__(self, handler: logging.StreamHandler[TextIO], *, in_context: bool = False) -> None:
        super().__init__(handler, in_context=in_context)
        self._lost = 0  # the number of records since the stream failed
        self._templates = LineTemplates(handler)

    def write(self, records: Sequence[logging.LogRecord]) -> int:
        """Write the records of at least the handler's level, in pieces of whole lines."""
        self.done = self.failed = 0
        self._templates.refresh()
        stream: TextIO | None = self.handler.stream
        if stream is None:  # the process has no stderr
            return len(records)
        encoding = raw_encoding(stream)
        limit = _piece_size(stream) if encoding else sys.maxsize
        lines: list[str] = []
        size = written = 0
        for record in records:
            self._began = time.monotonic()
            line = self._format(record)
            length = len(line if line.isascii() else line.encode(encoding or "utf-8", _ERRORS))
            size += length
            if size > limit and lines:
                self._attempt(stream, lines, encoding)
                lines.clear()
                size = length
            lines.append(line)
            written += 1
            # A fork waits for this record at most. An abandoned thread must not write any more,
            # because its unwritten records have been reported as lost.
            if self.abandoned or self.paused:
                break
        if not self.abandoned:
            self._began = time.monotonic()
            self._attempt(stream, lines, encoding)
        self._began = 0.0
        return written

    def flush(self) -> None:
        """Do nothing: every write is flushed."""

    def is_slow(self) -> bool:
        """Check whether the current record takes long, or waits for a full pipe."""
        stream = self.handler.stream
        if raw_encoding(stream) is None:
            return super().is_slow()
        try:
            return bool(self._began) and not is_writable(stream.fileno())
        except (OSError, ValueError):  # closed
            return False

    def reopen_stream(self) -> None:
        """Replace the stream, unless it is written through its descriptor."""
        if raw_encoding(self.handler.stream) is None:
            super().reopen_stream()

    def _format(self, record: logging.LogRecord) -> str:
        if isinstance(record, LazyRecord):
            try:
                template = self._templates.find(record)
                if template is not None:
                    return template[0] + record.compute_text() + template[1]
            except Exception:  # noqa: BLE001, S110 - to_record() reports the error
                pass
        text = self._call(self.handler.format, record)
        return "" if text is None else text + self.handler.terminator

    def _attempt(self, stream: TextIO, lines: Sequence[str], encoding: str | None) -> None:
        """Write some lines; report when the stream fails and when it recovers."""
        text = "".join(lines)
        if not text:  # no line reached the level, so this says nothing about the stream
            self.done += len(lines)
            return
        try:
            self._put(stream, text, encoding)
        except BaseException as error:  # noqa: BLE001 - no error may end the thread
            if not self._lost:
                name = getattr(stream, "name", stream)
                write_to_stderr(
                    f"svcrun.log: can't write to {name}: {describe_error(error)};"
                    " log records are lost until it works again\n",
                    unless=stream,
                )
            self._lost += len(lines)
            self.failed += len(lines)
        else:
            if self._lost:
                lost, self._lost = self._lost, 0
                line = self._format(warn("%d log records could not be written", lost))
                self._attempt(stream, [line], encoding)
                self.done -= 1  # this line is not one of the records
        self.done += len(lines)

    def _put(self, stream: TextIO, text: str, encoding: str | None) -> None:
        if encoding is not None:
            write_descriptor(stream.fileno(), text.encode(encoding, _ERRORS), self)
            return
        # Other users of the handler may write to the same stream.
        self.handler.acquire()
        try:
            try:
                stream.write(text)
            except UnicodeEncodeError:
                encoding = getattr(stream, "encoding", None) or "ascii"
                stream.write(text.encode(encoding, _ERRORS).decode(encoding))
            if hasattr(stream, "flush"):
                stream.flush()
        finally:
            self.handler.release()


def make_sink(handler: logging.Handler, *, in_context: bool = False) -> Sink:
    """Return the sink for a handler."""
    # A subclass may override emit(), so it gets each record.
    if type(handler) is logging.StreamHandler:
        return StreamSink(handler, in_context=in_context)
    return HandlerSink(handler, in_context=in_context)


def flush_handler(handler: logging.Handler) -> None:
    """Flush a handler, and write an error to stderr."""
    try:
        handler.flush()
    except BaseException as error:  # noqa: BLE001 - no error may end the thread
        write_to_stderr(f"svcrun.log: {handler!r} can't be flushed: {describe_error(error)}\n")


def close_handler(handler: logging.Handler) -> None:
    """Close a handler, and write an error to stderr."""
    try:
        handler.close()
    except Exception as error:  # noqa: BLE001 - code of a library
        write_to_stderr(f"svcrun.log: {handler!r} can't be closed: {describe_error(error)}\n")


def warn(message: str, *args: Any) -> logging.LogRecord:
    """Return a warning of the log itself."""
    record = make_record(__package__, logging.WARNING, __file__, 0, message, args, None)
    record.serviceName = None
    return record


def report(record: logging.LogRecord, error: BaseException) -> None:
    """Report a record that was not written on stderr, like ``logging.Handler.handleError``."""
    if not logging.raiseExceptions:
        return
    try:
        trace = "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001 - it imports modules and reads files, without a descriptor left
        trace = f"{type(error).__qualname__}\n"
    failed = record.msg if type(record.msg) is Unrenderable else Unrenderable(record, error)
    write_to_stderr(
        "--- Logging error ---\n"
        + trace
        + f"Message: {failed.message}\nArguments: {failed.arguments}\n"
        + f"Logged from {record.pathname}, line {record.lineno}\n",
        wait=True,
    )


def _piece_size(stream: TextIO) -> int:
    """Return the most bytes of one write to the descriptor of a stream."""
    try:
        is_file = stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # closed; the write reports it
        return _PIPE_PIECE
    return _FILE_PIECE if is_file else _PIPE_PIECE
