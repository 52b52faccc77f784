"""Call functions that are not decorated in threads."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from svcrun._util.per_loop import running_loop
from svcrun.thread_pool import separate_threads
from svcrun.thread_pool.executor import get_pool
from svcrun.thread_pool.from_thread import run_in_thread

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Awaitable, Callable, Iterable, Mapping

T = TypeVar("T")

__all__ = ("run_in_executor", "run_in_new_thread")

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def run_in_executor(
    func: Callable[..., T],
    executor: concurrent.futures.Executor | None = None,
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] = _NOTHING,
) -> Awaitable[T]:
    """Call ``func(*args, **kwargs)`` in a thread and return its awaitable result.

    Without a running event loop, the call begins when the result is awaited. The function runs in
    a copy of the caller's context.

    :param executor: the executor of the call; the thread pool of the loop by default.

    >>> import asyncio
    >>> async def main():
    ...     print(await run_in_executor(divmod, args=(7, 4)))
    >>> asyncio.run(main())
    (1, 3)
    """
    call = functools.partial(func, *args, **kwargs)
    loop = running_loop()
    return _later(executor, call) if loop is None else _begin(loop, executor, call)


async def _later(executor: concurrent.futures.Executor | None, call: Callable[[], T]) -> T:
    return await _begin(asyncio.get_running_loop(), executor, call)


def _begin(
    loop: asyncio.AbstractEventLoop,
    executor: concurrent.futures.Executor | None,
    call: Callable[[], T],
) -> asyncio.Future[T]:
    context = contextvars.copy_context()
    return loop.run_in_executor(executor or get_pool(loop), context.run, run_in_thread, loop, call)


def run_in_new_thread(
    func: Callable[..., T],
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] = _NOTHING,
    detach: bool = True,
    no_return: bool = False,
    statistic_name: str | None = None,
) -> asyncio.Future[Any]:
    """Call ``func(*args, **kwargs)`` in a new thread and return a future of its result.

    :param detach: False makes the interpreter wait for the thread before it exits.
    :param no_return: whether the result of the future is None.
    :param statistic_name: the name of the thread; that of the function by default.

    :raises RuntimeError: if no event loop is running, or no thread can be started.

    >>> import asyncio
    >>> async def main():
    ...     print(await run_in_new_thread(divmod, (7, 4)))
    >>> asyncio.run(main())
    (1, 3)
    """
    call: Callable[[], Any] = functools.partial(func, *args, **kwargs)
    if no_return:
        call = functools.partial(_discard_result, call)
    name = statistic_name or getattr(func, "__name__", type(func).__name__)
    return separate_threads.run_in_new_thread(
        asyncio.get_running_loop(), call, name=f"svcrun-{name}", detach=detach
    )


def _discard_result(call: Callable[[], Any]) -> None:
    call()
