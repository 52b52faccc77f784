"""Copies of log records as they are at the log call, for a thread that formats them later.

Race: after the log call, the caller may change the arguments, and other handlers may change the
record, before the thread writes it. So the thread gets a copy of the record. If an argument is not
a string or a number, the copy also has the text of the message, and copies of its containers.

Invariant: the record itself is not changed, so other handlers receive it as the caller made it.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from itertools import islice

from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun.log.records import ATTRIBUTE_COUNT, IMMUTABLE_TYPES, LazyRecord, Unrenderable

if TYPE_CHECKING:
    from contextvars import Context

__all__ = (
    "CapturedRecord",
    "capture",
    "captured_context",
    "copy_extra",
    "copy_record",
    "render_exception",
    "render_text",
)


class _Captured:
    """The attributes of a captured record in addition to those of its class.

    They are in slots, so ``vars(record)`` has only the attributes of the record. Some formatters
    print everything in ``vars(record)``.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        msg: Any
        args: Any
        captured_text: tuple[Any, Any, str] | None  # the message, the arguments, and their text
        context_of_call: Context | None

    def getMessage(self) -> str:  # noqa: N802 - the name is logging's
        """Return the text that the message had in the log call."""
        captured = self.captured_text
        # The text is valid as long as no filter or handler has replaced the message or arguments.
        if captured is not None and self.msg is captured[0] and self.args is captured[1]:
            return captured[2]
        text: str = super().getMessage()  # type: ignore[misc]  # of the record's own class
        return text

    def __copy__(self) -> logging.LogRecord:
        return copy_record(self)  # type: ignore[arg-type]  # it is one

    def __reduce__(self) -> tuple[Any, ...]:
        return logging.makeLogRecord, (self.__dict__,)


class CapturedRecord(_Captured, logging.LogRecord):
    """A captured record of the plain class."""

    __slots__ = ("captured_text", "context_of_call")


# The class of the captured record for each class of record that the program's factories make.
_classes: dict[type[logging.LogRecord], type[Any]] = {logging.LogRecord: CapturedRecord}


def _class_for(kind: type[logging.LogRecord]) -> type[Any]:
    """Return a class of captured records that extends `kind`, and so has its methods."""
    found = _classes.get(kind)
    if found is None:
        found = kind if issubclass(kind, _Captured) else _extend(kind)
        _classes[kind] = found
    return found


def _extend(kind: type[logging.LogRecord]) -> type[Any]:
    try:
        return type(kind.__name__, (_Captured, kind), {"__slots__": CapturedRecord.__slots__})
    except Exception:  # noqa: BLE001 - a class of the user's may refuse to be extended
        return CapturedRecord


def copy_record(record: logging.LogRecord) -> logging.LogRecord:
    """Return a copy of the record with the same message, arguments and attributes."""
    copy: Any
    if type(record) is logging.LogRecord:  # the fast path, for nearly all records
        copy = _new(CapturedRecord)
        copy.__dict__ = record.__dict__.copy()
        copy.captured_text = copy.context_of_call = None
        return copy  # type: ignore[no-any-return]
    if isinstance(record, LazyRecord):
        return logging.makeLogRecord(vars(record))
    copy = _new(_class_for(type(record)))
    copy.__dict__ = record.__dict__.copy()
    if isinstance(record, _Captured):
        copy.captured_text = record.captured_text
        copy.context_of_call = record.context_of_call
    else:
        copy.captured_text = copy.context_of_call = None
    return copy  # type: ignore[no-any-return]


_new: Any = object.__new__


def captured_context(record: logging.LogRecord) -> Context | None:
    """Return the context of the log call, if it was captured."""
    context: Context | None = getattr(record, "context_of_call", None)
    return context


