"""Threads of their own, outside of the pool."""

from __future__ import annotations

import asyncio
import contextvars
import os
import weakref
from typing import TYPE_CHECKING, TypeVar

from svcrun.thread_pool.executor import JobFuture, run_job
from svcrun.thread_pool.from_thread import run_in_thread
from svcrun.thread_pool.thread_group import HungThread, ThreadGroup

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

__all__ = ("get_separate_threads", "run_in_new_thread", "wait_separate_threads")

_groups: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, ThreadGroup] = (
    weakref.WeakKeyDictionary()
)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_groups.clear)  # a child has no threads of its parent


def get_separate_threads(loop: asyncio.AbstractEventLoop) -> ThreadGroup:
    """Return the separate threads that work for `loop`."""
    group = _groups.get(loop)
    if group is None:
        group = _groups[loop] = ThreadGroup()
    return group


def run_in_new_thread(
    loop: asyncio.AbstractEventLoop, function: Callable[[], T], *, name: str, detach: bool = True
) -> asyncio.Future[T]:
    """Call `function` in a new thread and return a future of its result.

    :param loop: the running loop.
    :param name: the name of the thread.
    :param detach: whether the interpreter may exit while the thread runs.

    :raises RuntimeError: if the system has no more threads to give.
    """
    job: JobFuture[T] = JobFuture()
    args = (run_in_thread, loop, function)
    context = contextvars.copy_context()
    future = asyncio.wrap_future(job, loop=loop)
    get_separate_threads(loop).start(
        run_job, (job, context.run, args, {}), name=name, daemon=detach
    )
    return future


async def wait_separate_threads(timeout: float | None = None) -> list[HungThread]:
    """Wait for the separate threads that work for the running loop.

    :param timeout: seconds to wait; without limit by default.

    Returns the threads that have not ended by then; nothing waits for them any more.
    """
    group = _groups.get(asyncio.get_running_loop())
    return [] if group is None else await group.wait(timeout)
