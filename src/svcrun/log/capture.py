"""Copy log records as they are at the log call, for a thread that formats them later.

Race: after the log call and before the thread writes the record, the caller may change the
arguments, and other handlers may change the record. So the thread gets a copy of the record. If an
argument is mutable, the copy also has the text of the message, and copies of its containers.

Invariant: the record itself is not changed, so other handlers receive it as the caller made it.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from functools import cache
from itertools import islice

from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun.log.records import ATTRIBUTE_COUNT, IMMUTABLE_TYPES, LazyRecord, Unrenderable

if TYPE_CHECKING:
    from contextvars import Context

__all__ = (
    "capture",
    "copy_extra",
    "copy_record",
    "render_exception",
    "render_text",
)


class _Captured:
    """The attributes that a captured record has in addition to those of its own class.

    Invariant: they are in slots, so ``vars(record)`` has only the attributes of the record. Some
    formatters print everything in ``vars(record)``.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        msg: Any
        args: Any
        captured_text: tuple[Any, Any, str] | None  # the message, its arguments, and their text
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


@cache
def _captured_class(kind: Any) -> Any:
    """Return a class of captured records that extends `kind`, and so has its methods.

    :param kind: the class of the record, which the log record factory of the program chooses.
    """
    if issubclass(kind, _Captured):
        return kind
    try:
        return type(kind.__name__, (_Captured, kind), {"__slots__": _SLOTS})
    except Exception:  # noqa: BLE001 - a class of the program may forbid subclasses
        return _captured_class(logging.LogRecord)


_SLOTS = ("captured_text", "context_of_call")


def copy_record(record: logging.LogRecord) -> logging.LogRecord:
    """Return a copy of the record with the same message, arguments and attributes."""
    if isinstance(record, LazyRecord):
        return logging.makeLogRecord(vars(record))
    kind: Any = type(record)
    copy: Any = object.__new__(_captured_class(kind))
    copy.__dict__.update(record.__dict__)
    copy.captured_text = getattr(record, "captured_text", None)
    copy.context_of_call = getattr(record, "context_of_call", None)
    return copy  # type: ignore[no-any-return]


def capture(
    record: logging.LogRecord,
    *,
    immutable: bool,
    extra: bool = False,
    context: Context | None = None,
) -> logging.LogRecord:
    """Return a copy that keeps the present text and values of the record.

    A message that cannot be rendered is replaced by an :class:`Unrenderable`.

    :param immutable: whether the message and all arguments are of immutable types, so that the
        thread can render the text later.
    :param extra: whether to copy the containers given as ``extra=``.
    :param context: the context of the log call, in which the record is written.
    """
    copy: Any = copy_record(record)
    copy.context_of_call = context
    if not immutable:
        text = render_text(record)
        if type(text) is Unrenderable:
            copy.msg, copy.args, copy.captured_text = text, None, None
        else:
            msg, args = copy.msg, copy.args
            if type(msg) is not str:
                msg = copy.msg = _copy_container(msg)
                if type(msg) is dict and msg.get("exc_info") is True and sys.exception():
                    # structlog's formatters read the current exception, which sys.exc_info()
                    # returns here but not in the thread.
                    msg["exc_info"] = sys.exc_info()
            for value in args if type(args) is tuple else (args,):
                if type(value) in _CONTAINERS:
                    args = copy.args = _copy_container(args)
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
    except Exception as error:  # noqa: BLE001 - a log call never raises, but __str__() may
        return Unrenderable(record, error)


def render_exception(record: logging.LogRecord, formatter: logging.Formatter | None) -> None:
    """Replace the exception of a record by the text of its traceback."""
    if not record.exc_text:
        try:
            record.exc_text = (formatter or _FORMATTER).formatException(record.exc_info)  # type: ignore[arg-type]
        except Exception:  # noqa: BLE001 - the sink calls the formatter again, and reports the error
            return
    record.exc_info = None


_FORMATTER = logging.Formatter()


def copy_extra(record: logging.LogRecord) -> None:
    """Replace the containers given as ``extra=`` by copies, because they may change.

    Other objects stay, because handlers may look for attributes of them.
    """
    attributes = vars(record)
    for name, value in list(islice(attributes.items(), ATTRIBUTE_COUNT, None)):
        if type(value) not in IMMUTABLE_TYPES:
            attributes[name] = _copy_container(value)


# Containers whose copy() runs no code of the program.
_MAPPINGS = frozenset({dict, OrderedDict, defaultdict, Counter})
_SEQUENCES = frozenset({list, deque})
_FLAT = frozenset({set, bytearray})  # their items are immutable, or are not copied
_CONTAINERS = _MAPPINGS | _SEQUENCES | _FLAT | {tuple}


def _copy_container(value: Any) -> Any:
    """Return a deep copy of a container, and any other object unchanged."""
    try:
        return _copy(value, {})
    except Exception:  # noqa: BLE001 - __hash__() of a key may raise; the nesting may be too deep
        return value


def _copy(value: Any, known: dict[int, Any]) -> Any:
    """Return a deep copy of a container; a container that occurs several times is copied once.

    :param known: the copies by the ids of the originals. A container that contains itself is found
        there, so the recursion ends.
    """
    kind = type(value)
    if kind not in _CONTAINERS:
        return value
    if id(value) in known:
        return known[id(value)]
    if kind is tuple:
        return known.setdefault(id(value), tuple([_copy(item, known) for item in value]))
    # Race: another thread may change the container. copy() is atomic, and hashes no key.
    copy = known[id(value)] = value.copy()
    if kind not in _FLAT:
        for key, item in copy.items() if kind in _MAPPINGS else enumerate(copy):
            if type(item) in _CONTAINERS:
                copy[key] = _copy(item, known)
    return copy
