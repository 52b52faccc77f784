"""Transports that send with aiohttp, for a ``raven.Client`` that a program creates itself.

:class:`~svcrun.service.raven.RavenSender` has a transport of its own, which retries failed events.
"""

from __future__ import annotations

import asyncio
import socket
from abc import ABCMeta, abstractmethod
from collections import deque
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp
from raven.conf import defaults
from raven.exceptions import APIError, RateLimited
from raven.transport.base import AsyncTransport, Transport
from raven.transport.http import HTTPTransport

from svcrun._reporting.raven.rate_limits import read_retry_after
from svcrun._util.tasks import cancel_and_wait

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Success = Callable[[], Any]
    Failure = Callable[[Exception], Any]
    Event = tuple[str, bytes, Mapping[str, str], Success, Failure]

__all__ = (
    "AioHttpTransport",
    "AioHttpTransportBase",
    "DummyTransport",
    "QueuedAioHttpTransport",
    "QueuedKeepaliveAioHttpTransport",
)


class DummyTransport(Transport):  # type: ignore[misc]  # raven has no types
    """Send nothing."""

    def send(self, url: str, data: bytes, headers: Mapping[str, str]) -> None:
        """Drop the event."""


class AioHttpTransportBase(AsyncTransport, HTTPTransport, metaclass=ABCMeta):  # type: ignore[misc]
    """Send events in the event loop that runs when the transport is created.

    Any thread may add an event.

    :param parsed_url: None; raven passed a URL here before version 6.
    :param verify_ssl: whether to check the certificate of the server.
    :param timeout: the time limit of each event, in seconds.
    :param keepalive: whether to keep connections open between events.
    :param family: the address family of connections.

    :raises RuntimeError: if no event loop is running.
    """

    def __init__(
        self,
        parsed_url: None = None,
        *,
        verify_ssl: bool = True,
        timeout: float = defaults.TIMEOUT,
        keepalive: bool = True,
        family: socket.AddressFamily = socket.AF_INET,
    ) -> None:
        if parsed_url is not None:
            raise TypeError(f"{type(self).__name__}: parsed_url must be None, not {parsed_url!r}")
        super().__init__(timeout, verify_ssl)
        self.keepalive = keepalive
        self.family = family
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._session = self._client_session_factory() if keepalive else None
        self._end: asyncio.Task[None] | None = None

    def _client_session_factory(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self.verify_ssl, family=self.family)
        )

    def async_send(
        self,
        url: str,
        data: bytes,
        headers: Mapping[str, str],
        success_cb: Success,
        failure_cb: Failure,
    ) -> None:
        """Schedule an event.

        The transport calls `success_cb` or `failure_cb` in the event loop when the event has been
        sent or has failed. If the transport or its loop is closed, it calls `failure_cb` at once,
        in this thread.
        """
        event = (url, data, headers, success_cb, failure_cb)
        try:
            if self._end is not None:
                raise _closed(self)
            self._loop.call_soon_threadsafe(self._take, event)
        except RuntimeError as error:  # the loop may be closed
            failure_cb(error)

    def _take(self, event: Event) -> None:
        if self._end is not None:  # race: close() was called since the event was scheduled
            event[-1](_closed(self))
        else:
            self._async_send(*event)

    @abstractmethod
    def _async_send(
        self,
        url: str,
        data: bytes,
        headers: Mapping[str, str],
        success_cb: Success,
        failure_cb: Failure,
    ) -> None:
        """Send an event or queue it; called in the event loop."""

    async def _close(self) -> None:
        """Wait until all events have been sent or have failed."""
        await asyncio.gather(*self._tasks)

    async def _do_send(
        self,
        url: str,
        data: bytes,
        headers: Mapping[str, str],
        callback: Success,
        errorback: Failure,
    ) -> None:
        session = self._session or self._client_session_factory()
        try:
            limit = aiohttp.ClientTimeout(total=self.timeout)
            async with session.post(url, data=data, headers=headers, timeout=limit) as answer:
                error = _error_in(answer)
        except Exception as failure:  # noqa: BLE001 - passed to the callback
            error = failure
        finally:
            if session is not self._session:
                await session.close()
        if error is None:
            callback()
        else:
            errorback(error)

    def _start(self, coro: Any) -> None:
        task = self._loop.create_task(coro)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self, *, timeout: float | None = None) -> asyncio.Task[None]:
        """Send the events that were added, then close the connections; idempotent.

        Returns the task that does this; await it to wait for the end. Events that have not been
        sent after `timeout` are dropped.

        :param timeout: seconds; no time limit by default.
        """
        if self._end is None:
            self._end = self._loop.create_task(self._finish(timeout))
        return self._end

    async def _finish(self, timeout: float | None) -> None:
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._close()
        finally:
            await cancel_and_wait(self._tasks)
            if self._session is not None:
                await self._session.close()


