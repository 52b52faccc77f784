"""The way of events to the server: a queue, a few connections, and patience that has an end."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp

from svcrun._net.tls_options import SSLOptions
from svcrun._reporting.raven.answers import TOO_MANY_REQUESTS, read_limit, read_retry_after
from svcrun._reporting.raven.resolver import Resolver
from svcrun._reporting.report_queue import hand_over, unreported
from svcrun._util.rate_limited_log import RateLimitedLog
from svcrun._util.tasks import cancel_and_wait

if TYPE_CHECKING:
    from collections.abc import Mapping

    from svcrun._reporting.raven.dsn import DSN

__all__ = ("Courier",)

log = logging.getLogger("svcrun.service.raven")

CONNECTIONS = 4
"""How many events are under way at a time."""

LARGEST_QUEUE = 32 * 1024 * 1024
"""Bytes that may wait; an event has some thousand."""

MAX_ATTEMPTS = 8
MAX_AGE = 300.0
"""Attempts to send an event, and seconds since it was made, after which it is dropped."""

FIRST_DELAY = 1.0
LONGEST_DELAY = 60.0
"""Seconds before the second attempt, twice as many before each one after it, up to the longest."""

_MOST_OF_ANSWER = 64 * 1024  # bytes to read so that the connection can be used again

SERVER_ERROR = 500  # and above


class Event(NamedTuple):
    """What is to be sent."""

    url: str
    data: bytes
    headers: Mapping[str, str]
    made: float


class Courier:
    """Send events in the event loop: a transport for raven, which hands them over in any thread.

    While the server can't be reached, or wants to hear nothing, none is sent, and events wait. One
    that had :data:`MAX_ATTEMPTS`, or is older than :data:`MAX_AGE`, is dropped, and so is what the
    server refuses.

    :param dsn: where to send.
    :param size: how many events may wait.
    """

    is_async = True

    def __init__(self, dsn: DSN, size: int) -> None:
        self._dsn = dsn
        self._size = size
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Event] = deque()
        # Each is counted up by one side alone.
        self._bytes_taken = 0
        self._bytes_gone = 0
        self._filled = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None
        self._closing = asyncio.Event()
        self._limited_until = 0.0  # the server wants to hear nothing
        self._failing_until = 0.0  # the server can't be reached, or has an error
        self._failures = 0  # in a row
        self._refusals: set[str] = set()  # that were logged
        self._drops = RateLimitedLog(log)
        self.sent = 0
        """How many events the server has taken."""

    @property
    def dropped(self) -> int:
        """How many events were not delivered."""
        return self._drops.total

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another event."""
        return (
            len(self._queue) >= self._size
            or self._bytes_taken - self._bytes_gone >= LARGEST_QUEUE
            or self._closing.is_set()
        )

    async def open(self) -> None:
        """Begin to send.

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
        """Take an event; called by raven.

        Its callbacks are not called. They would make it drop events for a while at the first one
        that fails, and log each.
        """
        del success_cb, failure_cb
        event = Event(url, data, dict(headers), self._loop.time())
        if not hand_over():
            return
        if self._closing.is_set():
            return
        with suppress(RuntimeError):  # the loop is closed
            if self.is_full:
                self._loop.call_soon_threadsafe(self._drop, "there is no room for more")
            else:
                self._bytes_taken += len(data)
                self._queue.append(event)
                self._loop.call_soon_threadsafe(self._filled.set)

    async def close(self, timeout: float) -> None:
        """Send what waits, if that is possible within `timeout` seconds, and drop the rest."""
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
        if self._queue:
            self._drop("there was no time left", count=len(self._queue))
            self._queue.clear()
        self._drops.close()
        if self._session is not None:
            await self._session.close()

    # What the workers do.

    async def _work(self, session: aiohttp.ClientSession) -> None:
        while True:
            try:
                event = self._queue.popleft()
            except IndexError:
                if self._closing.is_set():
                    return
                self._filled.clear()
                await self._filled.wait()
                continue
            self._bytes_gone += len(event.data)
            try:
                await self._deliver(session, event)
            except asyncio.CancelledError:
                self._drop("there was no time left")
                raise
            except Exception:
                log.exception("an event could not be sent to %s", self._dsn)
                self._drop("of an unexpected error")

    async def _deliver(self, session: aiohttp.ClientSession, event: Event) -> None:
        """Send an event, in several attempts if need be."""
        for attempt in range(MAX_ATTEMPTS):
            await self._wait_for_turn(event)
            now = self._loop.time()
            if now < self._limited_until:
                self._drop("the server wants to hear nothing")
                return
            is_last = self._closing.is_set()
            if attempt and now - event.made > MAX_AGE:
                break
            if await self._attempt(session, event):
                return
            if is_last:
                break
        self._drop("the server could not be reached, or failed")

    async def _wait_for_turn(self, event: Event) -> None:
        """Wait while nothing may be sent, but no longer than the event has time, or we have."""
        while not self._closing.is_set():
            now = self._loop.time()
            until = min(max(self._limited_until, self._failing_until), event.made + MAX_AGE)
            if now >= until:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._closing.wait()

    async def _attempt(self, session: aiohttp.ClientSession, event: Event) -> bool:
        """Send an event once, and tell whether that settled it."""
        try:
            async with session.post(
                event.url, data=event.data, headers=event.headers, allow_redirects=False
            ) as answer:
                status, headers = answer.status, answer.headers
                await _read(answer)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # ValueError: what is no HTTP at all may be reported as such
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
            self._failing_until = 0.0
            log.warning("%s takes events again", self._dsn)
        if status // 100 == 2:  # noqa: PLR2004 - OK
            self.sent += 1
        else:
            self._refused(status, headers.get("X-Sentry-Error", ""))
        return True

    def _failed(self, reason: str, retry_after: float = 0.0) -> None:
        if not self._failures:
            log.warning("%s takes no events: %s; they wait, and are tried again", self._dsn, reason)
        now = self._loop.time()
        if now >= self._failing_until:  # else it is the same failure, of an event sent meanwhile
            delay = FIRST_DELAY * 2 ** min(self._failures, 10)
            delay = min(max(delay, retry_after), LONGEST_DELAY)
            self._failing_until = now + delay * random.uniform(1, 1.25)  # noqa: S311 - no secret
            self._failures += 1

    def _limit(self, seconds: float) -> None:
        until = self._loop.time() + seconds
        if self._limited_until < self._loop.time():
            log.warning("%s wants to hear nothing for %.0f s", self._dsn, seconds)
        self._limited_until = max(self._limited_until, until)

    def _refused(self, status: int, why: str) -> None:
        kind = str(status)
        if kind not in self._refusals:
            self._refusals.add(kind)
            log.error("%s refuses events: status %d %s", self._dsn, status, why[:200])
        self._drop("the server refused them")

    def _drop(self, reason: str, *, count: int = 1) -> None:
        with unreported():
            self._drops.add("events for %s were dropped: %s", self._dsn, reason, count=count)


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


async def _read(answer: aiohttp.ClientResponse) -> None:
    """Read an answer to its end, so that its connection can be used again, unless it is long."""
    size = 0
    async for chunk in answer.content.iter_any():
        size += len(chunk)
        if size > _MOST_OF_ANSWER:
            answer.close()
            return


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
