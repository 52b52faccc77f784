"""A waiter resumes its task in the callback that wakes it."""

from __future__ import annotations

import asyncio

import pytest

from svcrun._util.eager import start_eagerly
from svcrun._util.waiter import Waiter


class Sleeper:
    """A task that waits on a waiter, again and again."""

    def __init__(self) -> None:
        self.waiter = Waiter(asyncio.get_running_loop())
        self.woken = 0
        self.task = start_eagerly(self._sleep(), asyncio.get_running_loop())

    async def _sleep(self) -> None:
        while True:
            await self.waiter
            self.woken += 1

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait((self.task,))


async def test_a_callback_resumes_the_waiting_task_at_once() -> None:
    sleeper = Sleeper()
    seen = []

    def wake() -> None:
        sleeper.waiter.wake()
        seen.append(sleeper.woken)
        sleeper.waiter.wake()
        seen.append(sleeper.woken)

    asyncio.get_running_loop().call_soon(wake)
    await asyncio.sleep(0)
    assert seen == [1, 2]
    await sleeper.end()


async def test_a_waiter_that_a_task_wakes_resumes_its_own_task_in_the_next_iteration() -> None:
    sleeper = Sleeper()
    sleeper.waiter.wake()
    assert sleeper.woken == 0
    await asyncio.sleep(0)
    assert sleeper.woken == 1
    await sleeper.end()


async def test_waking_a_waiter_without_a_task_does_nothing() -> None:
    waiter = Waiter(asyncio.get_running_loop())
    waiter.wake()
    assert not waiter.waiting
    assert not waiter.cancel()


async def test_a_waiting_task_can_be_cancelled_with_a_message() -> None:
    sleeper = Sleeper()
    assert sleeper.waiter.waiting
    sleeper.task.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await sleeper.task
    assert sleeper.task.cancelled()


async def test_a_cancelled_wait_can_be_followed_by_another_one() -> None:
    waiter = Waiter(asyncio.get_running_loop())

    async def work() -> str:
        try:
            await waiter
        except asyncio.CancelledError:
            await waiter
        return "woken"

    task = start_eagerly(work(), asyncio.get_running_loop())
    task.cancel()
    await asyncio.sleep(0)
    assert waiter.waiting
    waiter.wake()
    assert await task == "woken"


async def test_a_waiter_refuses_a_second_task() -> None:
    sleeper = Sleeper()

    async def wait() -> None:
        await sleeper.waiter

    second = start_eagerly(wait(), asyncio.get_running_loop())
    with pytest.raises(RuntimeError, match="already suspends a task"):
        await second
    await sleeper.end()