class AioHttpTransport(AioHttpTransportBase):
    """Send each event at once."""

    def _async_send(self, *event: Any) -> None:
        self._start(self._do_send(*event))


class QueuedAioHttpTransport(AioHttpTransportBase):
    """Send events from a queue. A full queue drops its oldest event.

    :param workers: the maximum number of events in flight.
    :param qsize: the maximum number of events in the queue.
    """

    def __init__(self, *args: Any, workers: int = 1, qsize: int = 1000, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._size = qsize
        self._queue: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._is_ending = False
        for _ in range(workers):
            self._start(self._work())

    def _async_send(self, *event: Any) -> None:
        if len(self._queue) >= self._size:
            *_, errorback = self._queue.popleft()
            errorback(RuntimeError(f"the queue of {type(self).__name__} is full"))
        self._queue.append(event)
        self._wake.set()

    async def _work(self) -> None:
        while True:
            while self._queue:
                await self._do_send(*self._queue.popleft())
            if self._is_ending:
                return
            # Invariant: no await between the last check of the queue and clear(), so no event is
            # added in between.
            self._wake.clear()
            await self._wake.wait()

    async def _close(self) -> None:
        self._is_ending = True
        self._wake.set()
        await super()._close()


class QueuedKeepaliveAioHttpTransport(QueuedAioHttpTransport):
    """Send events from a queue, over connections that are kept open.

    :param dns_cache: whether to cache the addresses of the server.
    :param dns_cache_ttl: seconds for which an address is cached.
    :param connection_limit: the maximum number of connections.
    :param connection_limit_host: the maximum number of connections to one server.
    """

    DNS_CACHE_TTL = 600
    DNS_CACHE = True
    TCP_CONNECTION_LIMIT = 32
    TCP_CONNECTION_LIMIT_HOST = 8
    WORKERS = 1
    QUEUE_SIZE = 1000

    def __init__(
        self,
        *args: Any,
        family: socket.AddressFamily = socket.AF_UNSPEC,
        dns_cache: bool = DNS_CACHE,
        dns_cache_ttl: int = DNS_CACHE_TTL,
        connection_limit: int = TCP_CONNECTION_LIMIT,
        connection_limit_host: int = TCP_CONNECTION_LIMIT_HOST,
        workers: int = WORKERS,
        qsize: int = QUEUE_SIZE,
        **kwargs: Any,
    ) -> None:
        self.dns_cache = dns_cache
        self.dns_cache_ttl = dns_cache_ttl
        self.connection_limit = connection_limit
        self.connection_limit_host = connection_limit_host
        super().__init__(
            *args, family=family, keepalive=True, workers=workers, qsize=qsize, **kwargs
        )

    def _client_session_factory(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                family=self.family,
                limit=self.connection_limit,
                limit_per_host=self.connection_limit_host,
                ttl_dns_cache=self.dns_cache_ttl,
                use_dns_cache=self.dns_cache,
                ssl=self.verify_ssl,
            )
        )


def _closed(transport: AioHttpTransportBase) -> RuntimeError:
    return RuntimeError(f"{type(transport).__name__} is closed")


def _error_in(answer: aiohttp.ClientResponse) -> Exception | None:
    if answer.status == HTTPStatus.OK:
        return None
    message = answer.headers.get("X-Sentry-Error")
    error: Exception = APIError(message, answer.status)
    if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
        error = RateLimited(message, read_retry_after(answer.headers) or 0)
    return error
