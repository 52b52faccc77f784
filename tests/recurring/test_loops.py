"""Laws of recurring callbacks that depend on the kind of the event loop."""

import asyncio
import gc
import sys
from collections.abc import Coroutine
from typing import Any

import pytest

from svcrun import PeriodicCallback, RecurringCallback, StrategyStop
from tests.support import LoopFactory, eventually, nothing_left


def run(loop_factory: LoopFactory, main: Coroutine[Any, Any, None]) -> None:
    with nothing_left(), asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main)


def test_calls_are_never_early_and_do_not_drift(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        moments: list[float] = []
        callback = PeriodicCallback(lambda: moments.append(loop.time()))
        begin = loop.time()
        callback.start(0.02, delay=0.1)
        await eventually(lambda: callback.calls + callback.skipped >= 50)
        await callback.finish()
        # The machine decides how late calls are. None is early, and they stay on the grid.
        assert callback._runner is not None
        number = callback.calls + callback.skipped
        assert callback._runner.next_due == pytest.approx(begin + 0.1 + number * 0.02, abs=0.015)
        for count, moment in enumerate(moments):
            assert moment >= begin + 0.1 + count * 0.02 - 0.002

    run(loop_factory, main())


def test_a_call_that_waits_resumes_in_the_same_task(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        said: list[str] = []

        async def work() -> None:
            task = asyncio.current_task()
            said.append("begin")
            async with asyncio.timeout(10):
                await asyncio.sleep(0.01)
            assert asyncio.current_task() is task
            said.append("end")

        callback = PeriodicCallback(work)
        callback.start(0.03)
        await eventually(lambda: said.count("end") >= 3)
        await callback.finish()
        assert said == ["begin", "end"] * (len(said) // 2)

    run(loop_factory, main())


def test_the_task_factory_of_the_loop_makes_the_task_of_the_calls(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        made: list[str] = []

        def make(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
            task = asyncio.Task(coro, loop=loop, **options)
            made.append(task.get_name())
            return task

        loop.set_task_factory(make)
        callback = PeriodicCallback(lambda: None, name="job")
        callback.start(0.005)
        await eventually(lambda: callback.calls >= 3)
        await callback.finish()
        assert callback.failures == 0
        assert made

    run(loop_factory, main())


def test_sys_exit_in_a_call_ends_the_loop(loop_factory: LoopFactory) -> None:
    errors: list[object] = []

    async def main(waits: bool) -> None:
        async def leave() -> None:
            if waits:
                await asyncio.sleep(0.001)
            sys.exit(3)

        asyncio.get_running_loop().set_exception_handler(lambda _, it: errors.append(it))
        callback = PeriodicCallback(leave)
        callback.start(60)
        await asyncio.sleep(60)

    for waits in False, True:
        with pytest.raises(SystemExit) as raised:
            run(loop_factory, main(waits))
        assert raised.value.code == 3
    gc.collect()
    assert not errors


def test_a_loop_that_ends_with_calls_in_flight_leaves_nothing_behind(
    loop_factory: LoopFactory,
) -> None:
    errors: list[object] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        callbacks = [PeriodicCallback(asyncio.sleep, 60 * (number % 2)) for number in range(10)]
        for callback in callbacks:
            callback.start(60)
        await eventually(lambda: all(callback.calls for callback in callbacks))

    run(loop_factory, main())
    gc.collect()
    assert not errors


def test_a_strategy_without_pauses_lets_other_tasks_run(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        def strategy(callback: RecurringCallback) -> float:
            if callback.calls == 100:
                raise StrategyStop
            return 0

        callback = RecurringCallback(lambda: None)
        task = callback.start(strategy)
        turns = 0
        while not task.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns >= 100

    run(loop_factory, main())


def test_thousands_of_callbacks_end_while_the_loop_is_overloaded(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        callbacks = [PeriodicCallback(lambda: None) for _ in range(2000)]
        for callback in callbacks:
            callback.start(0.001)  # no machine can do that
        await eventually(lambda: all(callback.calls for callback in callbacks))
        await asyncio.gather(*(callback.finish() for callback in callbacks))
        calls = sum(callback.calls for callback in callbacks)
        await asyncio.sleep(0.05)
        assert sum(callback.calls for callback in callbacks) == calls

    run(loop_factory, main())
