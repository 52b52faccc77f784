"""Log formats, levels and date formats, and a handler for each format.

A format that needs a library is in its own module, which is imported on first use.
"""

from __future__ import annotations

import logging
import os
import sys
from contextvars import ContextVar
from enum import Enum, IntEnum, unique
from functools import cache

from svcrun._util.hints import Any, Final, TextIO
from svcrun.errors import ParameterError, ParameterTypeError

__all__ = (
    "LogFormat",
    "LogLevel",
    "create_logging_handler",
    "parse_format",
    "parse_level",
)

_STREAM_FORMAT: Final = "%(levelname)s:%(name)s:%(message)s"
_JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"


@unique
class LogFormat(IntEnum):
    """The appearance of log records, and their destination.

    >>> LogFormat["json"] is LogFormat.json
    True
    """

    disabled = -1
    """No output, except by handlers that you add."""
    stream = 0
    """``LEVEL:logger:message`` on stderr, as in the standard library."""
    color = 1
    """The same in colours; needs ``svcrun[color]``."""
    json = 2
    """One JSON object per line on stderr; needs ``svcrun[json]``."""
    syslog = 3
    """The syslog daemon."""
    plain = 4
    """The message alone, on stderr."""
    journald = 5
    """The journal of systemd, with its fields; needs ``svcrun[journald]``."""
    rich = 6
    """Columns and colours on stderr; needs ``svcrun[rich]``."""
    rich_tb = 7
    """``rich``, with tracebacks that show the surrounding code."""

    @classmethod
    def choices(cls) -> tuple[str, ...]:
        """Return the names.

        >>> LogFormat.choices()[:3]
        ('disabled', 'stream', 'color')
        """
        return tuple(cls.__members__)

    @classmethod
    def default(cls) -> str:
        """Return the name of the default format.

        It is ``journald`` if systemd reads stderr, ``color`` on a terminal, otherwise ``stream``.
        The first two need their libraries.
        """
        if "JOURNAL_STREAM" in os.environ and _journal_reads_stderr() and _has("logging_journald"):
            return cls.journald.name
        if _stderr_is_terminal() and _has("colorlog"):
            return cls.color.name
        return cls.stream.name


class LogLevel(IntEnum):
    """The standard levels by name.

    >>> LogLevel.info
    <LogLevel.info: 20>
    """

    critical = logging.CRITICAL
    error = logging.ERROR
    warning = logging.WARNING
    info = logging.INFO
    debug = logging.DEBUG
    notset = logging.NOTSET

    @classmethod
    def choices(cls) -> tuple[str, ...]:
        """Return the names."""
        return tuple(cls.__members__)

    @classmethod
    def default(cls) -> str:
        """Return the name of the default level."""
        return cls.info.name


class DateFormat(Enum):
    """The date format of each log format, under aiomisc's names."""

    color = "%Y-%m-%d %H:%M:%S"
    stream = "[%Y-%m-%d %H:%M:%S]"
    json = "%s"
    syslog = None
    rich = "[%X]"


LOG_LEVEL: ContextVar[int] = ContextVar("LOG_LEVEL", default=LogLevel.info)
LOG_FORMAT: ContextVar[LogFormat] = ContextVar("LOG_FORMAT", default=LogFormat.stream)
"""The level and the format of the latest configuration in this context."""


def parse_date_format(
    value: str | DateFormat | None, name: str = "date_format", owner: str = "log"
) -> str | None:
    """Return a date format for :func:`time.strftime`.

    :param owner: the owner of the parameter, for the error message.
    :raises TypeError: if `value` is not a date format.
    """
    found: object = value.value if isinstance(value, DateFormat) else value
    if found is None or isinstance(found, str):
        return found
    raise ParameterTypeError(owner, name, found, "a str such as '%H:%M:%S'")


def parse_level(value: int | str, name: str = "level") -> int:
    """Return the number of a level.

    :param value: a number, its digits, or a name in any case: of :class:`LogLevel`, or one given to
        ``logging.addLevelName``.
    :param name: the name of the parameter, for the error message.
    :raises ValueError: if there is no such level.
    :raises TypeError: if it is neither a number nor a name.

    >>> parse_level("Warning")
    30
    """
    found: object = value
    if isinstance(found, str):
        text = found.strip()
        if text.isascii() and text.isdigit():
            return int(text)
        levels = logging.getLevelNamesMapping()
        level = levels.get(text.upper(), levels.get(text))
        if level is not None:
            return level
    elif isinstance(found, int) and not isinstance(found, bool):
        if found >= 0:
            return int(found)
    else:
        raise ParameterTypeError("log", name, value, _describe_levels())
    raise ParameterError("log", name, value, _describe_levels())


