"""Call functions in threads, from the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from svcrun._util.per_loop import running_loop
from svcrun.thread_pool.executor import get_pool
from svcrun.thread_pool.from_thread import run_in_thread
from svcrun.thread_pool.separate_threads import start_in_new_thread

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Awaitable, Callable, Iterable, Mapping

T = TypeVar("T")

__all__ = ("run_in_executor", "run_in_new_thread", "start_in_pool", "start_or_defer")

_NO_KEYWORDS: Mapping[str, Any] = MappingProxyType({})


def start_in_pool(
    loop: asyncio.AbstractEventLoop,
    call: Callable[[], T],
    executor: concurrent.futures.Executor | None = None,
) -> asyncio.Future[T]:
    """Start a call in a thread pool, in a copy of the caller's context.

    :param executor: by default the thread pool attached to `loop`, or else its default executor.
    """
    # asyncio.to_thread() copies the context as well; loop.run_in_executor() does not.
    context = contextvars.copy_context()
    return loop.run_in_executor(executor or get_pool(loop), context.run, run_in_thread, loop, call)


def start_or_defer(
    start: Callable[[asyncio.AbstractEventLoop, Callable[[], T]], asyncio.Future[T]],
    call: Callable[[], T],
) -> Awaitable[T]:
    """Start a call now if an event loop is running, otherwise when the result is awaited."""
    loop = running_loop()
    return _defer(start, call) if loop is None else start(loop, call)


async def _defer(
    start: Callable[[asyncio.AbstractEventLoop, Callable[[], T]], asyncio.Future[T]],
    call: Callable[[], T],
) -> T:
    return await start(asyncio.get_running_loop(), call)


def run_in_executor(
    func: Callable[..., T],
    executor: concurrent.futures.Executor | None = None,
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] = _NO_KEYWORDS,
) -> Awaitable[T]:
    """Call ``func(*args, **kwargs)`` in a thread and return its awaitable result.

    Without a running event loop, the call starts when the result is awaited. The function runs in
    a copy of the caller's context.

    :param executor: the executor of the call; by default the thread pool of the loop.

    >>> import asyncio
    >>> async def main():
    ...     print(await run_in_executor(divmod, args=(7, 4)))
    >>> asyncio.run(main())
    (1, 3)
    """
    start = functools.partial(start_in_pool, executor=executor)
    return start_or_defer(start, functools.partial(func, *args, **kwargs))


def run_in_new_thread(
    func: Callable[..., T],
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] = _NO_KEYWORDS,
    detach: bool = True,
    no_return: bool = False,
    statistic_name: str | None = None,
) -> asyncio.Future[Any]:
    """Call ``func(*args, **kwargs)`` in a new thread and return a future of its result.

    :param detach: False makes the interpreter wait for the thread before it exits.
    :param no_return: True makes the result of the future None.
    :param statistic_name: the name of the thread; by default the name of the function.

    :raises RuntimeError: if no event loop is running, or the system cannot start a thread.

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
    return start_in_new_thread(
        asyncio.get_running_loop(), call, name=f"svcrun-{name}", detach=detach
    )


def _discard_result(call: Callable[[], Any]) -> None:
    call()
