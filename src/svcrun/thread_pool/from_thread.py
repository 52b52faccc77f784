"""Run coroutines on the event loop, from a thread that waits for the result."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from svcrun._util.per_loop import running_loop
from svcrun.thread_pool.executor import replace_unraisable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")

__all__ = ("run_in_thread", "sync_await", "sync_wait_coroutine", "wait_coroutine")

# The loop that the current thread works for.
_home_loop: ContextVar[asyncio.AbstractEventLoop] = ContextVar("svcrun_home_loop")

# A loop has no notification of its end, so a waiting thread checks it once in so many seconds.
_POLL_INTERVAL = 1.0


def run_in_thread(loop: asyncio.AbstractEventLoop, function: Callable[[], T]) -> T:
    """Call `function` in a thread that works for `loop`."""
    _home_loop.set(loop)
    try:
        return function()
    except StopIteration as error:  # an executor of the program would pass it on
        raise replace_unraisable(error) from error


def wait_coroutine(
    coro: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop | None = None
) -> T:
    """Run `coro` on the event loop, block this thread until it is done, and return its result.

    :param coro: the coroutine.
    :param loop: the event loop; by default that of the caller of the :func:`threaded` function.

    :raises RuntimeError: if the loop is unknown, is closed, or runs in this thread.

    >>> import asyncio
    >>> from svcrun import threaded
    >>> @threaded
    ... def work():
    ...     return wait_coroutine(asyncio.sleep(0.01, "rested"))
    >>> async def main():
    ...     print(await work())
    >>> asyncio.run(main())
    rested
    """
    try:
        loop = _check_loop(loop)
    except RuntimeError:
        coro.close()
        raise
    try:
        future = asyncio.run_coroutine_threadsafe(coro, loop)
    except RuntimeError:
        coro.close()
        raise
    while True:
        try:
            # Not result(), which ignores an exception that is false before Python 3.14.
            error = future.exception(_POLL_INTERVAL)
        except concurrent.futures.CancelledError:
            raise asyncio.CancelledError from None
        except TimeoutError:
            if loop.is_closed() and not future.done():
                raise RuntimeError(f"{loop!r} was closed before {coro!r} was done") from None
            continue
        if error is None:
            return future.result()
        try:
            raise error
        finally:
            del error, future  # a reference cycle: the traceback refers to this frame


def _check_loop(loop: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
    if loop is None:
        loop = _home_loop.get(None)
    if loop is None:
        raise RuntimeError(
            "no event loop is known in this thread; pass it: wait_coroutine(coro, loop)"
        )
    if loop is running_loop():
        raise RuntimeError("waiting here would block the event loop itself; use await instead")
    return loop


def sync_wait_coroutine(
    loop: asyncio.AbstractEventLoop | None,
    coro_func: Callable[..., Coroutine[Any, Any, T]],
    *args: Any,
    **kwargs: Any,
) -> T:
    """Run ``coro_func(*args, **kwargs)`` on `loop`, like :func:`wait_coroutine`."""
    return wait_coroutine(coro_func(*args, **kwargs), loop)


def sync_await(func: Callable[..., Awaitable[T]] | Awaitable[T], *args: Any, **kwargs: Any) -> T:
    """Call `func` on the event loop, and block this thread until its awaitable is done.

    :param func: a function that returns an awaitable, or an awaitable.
    :return: the result of the awaitable.

    :raises RuntimeError: if the loop is unknown, is closed, or runs in this thread.

    >>> import asyncio
    >>> from svcrun import threaded
    >>> @threaded
    ... def work():
    ...     return sync_await(asyncio.sleep, 0.01, "rested")
    >>> async def main():
    ...     print(await work())
    >>> asyncio.run(main())
    rested
    """

    async def wait() -> T:
        if inspect.isawaitable(func):
            return await func
        return await func(*args, **kwargs)

    return wait_coroutine(wait())
