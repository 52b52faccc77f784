"""Threads for what would block the event loop: a pool, decorators, and ways back to the loop."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svcrun.errors import ChannelClosed, ChannelTimeout
    from svcrun.thread_pool.channel import FromThreadChannel
    from svcrun.thread_pool.executor import ThreadPoolExecutor
    from svcrun.thread_pool.functions import threaded, threaded_separate
    from svcrun.thread_pool.generators import (
        IteratorWrapper,
        IteratorWrapperSeparate,
        threaded_iterable,
        threaded_iterable_separate,
    )
    from svcrun.thread_pool.separate import wait_separate_threads
    from svcrun.thread_pool.threads import HungThread
    from svcrun.thread_pool.waiting import sync_await, sync_wait_coroutine, wait_coroutine

__all__ = (
    "ChannelClosed",
    "ChannelTimeout",
    "FromThreadChannel",
    "HungThread",
    "IteratorWrapper",
    "IteratorWrapperSeparate",
    "ThreadPoolExecutor",
    "sync_await",
    "sync_wait_coroutine",
    "threaded",
    "threaded_iterable",
    "threaded_iterable_separate",
    "threaded_separate",
    "wait_coroutine",
    "wait_separate_threads",
)

# Resolved on first use: every program has the pool, and few have the rest.
_HOMES = {
    "ChannelClosed": "svcrun.errors",
    "ChannelTimeout": "svcrun.errors",
    "FromThreadChannel": "svcrun.thread_pool.channel",
    "HungThread": "svcrun.thread_pool.threads",
    "IteratorWrapper": "svcrun.thread_pool.generators",
    "IteratorWrapperSeparate": "svcrun.thread_pool.generators",
    "ThreadPoolExecutor": "svcrun.thread_pool.executor",
    "sync_await": "svcrun.thread_pool.waiting",
    "sync_wait_coroutine": "svcrun.thread_pool.waiting",
    "threaded": "svcrun.thread_pool.functions",
    "threaded_iterable": "svcrun.thread_pool.generators",
    "threaded_iterable_separate": "svcrun.thread_pool.generators",
    "threaded_separate": "svcrun.thread_pool.functions",
    "wait_coroutine": "svcrun.thread_pool.waiting",
    "wait_separate_threads": "svcrun.thread_pool.separate",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
