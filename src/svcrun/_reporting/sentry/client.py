"""The client of sentry, of which a process has one."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import sentry_sdk
from sentry_sdk.integrations.asyncio import AsyncioIntegration

from svcrun._reporting.sentry.events import ServiceTags
from svcrun._reporting.sentry.transport import GRACE, LOOK, Transport
from svcrun.errors import ParameterError, SentryInUse
from svcrun.thread_pool.separate_threads import run_in_new_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from sentry_sdk.client import BaseClient

__all__ = ("LONGEST_FLUSH", "close", "flush", "installed", "patience")

LONGEST_FLUSH = 10.0
"""Seconds for which a stop sends what waits, however well the server answers."""


@contextmanager
def installed(owner: object, options: Mapping[str, Any]) -> Iterator[BaseClient]:
    """Make the client that ``sentry_sdk`` uses in the block, in place of the one that it has.

    :raises SentryInUse: if the one that it has was made here.
    """
    loop = asyncio.get_running_loop()
    scope = sentry_sdk.get_global_scope()
    found, found_factory = scope.client, loop.get_task_factory()
    if found.get_integration(ServiceTags) is not None:
        raise SentryInUse(owner)
    try:
        client = _init(owner, options)
        # Sentry sets up an integration once in a process, and this one is for one loop.
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
        # If somebody has put another one into its place, that stays.
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
async def patience(client: BaseClient, seconds: float) -> AsyncIterator[None]:
    """Give up what goes on in the block when the server has not answered for so many seconds.

    And when it lasts longer than :data:`LONGEST_FLUSH`, or that time if it is the longer one.
    """
    loop = asyncio.get_running_loop()

    def answered() -> None:
        with suppress(RuntimeError):  # the block, or the loop, has come to its end
            loop.call_soon_threadsafe(postpone)

    def postpone() -> None:
        with suppress(RuntimeError):
            limit.reschedule(loop.time() + seconds)

    with suppress(TimeoutError):
        async with (
            asyncio.timeout(max(seconds, LONGEST_FLUSH)),
            asyncio.timeout(seconds) as limit,
        ):
            if isinstance(client.transport, Transport):
                client.transport.on_answer = answered
            yield


async def flush(client: BaseClient) -> None:
    """Wait until all is sent; a transport that is not ours does that when it is closed."""
    transport = client.transport
    if isinstance(transport, Transport):
        client.flush(timeout=LOOK)  # hand over what sentry has gathered besides
        while not transport.is_idle:  # noqa: ASYNC110 - what a thread does, it does not tell
            await asyncio.sleep(LOOK)


async def close(client: BaseClient, timeout: float) -> None:
    """End the client; that may block, so a thread of its own does it.

    :param timeout: seconds for a transport that is not ours to send what waits. If the thread needs
        much longer, it is left alone: it may be about to connect, and nothing wakes it from that.
    """
    loop = asyncio.get_running_loop()
    if isinstance(client.transport, Transport):
        timeout = 0.0
    end = partial(client.close, timeout=timeout)
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout + GRACE):
            await run_in_new_thread(loop, end, name="svcrun-sentry-close")
