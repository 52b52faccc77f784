"""Generators that run in threads and are iterated over by coroutines."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import AsyncIterator, Coroutine, Generator, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from svcrun._util.callables import describe
from svcrun.errors import ChannelClosed, PoolClosed
from svcrun.thread_pool.channel import FromThreadChannel, check_size
from svcrun.thread_pool.executor import get_pool, replace_unraisable
from svcrun.thread_pool.from_thread import run_in_thread
from svcrun.thread_pool.separate_threads import run_in_new_thread
from svcrun.thread_pool.thread_group import stoppable
from svcrun.thread_pool.threaded_base import ThreadedBase

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable, Iterable

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
S = TypeVar("S")

__all__ = (
    "IteratorWrapper",
    "IteratorWrapperSeparate",
    "ThreadedIterable",
    "ThreadedIterableSeparate",
    "threaded_iterable",
    "threaded_iterable_separate",
)


def _feed(make: Callable[[], Iterable[T]], channel: FromThreadChannel[T]) -> bool:
    """Put items into `channel` until it is closed; tell whether they all went in."""
    with stoppable(channel.close):
        try:
            return _feed_items(iter(make()), channel)
        except StopAsyncIteration as error:
            raise replace_unraisable(error) from error


def _feed_items(items: Iterator[T], channel: FromThreadChannel[T]) -> bool:
    try:
        for item in items:
            try:
                channel.put(item)
            except ChannelClosed:
                return False
        return True
    finally:
        if isinstance(items, Generator):
            items.close()


class IteratorWrapper(Generic[T]):
    """Iterate over what a generator yields in a thread of the pool.

    The thread begins with the first iteration and ends with it, however that comes about. As an
    asynchronous context manager, leaving the block also waits until the generator is closed.

    :param gen_func: a function that returns the generator, or anything to iterate over.
    :param loop: the running loop; there is no need to give it.
    :param max_size: how many items the thread may be ahead; 0 for any number.
    :param executor: the pool; by default the one that `threaded` functions use.

    :raises ValueError: if `max_size` is negative.
    :raises TypeError: if it is no integer.

    >>> import asyncio
    >>> async def main():
    ...     async with IteratorWrapper(lambda: iter("abc"), max_size=2) as letters:
    ...         async for letter in letters:
    ...             print(letter)
    >>> asyncio.run(main())
    a
    b
    c
    """

    def __init__(
        self,
        gen_func: Callable[[], Iterable[T]],
        loop: asyncio.AbstractEventLoop | None = None,
        max_size: int = 0,
        executor: concurrent.futures.Executor | None = None,
    ) -> None:
        check_size(type(self).__name__, "max_size", max_size)
        self._function = gen_func
        self._loop = loop
        self._executor = executor
        self._job: asyncio.Future[bool] | None = None
        self._is_settled = False
        # The thread knows the channel alone: when nobody iterates any more, the channel is closed
        # by __del__, and that ends the thread.
        self._channel: FromThreadChannel[T] = FromThreadChannel(max_size)
        self._is_cut_off = False

    @property
    def closed(self) -> bool:
        """Whether the iteration has ended, or is about to."""
        return self._channel.is_closed

    def __aiter__(self) -> AsyncIterator[T]:
        self._begin()
        return _Iteration(self)

    async def __anext__(self) -> T:
        job = self._begin()
        try:
            return await self._channel.get()
        except ChannelClosed:
            pass
        if job is not None:
            await asyncio.wait((job,))
            self._settle(job)
        raise StopAsyncIteration

    def _begin(self) -> asyncio.Future[bool] | None:
        """Start the thread unless that was done; there is none for what was closed before."""
        if self._job is None and not self._channel.is_closed:
            loop = self._loop or asyncio.get_running_loop()
            channel = self._channel
            call = functools.partial(_feed, self._function, channel)
            self._job = self._start(loop, call)
            self._job.add_done_callback(lambda _: channel.close())
        return self._job

    def _start(
        self, loop: asyncio.AbstractEventLoop, call: Callable[[], bool]
    ) -> asyncio.Future[bool]:
        pool = self._executor or get_pool(loop)
        context = contextvars.copy_context()
        return loop.run_in_executor(pool, context.run, run_in_thread, loop, call)

    def _settle(self, job: asyncio.Future[bool]) -> None:
        """Raise, once, what kept the generator from its end."""
        if self._is_settled:
            return
        self._is_settled = True
        # The pool cancels what it has not begun, and closes the channel of what it has.
        came_to_its_end = not job.cancelled() and job.result()
        if not came_to_its_end and not self._is_cut_off:
            raise PoolClosed(f"{describe(self._function)} did not come to its end: its pool closed")

    def close(self) -> asyncio.Future[None]:
        """Close the generator, now; awaiting the result waits until that is done.

        What it raises meanwhile is raised by the result.
        """
        self._is_cut_off = True
        self._channel.close()
        return asyncio.get_running_loop().create_task(self.wait_closed())

    async def wait_closed(self) -> None:
        """Wait until the generator has ended."""
        if self._job is not None:
            await asyncio.wait((self._job,))
            self._settle(self._job)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __del__(self) -> None:
        channel = getattr(self, "_channel", None)  # there is none if the construction failed
        if channel is not None:
            channel.close()


class _Iteration(Generic[T]):
    """One ``async for`` loop, which ends the whole thing when it is left."""

    def __init__(self, wrapper: IteratorWrapper[T]) -> None:
        self._wrapper = wrapper

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, T]:
        return self._wrapper.__anext__()

    def __del__(self) -> None:
        self._wrapper._is_cut_off = True  # noqa: SLF001 - the two belong together
        self._wrapper._channel.close()  # noqa: SLF001


class IteratorWrapperSeparate(IteratorWrapper[T]):
    """The same as :class:`IteratorWrapper` in a new thread."""

    def _start(
        self, loop: asyncio.AbstractEventLoop, call: Callable[[], bool]
    ) -> asyncio.Future[bool]:
        function = self._function
        while isinstance(function, functools.partial):
            function = function.func
        name = getattr(function, "__name__", type(function).__name__)
        return run_in_new_thread(loop, call, name=f"svcrun-{name}")


class ThreadedIterable(ThreadedBase[P, Iterator[T]]):
    """A generator function that can be iterated over by coroutines; see :func:`threaded_iterable`.

    :param func: the generator function.
    :param max_size: as of :class:`IteratorWrapper`.
    """

    _wrapper: type[IteratorWrapper[Any]] = IteratorWrapper

    def __init__(self, func: Callable[P, Iterator[T]], max_size: int = 0) -> None:
        super().__init__(func)
        check_size(type(self).__name__, "max_size", max_size)
        self.max_size = max_size

    def async_call(self, *args: P.args, **kwargs: P.kwargs) -> IteratorWrapper[T]:
        """Return what iterates over the generator's items; it begins with the iteration."""
        call = functools.partial(self.func, *args, **kwargs)
        return self._wrapper(call, max_size=self.max_size)

    __call__ = async_call

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: type | None = None) -> Self: ...
        @overload
        def __get__(
            self: ThreadedIterable[Concatenate[S, Q], T],
            instance: S,
            owner: type | None = None,
        ) -> ThreadedIterable[Q, T]: ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...


