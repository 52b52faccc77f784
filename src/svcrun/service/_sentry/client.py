"""The client of sentry, of which a process has one."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import sentry_sdk
from sentry_sdk.integrations.asyncio import AsyncioIntegration

from svcrun.errors import ParameterError, SentryInUse
from svcrun.service._sentry.events import ServiceTags
from svcrun.service._sentry.transport import GRACE
from svcrun.thread_pool.separate import run_in_new_thread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sentry_sdk.client import BaseClient

__all__ = ("close", "installed")


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
        accepted = f"options that sentry_sdk.init() takes: {error!r}"
        raise ParameterError(owner, "client_options", sorted(options), accepted) from error
    return sentry_sdk.get_global_scope().client


async def close(client: BaseClient, timeout: float) -> None:
    """Send what waits, and end the client; that blocks, so a thread of its own does it.

    :param timeout: seconds to send. If the thread needs much longer, it is left alone: it may be
        about to connect, and nothing wakes it from that.
    """
    loop = asyncio.get_running_loop()
    end = partial(client.close, timeout=timeout)
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout + GRACE):
            await run_in_new_thread(loop, end, name="svcrun-sentry-close")
