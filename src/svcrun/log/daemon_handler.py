"""Base class of handlers that send records to a local daemon."""

from __future__ import annotations

import os
import socket
import stat

from svcrun._util.hints import TYPE_CHECKING
from svcrun.log.session_handler import SessionHandler
from svcrun.log.sinks import warn
from svcrun.log.streams import write_to_stderr

if TYPE_CHECKING:
    import logging

__all__ = ("DaemonHandler", "connect", "is_socket")


_CONNECT_TIMEOUT = 1.0  # seconds, in case the daemon's queue of connections is full


def is_socket(path: str | os.PathLike[str]) -> bool:
    """Check whether `path` is a socket; an abstract address, without a file, counts as one."""
    if str(path).startswith("\0"):
        return True
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def connect(path: str, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
    """Connect to the socket of a daemon.

    :raises OSError: if no daemon listens there with a socket of that kind.
    """
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        sock.settimeout(_CONNECT_TIMEOUT)
        sock.connect(path)
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


class DaemonHandler(SessionHandler):
    """A handler whose daemon may restart at any time.

    Records are lost while the daemon does not run. A line on stderr reports the first loss, and a
    log record the number of lost records when the daemon is back.
    """

    _lost = 0

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as text that can be encoded."""
        text = super().format(record)
        return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()

    def count_lost(self, error: OSError, place: object) -> None:
        """Count a record that could not be sent.

        :param place: the address of the daemon.
        """
        if not self._lost:
            write_to_stderr(
                f"svcrun.log: can't write to {place}: {error};"
                " log records are lost until the daemon is back\n"
            )
        self._lost += 1

    def report_lost(self) -> None:
        """Log the number of lost records; call this after a record was sent."""
        if self._lost:
            lost, self._lost = self._lost, 0
            self.emit(warn("%d log records could not be written", lost))
