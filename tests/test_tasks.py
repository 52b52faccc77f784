"""What is done to tasks."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from svcrun.tasks import cancel_and_wait, format_stack, join


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


async def outer() -> None:
    await wait_for_ever()


async def test_the_stack_of_a_task_goes_down_to_where_it_waits() -> None:
    task = asyncio.create_task(outer())
    await asyncio.sleep(0)
    stack = format_stack(task)
    assert stack.index("in outer") < stack.index("in wait_for_ever") < stack.index("in Event.wait")
    assert "await asyncio.Event().wait()" in stack
    await cancel_and_wait([task])


async def test_the_stack_of_a_task_goes_on_in_a_task_that_it_awaits() -> None:
    async def wait_for_another() -> None:
        await inner

    inner = asyncio.create_task(outer())
    task = asyncio.create_task(wait_for_another())
    await asyncio.sleep(0)
    stack = format_stack(task)
    assert stack.index("in test_the_stack") < stack.index("in outer") < stack.index("in Event.wait")
    await cancel_and_wait([task, inner])


class Linked:
    """Awaits a future, and refers to a task as what awaits one does: a circle that has an end."""

    __slots__ = ("steps", "task")

    def __init__(self, future: asyncio.Future[None], task: asyncio.Task[None]) -> None:
        self.steps = iter(future)
        self.task = task

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Linked:
        return self

    def __next__(self) -> object:
        return next(self.steps)


async def test_tasks_that_await_each_other_have_a_stack_with_an_end() -> None:
    tasks: list[asyncio.Task[None]] = []

    async def first() -> None:
        await Linked(asyncio.get_running_loop().create_future(), tasks[1])

    async def second() -> None:
        await tasks[0]

    tasks += [asyncio.create_task(first()), asyncio.create_task(second())]
    await asyncio.sleep(0)
    for task in tasks:
        stack = format_stack(task)
        assert stack.count(".first\n") == stack.count(".second\n") == 1
    await cancel_and_wait(tasks)


async def test_a_task_that_has_ended_still_has_a_text() -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    assert "sleep" in format_stack(task)


async def test_cancelled_tasks_are_waited_for() -> None:
    cleaned = []

    async def work() -> None:
        try:
            await wait_for_ever()
        finally:
            await asyncio.sleep(0)
            cleaned.append(1)

    tasks = [asyncio.create_task(work()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not await cancel_and_wait(tasks)
    assert cleaned == [1, 1, 1]


async def test_tasks_that_ignore_their_cancellation_are_returned_in_time() -> None:
    go_on = asyncio.Event()

    async def work() -> None:
        while not go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go_on.wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    assert list(await cancel_and_wait([task], timeout=0.01)) == [task]
    go_on.set()
    await task


async def test_joining_goes_on_when_the_caller_is_cancelled_and_passes_that_on() -> None:
    go_on = asyncio.Event()
    work = asyncio.create_task(go_on.wait())
    joining = asyncio.create_task(join(work))
    for _ in range(3):
        await asyncio.sleep(0)
        joining.cancel()
    await asyncio.sleep(0)
    assert not joining.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await joining
    assert work.result() is True


async def test_joining_returns_the_result_or_raises_the_error() -> None:
    async def fail() -> None:
        raise LookupError

    assert await join(asyncio.create_task(asyncio.sleep(0, "result"))) == "result"
    with pytest.raises(LookupError):
        await join(asyncio.create_task(fail()))
