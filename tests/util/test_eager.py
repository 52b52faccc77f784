"""The first step of a task runs at once, on every version and loop."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any, TypeVar

import pytest

from svcrun._util.eager import start_eagerly

T = TypeVar("T")

variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)


async def test_the_first_step_runs_before_the_task_is_returned() -> None:
    steps = []

    async def work() -> str:
        steps.append("first")
        await asyncio.sleep(0)
        steps.append("second")
        return "done"

    task = start_eagerly(work(), asyncio.get_running_loop(), name="work")
    assert steps == ["first"]
    assert task.get_name() == "work"
    assert await task == "done"


async def test_a_coroutine_that_never_waits_is_done_at_once() -> None:
    async def work() -> Any:
        return asyncio.current_task()

    outer = asyncio.current_task()
    task = start_eagerly(work(), asyncio.get_running_loop())
    assert task.done()
    assert task.result() is task
    assert asyncio.current_task() is outer


async def test_a_time_limit_inside_the_first_step_works() -> None:
    async def work() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    task = start_eagerly(work(), asyncio.get_running_loop())
    with pytest.raises(TimeoutError):
        await task
    assert not task.cancelling()


async def test_an_error_of_the_first_step_belongs_to_the_task() -> None:
    async def work() -> None:
        raise LookupError

    task = start_eagerly(work(), asyncio.get_running_loop())
    assert isinstance(task.exception(), LookupError)


async def test_context_variables_of_the_first_step_stay_in_its_context() -> None:
    async def work() -> None:
        variable.set(1)

    await start_eagerly(work(), asyncio.get_running_loop())
    assert variable.get() == 0

    context = contextvars.copy_context()
    await start_eagerly(work(), asyncio.get_running_loop(), context=context)
    assert variable.get() == 0
    assert context[variable] == 1


async def test_a_task_factory_of_the_user_is_respected() -> None:
    loop = asyncio.get_running_loop()
    made = []

    def factory(loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(coro)
        return asyncio.Task(coro, loop=loop, **options)

    async def work() -> int:
        return 1

    loop.set_task_factory(factory)
    try:
        task = start_eagerly(work(), loop)
        assert len(made) == 1
        assert not task.done()
        assert await task == 1
    finally:
        loop.set_task_factory(None)


async def test_callbacks_can_be_scheduled_after_an_eager_start() -> None:
    loop = asyncio.get_running_loop()

    async def work() -> None: ...

    await start_eagerly(work(), loop)
    called = asyncio.Event()
    loop.call_soon(called.set)
    await asyncio.wait_for(called.wait(), timeout=60)
