"""Functions around awaitables: wait for the first, cancel many, shield calls from cancellation."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import logging
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar, overload

from svcrun._util.callables import describe, is_coroutine_function
from svcrun._util.lazy_exports import lazy_exports
from svcrun._util.tasks import cancel_and_wait
from svcrun._util.validation import number
from svcrun.errors import NotACoroutineFunction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
    from uuid import UUID

    from svcrun.sockets import bind_socket
else:
    __getattr__ = lazy_exports(__name__, {"bind_socket": "svcrun.sockets"})

P = ParamSpec("P")
T = TypeVar("T")

__all__ = (
    "OptionsType",
    "SelectResult",
    "TimeoutType",
    "awaitable",
    "bind_socket",
    "cancel_tasks",
    "chunk_list",
    "fast_uuid1",
    "fast_uuid4",
    "select",
    "shield",
)

TimeoutType: TypeAlias = int | float
"""A number of seconds."""
OptionsType: TypeAlias = "Iterable[tuple[int, int, int | bytes]]"
"""Options of a socket, each a tuple of level, option and value."""

log = logging.getLogger(__name__)

# Tasks in progress. asyncio itself keeps only weak references to tasks.
_background: set[asyncio.Future[Any]] = set()


@overload
def awaitable(func: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Awaitable[T]]: ...
@overload
def awaitable(func: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]: ...
@overload
def awaitable(func: Callable[P, T]) -> Callable[P, Awaitable[T]]: ...
def awaitable(func: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Return a function like `func` that always returns an awaitable.

    If `func` returns an awaitable, the result is the same awaitable. Otherwise, awaiting the result
    returns the value that `func` returned.

    >>> import asyncio
    >>> async def call(func):
    ...     return await awaitable(func)()
    >>> asyncio.run(call(lambda: 42))
    42
    """
    if is_coroutine_function(func):
        return func

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Awaitable[Any]:
        result = func(*args, **kwargs)
        if inspect.isawaitable(result):
            return result
        return _return(result)

    return wrapper


async def _return(value: T) -> T:
    return value


