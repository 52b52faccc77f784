"""Logging that never blocks the event loop.

:func:`basic_config` configures the root logger. From then on, a log call appends its record to a
buffer, and a thread formats and writes the record. See :class:`LogFormat` for the formats.
"""

from svcrun.log.config import basic_config
from svcrun.log.exception_hooks import UnhandledLoopHook
from svcrun.log.formats import (
    LOG_FORMAT,
    LOG_LEVEL,
    DateFormat,
    LogFormat,
    LogLevel,
    create_logging_handler,
    parse_format,
    parse_level,
)
from svcrun.log.handler import ThreadedHandler
from svcrun.log.session import LogSession

__all__ = (
    "LOG_FORMAT",
    "LOG_LEVEL",
    "DateFormat",
    "LogFormat",
    "LogLevel",
    "LogSession",
    "ThreadedHandler",
    "UnhandledLoopHook",
    "basic_config",
    "create_logging_handler",
    "parse_format",
    "parse_level",
)
