"""Install, flush and close the one client of sentry-sdk that a process has."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import sentry_sdk
from sentry_sdk.integrations.asyncio import AsyncioIntegration

from svcrun._reporting.sentry.events import ServiceTags
from svcrun._reporting.sentry.transport import GRACE_PERIOD, Transport
from svcrun.errors import ParameterError, show
from svcrun.thread_pool.separate_threads import start_in_new_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from sentry_sdk.client import BaseClient

__all__ = ("MAX_FLUSH", "close", "flush", "flush_timeout", "installed")

MAX_FLUSH = 10.0
"""The maximum number of seconds that a stop sends waiting events to a server that responds."""

_POLL_INTERVAL = 0.01  # seconds between two checks of sentry's thread, which notifies no task


@contextmanager
def installed(owner: object, options: Mapping[str, Any]) -> Iterator[BaseClient]:
    """Create a client that ``sentry_sdk`` uses within the block instead of its current client.

    :raises RuntimeError: if the current client belongs to another sender.
    """
    loop = asyncio.get_running_loop()
    scope = sentry_sdk.get_global_scope()
    found, found_factory = scope.client, loop.get_task_factory()
    if found.get_integration(ServiceTags) is not None:
        raise RuntimeError(
            f"{show(owner)} can't report: another SentrySender runs in this process, and "
            "sentry_sdk has one client; stop that one first, or leave out one of the two"
        )
    try:
        client = _init(owner, options)
        # Sentry sets up an integration once per process, but this one wraps the task factory of
        # a loop. A process may run several loops, one after the other.
        integration = client.get_integration(AsyncioIntegration)
        if integration is not None:
            type(integration).setup_once()
    except BaseException:
        scope.set_client(found)
        loop.set_task_factory(found_factory)
        raise
    factory = loop.get_task_factory()
    try:
        yield client
    finally:
        # The program may have installed another client or task factory in the meantime. It stays.
        if scope.client is client:
            scope.set_client(found)
        if loop.get_task_factory() is factory:
            loop.set_task_factory(found_factory)


def _init(owner: object, options: Mapping[str, Any]) -> BaseClient:
    try:
        sentry_sdk.init(**options)
    except Exception as error:
        accepted = f"options that sentry_sdk.init() accepts ({error!r})"
        raise ParameterError(owner, "client_options", "...", accepted) from error
    return sentry_sdk.get_global_scope().client


@asynccontextmanager
async def flush_timeout(client: BaseClient, seconds: float) -> AsyncIterator[None]:
    """Cancel the block when the server has not responded for `seconds`, and suppress the timeout.

    Even if the server responds, the block is cancelled after :data:`MAX_FLUSH`, or after `seconds`
    if that is longer.
    """
    loop = asyncio.get_running_loop()

    def on_response() -> None:
        with suppress(RuntimeError):  # race: the loop was closed
            loop.call_soon_threadsafe(postpone)

    def postpone() -> None:
        with suppress(RuntimeError):  # race: the block has ended
            limit.reschedule(loop.time() + seconds)

    with suppress(TimeoutError):
        async with asyncio.timeout(max(seconds, MAX_FLUSH)), asyncio.timeout(seconds) as limit:
            if isinstance(client.transport, Transport):
                client.transport.on_response = on_response
            yield


async def flush(client: BaseClient) -> None:
    """Wait until all events have been sent; a user's own transport sends them in :func:`close`."""
    transport = client.transport
    if isinstance(transport, Transport):
        client.flush(timeout=_POLL_INTERVAL)  # queues sessions and reports of lost events
        while not transport.is_idle:  # noqa: ASYNC110 - a thread does it
            await asyncio.sleep(_POLL_INTERVAL)


async def close(client: BaseClient, timeout: float) -> None:
    """Close the client in a thread, because closing may block.

    :param timeout: seconds that a user's own transport may take to send waiting events. The thread
        is abandoned :data:`GRACE_PERIOD` later, because a thread that connects can't be
        interrupted.
    """
    loop = asyncio.get_running_loop()
    if isinstance(client.transport, Transport):
        timeout = 0.0
    end = partial(client.close, timeout=timeout)
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout + GRACE_PERIOD):
            await start_in_new_thread(loop, end, name="svcrun-sentry-close")