class ThreadedIterableSeparate(ThreadedIterable[P, T]):
    """The same as :class:`ThreadedIterable` in new threads."""

    _wrapper = IteratorWrapperSeparate


@overload
def threaded_iterable(
    func: Callable[P, Iterator[T]], *, max_size: int = ...
) -> ThreadedIterable[P, T]: ...
@overload
def threaded_iterable(
    *, max_size: int = ...
) -> Callable[[Callable[P, Iterator[T]]], ThreadedIterable[P, T]]: ...
def threaded_iterable(func: Any = None, *, max_size: int = 0) -> Any:
    """Let coroutines iterate over what the decorated generator yields in the thread pool.

    :param func: a generator function, also a method.
    :param max_size: how many items the thread may be ahead of the iteration; then it waits. 0, the
        default, for any number.

    Leaving the ``async for`` loop closes the generator; ``async with`` also waits until that is
    done, and so does ``await it.close()``. ``func.sync_call()`` gives the generator as it was.

    :raises TypeError, ValueError: if the function is asynchronous, or `max_size` no limit.

    >>> import asyncio
    >>> @threaded_iterable(max_size=2)
    ... def count():
    ...     number = 0
    ...     try:
    ...         while True:
    ...             yield number
    ...             number += 1
    ...     finally:
    ...         print("closed")
    >>> async def main():
    ...     async with count() as numbers:
    ...         async for number in numbers:
    ...             print(number)
    ...             if number == 1:
    ...                 break
    >>> asyncio.run(main())
    0
    1
    closed
    """
    if func is None:
        return functools.partial(ThreadedIterable, max_size=max_size)
    return ThreadedIterable(func, max_size)


@overload
def threaded_iterable_separate(
    func: Callable[P, Iterator[T]], *, max_size: int = ...
) -> ThreadedIterableSeparate[P, T]: ...
@overload
def threaded_iterable_separate(
    *, max_size: int = ...
) -> Callable[[Callable[P, Iterator[T]]], ThreadedIterableSeparate[P, T]]: ...
def threaded_iterable_separate(func: Any = None, *, max_size: int = 0) -> Any:
    """Do as :func:`threaded_iterable`, each time in a new thread."""
    if func is None:
        return functools.partial(ThreadedIterableSeparate, max_size=max_size)
    return ThreadedIterableSeparate(func, max_size)