def shield(
    func: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Shield calls of the decorated coroutine function from cancellation of the caller.

    A call starts at once, not when it is awaited, and runs to its end. If it fails after its caller
    was cancelled, the error is logged.

    :raises TypeError: if `func` is not a coroutine function.

    >>> import asyncio
    >>> @shield
    ... async def save(document):
    ...     await asyncio.sleep(0.01)
    ...     print("saved", document)
    >>> async def main():
    ...     saving = asyncio.create_task(save("letter"))
    ...     saving.cancel()
    ...     await asyncio.sleep(0.1)
    >>> asyncio.run(main())
    saved letter
    """
    if not is_coroutine_function(func):
        raise NotACoroutineFunction("the function decorated with @shield", func)

    @functools.wraps(func)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        loop = asyncio.get_running_loop()
        task = loop.create_task(func(*args, **kwargs))
        # Not asyncio.shield(), which logs an error after the cancellation only since Python 3.14.
        outer: asyncio.Future[T] = loop.create_future()

        def finished(task: asyncio.Task[T]) -> None:
            _background.discard(task)
            error = None if task.cancelled() else task.exception()
            if outer.cancelled():
                if error is not None:
                    log.error(
                        "shielded call of %s failed after its caller was cancelled",
                        describe(func),
                        exc_info=error,
                    )
            elif task.cancelled():
                outer.cancel()
            elif error is not None:
                outer.set_exception(error)
            else:
                outer.set_result(task.result())

        _background.add(task)
        task.add_done_callback(finished)
        return _wait_for(outer)

    return wrapper


def chunk_list(iterable: Iterable[T], size: int) -> Iterator[list[T]]:
    """Return an iterator over lists of `size` items of `iterable`; the last list may be shorter.

    :raises ValueError, TypeError: naming the parameter, if `size` is below 1 or no whole number.

    >>> list(chunk_list("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    number(low=1, whole=True, unit="items")("chunk_list()", "size", size)
    items = iter(iterable)
    return iter(lambda: list(itertools.islice(items, size)), [])


def fast_uuid1() -> UUID:
    """Return a unique identifier of the time, random bits and the machine, like UUID version 1.

    Unlike that of :func:`uuid.uuid1`, its ``time`` has no meaning.
    """
    from random import getrandbits
    from time import time_ns
    from uuid import UUID, getnode

    time_and_chance = time_ns() << 16 | getrandbits(16)
    return UUID(int=(time_and_chance << 48 | getnode()) % (1 << 128), version=1)


def fast_uuid4() -> UUID:
    """Return a random identifier like :func:`uuid.uuid4`; not for secrets."""
    from random import getrandbits
    from uuid import UUID

    return UUID(int=getrandbits(128), version=4)


async def _wait_for(future: asyncio.Future[T]) -> T:
    return await future


def cancel_tasks(tasks: Iterable[asyncio.Future[Any]]) -> asyncio.Future[list[Any]]:
    """Cancel those of `tasks` that are not done, and return a future that is done after them.

    Awaiting the future is optional. Its result is a list of the results and exceptions of the
    cancelled tasks.

    :param tasks: tasks and futures.

    :raises TypeError: if one of them is neither; then none is cancelled.

    >>> import asyncio
    >>> async def main():
    ...     task = asyncio.create_task(asyncio.sleep(60))
    ...     await cancel_tasks([task])
    ...     return task
    >>> asyncio.run(main()).cancelled()
    True
    """
    tasks = tuple(tasks)
    for task in tasks:
        if not asyncio.isfuture(task):
            raise TypeError(
                f"cancel_tasks() needs tasks or futures, not {task!r}; "
                "make a task of a coroutine with asyncio.create_task()"
            )
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    if pending:
        return asyncio.gather(*pending, return_exceptions=True)
    loop = tasks[0].get_loop() if tasks else asyncio.get_event_loop()
    nothing: asyncio.Future[list[Any]] = loop.create_future()
    nothing.set_result([])
    return nothing


class SelectResult:
    """The result of :func:`select`: an item for each awaitable, None for all except the first done.

    :param length: the number of awaitables.
    """

    __slots__ = ("is_exception", "length", "result_idx", "value")

    def __init__(self, length: int) -> None:
        self.length = length
        self.result_idx: int | None = None
        """The index of the awaitable that was done first; None after a timeout."""
        self.is_exception: bool | None = None
        """Whether that awaitable raised; None after a timeout."""
        self.value: Any = None
        """The value that it returned, or the exception that it raised."""

    def result(self) -> Any:
        """Return the value of the awaitable that was done first, or raise its exception."""
        if self.is_exception:
            raise self.value
        return self.value

    def done(self) -> bool:
        """Return whether an awaitable was done before the timeout."""
        return self.result_idx is not None

    def __len__(self) -> int:
        return self.length

    def __contains__(self, value: object) -> bool:
        return self.value is value

    def __iter__(self) -> Iterator[Any]:
        for index in range(self.length):
            yield self.value if index == self.result_idx else None

    def __repr__(self) -> str:
        return f"<SelectResult {list(self)!r}>"


async def select(
    *awaitables: Awaitable[Any],
    return_exceptions: bool = False,
    cancel: bool = True,
    timeout: float | None = None,
    wait: bool = True,
    loop: asyncio.AbstractEventLoop | None = None,
) -> SelectResult:
    """Wait until the first of `awaitables` is done, and cancel the others.

    If several are done in the same iteration of the event loop, the first argument among them
    counts.

    :param awaitables: coroutines, tasks, futures and other awaitables.
    :param return_exceptions: whether to return the exception of the first one as its value, instead
        of raising it.
    :param cancel: False leaves the others running.
    :param timeout: seconds to wait; by default without limit. After a timeout, the awaitables are
        cancelled as well, and the result is not :meth:`~SelectResult.done`.
    :param wait: whether to wait until the cancelled ones are done.
    :param loop: the running loop, which is the default.

    :raises ValueError: without awaitables, or if `loop` is not the running loop.
    :raises TypeError: if an argument is not awaitable; then none is started.

    >>> import asyncio
    >>> async def main():
    ...     slow, quick = await select(asyncio.sleep(60, "slow"), asyncio.sleep(0, "quick"))
    ...     return slow, quick
    >>> asyncio.run(main())
    (None, 'quick')
    """
    _check_select(awaitables, loop)
    futures = [_ensure_future(item) for item in awaitables]
    try:
        done, pending = await asyncio.wait(
            futures, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
        )
    except asyncio.CancelledError:
        await cancel_and_wait(futures)
        raise

    if cancel and wait:
        await cancel_and_wait(pending)
    elif cancel:
        for future in pending:
            future.cancel()

    result = SelectResult(len(futures))
    if done:
        _set_result(result, next(pair for pair in enumerate(futures) if pair[1] in done))
    if result.is_exception and not return_exceptions:
        raise result.value
    return result


def _check_select(
    awaitables: tuple[Awaitable[Any], ...], loop: asyncio.AbstractEventLoop | None
) -> None:
    if loop is not None and loop is not asyncio.get_running_loop():
        raise ValueError(f"select(): loop={loop!r} is not the running loop; leave it out")
    if not awaitables:
        raise ValueError("select() needs at least one awaitable")
    for item in awaitables:
        if not inspect.isawaitable(item):
            raise TypeError(f"select() needs awaitables, not {item!r}")


def _ensure_future(item: Awaitable[Any]) -> asyncio.Future[Any]:
    """Return `item` as a future; keep a new task alive until it is done."""
    future = asyncio.ensure_future(item)
    if future is not item:
        _background.add(future)
        future.add_done_callback(_forget)
    return future


def _forget(future: asyncio.Future[Any]) -> None:
    _background.discard(future)
    if not future.cancelled():
        future.exception()  # so that asyncio does not log an exception that was never retrieved


def _set_result(result: SelectResult, first: tuple[int, asyncio.Future[Any]]) -> None:
    result.result_idx, future = first
    try:
        # Not future.result(), which returns the whole traceback only to its first caller.
        error = future.exception()
    except asyncio.CancelledError as cancelled:
        error = cancelled
    result.is_exception = error is not None
    result.value = future.result() if error is None else error