def capture(
    record: logging.LogRecord,
    *,
    settled: bool,
    extra: bool = False,
    context: Context | None = None,
) -> logging.LogRecord:
    """Return a copy that keeps the present text and values of the record.

    A message that can't be rendered is replaced by an :class:`Unrenderable`.

    :param settled: whether the text can't change, because the message is a string and the arguments
        are strings and numbers.
    :param extra: whether to copy the containers given as ``extra=``.
    :param context: the context of the log call, in which the record is written.
    """
    copy: Any = copy_record(record)
    copy.context_of_call = context
    if not settled:
        text = render_text(record)
        if type(text) is Unrenderable:
            copy.msg, copy.args, copy.captured_text = text, None, None
        else:
            msg, args = copy.msg, copy.args
            if type(msg) is not str:
                msg = copy.msg = _settle(msg)
                if type(msg) is dict and msg.get("exc_info") is True and sys.exception():
                    # structlog's formatters read the exception being handled, which is known here
                    # but not in the thread.
                    msg["exc_info"] = sys.exc_info()
            for value in args if type(args) is tuple else (args,):
                if type(value) in _CONTAINERS:
                    args = copy.args = _settle(args)
                    break
            copy.captured_text = msg, args, text
    if extra:
        copy_extra(copy)
    return copy  # type: ignore[no-any-return]


def render_text(record: logging.LogRecord) -> str | Unrenderable:
    """Return the present text of the message with its arguments."""
    if type(record.msg) is Unrenderable:
        return record.msg
    try:
        return str(record.getMessage())
    except Exception as error:  # noqa: BLE001 - a log call must not raise an error of __str__()
        return Unrenderable(record, error)


def render_exception(record: logging.LogRecord, formatter: logging.Formatter | None) -> None:
    """Replace the exception of a record by its text."""
    if not record.exc_text:
        try:
            record.exc_text = (formatter or _FORMATTER).formatException(record.exc_info)  # type: ignore[arg-type]
        except Exception:  # noqa: BLE001 - the handler calls the formatter again, and reports it
            return
    record.exc_info = None


_FORMATTER = logging.Formatter()


def copy_extra(record: logging.LogRecord) -> None:
    """Copy the containers given as ``extra=``, which may change before the write.

    Other objects are left as they are: handlers look for attributes of theirs on them.
    """
    attributes = vars(record)
    for name, value in list(islice(attributes.items(), ATTRIBUTE_COUNT, None)):
        if type(value) not in IMMUTABLE_TYPES:
            attributes[name] = _settle(value)


# Containers whose copy() runs no code of the program, and the depth to which they are copied.
_MAPPINGS = frozenset({dict, OrderedDict, defaultdict, Counter})
_SEQUENCES = frozenset({list, deque})
_SETS = frozenset({set, bytearray})
_CONTAINERS = _MAPPINGS | _SEQUENCES | _SETS | {tuple}
_DEPTH = 64


def _settle(value: Any) -> Any:
    """Return a deep copy of a container, and any other object unchanged."""
    if type(value) in IMMUTABLE_TYPES:
        return value
    try:
        return _copy(value, _DEPTH, {})
    except Exception:  # noqa: BLE001 - a key's __hash__ may raise anything
        return value


def _copy(value: Any, depth: int, known: dict[int, Any]) -> Any:
    """Return a deep copy of a container; one that occurs several times is copied once.

    :param known: the copies by the ids of the originals, which also ends recursion of a container
        that contains itself.
    """
    kind = type(value)
    if kind in IMMUTABLE_TYPES or not depth:
        return value
    if id(value) in known:
        return known[id(value)]
    if kind is tuple:
        items = tuple([_copy(item, depth - 1, known) for item in value])
        return known.setdefault(id(value), items)
    if kind in _MAPPINGS:
        # Race: another thread may change the mapping. copy() is atomic, and hashes no key.
        mapping = known[id(value)] = value.copy()
        for key, item in mapping.items():
            if type(item) not in IMMUTABLE_TYPES:
                mapping[key] = _copy(item, depth - 1, known)
        return mapping
    if kind in _SEQUENCES:
        sequence = known[id(value)] = value.copy()
        for index, item in enumerate(sequence):
            if type(item) not in IMMUTABLE_TYPES:
                sequence[index] = _copy(item, depth - 1, known)
        return sequence
    return value.copy() if kind in _SETS else value
