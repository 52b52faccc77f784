"""The admission of clients to a server: counters, and a maximum of open connections.

A server that has as many connections as it may have stops to accept. The system completes the
connections of further clients, up to the backlog, and they wait. When a connection ends, the
listener (``_net/listener.py``) accepts again.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ref

from svcrun._net.keepalive import set_keepalive
from svcrun._util.rate_limited_log import RateLimitedLog
from svcrun.errors import show

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Admission",)

log = logging.getLogger("svcrun.net")


class Pausable(Protocol):
    """A listener, as far as the admission uses it."""

    def resume(self) -> None:
        """Accept connections again."""


class Admission:
    """Count the clients of a server, and limit the number of its open connections.

    The counters go on when the server is started again. They are read by other threads.

    :param service: the server, named in log messages.
    :param count: returns the number of open connections, and :meth:`recheck` is called when one has
        ended. By default, the sockets are counted that :meth:`take` returned and that are open.
    """

    def __init__(self, service: Any, count: Callable[[], int] | None = None) -> None:
        self.accepted = 0
        """The number of accepted connections, those that were refused included."""
        self.refused = 0
        """The number of clients that were disconnected before a handler ran for them."""
        self.maximum: int | None = None
        """The maximum of open connections."""
        self.keepalive: float | None = None
        """Seconds for :func:`set_keepalive`, on each accepted connection."""
        self._service = ref(service)  # the service has this object: a reference cycle
        self._warnings = RateLimitedLog(log)
        self._sockets = 0
        self._count = count
        # The listener that waits for the end of a connection.
        self._paused: Pausable | None = None

    def begin(self, maximum: int | None, keepalive: float | None = None) -> None:
        """Prepare for a start.

        :param maximum: the maximum of open connections; None for no limit.
        :param keepalive: seconds for keep-alive, if it is not set on the listening socket alone.
        """
        self.maximum = maximum
        self.keepalive = keepalive
        self._paused = None

    @property
    def is_needed(self) -> bool:
        """Whether the listener has to call :meth:`take` and to check :attr:`is_full`."""
        return self.maximum is not None or self.keepalive is not None

    @property
    def is_full(self) -> bool:
        """Whether as many connections are open as may be."""
        if self.maximum is None:
            return False
        return (self._sockets if self._count is None else self._count()) >= self.maximum

    def take(self, connection: socket.socket) -> socket.socket:
        """Return the socket to use for an accepted connection in place of `connection`."""
        if self.keepalive is not None:
            with contextlib.suppress(OSError):  # race: the client may have disconnected
                set_keepalive(connection, self.keepalive)
        if self._count is not None or self.maximum is None:
            return connection
        return AdmittedSocket(connection, self)

    def pause(self, listener: Pausable) -> None:
        """Log that a client waits, and resume `listener` when a connection has ended."""
        self._paused = listener
        self._warnings.add(
            "%s: max_connections=%s is reached; further clients wait to be accepted",
            show(self._service()),
            self.maximum,
        )

    def recheck(self) -> None:
        """Resume the paused listener if there is room. Called after the end of a connection."""
        listener = self._paused
        if listener is not None and not self.is_full:
            self._paused = None
            listener.resume()

    def _socket_opened(self) -> None:
        self._sockets += 1

    def _socket_closed(self) -> None:
        self._sockets -= 1
        self.recheck()


class AdmittedSocket(socket.socket):
    """An accepted socket that reports when it is closed.

    It is the one thing that all connections of a web server have in common, from the first byte of
    a TLS handshake to the end of a web socket, whatever protocol handles them.
    """

    __slots__ = ("_admission",)

    def __init__(self, accepted: socket.socket, admission: Admission) -> None:
        self._admission: Admission | None = admission
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self.setblocking(False)
        admission._socket_opened()  # noqa: SLF001 - both classes are one mechanism

    def close(self) -> None:
        """Close the socket; asyncio does this at the end of a connection."""
        super().close()
        self._report()

    def detach(self) -> int:
        """Give the descriptor away; uvloop does this at the end of a connection, and closes it."""
        descriptor = super().detach()
        self._report()
        return descriptor

    def _report(self) -> None:
        admission, self._admission = self._admission, None
        if admission is not None:
            admission._socket_closed()  # noqa: SLF001 - both classes are one mechanism
