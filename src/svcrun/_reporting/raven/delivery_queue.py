"""Send events to a Sentry server, and retry failed ones."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp

from svcrun._net.tls_options import SSLOptions
from svcrun._reporting.raven.rate_limits import TOO_MANY_REQUESTS, read_limit, read_retry_after
from svcrun._reporting.raven.resolver import Resolver
from svcrun._reporting.report_queue import claim_report, unreported
from svcrun._util.rate_limited_log import RateLimitedLog
from svcrun._util.tasks import cancel_and_wait

if TYPE_CHECKING:
    from collections.abc import Mapping

    from svcrun._reporting.raven.dsn import DSN

__all__ = ("DeliveryQueue",)

log = logging.getLogger("svcrun.service.raven")

CONNECTIONS = 4
"""The maximum number of events in flight."""

MAX_QUEUED_BYTES = 32 * 1024 * 1024
"""The maximum size of all waiting events in bytes; one event has some thousand."""

MAX_ATTEMPTS = 8
MAX_AGE = 300.0
"""The maximum number of attempts to send an event, and the maximum of its age in seconds."""

FIRST_DELAY = 1.0
MAX_DELAY = 60.0
"""Seconds of back-off after the first failure, which each further one doubles; their maximum."""

_MAX_BODY = 64 * 1024  # bytes of a response to read, so that its connection can be reused

SERVER_ERROR = 500  # the lowest status


class Event(NamedTuple):
    """An encoded event, and the time at which it was made, by the loop's clock."""

    url: str
    data: bytes
    headers: Mapping[str, str]
    made: float


