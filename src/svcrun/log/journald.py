"""The ``journald`` format, by logging-journald."""

from __future__ import annotations

import logging
from typing import Any

try:
    from logging_journald import JournaldLogHandler
except ImportError as error:
    raise ImportError(
        "svcrun.log format 'journald' needs logging-journald: pip install 'svcrun[journald]'"
    ) from error

__all__ = ("create_handler",)


class _Priorities(dict[int, int]):
    """The syslog priority of a level; levels between the standard ones count as the lower one."""

    def __missing__(self, level: int) -> int:
        lower = [known for known in self if known <= level]
        return self[max(lower)] if lower else self[logging.DEBUG]


class _Handler(JournaldLogHandler):  # type: ignore[misc]  # the library has no types
    # The library's own table lacks all other levels, and takes CRITICAL for the emergency that
    # journald announces on every terminal of the machine.
    LEVELS = _Priorities(
        {
            logging.DEBUG: 7,
            logging.INFO: 6,
            logging.WARNING: 4,
            logging.ERROR: 3,
            logging.CRITICAL: 2,
        }
    )


def create_handler(formatter: logging.Formatter, options: dict[str, Any]) -> logging.Handler:
    """Connect to the journal."""
    try:
        handler: logging.Handler = _Handler(**options)
    except OSError as error:
        path = options.get("socket_path", _Handler.SOCKET_PATH)
        raise type(error)(
            error.errno,
            f"log: format 'journald' can't reach systemd-journald at {path}: {error.strerror};"
            " choose another log_format",
        ) from error
    handler.setFormatter(formatter)
    return handler
