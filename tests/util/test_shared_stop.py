"""Concurrent calls of a ``stop()`` share one stop."""

from __future__ import annotations

import asyncio

import pytest

from svcrun._util.shared_stop import SharedStop
from svcrun._util.tasks import current_work


async def test_a_second_stop_returns_when_the_first_has_ended_and_does_nothing_itself() -> None:
    shared = SharedStop()
    release = asyncio.Event()
    events: list[str] = []

    async def stop(name: str) -> None:
        if await shared.in_progress():
            events.append(f"{name} waited")
            return
        with shared:
            events.append(f"{name} works")
            await release.wait()
            events.append(f"{name} has ended")

    tasks = [asyncio.create_task(stop(name)) for name in ("first", "second", "third")]
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(*tasks)
    assert events == ["first works", "first has ended", "second waited", "third waited"]

    await stop("fourth")
    assert events[4:] == ["fourth works", "fourth has ended"]


async def test_a_second_stop_returns_normally_when_the_first_raises() -> None:
    shared = SharedStop()
    release = asyncio.Event()

    async def fail() -> None:
        assert not await shared.in_progress()
        with shared:
            await release.wait()
            raise ZeroDivisionError

    first = asyncio.create_task(fail())
    await asyncio.sleep(0)
    second = asyncio.create_task(shared.in_progress())
    await asyncio.sleep(0)
    release.set()
    assert await second
    with pytest.raises(ZeroDivisionError):
        await first


async def test_cancelling_a_second_stop_does_not_end_the_first() -> None:
    shared = SharedStop()
    with shared:
        second = asyncio.create_task(shared.in_progress())
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        third = asyncio.create_task(shared.in_progress())
        await asyncio.sleep(0)
        assert not third.done()
    assert await third


async def test_every_caller_and_its_work_is_left_out_until_the_stop_has_ended() -> None:
    calls: list[set[object]] = []
    shared = SharedStop(lambda: calls.append(set(shared.callers)))
    work = object()

    async def call() -> bool:
        current_work.set(work)
        return await shared.in_progress()

    assert not await shared.in_progress()
    with shared:
        second = asyncio.create_task(call())
        await asyncio.sleep(0)
        callers = {asyncio.current_task(), second, work}
        assert shared.callers == callers
        assert calls == [{asyncio.current_task()}, callers]
    assert not shared.callers
    assert await second
