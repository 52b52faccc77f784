"""The ``journald`` format, by logging-journald."""

from __future__ import annotations

import errno
import logging
import os
from typing import Any

from svcrun.log.kept import KeptHandler

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


class _Handler(JournaldLogHandler, KeptHandler):  # type: ignore[misc]  # the library has no types
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

    RECORD_FIELDS_MAP = JournaldLogHandler.RECORD_FIELDS_MAP | {"serviceName": "service_name"}

    def close(self) -> None:
        """Close the connection, which the library leaves open."""
        if self.kept:
            return
        self.transport.socket.close()
        super().close()


def create_handler(formatter: logging.Formatter, options: dict[str, Any]) -> logging.Handler:
    """Connect to the journal."""
    path = options.get("socket_path") or _Handler.SOCKET_PATH
    if not os.path.exists(path):
        raise FileNotFoundError(
            errno.ENOENT,
            "log: format 'journald' needs systemd-journald; choose another log_format",
            str(path),
        )
    handler: logging.Handler = _Handler(**options)
    handler.setFormatter(formatter)
    return handler
