"""What goes past asyncio's public names, on every version and loop."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from svcrun._util.eager import (
    Waiter,
    current_loop,
    listen_to_signals,
    start_eagerly,
    wakeup_descriptor,
)
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support import LoopFactory, Program

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


async def test_an_error_of_the_first_step_is_the_tasks() -> None:
    async def work() -> None:
        raise LookupError

    task = start_eagerly(work(), asyncio.get_running_loop())
    assert isinstance(task.exception(), LookupError)


async def test_what_the_first_step_sets_stays_in_its_own_context() -> None:
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


async def test_from_inside_of_another_task_the_waiting_one_gets_its_turn_later() -> None:
    sleeper = Sleeper()
    sleeper.waiter.wake()
    assert sleeper.woken == 0
    await asyncio.sleep(0)
    assert sleeper.woken == 1
    await sleeper.end()


async def test_waking_nobody_does_nothing() -> None:
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


async def test_a_second_task_is_refused() -> None:
    sleeper = Sleeper()

    async def wait() -> None:
        await sleeper.waiter

    second = start_eagerly(wait(), asyncio.get_running_loop())
    with pytest.raises(RuntimeError, match="holds a task already"):
        await second
    await sleeper.end()


async def test_there_is_a_descriptor_that_wakes_the_loop_or_no_need_for_one() -> None:
    descriptor = wakeup_descriptor(asyncio.get_running_loop())
    assert descriptor is not None


def test_a_loop_that_does_not_tell_its_descriptor_is_no_error() -> None:
    class Loop: ...

    loop: Any = Loop()
    assert wakeup_descriptor(loop) is None


def in_a_thread(function: Callable[[], T]) -> T:
    """Return what a fresh thread gets, in which no loop is set."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_without_a_loop_that_is_set_there_is_no_current_one_and_none_is_made() -> None:
    assert in_a_thread(current_loop) is None


def test_there_is_no_current_loop_in_a_fresh_process(
    run_program: Callable[..., Program],
) -> None:
    source = """
        from svcrun._util.eager import current_loop
        assert current_loop() is None
        import asyncio
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        assert current_loop() is loop
        asyncio.set_event_loop(None)
        assert current_loop() is None
        loop.close()
        print("as it should be")
    """
    program = run_program(textwrap.dedent(source))
    outcome = program.wait()
    assert (outcome.stdout, outcome.stderr) == ("as it should be\n", "")


def test_the_loop_that_is_set_is_the_current_one(loop_factory: LoopFactory) -> None:
    def look() -> tuple[bool, bool]:
        loop = loop_factory()
        asyncio.set_event_loop(loop)
        is_set = current_loop() is loop
        asyncio.set_event_loop(None)
        is_unset = current_loop() is None
        loop.close()
        return is_set, is_unset

    assert in_a_thread(look) == (True, True)


async def test_signals_that_wake_the_stock_loop_are_reported_for_any_handler() -> None:
    loop = asyncio.get_running_loop()
    heard: list[int] = []
    undo = listen_to_signals(loop, heard.append)
    if type(loop).__module__.startswith("uvloop"):
        assert undo is None
        return
    assert undo is not None
    descriptor = wakeup_descriptor(loop)
    assert descriptor is not None
    found = signal.signal(signal.SIGUSR1, lambda *_: None)
    before = signal.set_wakeup_fd(descriptor)
    try:
        signal.raise_signal(signal.SIGUSR1)
        await eventually(lambda: heard)
        undo()
        signal.raise_signal(signal.SIGUSR1)
        await asyncio.sleep(0.01)
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGUSR1, found)
    assert heard == [signal.SIGUSR1]
    assert "_process_self_data" not in vars(loop)
