"""Tasks are found, described, cancelled and waited for."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from svcrun._util.current_service import current_service
from svcrun._util.tasks import (
    cancel_and_wait,
    format_stack,
    running_task_and_service,
    wait_for_task,
)
from svcrun.service.base import Service

if TYPE_CHECKING:
    from tests.support import LoopFactory


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


async def outer() -> None:
    await wait_for_ever()


async def test_the_stack_of_a_task_ends_at_the_line_that_waits() -> None:
    task = asyncio.create_task(outer())
    await asyncio.sleep(0)
    stack = format_stack(task)
    assert stack.index("in outer") < stack.index("in wait_for_ever") < stack.index("in Event.wait")
    assert "await asyncio.Event().wait()" in stack
    await cancel_and_wait([task])


async def test_the_stack_of_a_task_includes_a_task_that_it_awaits() -> None:
    async def wait_for_another() -> None:
        await inner

    inner = asyncio.create_task(outer())
    task = asyncio.create_task(wait_for_another())
    await asyncio.sleep(0)
    stack = format_stack(task)
    assert stack.index("in test_the_stack") < stack.index("in outer") < stack.index("in Event.wait")
    await cancel_and_wait([task, inner])


class Linked:
    """Awaits a future, and refers to a task as an awaiting task does: a cycle that has an end."""

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


async def test_the_stack_of_tasks_that_await_each_other_is_finite() -> None:
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


async def test_a_task_that_has_ended_is_shown_by_its_representation() -> None:
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


async def test_tasks_that_ignore_their_cancellation_are_returned_after_the_timeout() -> None:
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


async def test_wait_for_task_continues_when_its_caller_is_cancelled_and_raises_that_later() -> None:
    go_on = asyncio.Event()
    work = asyncio.create_task(go_on.wait())
    joining = asyncio.create_task(wait_for_task(work))
    for _ in range(3):
        await asyncio.sleep(0)
        joining.cancel()
    await asyncio.sleep(0)
    assert not joining.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await joining
    assert work.result() is True


async def test_wait_for_task_returns_the_result_or_raises_the_error() -> None:
    async def fail() -> None:
        raise LookupError

    assert await wait_for_task(asyncio.create_task(asyncio.sleep(0, "result"))) == "result"
    with pytest.raises(LookupError):
        await wait_for_task(asyncio.create_task(fail()))


class Idle(Service):
    async def start(self) -> None:
        pass


def ask_other_thread(loop: asyncio.AbstractEventLoop) -> tuple[object, object]:
    """Return the task and the service at work in this thread's loop, from another thread."""
    this_thread = threading.get_ident()
    answers: list[tuple[object, object]] = []

    def ask() -> None:
        answers.append(running_task_and_service(loop, sys._current_frames()[this_thread]))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return answers[0]


def test_another_thread_finds_the_running_task_and_its_service(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert ask_other_thread(loop) == (task, None)
        service = Idle()
        current_service.set(service)
        assert ask_other_thread(loop) == (task, service)
        child = asyncio.create_task(asyncio.sleep(0))
        child.add_done_callback(lambda _: None)  # has a context of its own
        await child
        assert ask_other_thread(loop) == (task, service)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def test_another_thread_finds_the_service_of_a_callback() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        service = Idle()
        current_service.set(service)
        answer = loop.create_future()
        loop.call_soon(lambda: answer.set_result(ask_other_thread(loop)))
        current_service.set(None)
        assert await answer == (None, service)

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())


def test_a_loop_that_does_not_run_has_no_running_task() -> None:
    loop = asyncio.SelectorEventLoop()
    assert ask_other_thread(loop) == (None, None)
    loop.close()
