"""Small tools around awaitables: wait for the first, cancel many, shield one, and the like."""

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
"""Options of a socket: level, option, and value of each."""

log = logging.getLogger(__name__)

# asyncio itself only keeps weak references to tasks.
_background: set[asyncio.Future[Any]] = set()


@overload
def awaitable(func: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Awaitable[T]]: ...
@overload
def awaitable(func: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]: ...
@overload
def awaitable(func: Callable[P, T]) -> Callable[P, Awaitable[T]]: ...
def awaitable(func: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Return an awaitable function for `func`, which may be a plain function.

    If the result of `func` is awaitable, it is awaited; any other result is returned.

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
    """Let each call of the decorated coroutine function run to its end.

    Cancelling the caller does not touch it. It starts at once, and not when it is awaited. If it
    fails after its caller was cancelled, the error goes to the log.

    :raises TypeError: if no coroutine function is decorated.

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
        raise NotACoroutineFunction("what @shield decorates", func)

    @functools.wraps(func)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        loop = asyncio.get_running_loop()
        task = loop.create_task(func(*args, **kwargs))
        # asyncio.shield() logs an error after the cancellation, too, since Python 3.14.
        outer: asyncio.Future[T] = loop.create_future()

        def finished(task: asyncio.Task[T]) -> None:
            _background.discard(task)
            error = None if task.cancelled() else task.exception()
            if outer.cancelled():
                if error is not None:
                    log.error("%s failed, shielded", describe(func), exc_info=error)
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
    """Split `iterable` into lists of `size` items; the last one may be shorter.

    :raises ValueError, TypeError: naming the parameter, if `size` is below 1 or no whole number.

    >>> list(chunk_list("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    number(low=1, whole=True, unit="items")("chunk_list()", "size", size)
    items = iter(iterable)
    return iter(lambda: list(itertools.islice(items, size)), [])


def fast_uuid1() -> UUID:
    """Return an identifier of the time, random bits and this machine, like UUID version 1.

    It is unique, but unlike :func:`uuid.uuid1` its time can't be read.
    """
    from random import getrandbits
    from time import time_ns
    from uuid import UUID, getnode

    time_and_chance = time_ns() << 16 | getrandbits(16)
    return UUID(int=(time_and_chance << 48 | getnode()) % (1 << 128), version=1)


def fast_uuid4() -> UUID:
    """Return a random identifier like :func:`uuid.uuid4`; it must not be used as a secret."""
    from random import getrandbits
    from uuid import UUID

    return UUID(int=getrandbits(128), version=4)


async def _wait_for(future: asyncio.Future[T]) -> T:
    return await future


def cancel_tasks(tasks: Iterable[asyncio.Future[Any]]) -> asyncio.Future[list[Any]]:
    """Cancel those of `tasks` that are not done, now, and return a future of their end.

    Awaiting that is optional. It gives what the cancelled ones returned or raised.

    :param tasks: tasks, futures, or both.

    :raises TypeError: if there is something else among them; then nothing is cancelled.

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
    """What :func:`select` gives: as many items as there were awaitables, all but one of them None.

    :param length: the number of awaitables.
    """

    __slots__ = ("is_exception", "length", "result_idx", "value")

    def __init__(self, length: int) -> None:
        self.length = length
        self.result_idx: int | None = None
        """The index of the awaitable that was first; None if the time was over before."""
        self.is_exception: bool | None = None
        """Whether it failed; None if the time was over before."""
        self.value: Any = None
        """What it returned or raised."""

    def result(self) -> Any:
        """Return the value of the awaitable that was first, or raise its error."""
        if self.is_exception:
            raise self.value
        return self.value

    def done(self) -> bool:
        """Tell whether one finished, before the time was over."""
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
    """Wait for the first of `awaitables` that finishes, and cancel the others.

    If several finish in the same turn of the event loop, the one given first counts.

    :param awaitables: coroutines, tasks, futures and the like.
    :param return_exceptions: if the first one failed, don't raise its error but have it as value.
    :param cancel: False lets the others go on.
    :param timeout: seconds to wait, without limit by default. When they are over, what runs is
        cancelled as ever, and the result is not :meth:`~SelectResult.done`.
    :param wait: False does not wait for the end of those that are cancelled.
    :param loop: the running loop; there is no need to give it.

    :raises ValueError: without any awaitable, or if another loop is given.
    :raises TypeError: if one can't be awaited; then none is started.

    >>> import asyncio
    >>> async def main():
    ...     slow, quick = await select(asyncio.sleep(60, "slow"), asyncio.sleep(0, "quick"))
    ...     return slow, quick
    >>> asyncio.run(main())
    (None, 'quick')
    """
    _check_select(awaitables, loop)
    futures = [_own(item) for item in awaitables]
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
        _settle(result, next(pair for pair in enumerate(futures) if pair[1] in done))
    if result.is_exception and not return_exceptions:
        raise result.value
    return result


def _check_select(
    awaitables: tuple[Awaitable[Any], ...], loop: asyncio.AbstractEventLoop | None
) -> None:
    if loop is not None and loop is not asyncio.get_running_loop():
        raise ValueError(f"select(): loop={loop!r} is not the running loop; leave it out")
    if not awaitables:
        raise ValueError("select() needs something to wait for")
    for item in awaitables:
        if not inspect.isawaitable(item):
            raise TypeError(f"select() needs awaitables, not {item!r}")


def _own(item: Awaitable[Any]) -> asyncio.Future[Any]:
    """Make a future of `item`; one made here is kept alive and its error is not reported."""
    future = asyncio.ensure_future(item)
    if future is not item:
        _background.add(future)
        future.add_done_callback(_disown)
    return future


def _disown(future: asyncio.Future[Any]) -> None:
    _background.discard(future)
    if not future.cancelled():
        future.exception()


def _settle(result: SelectResult, first: tuple[int, asyncio.Future[Any]]) -> None:
    result.result_idx, future = first
    try:
        # Not result(): only its first caller receives the whole traceback.
        error = future.exception()
    except asyncio.CancelledError as cancelled:
        error = cancelled
    result.is_exception = error is not None
    result.value = future.result() if error is None else error
