"""Laws of the channel from threads to coroutines."""

import asyncio
import collections
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from svcrun.thread_pool import (
    ChannelClosed,
    ChannelTimeout,
    FromThreadChannel,
    ThreadPoolExecutor,
    threaded,
)
from tests.support import PATIENCE, LoopFactory, eventually


@pytest.fixture(autouse=True)
async def pool() -> AsyncIterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(4)
    pool.attach(asyncio.get_running_loop())
    yield pool
    assert await pool.close(PATIENCE) == []


def fill(channel: FromThreadChannel[int], numbers: range) -> None:
    with channel:
        for number in numbers:
            channel.put(number)


@pytest.mark.parametrize("maxsize", [0, 1, 3])
async def test_items_come_in_order_until_the_channel_is_closed(maxsize: int) -> None:
    channel: FromThreadChannel[int] = FromThreadChannel(maxsize)
    producer = threaded(fill)(channel, range(200))
    assert [number async for number in channel] == list(range(200))
    await producer
    with pytest.raises(ChannelClosed):
        await channel.get()


async def test_a_full_channel_makes_the_thread_wait() -> None:
    channel: FromThreadChannel[int] = FromThreadChannel(2)
    done = threading.Event()

    @threaded
    def produce() -> None:
        for number in range(3):
            channel.put(number)
        done.set()

    producer = produce()
    await eventually(lambda: len(channel._items) == 2)
    assert not done.is_set()
    assert await channel.get() == 0
    await producer
    assert [await channel, await channel] == [1, 2]


async def test_closing_wakes_threads_that_wait() -> None:
    channel: FromThreadChannel[int] = FromThreadChannel(1)
    producers = [threaded(fill)(channel, range(2)) for _ in range(2)]
    await eventually(lambda: len(channel._items) == 1)
    channel.close()
    for producer in producers:
        with pytest.raises(ChannelClosed):
            await producer
    assert channel.is_closed
    assert await channel.get() == 0  # the items in it can still be taken


async def test_closing_wakes_coroutines_that_wait() -> None:
    channel: FromThreadChannel[int] = FromThreadChannel()
    waiting = [asyncio.create_task(channel.get()) for _ in range(2)]
    await asyncio.sleep(0)
    channel.close()
    for task in waiting:
        with pytest.raises(ChannelClosed):
            await task


async def test_a_closed_channel_refuses_items() -> None:
    channel: FromThreadChannel[int] = FromThreadChannel()
    channel.close()
    with pytest.raises(RuntimeError, match="closed"):
        channel.put(1)


async def test_every_item_is_taken_by_one_of_several_coroutines() -> None:
    channel: FromThreadChannel[int] = FromThreadChannel(2)

    async def take() -> list[int]:
        return [number async for number in channel]

    takers = [asyncio.create_task(take()) for _ in range(3)]
    await threaded(fill)(channel, range(100))
    taken = await asyncio.gather(*takers)
    assert sorted(number for numbers in taken for number in numbers) == list(range(100))


async def test_an_item_is_not_lost_on_a_cancelled_coroutine() -> None:
    channel: FromThreadChannel[int] = FromThreadChannel()
    first, second = (asyncio.create_task(channel.get()) for _ in range(2))
    await asyncio.sleep(0)
    channel.put(1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second == 1
    assert not channel._waiters


async def test_waiting_can_be_limited() -> None:
    channel: FromThreadChannel[int] = FromThreadChannel(timeout=0.01)
    with pytest.raises(ChannelTimeout, match=r"no item for 0\.01 s"):
        await channel.get()
    with pytest.raises(TimeoutError, match=r"no item for 0\.02 s"):
        await channel.get(timeout=0.02)
    task = asyncio.create_task(channel.get(timeout=0))
    await asyncio.sleep(0.02)
    channel.put(1)
    assert await task == 1


async def test_putting_into_a_full_channel_does_not_block_the_event_loop() -> None:
    channel: FromThreadChannel[int] = FromThreadChannel(1)
    channel.put(1)
    with pytest.raises(RuntimeError, match=r"full \(1 items\).*event loop"):
        channel.put(2)
    assert await channel.get() == 1


def test_a_thread_may_outlive_the_loop_of_the_waiting_task(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    channel: FromThreadChannel[int] = FromThreadChannel()
    task: Any = loop.create_task(channel.get())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    channel.put(1)
    channel.close()
    assert not task.done()
    # The closed loop cannot end the task any more.
    task._log_destroy_pending = False
    task.get_coro().close()


async def test_a_finalizer_may_close_the_channel_in_the_middle_of_a_put() -> None:
    channel: FromThreadChannel[Any] = FromThreadChannel()

    class Items(collections.deque[Any]):
        def append(self, item: Any) -> None:
            super().append(item)
            channel.close()  # as if the garbage collector had run here

    channel._items = Items()
    task = threaded(channel.put)(1)
    async with asyncio.timeout(PATIENCE):
        await task
    assert channel.is_closed
    assert await channel.get() == 1


@pytest.mark.parametrize("size", [-1, "1", None, True])
def test_an_invalid_size_is_refused_by_name_and_value(size: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"maxsize must be .*, not {size!r}"):
        FromThreadChannel[int](size).close()
