"""Decorators that make functions run in threads."""

from __future__ import annotations

import asyncio
import functools
import inspect
import weakref
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, overload

from svcrun.thread_pool.generators import ThreadedIterable, ThreadedIterableSeparate
from svcrun.thread_pool.separate_threads import start_in_new_thread
from svcrun.thread_pool.threaded_base import ThreadedBase, plain_function
from svcrun.thread_pool.to_thread import start_in_pool, start_or_defer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
S = TypeVar("S")

__all__ = ("Threaded", "ThreadedSeparate", "threaded", "threaded_separate")

# The most items that a generator may be ahead of the iteration.
_GENERATOR_MAX_SIZE = 1024


class Threaded(ThreadedBase[P, T]):
    """A function whose calls run in the thread pool; :func:`threaded` returns it."""

    def async_call(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """Start a call in a thread and return its awaitable result.

        Without a running event loop, the call starts when the result is awaited.
        """
        return start_or_defer(self._start, functools.partial(self.func, *args, **kwargs))

    __call__ = async_call

    def _start(self, loop: asyncio.AbstractEventLoop, call: Callable[[], T]) -> asyncio.Future[T]:
        # A weak reference: the traceback of an error refers to the frame of begin(), so a strong
        # one would complete a reference cycle of the future and its error.
        started: list[weakref.ref[asyncio.Future[T]]] = []

        def begin() -> T:
            # Race: a cancellation reaches the executor in the next iteration of the loop. If the
            # loop is blocked until the threads end, the call would run although it was cancelled.
            for reference in started:
                future = reference()
                if future is not None and future.cancelled():
                    raise asyncio.CancelledError
                del future
            return call()

        future = start_in_pool(loop, begin)
        started.append(weakref.ref(future))
        return future

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: type | None = None) -> Self: ...
        @overload
        def __get__(
            self: Threaded[Concatenate[S, Q], T], instance: S, owner: type | None = None
        ) -> Threaded[Q, T]: ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...


class ThreadedSeparate(Threaded[P, T]):
    """A function whose calls run in new threads; :func:`threaded_separate` returns it.

    :param func: the function.
    :param detach: whether the interpreter may exit while a call runs.
    """

    def __init__(self, func: Callable[P, T], detach: bool = True) -> None:
        super().__init__(func)
        self.detach = detach

    def _start(self, loop: asyncio.AbstractEventLoop, call: Callable[[], T]) -> asyncio.Future[T]:
        name = getattr(self, "__name__", type(self.func).__name__)
        return start_in_new_thread(loop, call, name=f"svcrun-{name}", detach=self.detach)


# A generator function is a function, too, so the special case comes first and overlaps.
@overload
def threaded(  # type: ignore[overload-overlap]
    func: Callable[P, Generator[T, None, None]],
) -> ThreadedIterable[P, T]: ...
@overload
def threaded(func: Callable[P, T]) -> Threaded[P, T]: ...
def threaded(func: Callable[..., Any]) -> Any:
    """Run calls of the decorated function in the thread pool, where they cannot block the loop.

    A call returns an awaitable, and ``func.sync_call()`` calls the function without a thread. The
    thread has a copy of the caller's context variables. Cancelling the awaiting task does not stop
    a call that has started.

    :param func: a function or a method. A generator function is decorated with
        :func:`threaded_iterable`.

    :raises TypeError: if the function is asynchronous.

    >>> import asyncio, time
    >>> @threaded
    ... def work(seconds):
    ...     time.sleep(seconds)
    ...     return "done"
    >>> async def main():
    ...     print(await asyncio.gather(work(0.1), work(0.1)))  # at the same time
    >>> asyncio.run(main())
    ['done', 'done']
    """
    if inspect.isgeneratorfunction(plain_function("threaded", func)):
        return ThreadedIterable(func, max_size=_GENERATOR_MAX_SIZE)
    return Threaded(func)


@overload
def threaded_separate(  # type: ignore[overload-overlap]
    func: Callable[P, Generator[T, None, None]], detach: bool = ...
) -> ThreadedIterableSeparate[P, T]: ...
@overload
def threaded_separate(func: Callable[P, T], detach: bool = ...) -> ThreadedSeparate[P, T]: ...
@overload
def threaded_separate(
    *, detach: bool = ...
) -> Callable[[Callable[P, T]], ThreadedSeparate[P, T]]: ...
def threaded_separate(func: Callable[..., Any] | None = None, detach: bool = True) -> Any:
    """Run each call of the decorated function in a new thread, for long calls.

    The shutdown of an entrypoint waits for these threads, too, within its time limit.

    :param func: a function, a method or a generator function, as with :func:`threaded`.
    :param detach: False makes the interpreter wait for the thread before it exits.

    :raises TypeError: if the function is asynchronous.

    >>> import asyncio, threading
    >>> @threaded_separate
    ... def work():
    ...     return threading.current_thread().name
    >>> async def main():
    ...     print(await work())
    >>> asyncio.run(main())
    svcrun-work
    """
    if func is None:
        return functools.partial(threaded_separate, detach=detach)
    if inspect.isgeneratorfunction(plain_function("threaded_separate", func)):
        return ThreadedIterableSeparate(func, max_size=_GENERATOR_MAX_SIZE)
    return ThreadedSeparate(func, detach)
