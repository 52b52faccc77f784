"""The ``journald`` format, by logging-journald."""

from __future__ import annotations

import errno
import logging

from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun.log.daemon_handler import DaemonHandler, connect, is_socket

try:
    from logging_journald import JournaldLogHandler, JournaldTransport
except ImportError as error:
    raise ImportError(
        "svcrun.log format 'journald' needs logging-journald: pip install 'svcrun[journald]'"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("create_handler",)


class _Priorities(dict[int, int]):
    """The syslog priority by level; a level between two standard ones has that of the lower one."""

    def __missing__(self, level: int) -> int:
        lower = [known for known in self if known <= level]
        return self[max(lower)] if lower else self[logging.DEBUG]


class _Transport(JournaldTransport):  # type: ignore[misc]  # the library has no types
    """Send records to the journal, and count the lost ones.

    It does not connect its socket, because systemd replaces the socket of the journal when the
    journal restarts. Each record finds the present one by its path.
    """

    def __init__(self, handler: _Handler, path: object) -> None:
        super().__init__(path, connected=False)
        self._handler = handler

    def send(self, pairs: Iterable[tuple[str, Any]]) -> None:
        """Send a record, or count it as lost."""
        try:
            super().send(pairs)
        except OSError as error:
            self._handler.count_lost(error, self.socket_path)
        else:
            self._handler.report_lost()


class _Handler(DaemonHandler, JournaldLogHandler):  # type: ignore[misc]  # the library has no types
    # The library's table has no other levels, and maps CRITICAL to the emergency priority, which
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

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        connected: JournaldTransport = vars(self)["transport"]
        connected.socket.close()
        self.transport = _Transport(self, connected.socket_path)

    def close(self) -> None:
        """Close the socket, which the library leaves open, unless a session uses the handler."""
        if self.in_use:
            return
        self.transport.socket.close()
        super().close()


def create_handler(formatter: logging.Formatter, options: dict[str, Any]) -> logging.Handler:
    """Return a handler that is connected to the journal.

    :raises OSError: if journald has no socket or refuses the connection.
    """
    path = options.get("socket_path") or _Handler.SOCKET_PATH
    message = "log: format 'journald' needs systemd-journald; choose another log_format"
    if not is_socket(path):
        raise FileNotFoundError(errno.ENOENT, message, str(path))
    try:
        connect(str(path)).close()  # the library would leak its socket if this failed
        handler: logging.Handler = _Handler(**options)
    except OSError as error:
        raise OSError(error.errno, f"{message} ({error})", str(path)) from error
    handler.setFormatter(formatter)
    return handler
