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
    import socket
    from collections.abc import Iterable

__all__ = ("create_handler",)


class _Priorities(dict[int, int]):
    """The syslog priority by level; a level between two standard ones has that of the lower one."""

    def __missing__(self, level: int) -> int:
        lower = [known for known in self if known <= level]
        return self[max(lower)] if lower else self[logging.DEBUG]


class _Transport:
    """Send records to the journal, and reconnect after an error.

    Some versions of the library never reconnect. Others stop after one attempt.
    """

    def __init__(self, handler: _Handler, transport: JournaldTransport) -> None:
        self._handler = handler
        self._transport = transport
        transport.connected = False  # disables the library's own reconnection

    @property
    def socket(self) -> socket.socket:
        """The socket connected to the journal."""
        found: socket.socket = self._transport.socket
        return found

    def send(self, pairs: Iterable[tuple[str, Any]]) -> None:
        """Send a record, or count it as lost."""
        fields = list(pairs)
        try:
            try:
                self._transport.send(fields)
            except OSError:
                sock = connect(str(self._transport.socket_path))
                self.socket.close()
                self._transport.socket = sock
                self._transport.send(fields)
        except OSError as error:
            self._handler.count_lost(error, self._transport.socket_path)
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
        own: Any = vars(self)["transport"]
        self.transport = _Transport(self, own)

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
