"""A queue from threads to coroutines."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from svcrun._util.per_loop import running_loop
from svcrun._util.validation import number
from svcrun.errors import ChannelClosed, ChannelTimeout
from svcrun.thread_pool.thread_group import set_if_pending

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

T = TypeVar("T")

__all__ = ("FromThreadChannel", "check_size")


def check_size(owner: str, name: str, value: object) -> None:
    """Check that `value` is a number of items, or 0 for no limit."""
    number(low=0, whole=True, unit="items")(owner, name, value)


class FromThreadChannel(Generic[T]):
    """Pass items from threads to coroutines, in order.

    As a context manager, the channel is closed at the end of the block.

    :param maxsize: the most items in the channel; 0 for any number.
    :param timeout: seconds that :meth:`get` waits for an item; 0 for no time limit.

    >>> import asyncio
    >>> from svcrun import threaded
    >>> @threaded
    ... def produce(channel):
    ...     with channel:
    ...         for number in range(100):
    ...             channel.put(number)  # waits while the channel has 10 items
    >>> async def main():
    ...     channel = FromThreadChannel(maxsize=10)
    ...     producer = produce(channel)
    ...     print(sum([number async for number in channel]))
    ...     await producer
    >>> asyncio.run(main())
    4950
    """

    __slots__ = ("_changed", "_is_closed", "_items", "_maxsize", "_timeout", "_waiters")

    def __init__(self, maxsize: int = 0, timeout: float = 0) -> None:
        check_size(type(self).__name__, "maxsize", maxsize)
        self._maxsize = maxsize
        self._timeout = timeout
        self._items: collections.deque[T] = collections.deque()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._is_closed = False
        # The lock is reentrant, because a finalizer that closes the channel may run at any point of
        # the methods below.
        self._changed = threading.Condition(threading.RLock())

    @property
    def is_closed(self) -> bool:
        """Whether the channel rejects further items."""
        return self._is_closed

    def put(self, item: T) -> None:
        """Add an item, in any thread; wait while the channel is full.

        :raises ChannelClosed: a :class:`RuntimeError`, if the channel is closed.
        :raises RuntimeError: if the channel is full and this thread runs an event loop.
        """
        with self._changed:
            while self._maxsize and len(self._items) >= self._maxsize and not self._is_closed:
                if running_loop() is not None:
                    raise RuntimeError(
                        f"the channel is full ({self._maxsize} items), and waiting here would "
                        "block the event loop; put() from a thread"
                    )
                self._changed.wait()
            if self._is_closed:
                raise ChannelClosed
            self._items.append(item)
            self._wake_waiters()

    def close(self) -> None:
        """Reject further items, in any thread; those in the channel can still be taken."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._wake_waiters()

    def _wake_waiters(self) -> None:
        # Race: a task may be cancelled after it was woken and before it takes an item. So wake all.
        waiters, self._waiters = self._waiters, []
        for loop, waiter in waiters:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(set_if_pending, waiter)

    async def get(self, timeout: float | None = None) -> T:
        """Take an item; wait while the channel is empty.

        :param timeout: seconds to wait; 0 for no time limit; by default that of the channel.

        :raises ChannelClosed: a :class:`RuntimeError`, if the channel is closed and empty.
        :raises ChannelTimeout: a :class:`TimeoutError`, if no item arrived in time.
        """
        limit = self._timeout if timeout is None else timeout
        if not limit > 0:
            return await self._get()
        scope = asyncio.timeout(limit)
        try:
            async with scope:
                return await self._get()
        except TimeoutError:
            raise ChannelTimeout(limit) from None

    async def _get(self) -> T:
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                if self._items:
                    item = self._items.popleft()
                    self._changed.notify()
                    return item
                if self._is_closed:
                    raise ChannelClosed
                waiter = (loop, loop.create_future())
                self._waiters.append(waiter)
            try:
                await waiter[1]
            finally:
                with self._changed, contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)

    def __await__(self) -> Generator[Any, None, T]:
        return self.get().__await__()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.get()
        except ChannelClosed:
            raise StopAsyncIteration from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
