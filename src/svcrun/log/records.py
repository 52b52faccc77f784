"""How a record is made: in a log call, or as late as it is looked at.

Making the record is what a log call spends most of its time on, once formatting and writing are
gone from it. :func:`make_record` sets the very attributes that ``logging.LogRecord`` sets, and
remembers what depends on the file name alone instead of working it out for every call.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from asyncio import current_task
from asyncio.events import _get_running_loop
from collections.abc import Mapping
from threading import get_ident
from time import time
from types import NoneType

from svcrun._util.current_service import current_name
from svcrun._util.hints import Any

__all__ = (
    "ATTRIBUTE_COUNT",
    "IMMUTABLE_TYPES",
    "NAMED_COUNT",
    "LazyRecord",
    "Unrenderable",
    "can_make_records",
    "make_record",
    "name_service",
)

#: Types whose values can't change between the log call and the writing. The exact types: a
#: subclass may do anything in its ``__str__``.
IMMUTABLE_TYPES = frozenset({str, int, float, complex, bool, bytes, NoneType})

_HAS_TASK_NAME = sys.version_info >= (3, 12)

_new_record = logging.LogRecord.__new__

# (file name, module name) by path: as many as there are source files that log
_names: dict[str, tuple[str, str]] = {}


_plain = logging.LogRecord("", 0, "", 0, "", (), None)
_EPOCH = _plain.created - _plain.relativeCreated / 1000  # what `relativeCreated` counts from
_ATTRIBUTES = list(vars(_plain))

#: How many attributes a record has before anything is added to it, such as by ``extra=``.
ATTRIBUTE_COUNT = len(_ATTRIBUTES)

#: How many it has when :func:`name_service` has added one, and nobody else.
NAMED_COUNT = ATTRIBUTE_COUNT + 1


def _name_file(path: str) -> tuple[str, str]:
    try:
        filename = os.path.basename(path)
        names = filename, os.path.splitext(filename)[0]
    except (TypeError, ValueError, AttributeError):
        return path, "Unknown module"
    _names[path] = names
    return names


def _name_process() -> str:
    try:
        return str(sys.modules["multiprocessing"].current_process().name)
    except Exception:  # noqa: BLE001 - half imported; logging does the same
        return "MainProcess"


def _name_task() -> str | None:
    loop = _get_running_loop()
    if loop is None:
        return None
    task = current_task(loop)
    return None if task is None else task.get_name()


def make_record(
    name: str,
    level: int,
    pathname: str,
    lineno: int,
    msg: object,
    args: Any,
    exc_info: Any,
    func: Any = None,
    sinfo: str | None = None,
    **_: Any,
) -> logging.LogRecord:
    """Make what ``logging.LogRecord(...)`` makes, in about half the time.

    Takes what ``logging.setLogRecordFactory`` asks of a factory. The result is a plain
    ``logging.LogRecord``; attributes are set in the order in which its own constructor sets them,
    so that both share one table of names.
    """
    now = time()
    record = _new_record(logging.LogRecord)
    record.name = name
    record.msg = msg
    if args and len(args) == 1:
        only = args[0]
        # the type test spares the slow look into an abstract class
        if only and type(only) not in IMMUTABLE_TYPES and isinstance(only, Mapping):
            args = only
    record.args = args
    record.levelname = logging.getLevelName(level)
    record.levelno = level
    record.pathname = pathname
    try:
        record.filename, record.module = _names[pathname]
    except (KeyError, TypeError):
        record.filename, record.module = _name_file(pathname)
    record.exc_info = exc_info
    record.exc_text = None
    record.stack_info = sinfo
    record.lineno = lineno
    record.funcName = func
    record.created = now
    record.msecs = int((now % 1) * 1000) + 0.0
    record.relativeCreated = (now - _EPOCH) * 1000
    if logging.logThreads:
        record.thread = get_ident()
        record.threadName = threading.current_thread().name
    else:
        record.thread = record.threadName = None
    if not logging.logMultiprocessing:
        record.processName = None
    else:
        record.processName = _name_process() if "multiprocessing" in sys.modules else "MainProcess"
    record.process = os.getpid() if logging.logProcesses else None
    if _HAS_TASK_NAME:
        record.taskName = _name_task() if getattr(logging, "logAsyncioTasks", True) else None
    return record


def name_service(record: logging.LogRecord) -> None:
    """Have a record tell by its ``serviceName`` which service is at work, unless it does already.

    That is for handlers to do: an attribute that is there from the beginning, ``extra=`` can't set.
    """
    if not hasattr(record, "serviceName"):
        record.serviceName = current_name()


def can_make_records() -> bool:
    """Tell whether :func:`make_record` may stand in for the factory that is in place.

    Only for the plain class, never for a factory of the user's; and only while the plain class has
    the attributes we know of, which a later Python version may change.
    """
    if logging.getLogRecordFactory() is not logging.LogRecord:
        return False
    return _COMPLETE


_COMPLETE = list(vars(make_record("", 0, "", 0, "", (), None))) == _ATTRIBUTES


class LazyRecord(logging.LogRecord):
    """A record that is filled in when somebody looks at it: by the thread that writes it, mostly.

    What it is made of must not change until then. Once somebody has looked at it, or has set an
    attribute, it is as good as any other record.

    :param like: a record that has all that many records have in common, the service among it.
    """

    # In slots, so that its dictionary has what is an attribute of a record, and nothing else.
    __slots__ = ("_at", "_shared", "context_of_call")

    levelno = logging.INFO

    def __init__(self, like: logging.LogRecord) -> None:
        # Not super().__init__(): all it does is to set what is to be set later.
        self._at = time()
        self._shared = like

    # These are no properties, so that they are in the way of no attribute that somebody sets.

    def shared_record(self) -> logging.LogRecord:
        """Return what it has in common with others."""
        return self._shared

    def was_read(self) -> bool:
        """Return whether a handler or filter has read the record, and so may have changed it."""
        return bool(_attributes_of(self))

    def compute_text(self) -> str:
        """Return the message with its arguments."""
        message, args, _ = self.compute()
        return message % args

    def compute(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Return the message, its arguments, and what else is to be an attribute."""
        raise NotImplementedError

    def to_record(self) -> logging.LogRecord:
        """Return a record with all attributes, as they are before anything else changes them."""
        record = _new_record(logging.LogRecord)
        record.__dict__.update(self._complete())
        return record

    def _complete(self) -> dict[str, Any]:
        message: object
        args: tuple[Any, ...] | None
        try:
            message, args, extra = self.compute()
        except Exception as error:  # noqa: BLE001 - to look at a record must not raise
            message, args, extra = Unrenderable(self._shared, error), None, {}
        created = self._at
        attributes = self._shared.__dict__ | extra
        attributes["msg"] = message
        attributes["args"] = args
        attributes["created"] = created
        attributes["msecs"] = int((created % 1) * 1000) + 0.0
        attributes["relativeCreated"] = (created - _EPOCH) * 1000
        return attributes

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]  # for vars() and formatters
        attributes: dict[str, Any] = _attributes_of(self)
        if _LAST not in attributes:
            # What is set already was set by a filter, and stays.
            attributes.update(self._complete() | attributes)
        return attributes

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(f"a log record has no {name!r}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return logging.makeLogRecord, (self.__dict__,)


_attributes_of = logging.LogRecord.__dict__["__dict__"].__get__

# Nobody sets this one; if it is there, all are.
_LAST = "relativeCreated"


class Unrenderable:
    """Stands in a record for a message that can't be turned into text, and says why."""

    __slots__ = ("arguments", "error", "message")

    def __init__(self, record: logging.LogRecord, error: BaseException) -> None:
        self.error = error
        self.message = _describe(record.msg)
        self.arguments = _describe(record.args)

    def __str__(self) -> str:
        return f"unprintable message {self.message}"


def _describe(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - code of the user's, it may raise anything
        return f"<unprintable {type(value).__name__} object>"
