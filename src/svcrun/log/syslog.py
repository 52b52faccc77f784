"""The ``syslog`` format."""

from __future__ import annotations

import errno
import socket
import sys
from logging.handlers import SYSLOG_UDP_PORT, SysLogHandler

from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun.log.daemon_handler import DaemonHandler, connect, is_socket
from svcrun.log.streams import write_to_stderr

if TYPE_CHECKING:
    import logging

__all__ = ("create_handler",)

_SOCKETS = ("/dev/log", "/var/run/syslog", "/var/run/log")
_REMEDY = "start a syslog daemon, or choose another log_format"


class _Handler(DaemonHandler, SysLogHandler):
    _has_failed = False  # whether the send of the current record failed

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record; the base class reconnects after an error."""
        self._has_failed = False
        super().emit(record)
        if not self._has_failed:
            self.report_lost()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Count a record that was not sent; report other errors as the base class does."""
        self._has_failed = True
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self.count_lost(error, self.address)
        else:
            super().handleError(record)

    def close(self) -> None:
        """Close the socket, unless a session uses the handler."""
        if not self.in_use:
            super().close()


def create_handler(formatter: logging.Formatter, options: dict[str, Any]) -> logging.Handler:
    """Return a handler that sends to the local daemon, by its socket if it has one, else by UDP.

    :raises OSError: if the given address is not a socket, or the socket cannot be created.
    """
    if "address" in options:
        address = options["address"]
        if isinstance(address, str) and not is_socket(address):
            message = f"log: format 'syslog' needs a socket of a syslog daemon; {_REMEDY}"
            raise FileNotFoundError(errno.ENOENT, message, address)
    else:
        options["address"] = _find_address()
    try:
        handler = _Handler(**options)
    except OSError as error:
        message = f"log: format 'syslog' can't use {options['address']}: {error}; {_REMEDY}"
        raise OSError(error.errno, message) from error
    handler.setFormatter(formatter)
    return handler


def _find_address() -> str | tuple[str, int]:
    """Return the socket of the daemon, even of one that does not run now, or the UDP address."""
    paths = [path for path in _SOCKETS if is_socket(path)]
    for path in paths:
        if any(_accepts(path, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)):
            return path
    if paths:
        return paths[0]
    if _refuses(SYSLOG_UDP_PORT):
        write_to_stderr(
            f"svcrun.log: no syslog daemon has a socket at {' or '.join(_SOCKETS)}, or listens at"
            f" UDP port {SYSLOG_UDP_PORT}; log records are lost until one does\n"
        )
    return "localhost", SYSLOG_UDP_PORT


def _accepts(path: str, kind: socket.SocketKind) -> bool:
    try:
        connect(path, kind).close()
    except OSError:
        return False
    return True


def _refuses(port: int) -> bool:
    """Check whether a local UDP port refuses datagrams.

    The kernel answers with an error if no socket is bound to the port. The absence of an error
    proves nothing.
    """
    try:
        # The handler sends to the first address, which is an IPv6 address on some machines.
        family, kind, proto, _, address = socket.getaddrinfo(
            "localhost", port, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, proto) as sock:
            sock.connect(address)
            sock.send(b"")  # daemons ignore it
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
    except OSError:
        return False  # the handler reports errors when it sends
