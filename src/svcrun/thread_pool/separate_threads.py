"""Threads outside the pool, one for each call."""

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

__all__ = ("get_separate_threads", "start_in_new_thread", "wait_separate_threads")

# Weak keys, because a loop that is dropped without being closed must not stay alive here.
_groups: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, ThreadGroup] = (
    weakref.WeakKeyDictionary()
)

if hasattr(os, "register_at_fork"):
    # A forked child has none of the threads of its parent.
    os.register_at_fork(after_in_child=_groups.clear)


def get_separate_threads(loop: asyncio.AbstractEventLoop) -> ThreadGroup:
    """Return the group of the separate threads that work for `loop`."""
    group = _groups.get(loop)
    if group is None:
        group = _groups[loop] = ThreadGroup()
    return group


def start_in_new_thread(
    loop: asyncio.AbstractEventLoop, call: Callable[[], T], *, name: str, detach: bool = True
) -> asyncio.Future[T]:
    """Start a call in a new thread, in a copy of the caller's context.

    :param loop: the running loop.
    :param name: the name of the thread.
    :param detach: whether the interpreter may exit while the thread runs.

    :raises RuntimeError: if the system cannot start a thread.
    """
    job: JobFuture[T] = JobFuture()
    context = contextvars.copy_context()
    future = asyncio.wrap_future(job, loop=loop)
    args = (run_in_thread, loop, call)
    get_separate_threads(loop).start(
        run_job, (job, context.run, args, {}), name=name, daemon=detach
    )
    return future


async def wait_separate_threads(timeout: float | None = None) -> list[HungThread]:
    """Wait for the separate threads that work for the running loop.

    :param timeout: seconds to wait; by default without limit.
    :return: the threads that did not end in time. They are abandoned.
    """
    group = _groups.get(asyncio.get_running_loop())
    return [] if group is None else await group.wait(timeout)