class DeliveryQueue:
    """Send events of raven in the event loop.

    raven adds events in any thread. Events wait while the server is unreachable or limits their
    rate. An event is dropped after :data:`MAX_ATTEMPTS` or :data:`MAX_AGE`, or if the server
    rejects it.

    :param dsn: the address of the server.
    :param size: the maximum number of waiting events.
    """

    is_async = True

    def __init__(self, dsn: DSN, size: int) -> None:
        self._dsn = dsn
        self._size = size
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Event] = deque()
        # Invariant: each event that is claimed is counted once, as sent or as dropped. Race: a
        # thread may add an event while the stop counts the waiting ones. So the lock is held from
        # the claim until the event is in the queue or among the refused ones, and nothing is
        # claimed after the end. It is reentrant, because a signal handler may capture an event.
        # Nothing is logged under it: a log handler may capture an event under a lock of its own.
        self._lock = threading.RLock()
        self._bytes = 0  # the size of all waiting events
        self._refused = 0  # claimed events without room, until _drop_refused() counts them
        self._is_ended = False
        self._filled = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None
        self._closing = asyncio.Event()
        self._limited_until = 0.0  # the end of a rate limit
        self._retry_at = 0.0  # the end of the back-off after a failure
        self._failures = 0  # consecutive ones
        self._rejections: set[int] = set()  # the statuses of rejections that were logged
        self._drops = RateLimitedLog(log)
        self.sent = 0
        """The number of events that the server has accepted."""

    @property
    def dropped(self) -> int:
        """The number of events that were not delivered."""
        return self._drops.total

    @property
    def is_full(self) -> bool:
        """Whether the queue has no room for another event."""
        return (
            len(self._queue) >= self._size
            or self._bytes >= MAX_QUEUED_BYTES
            or self._closing.is_set()
        )

    async def open(self) -> None:
        """Open the session, and start the workers that send events.

        :raises OSError, ValueError: if the file of authorities can't be read.
        """
        context = None
        if self._dsn.scheme == "https":
            context = await asyncio.to_thread(_make_tls_context, self._dsn)
        with unreported():
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=CONNECTIONS, resolver=Resolver(), ssl=True if context is None else context
                ),
                timeout=aiohttp.ClientTimeout(total=self._dsn.timeout),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
            self._workers = [
                self._loop.create_task(self._work(self._session)) for _ in range(CONNECTIONS)
            ]

    def async_send(
        self,
        url: str,
        data: bytes,
        headers: Mapping[str, str],
        success_cb: Any,
        failure_cb: Any,
    ) -> None:
        """Add an event; raven calls this in any thread.

        The queue does not call the callbacks. After a failure, they would make raven drop events
        for a while and log each of them.
        """
        del success_cb, failure_cb
        event = Event(url, data, dict(headers), self._loop.time())
        with self._lock:
            if self._is_ended or not claim_report():
                return
            is_refused = self.is_full
            if is_refused:
                self._refused += 1
            else:
                self._bytes += len(data)
                self._queue.append(event)
        with suppress(RuntimeError):  # race: the loop is closed, so the stop has counted the event
            self._loop.call_soon_threadsafe(self._drop_refused if is_refused else self._filled.set)

    async def close(self, timeout: float) -> None:
        """Send waiting events for `timeout` seconds at most, and drop the rest."""
        self._closing.set()
        self._filled.set()
        try:
            if self._workers:
                await asyncio.wait(self._workers, timeout=timeout)
        finally:
            with unreported():
                await self._end()

    async def _end(self) -> None:
        await cancel_and_wait(self._workers)
        self._workers.clear()
        with self._lock:
            self._is_ended = True
        self._drop_refused()
        if self._queue:
            self._drop("shutdown timed out", count=len(self._queue))
            self._queue.clear()
        self._drops.close()
        if self._session is not None:
            await self._session.close()

    # The workers.

    async def _work(self, session: aiohttp.ClientSession) -> None:
        while True:
            try:
                event = self._queue.popleft()
            except IndexError:
                if self._closing.is_set():
                    return
                # Race: a thread may append an event after the popleft(). The wake-up is not lost,
                # because the thread schedules set() in this loop, which runs it after clear().
                self._filled.clear()
                await self._filled.wait()
                continue
            with self._lock:
                self._bytes -= len(event.data)
            try:
                await self._deliver(session, event)
            except asyncio.CancelledError:
                self._drop("shutdown timed out")
                raise
            except Exception:
                log.exception("could not send an event to %s", self._dsn)
                self._drop("unexpected error")

    async def _deliver(self, session: aiohttp.ClientSession, event: Event) -> None:
        """Send an event, with several attempts if necessary."""
        for attempt in range(MAX_ATTEMPTS):
            await self._wait_for_server(event)
            now = self._loop.time()
            if now < self._limited_until:
                self._drop("rate limit of the server")
                return
            is_last = self._closing.is_set()  # a stop allows one attempt, without back-off
            if attempt and now - event.made > MAX_AGE:
                break
            if await self._attempt(session, event):
                return
            if is_last:
                break
        self._drop("the server was unreachable or failed")

    async def _wait_for_server(self, event: Event) -> None:
        """Wait for the end of a rate limit or back-off.

        The wait ends early if the event reaches :data:`MAX_AGE`, or the queue begins to close.
        """
        while not self._closing.is_set():
            now = self._loop.time()
            until = min(max(self._limited_until, self._retry_at), event.made + MAX_AGE)
            if now >= until:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._closing.wait()

    async def _attempt(self, session: aiohttp.ClientSession, event: Event) -> bool:
        """Send an event once, and return whether it needs no further attempt."""
        try:
            async with session.post(
                event.url, data=event.data, headers=event.headers, allow_redirects=False
            ) as response:
                status, headers = response.status, response.headers
                await _read(response)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # aiohttp raises ValueError for some responses that are not HTTP.
            self._failed(_describe(error))
            return False
        limit = read_limit(status, headers)
        if limit:
            self._limit(limit)
        if status == TOO_MANY_REQUESTS or status >= SERVER_ERROR:
            self._failed(f"status {status}", read_retry_after(headers) or 0.0)
            return False
        if self._failures:
            self._failures = 0
            self._retry_at = 0.0
            log.warning("%s accepts events again", self._dsn)
        if status // 100 == 2:  # noqa: PLR2004 - OK
            self.sent += 1
        else:
            self._rejected(status, headers.get("X-Sentry-Error", ""))
        return True

    def _failed(self, reason: str, retry_after: float = 0.0) -> None:
        if not self._failures:
            log.warning("could not send events to %s: %s; retrying", self._dsn, reason)
        now = self._loop.time()
        # Events are sent at the same time. If several fail at once, the first failure sets the
        # back-off, and the others do not extend it.
        if now >= self._retry_at:
            delay = FIRST_DELAY * 2 ** min(self._failures, 10)
            delay = min(max(delay, retry_after), MAX_DELAY)
            self._retry_at = now + delay * random.uniform(1, 1.25)  # noqa: S311 - no secret
            self._failures += 1

    def _limit(self, seconds: float) -> None:
        until = self._loop.time() + seconds
        if self._limited_until < self._loop.time():
            log.warning("%s limits the rate; sending no events for %.0f s", self._dsn, seconds)
        self._limited_until = max(self._limited_until, until)

    def _rejected(self, status: int, reason: str) -> None:
        if status not in self._rejections:
            self._rejections.add(status)
            log.error("%s rejects events: status %d %s", self._dsn, status, reason[:200])
        self._drop("rejected by the server")

    def _drop_refused(self) -> None:
        with self._lock:
            count, self._refused = self._refused, 0
        if count:
            is_stopping = self._closing.is_set()
            reason = "the sender is stopping" if is_stopping else "the queue is full"
            self._drop(reason, count=count)

    def _drop(self, reason: str, *, count: int = 1) -> None:
        with unreported():
            self._drops.add("dropped events for %s: %s", self._dsn, reason, count=count)


def _make_tls_context(dsn: DSN) -> ssl.SSLContext:
    options = SSLOptions(
        None,
        None,
        dsn.ca,
        dsn.verify,
        False,
        ssl.Purpose.SERVER_AUTH,
        minimum_version=ssl.TLSVersion.TLSv1_2,
        owner="RavenSender",
    )
    return options.create_context()


async def _read(response: aiohttp.ClientResponse) -> None:
    """Read a response to its end, so that its connection can be reused; close a long response."""
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > _MAX_BODY:
            response.close()
            return


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
