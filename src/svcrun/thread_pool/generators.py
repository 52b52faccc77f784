"""Iterate in coroutines over generators that run in threads."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Coroutine, Generator, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from svcrun._util.callables import describe
from svcrun.errors import ChannelClosed, PoolClosed
from svcrun.thread_pool.channel import FromThreadChannel, check_size
from svcrun.thread_pool.executor import replace_unraisable
from svcrun.thread_pool.separate_threads import start_in_new_thread
from svcrun.thread_pool.thread_group import stoppable
from svcrun.thread_pool.threaded_base import ThreadedBase
from svcrun.thread_pool.to_thread import start_in_pool

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
    """Put items into `channel` until it is closed, and return whether that was all of them."""
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
        # Run the finally blocks of the generator in this thread, not in the garbage collector's.
        if isinstance(items, Generator):
            items.close()


class IteratorWrapper(Generic[T]):
    """An asynchronous iterator over the items of a generator in a thread of the pool.

    The generator starts with the first iteration, and is closed when the iteration ends or is left.
    As an asynchronous context manager, it waits at the end of the block until the generator is
    closed.

    :param gen_func: a function that returns the generator or another iterable.
    :param loop: the running loop, which is the default.
    :param max_size: the most items that the generator may be ahead; 0 for any number.
    :param executor: the executor; by default that of :func:`threaded` functions.

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
        self._was_error_raised = False
        # Invariant: the thread refers to the channel and not to this object. So if the program
        # drops the iterator, __del__() closes the channel, and that ends the thread.
        self._channel: FromThreadChannel[T] = FromThreadChannel(max_size)
        self._is_abandoned = False

    @property
    def closed(self) -> bool:
        """Whether the iteration has ended, or ends now."""
        return self._channel.is_closed

    def __aiter__(self) -> AsyncIterator[T]:
        self._ensure_started()
        return _Iteration(self)

    async def __anext__(self) -> T:
        job = self._ensure_started()
        try:
            return await self._channel.get()
        except ChannelClosed:
            pass
        if job is not None:
            await asyncio.wait((job,))
            self._raise_error(job)
        raise StopAsyncIteration

    def _ensure_started(self) -> asyncio.Future[bool] | None:
        """Start the generator, unless it was started; return None if it was closed before."""
        if self._job is None and not self._channel.is_closed:
            loop = self._loop or asyncio.get_running_loop()
            channel = self._channel
            call = functools.partial(_feed, self._function, channel)
            self._job = self._start(loop, call)
            # Not a bound method of this object, which would keep it alive until the thread ends.
            self._job.add_done_callback(lambda _: channel.close())
        return self._job

    def _start(
        self, loop: asyncio.AbstractEventLoop, call: Callable[[], bool]
    ) -> asyncio.Future[bool]:
        return start_in_pool(loop, call, self._executor)

    def _raise_error(self, job: asyncio.Future[bool]) -> None:
        """Raise the error of the generator; only the first call does so."""
        if self._was_error_raised:
            return
        self._was_error_raised = True
        # When the pool is closed, it cancels generators that have not started, and closes the
        # channels of the others.
        is_exhausted = not job.cancelled() and job.result()
        if not is_exhausted and not self._is_abandoned:
            raise PoolClosed(f"{describe(self._function)} ended early: its pool closed")

    def close(self) -> asyncio.Future[None]:
        """Close the generator now, and return a future that is done when it is closed.

        The future raises the error that the generator raises while it is being closed.
        """
        self._is_abandoned = True
        self._channel.close()
        return asyncio.get_running_loop().create_task(self.wait_closed())

    async def wait_closed(self) -> None:
        """Wait until the generator is closed, and raise its error."""
        if self._job is not None:
            await asyncio.wait((self._job,))
            self._raise_error(self._job)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __del__(self) -> None:
        channel = getattr(self, "_channel", None)  # missing if __init__() raised
        if channel is not None:
            channel.close()


class _Iteration(Generic[T]):
    """One ``async for`` loop, which closes the generator when the loop is left."""

    def __init__(self, wrapper: IteratorWrapper[T]) -> None:
        self._wrapper = wrapper

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, T]:
        return self._wrapper.__anext__()

    def __del__(self) -> None:
        self._wrapper._is_abandoned = True  # noqa: SLF001 - the same module
        self._wrapper._channel.close()  # noqa: SLF001


class IteratorWrapperSeparate(IteratorWrapper[T]):
    """An :class:`IteratorWrapper` whose generator runs in a new thread."""

    def _start(
        self, loop: asyncio.AbstractEventLoop, call: Callable[[], bool]
    ) -> asyncio.Future[bool]:
        function = self._function
        while isinstance(function, functools.partial):
            function = function.func
        name = getattr(function, "__name__", type(function).__name__)
        return start_in_new_thread(loop, call, name=f"svcrun-{name}")


class ThreadedIterable(ThreadedBase[P, Iterator[T]]):
    """A generator function for coroutines; :func:`threaded_iterable` returns it.

    :param func: the generator function.
    :param max_size: the most items that a generator may be ahead; 0 for any number.
    """

    _wrapper: type[IteratorWrapper[Any]] = IteratorWrapper

    def __init__(self, func: Callable[P, Iterator[T]], max_size: int = 0) -> None:
        super().__init__(func)
        check_size(type(self).__name__, "max_size", max_size)
        self.max_size = max_size

    def async_call(self, *args: P.args, **kwargs: P.kwargs) -> IteratorWrapper[T]:
        """Return an asynchronous iterator over the items; the first iteration starts the call."""
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
    """A :class:`ThreadedIterable` whose generators run in new threads."""

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
    """Run the decorated generator function in the thread pool, and iterate over it in coroutines.

    Leaving the ``async for`` loop closes the generator. ``async with`` also waits until it is
    closed, and so does ``await iterator.close()``. ``func.sync_call()`` returns the generator
    itself.

    :param func: a generator function or method.
    :param max_size: the most items that the generator may be ahead of the iteration; then it waits.
        0, the default, for any number.

    :raises TypeError: if the function is asynchronous.
    :raises ValueError: if `max_size` is negative.

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
    """Run each generator of the decorated function in a new thread; see :func:`threaded_iterable`.

    >>> import asyncio
    >>> @threaded_iterable_separate
    ... def letters():
    ...     yield from "ab"
    >>> async def main():
    ...     print([letter async for letter in letters()])
    >>> asyncio.run(main())
    ['a', 'b']
    """
    if func is None:
        return functools.partial(ThreadedIterableSeparate, max_size=max_size)
    return ThreadedIterableSeparate(func, max_size)
