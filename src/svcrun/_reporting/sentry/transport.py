"""Send envelopes in sentry's thread, and end that thread when the service stops."""

from __future__ import annotations

import logging
import socket
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import urllib3
from sentry_sdk.transport import HttpTransport

from svcrun._reporting.report_queue import claim_report, unreported
from svcrun._util.rate_limited_log import RateLimitedLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentry_sdk.envelope import Envelope
    from urllib3.connection import HTTPConnection
    from urllib3.connectionpool import HTTPConnectionPool

__all__ = ("Transport",)

log = logging.getLogger("svcrun.service.sentry")

CONNECT_TIMEOUT = 3.0
"""Seconds that a connection attempt may take. A thread that connects can't be interrupted."""

GRACE_PERIOD = 0.25
"""Seconds to wait for the end of sentry's thread after its connections were shut down."""

_SPARE = 16  # slots of sentry's queue for the request to end its thread, and for flushes


class Transport(HttpTransport):
    """Send events in sentry's thread, and end the thread when the transport is closed.

    Sentry does not wait for its thread, which may wait half a minute for a server that does not
    answer. :meth:`kill` shuts down the connections, which ends a wait for a response at once.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._losses = RateLimitedLog(log)
        self._connections: WeakSet[HTTPConnection] = WeakSet()
        self._sender: threading.Thread | None = None  # sentry's thread; None before its first work
        # Guards the counters below. It is reentrant, because a signal handler may capture an event.
        self._changed = threading.Condition(threading.RLock())
        self._is_closed = False
        # Invariant: each event is counted once, as sent or as lost. An event is waiting from
        # capture_envelope() until sentry's thread takes it; kill() counts waiting events as lost.
        self._waiting = 0
        self._sending = 0  # events that sentry's thread has taken
        self._unfinished = 0  # envelopes in either state, including those without events
        self._capacity: int = options["transport_queue_size"]
        self.on_response: Callable[[], object] | None = None
        """Called in sentry's thread after each response of the server."""
        self.sent = 0
        """The number of events that the server has accepted."""
        super().__init__({**options, "transport_queue_size": self._capacity + _SPARE})

    @property
    def dropped(self) -> int:
        """The number of events that were lost."""
        return self._losses.total

    @property
    def is_idle(self) -> bool:
        """Whether no envelope is waiting or being sent."""
        return not self._unfinished

    def wait_for_room(self) -> bool:
        """Wait until the queue has room for an event; return False if the transport is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._waiting < self._capacity)
            return not self._is_closed

    def kill(self) -> None:
        """Drop the waiting events, shut down the connections, and end sentry's thread."""
        with self._changed:
            self._is_closed = True
            waiting, self._waiting = self._waiting, 0
            self._changed.notify_all()
        self._lose("shutdown timed out", waiting)
        for connection in list(self._connections):
            if connection.sock is not None:
                with suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)
        super().kill()
        if self._sender is not None:
            self._sender.join(GRACE_PERIOD)
        # Close the connections only after their thread: a descriptor that it still uses could
        # belong to another file by then.
        if self._sender is None or not self._sender.is_alive():
            for connection in list(self._connections):
                connection.close()
        with unreported():
            self._losses.close()

    def capture_envelope(self, envelope: Envelope) -> None:
        """Add an envelope to sentry's queue; sentry calls this in any thread."""
        if not claim_report():
            return
        count = _count_events(envelope)
        with self._changed:
            # The lock is held until the envelope is in the queue. Race: if kill() came in between,
            # sentry would start a new thread for the envelope.
            is_full = self._waiting >= self._capacity
            if not self._is_closed and not is_full:
                self._waiting += count
                self._unfinished += 1
                super().capture_envelope(envelope)
                return
        if is_full:
            for item in envelope.items:
                self.record_lost_event("queue_overflow", item=item)
        self._lose("the queue is full" if is_full else "shutdown timed out", count)

    def on_dropped_event(self, reason: str) -> None:
        """Count the events of a request that failed; sentry calls this in its thread."""
        self._lose(reason, self._sending)

    def _lose(self, reason: str, count: int) -> None:
        if count:  # 0 for an envelope of sentry's reports about itself
            server = "Sentry" if self.parsed_dsn is None else self.parsed_dsn.netloc
            with unreported():
                self._losses.add("dropped events for %s: %s", server, reason, count=count)

    # Hooks of sentry without public names. They run in sentry's thread, except the last one.

    def _send_envelope(self, envelope: Envelope) -> None:
        self._sender = threading.current_thread()
        with self._changed:
            if self._is_closed:
                return  # kill() has counted the events
            self._sending = _count_events(envelope)
            self._waiting -= self._sending
            self._changed.notify_all()
        try:
            super()._send_envelope(envelope)
        finally:
            self._sending = 0
            with self._changed:
                self._unfinished -= 1

    def _request(self, *args: Any, **kwargs: Any) -> urllib3.BaseHTTPResponse:
        with unreported():  # urllib3 logs failures
            response = super()._request(*args, **kwargs)
        if response.status < 300:  # noqa: PLR2004 - success
            self.sent += self._sending
        if self.on_response is not None:
            self.on_response()
        return response

    def _make_pool(self) -> urllib3.PoolManager:
        manager = super()._make_pool()
        # By default, urllib3 tries three more times to connect, without a pause, and logs each
        # attempt. Race: a server may close an idle connection when the next request reuses it, so
        # one retry is needed. Sentry itself obeys Retry-After.
        manager.connection_pool_kw |= {
            "timeout": urllib3.Timeout(total=self.TIMEOUT, connect=CONNECT_TIMEOUT),
            "retries": urllib3.Retry(
                1, connect=0, allowed_methods=None, respect_retry_after_header=False
            ),
        }
        pools: Any = {
            scheme: partial(self._make_host_pool, pool_class)
            for scheme, pool_class in manager.pool_classes_by_scheme.items()
        }
        manager.pool_classes_by_scheme = pools  # urllib3 only calls them
        return manager

    def _make_host_pool(
        self, pool_class: Callable[..., HTTPConnectionPool], *args: Any, **kwargs: Any
    ) -> HTTPConnectionPool:
        """Create the connection pool of one host, whose connections :meth:`kill` shuts down."""
        pool = pool_class(*args, **kwargs)
        make: Any = pool.ConnectionCls

        def connect(**options: Any) -> Any:
            if self._is_closed:
                raise ConnectionAbortedError("the service has stopped")
            connection = make(**options)
            self._connections.add(connection)
            return connection

        pool.ConnectionCls = connect  # type: ignore[assignment]  # urllib3 only calls it
        return pool


def _count_events(envelope: Envelope) -> int:
    return sum(item.type == "event" for item in envelope.items)
