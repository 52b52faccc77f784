"""Run blocking functions in threads, and call coroutines of the event loop from there."""

from __future__ import annotations

from svcrun._util.hints import TYPE_CHECKING
from svcrun._util.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from svcrun.errors import ChannelClosed, ChannelTimeout, PoolClosed as ThreadPoolException
    from svcrun.thread_pool.channel import FromThreadChannel
    from svcrun.thread_pool.executor import ThreadPoolExecutor
    from svcrun.thread_pool.from_thread import sync_await, sync_wait_coroutine, wait_coroutine
    from svcrun.thread_pool.functions import threaded, threaded_separate
    from svcrun.thread_pool.generators import (
        IteratorWrapper,
        IteratorWrapperSeparate,
        threaded_iterable,
        threaded_iterable_separate,
    )
    from svcrun.thread_pool.separate_threads import wait_separate_threads
    from svcrun.thread_pool.thread_group import HungThread
    from svcrun.thread_pool.to_thread import run_in_executor, run_in_new_thread

__all__ = (
    "ChannelClosed",
    "ChannelTimeout",
    "FromThreadChannel",
    "HungThread",
    "IteratorWrapper",
    "IteratorWrapperSeparate",
    "ThreadPoolException",
    "ThreadPoolExecutor",
    "run_in_executor",
    "run_in_new_thread",
    "sync_await",
    "sync_wait_coroutine",
    "threaded",
    "threaded_iterable",
    "threaded_iterable_separate",
    "threaded_separate",
    "wait_coroutine",
    "wait_separate_threads",
)

# Imported on first use: each program uses the pool, but few use the rest.
_MODULES = {
    "ChannelClosed": "svcrun.errors",
    "ChannelTimeout": "svcrun.errors",
    "FromThreadChannel": "svcrun.thread_pool.channel",
    "HungThread": "svcrun.thread_pool.thread_group",
    "IteratorWrapper": "svcrun.thread_pool.generators",
    "IteratorWrapperSeparate": "svcrun.thread_pool.generators",
    "ThreadPoolException": "svcrun.errors",
    "ThreadPoolExecutor": "svcrun.thread_pool.executor",
    "run_in_executor": "svcrun.thread_pool.to_thread",
    "run_in_new_thread": "svcrun.thread_pool.to_thread",
    "sync_await": "svcrun.thread_pool.from_thread",
    "sync_wait_coroutine": "svcrun.thread_pool.from_thread",
    "threaded": "svcrun.thread_pool.functions",
    "threaded_iterable": "svcrun.thread_pool.generators",
    "threaded_iterable_separate": "svcrun.thread_pool.generators",
    "threaded_separate": "svcrun.thread_pool.functions",
    "wait_coroutine": "svcrun.thread_pool.from_thread",
    "wait_separate_threads": "svcrun.thread_pool.separate_threads",
}


if not TYPE_CHECKING:
    __getattr__ = lazy_exports(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
