"""Threads for what would block the event loop: a pool, decorators, and ways back to the loop."""

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