def _describe_levels() -> str:
    return f"one of {', '.join(LogLevel.choices())} or a number of at least 0"


def parse_format(value: LogFormat | str | int | None, name: str = "log_format") -> LogFormat:
    """Return the member of :class:`LogFormat` for a name or number.

    :param value: a :class:`LogFormat`, its name in any case, or its number; None for the default.
    :param name: the name of the parameter, for the error message.
    :raises ValueError: if there is no such format.
    :raises TypeError: if it is neither a format nor a name.

    >>> parse_format("plain")
    <LogFormat.plain: 4>
    """
    found: object = LogFormat.default() if value is None else value
    if isinstance(found, LogFormat):
        return found
    if isinstance(found, str):
        member = LogFormat.__members__.get(found.strip().lower())
        if member is not None:
            return member
    elif isinstance(found, int) and not isinstance(found, bool):
        if found in LogFormat.__members__.values():
            return LogFormat(found)
    else:
        raise ParameterTypeError("log", name, value, _describe_formats())
    raise ParameterError("log", name, value, _describe_formats())


def _describe_formats() -> str:
    return f"one of {', '.join(LogFormat.choices())}"


def create_logging_handler(
    log_format: LogFormat | str = LogFormat.color,
    date_format: str | DateFormat | None = None,
    *,
    stream: TextIO | None = None,
    **options: Any,
) -> logging.Handler | None:
    """Return a handler for a format, which writes in the log call.

    :param log_format: a :class:`LogFormat` or its name.
    :param date_format: the format of the time, as for ``time.strftime``. By default, ``stream``
        shows no time. ``plain`` and ``syslog`` never show it.
    :param stream: the stream to write to, stderr by default; not for ``syslog`` and ``journald``.
    :param options: further options of the formatter or handler of the library:
        ``ColoredFormatter``, ``JsonFormatter``, ``RichHandler``, ``JournaldLogHandler`` or
        ``SysLogHandler``.
    :return: the handler; None for ``disabled``.
    :raises ImportError: if the library of the format is not installed.
    :raises OSError: if journald or syslog cannot be reached.

    >>> create_logging_handler("stream")
    <StreamHandler <stderr> (NOTSET)>
    """
    chosen = parse_format(log_format)
    date_format = parse_date_format(date_format)
    match chosen:
        case LogFormat.disabled:
            return None
        case LogFormat.syslog:
            # Imported on first use, like the modules of all formats that need one.
            from svcrun.log import syslog

            return syslog.create_handler(_get_formatter("%(message)s", None), options)
        case LogFormat.journald:
            from svcrun.log import journald

            return journald.create_handler(_get_formatter("%(message)s", None), options)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_create_formatter(chosen, date_format, stream, options))
    return handler


def _create_formatter(
    log_format: LogFormat, date_format: str | None, stream: TextIO | None, options: dict[str, Any]
) -> logging.Formatter:
    """Return the formatter of a format that writes to a stream."""
    match log_format:
        case LogFormat.color:
            from svcrun.log import color

            return color.create_formatter(_STREAM_FORMAT, date_format, options)
        case LogFormat.json:
            from svcrun.log import json

            return json.create_formatter(date_format, options)
        case LogFormat.rich | LogFormat.rich_tb:
            from svcrun.log import rich

            options.setdefault("rich_tracebacks", log_format is LogFormat.rich_tb)
            return rich.create_formatter(stream, date_format, options)
    if options:
        listed = ", ".join(options)
        raise TypeError(f"log: format {log_format.name!r} takes no {listed}; leave it out")
    if log_format is LogFormat.plain:
        return _get_formatter("%(message)s", None)
    return _get_formatter(_STREAM_FORMAT, date_format)


@cache
def _get_formatter(text: str, date_format: str | None) -> logging.Formatter:
    if date_format:
        return logging.Formatter("%(asctime)s " + text, datefmt=date_format)
    return logging.Formatter(text)


def _stderr_is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, OSError, ValueError):  # None, an object without isatty(), or closed
        return False


def _journal_reads_stderr() -> bool:
    """Check whether stderr is the stream that ``JOURNAL_STREAM`` names."""
    try:
        device, inode = map(int, os.environ["JOURNAL_STREAM"].split(":", 1))
        status = os.fstat(sys.stderr.fileno())
    except (AttributeError, KeyError, OSError, ValueError):
        return False
    same = (status.st_dev, status.st_ino) == (device, inode)
    return same and os.path.exists(_JOURNAL_SOCKET)


def _has(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None  # None blocks the import
    from importlib.util import find_spec

    return find_spec(module) is not None
