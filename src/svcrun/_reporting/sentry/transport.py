"""The way of reports to the server: sentry's own, with an end."""

from __future__ import annotations

import logging
import socket
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import urllib3
from sentry_sdk._queue import EmptyError
from sentry_sdk.transport import HttpTransport

from svcrun._reporting.report_queue import hand_over, unreported
from svcrun._util.rate_limited_log import RateLimitedLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentry_sdk.envelope import Envelope
    from urllib3.connection import HTTPConnection
    from urllib3.connectionpool import HTTPConnectionPool

__all__ = ("Transport",)

log = logging.getLogger("svcrun.service.sentry")

CONNECT_TIMEOUT = 3.0
"""Seconds to connect: nothing wakes a thread from that."""

LOOK = 0.01
"""Seconds between two looks at what sentry's thread does."""

GRACE = 0.25
"""Seconds for the thread to end when its connection was cut."""


class Transport(HttpTransport):
    """Send reports by sentry's thread, as sentry does.

    Sentry leaves that thread alone at the end: it may wait for a server for half a minute, or for
    ever for something to do. Here its connection is cut.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._connections: WeakSet[HTTPConnection] = WeakSet()
        self._given_up = threading.Event()
        self._losses = RateLimitedLog(log)
        self._under_way = 0  # events in the envelope that is being sent
        self.on_answer: Callable[[], object] | None = None
        """Called in sentry's thread when the server has answered."""
        self.sent = 0
        """How many events the server has taken."""
        super().__init__(options)

    @property
    def dropped(self) -> int:
        """How many reports were not delivered."""
        return self._losses.total

    def wait_for_room(self) -> bool:
        """Wait until there is room for another event, and tell whether the server wants errors."""
        while self._worker.full():
            if self._given_up.wait(LOOK):
                return False
        return not self._check_disabled("error")

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, nor is on its way."""
        return not self._worker._queue.unfinished_tasks  # type: ignore[attr-defined]  # noqa: SLF001 - as in kill()

    def kill(self) -> None:
        """Drop what waits, cut the connection, and wait for the end of the thread."""
        self._given_up.set()
        # What sentry's worker waits with, and in, has no public name.
        thread, queue = self._worker._thread, self._worker._queue  # type: ignore[attr-defined]  # noqa: SLF001
        with suppress(EmptyError):
            while True:
                queue.get_nowait()()  # which finds that it is too late
                queue.task_done()
        for connection in list(self._connections):
            sock = connection.sock
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        super().kill()
        if thread is not None:
            thread.join(GRACE)
        self._pool.clear()
        with unreported():
            self._losses.close()

    def capture_envelope(self, envelope: Envelope) -> None:
        """Take something to send; called by sentry, in any thread."""
        if not hand_over():
            return
        if self._given_up.is_set():
            self._lose("there was no time left", _count_events(envelope))
            return
        super().capture_envelope(envelope)
        if self._given_up.is_set():  # just now: the worker may have begun anew
            super().kill()

    def on_dropped_event(self, reason: str) -> None:
        """Count a report that is lost; called by sentry."""
        self._lose(reason, 1 if reason == "full_queue" else self._under_way)

    def _lose(self, reason: str, count: int) -> None:
        if count:  # there are envelopes with no events, but with what sentry tells of itself
            with unreported():
                self._losses.add("%s did not get a report: %s", self._place, reason, count=count)

    @property
    def _place(self) -> str:
        return "Sentry" if self.parsed_dsn is None else f"Sentry at {self.parsed_dsn.netloc}"

    def _send_envelope(self, envelope: Envelope) -> None:
        events = _count_events(envelope)
        if self._given_up.is_set():
            self._lose("there was no time left", events)
            return
        self._under_way = events
        super()._send_envelope(envelope)

    def _request(self, *args: Any, **kwargs: Any) -> urllib3.BaseHTTPResponse:
        with unreported():  # what urllib3 logs of its troubles
            response = super()._request(*args, **kwargs)
        if response.status < 300:  # noqa: PLR2004 - it was taken
            self.sent += self._under_way
        if self.on_answer is not None:
            self.on_answer()
        return response

    def _get_pool_options(self) -> dict[str, Any]:
        timeout = urllib3.Timeout(total=self.TIMEOUT, connect=CONNECT_TIMEOUT)
        # urllib3 would try to connect three times more, at once, and log each. But a server may
        # close a connection just when it is used again. Retry-After is for sentry to obey.
        retries = urllib3.Retry(
            1, connect=0, allowed_methods=None, respect_retry_after_header=False
        )
        return {**super()._get_pool_options(), "timeout": timeout, "retries": retries}

    def _make_pool(self) -> urllib3.PoolManager:
        manager = super()._make_pool()
        watched: Any = {
            scheme: partial(self._watch, pool_class)
            for scheme, pool_class in manager.pool_classes_by_scheme.items()
        }
        manager.pool_classes_by_scheme = watched  # they are only called
        return manager

    def _watch(
        self, pool_class: Callable[..., HTTPConnectionPool], *args: Any, **kwargs: Any
    ) -> HTTPConnectionPool:
        """Make a pool of connections that are known here."""
        pool = pool_class(*args, **kwargs)
        make: Any = pool.ConnectionCls

        def connect(**options: Any) -> Any:
            if self._given_up.is_set():
                raise ConnectionAbortedError("the service has stopped")
            connection = make(**options)
            self._connections.add(connection)
            return connection

        pool.ConnectionCls = connect  # type: ignore[assignment]  # it is only called
        return pool


def _count_events(envelope: Envelope) -> int:
    return sum(item.type == "event" for item in envelope.items)
