"""Decorators that make functions run in threads."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import weakref
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, overload

from svcrun._util.per_loop import running_loop
from svcrun.thread_pool.executor import get_pool
from svcrun.thread_pool.from_thread import run_in_thread
from svcrun.thread_pool.generators import ThreadedIterable, ThreadedIterableSeparate
from svcrun.thread_pool.separate_threads import run_in_new_thread
from svcrun.thread_pool.threaded_base import ThreadedBase, plain_function

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
S = TypeVar("S")

__all__ = ("Threaded", "ThreadedSeparate", "threaded", "threaded_separate")

# A thread of the pool may be this far ahead of who reads what it yields.
_GENERATOR_MAX_SIZE = 1024


class Threaded(ThreadedBase[P, T]):
    """A function whose calls run in the thread pool; made by :func:`threaded`."""

    def async_call(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """Begin a call in a thread and return its awaitable result.

        Without a running event loop, the call begins when the result is awaited.
        """
        call = functools.partial(self.func, *args, **kwargs)
        loop = running_loop()
        return self._later(call) if loop is None else self._start(loop, call)

    __call__ = async_call

    async def _later(self, call: Callable[[], T]) -> T:
        return await self._start(asyncio.get_running_loop(), call)

    def _start(self, loop: asyncio.AbstractEventLoop, call: Callable[[], T]) -> asyncio.Future[T]:
        context = contextvars.copy_context()
        # Weak, as the traceback of an error would refer to the future, and the future to the error.
        waiting: list[weakref.ref[asyncio.Future[T]]] = []

        def begin() -> T:
            # The executor hears of a cancellation in the next turn of the loop. That comes too late
            # if the loop is blocked by somebody who waits for the threads.
            for reference in waiting:
                future = reference()
                if future is not None and future.cancelled():
                    raise asyncio.CancelledError
                del future
            return call()

        future = loop.run_in_executor(get_pool(loop), context.run, run_in_thread, loop, begin)
        waiting.append(weakref.ref(future))
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
    """A function of which each call has a thread of its own; made by :func:`threaded_separate`.

    :param func: the function.
    :param detach: whether the interpreter may exit while a call runs.
    """

    def __init__(self, func: Callable[P, T], detach: bool = True) -> None:
        super().__init__(func)
        self.detach = detach

    def _start(self, loop: asyncio.AbstractEventLoop, call: Callable[[], T]) -> asyncio.Future[T]:
        name = getattr(self, "__name__", type(self.func).__name__)
        return run_in_new_thread(loop, call, name=f"svcrun-{name}", detach=self.detach)


# A generator function is a function, too: the more special case comes first and overlaps.
@overload
def threaded(  # type: ignore[overload-overlap]
    func: Callable[P, Generator[T, None, None]],
) -> ThreadedIterable[P, T]: ...
@overload
def threaded(func: Callable[P, T]) -> Threaded[P, T]: ...
def threaded(func: Callable[..., Any]) -> Any:
    """Run the decorated function in the thread pool, so that it can't block the event loop.

    :param func: a function, a method, or a generator function, which becomes what
        :func:`threaded_iterable` makes of it.

    Calls return awaitables; ``func.sync_call()`` calls the function as it was. The thread sees the
    caller's context variables. Cancelling who waits does not stop a call that has begun.

    :raises TypeError: if the function is asynchronous already.

    >>> import asyncio, time
    >>> @threaded
    ... def work(seconds):
    ...     time.sleep(seconds)
    ...     return "done"
    >>> async def main():
    ...     print(await asyncio.gather(work(0.1), work(0.1)))  # both at the same time
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
    """Run each call of the decorated function in a new thread, for work that takes long.

    :param func: as with :func:`threaded`.
    :param detach: False makes the interpreter wait for the thread before it exits.

    An entrypoint waits for these threads as well when it shuts down, within its time limit.

    :raises TypeError: if the function is asynchronous already.

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
