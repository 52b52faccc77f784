"""Laws of all recurring callbacks: periodic, by cron expressions, by a strategy (C29-C31)."""

import asyncio
import contextvars
import gc
import logging
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Protocol

import pytest

from svcrun import PeriodicCallback, RecurringCallback
from svcrun._schedule.clock import Clock
from svcrun.recurring import Recurring
from tests.support import has
from tests.support_clock import VirtualClockLoop, Wall

Function = Callable[..., Any]


class Start(Protocol):
    def __call__(self, function: Function, **options: Any) -> Recurring:
        """Call `function` every second, for the first time in a second."""


def make_clock() -> Clock:
    loop = asyncio.get_running_loop()
    return Clock(loop, Wall(loop, datetime(2026, 1, 1, tzinfo=UTC)))


def start_periodic(function: Function, **options: Any) -> Recurring:
    callback = PeriodicCallback(function)
    callback.start(1, delay=1, clock=make_clock(), **options)
    return callback


def start_cron(function: Function, **options: Any) -> Recurring:
    from svcrun.cron import CronCallback

    callback = CronCallback(function)
    callback.start("* * * * * *", clock=make_clock(), **options)
    return callback


def start_with_strategy(function: Function, **options: Any) -> Recurring:
    callback = RecurringCallback(function)
    _ = callback.start(lambda _: 1, clock=make_clock(), **options)
    return callback


@pytest.fixture(
    params=[
        start_periodic,
        pytest.param(
            start_cron, marks=pytest.mark.skipif(not has("croniter"), reason="needs croniter")
        ),
        start_with_strategy,
    ]
)
def start(request: pytest.FixtureRequest) -> Start:
    starter: Start = request.param
    return starter


async def end(callback: Recurring) -> None:
    await callback.stop(return_exceptions=True)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [it.getMessage() for it in caplog.records if it.levelno >= logging.WARNING]


# The function.


async def test_a_function_is_called_again_and_again(start: Start) -> None:
    times: list[float] = []
    begin = asyncio.get_running_loop().time()
    callback = start(lambda: times.append(asyncio.get_running_loop().time() - begin))
    await asyncio.sleep(3.5)
    await end(callback)
    await asyncio.sleep(3)
    assert times == pytest.approx([1, 2, 3], abs=0.01)


async def test_a_coroutine_function_is_awaited(start: Start) -> None:
    said: list[str] = []

    async def speak() -> None:
        said.append("begin")
        await asyncio.sleep(0.1)
        said.append("end")

    callback = start(speak)
    await asyncio.sleep(2.5)
    await end(callback)
    assert said == ["begin", "end"] * 2


async def test_a_result_that_can_be_awaited_is_awaited(start: Start) -> None:
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[None]] = []

    def give() -> asyncio.Future[None]:
        futures.append(loop.create_future())
        loop.call_later(0.5, futures[-1].set_result, None)
        return futures[-1]

    callback = start(give)
    await asyncio.sleep(1.2)
    assert (callback.calls, callback.last_duration) == (1, None)
    await asyncio.sleep(0.5)
    assert callback.last_duration is not None
    await end(callback)


async def test_arguments_are_passed_to_the_function() -> None:
    given: list[object] = []

    def take(*args: object, **kwargs: object) -> None:
        given.append((args, kwargs))

    callback = PeriodicCallback(take, 1, 2, key="value", name="taker")
    callback.start(1)
    await asyncio.sleep(0.5)
    await end(callback)
    assert given == [((1, 2), {"key": "value"})]
    assert repr(callback) == "<PeriodicCallback(taker)>"


@pytest.mark.parametrize("function", [None, 5, "print"])
def test_an_object_that_is_not_callable_is_refused(function: Any) -> None:
    for kind in PeriodicCallback, RecurringCallback:
        with pytest.raises(TypeError, match="coroutine_func must be a function"):
            kind(function)


# Counters.


async def test_calls_are_counted(start: Start) -> None:
    async def fail_now_and_then() -> None:
        await asyncio.sleep(0)
        if callback.calls % 2:
            raise ValueError

    callback = start(fail_now_and_then, suppress_exceptions=(ValueError,))
    assert (callback.calls, callback.failures, callback.skipped) == (0, 0, 0)
    assert (callback.last_start, callback.last_duration) == (None, None)
    assert callback.next_due is not None
    await asyncio.sleep(3.5)
    assert (callback.calls, callback.failures, callback.skipped) == (3, 2, 0)
    assert callback.last_start is not None
    assert callback.last_duration is not None
    assert 0 <= callback.last_duration < 1
    assert callback.next_due == pytest.approx(callback.last_start + 1, abs=0.1)
    await end(callback)
    assert callback.next_due is None


# Errors of a call.


async def test_a_failing_call_is_logged_and_the_next_one_comes(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("broken")

    callback = start(fail)
    await asyncio.sleep(2.5)
    await end(callback)
    first, second = caplog.records
    assert first.exc_info is not None
    assert isinstance(first.exc_info[1], ValueError)
    assert "fail" in first.getMessage()
    assert second.levelno == logging.ERROR
    assert callback.failures == 2


async def test_suppressed_exceptions_are_counted_and_not_logged(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise LookupError

    callback = start(fail, suppress_exceptions=(LookupError,))
    await asyncio.sleep(2.5)
    await end(callback)
    assert not caplog.records
    assert callback.failures == 2


@pytest.mark.parametrize("wrong", ["ValueError", (ValueError, 5), None, ValueError()])
async def test_only_exception_classes_can_be_suppressed(start: Start, wrong: Any) -> None:
    with pytest.raises(TypeError, match="suppress_exceptions must be"):
        start(print, suppress_exceptions=wrong)


async def test_a_call_that_cancels_itself_is_a_failure_and_the_next_one_comes(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async def cancel() -> None:
        raise asyncio.CancelledError

    callback = start(cancel)
    await asyncio.sleep(2.5)
    assert callback.calls == callback.failures == 2
    await end(callback)
    assert "cancelled from outside" in warnings(caplog)[0]


async def test_a_call_cancelled_from_outside_is_a_failure_and_the_next_one_comes(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def hang() -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        await asyncio.sleep(60)

    callback = start(hang)
    await asyncio.sleep(1.5)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    await asyncio.sleep(1)
    assert callback.calls == 2
    assert callback.failures == 1
    await end(callback)
    assert callback.failures == 1  # the last one was cancelled by the stop
    assert len(warnings(caplog)) == 1


async def test_a_task_that_waits_for_the_task_of_a_call_continues_after_that_call(
    start: Start,
) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        await asyncio.sleep(0.2)

    callback = start(work)
    await asyncio.sleep(1.1)
    await tasks[0]
    await asyncio.sleep(1)
    assert len(set(tasks)) == 2
    await end(callback)


async def test_each_call_has_the_context_of_the_start(start: Start) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    found: list[str] = []

    async def look() -> None:
        found.append(variable.get())
        variable.set("changed by a call")

    variable.set("at the start")
    callback = start(look)
    variable.set("changed later")
    await asyncio.sleep(3.5)
    await end(callback)
    assert found == ["at the start"] * 3


async def test_a_call_can_use_time_limits(start: Start) -> None:
    timeouts = 0

    async def hurry() -> None:
        nonlocal timeouts
        try:
            async with asyncio.timeout(0.1):
                await asyncio.sleep(60)
        except TimeoutError:
            timeouts += 1
            await asyncio.wait_for(asyncio.sleep(0.1), 0.5)

    callback = start(hurry)
    await asyncio.sleep(3.9)
    await end(callback)
    assert timeouts == 3
    assert callback.failures == 0


async def test_a_call_that_suppresses_a_cancellation_does_not_affect_the_next_call(
    start: Start,
) -> None:
    async def swallow() -> None:
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        task.cancel()
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)

    callback = start(swallow)
    await asyncio.sleep(3.5)
    assert callback.failures == 0
    assert callback.calls == 3
    await end(callback)


async def test_calls_do_not_overlap(start: Start) -> None:
    under_way = most = 0

    async def work() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(1.7)
        under_way -= 1

    callback = start(work)
    await asyncio.sleep(10)
    await end(callback)
    assert most == 1
    assert callback.calls > 3


# The end.


@pytest.fixture
def slow() -> "Slow":
    return Slow()


class Slow:
    """A function that takes half a second."""

    def __init__(self) -> None:
        self.said: list[str] = []

    async def __call__(self) -> None:
        self.said.append("begin")
        try:
            await asyncio.sleep(0.5)
            self.said.append("end")
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)
            self.said.append("cancelled")
            raise


async def test_stop_cancels_the_call_and_waits_for_it(start: Start, slow: Slow) -> None:
    callback = start(slow)
    await asyncio.sleep(1.2)
    with pytest.raises(asyncio.CancelledError):
        await callback.stop()
    assert slow.said == ["begin", "cancelled"]
    assert callback.failures == 0


async def test_stop_returns_the_exception_with_return_exceptions(start: Start) -> None:
    callback = start(print)
    (error,) = await callback.stop(return_exceptions=True)
    assert isinstance(error, asyncio.CancelledError)


async def test_stop_does_not_cancel_a_shielded_call(start: Start, slow: Slow) -> None:
    callback = start(slow, shield=True)
    await asyncio.sleep(1.2)
    with pytest.raises(asyncio.CancelledError):
        await callback.stop()
    assert slow.said == ["begin"]
    await asyncio.sleep(0.5)
    assert slow.said == ["begin", "end"]


async def test_finish_waits_for_the_call(start: Start, slow: Slow) -> None:
    callback = start(slow)
    await asyncio.sleep(1.2)
    await callback.finish()
    assert slow.said == ["begin", "end"]
    await asyncio.sleep(3)
    assert slow.said == ["begin", "end"]


async def test_a_cancelled_finish_cancels_the_call(start: Start, slow: Slow) -> None:
    callback = start(slow)
    await asyncio.sleep(1.2)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await callback.finish()
    await asyncio.sleep(0.2)
    assert slow.said == ["begin", "cancelled"]


async def test_several_tasks_can_wait_for_the_end(start: Start, slow: Slow) -> None:
    callback = start(slow)
    await asyncio.sleep(1.2)
    await asyncio.gather(callback.finish(), callback.finish(), callback.finish())
    await callback.finish()
    assert slow.said == ["begin", "end"]


async def test_finish_of_a_callback_that_was_not_started_does_nothing() -> None:
    await PeriodicCallback(print).finish()


async def test_stop_of_a_callback_that_was_not_started_is_an_error() -> None:
    callback = PeriodicCallback(print)
    with pytest.raises(RuntimeError, match="was not started"):
        await callback.stop()
    (error,) = await callback.stop(return_exceptions=True)
    assert isinstance(error, RuntimeError)


async def test_a_second_start_is_refused_until_the_stop(start: Start) -> None:
    callback = PeriodicCallback(print)
    callback.start(10, delay=10)
    with pytest.raises(asyncio.InvalidStateError, match="stop it first"):
        callback.start(10)
    await end(callback)
    callback.start(10, delay=10)
    await end(callback)


Stop = Callable[[Recurring], Any]


async def stop_directly(callback: Recurring) -> None:
    await callback.finish()


async def stop_within_a_time_limit(callback: Recurring) -> None:
    await asyncio.wait_for(callback.finish(), 10)


async def stop_in_a_task(callback: Recurring) -> None:
    await asyncio.create_task(callback.finish())


@pytest.mark.parametrize("stop", [stop_directly, stop_within_a_time_limit, stop_in_a_task])
@pytest.mark.parametrize("wait", [0, 0.1])
async def test_a_call_may_finish_its_own_callback(start: Start, stop: Stop, wait: float) -> None:
    said: list[str] = []

    async def finish() -> None:
        if wait:
            await asyncio.sleep(wait)
        said.append("begin")
        async with asyncio.timeout(1):
            await stop(callback)
        said.append("end")

    callback = start(finish)
    await asyncio.sleep(5)
    assert said == ["begin", "end"]
    assert callback.failures == 0


async def test_other_tasks_wait_for_a_call_that_finishes_its_own_callback(start: Start) -> None:
    said: list[str] = []

    async def finish() -> None:
        await callback.finish()
        await asyncio.sleep(0.5)
        said.append("over")

    callback = start(finish)
    await asyncio.sleep(1.2)
    assert callback.calls == 1
    await asyncio.sleep(1)
    assert said == ["over"]


async def test_a_call_may_stop_its_own_callback(start: Start) -> None:
    said: list[str] = []

    async def stop() -> None:
        said.append("begin")
        await callback.stop(return_exceptions=True)
        await asyncio.sleep(0.1)
        said.append("end")

    callback = start(stop)
    await asyncio.sleep(5)
    assert said == ["begin", "end"]


async def test_a_task_started_by_an_earlier_call_waits_for_the_call_in_flight(
    start: Start, slow: Slow
) -> None:
    finishing: list[asyncio.Task[None]] = []
    second = asyncio.Event()

    async def finish_later() -> None:
        await second.wait()
        await callback.finish()
        slow.said.append("finished")

    async def work() -> None:
        if finishing:
            second.set()
        else:
            finishing.append(asyncio.create_task(finish_later()))
        await slow()

    callback = start(work)
    await asyncio.sleep(5)
    assert slow.said == ["begin", "end", "begin", "end", "finished"]


async def test_a_program_that_ends_all_tasks_ends_the_calls(start: Start) -> None:
    callback = start(print)
    await asyncio.sleep(1.5)
    current = asyncio.current_task()
    others = [task for task in asyncio.all_tasks() if task is not current]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(3)
    assert callback.calls == 1


def test_a_closed_loop_leaves_no_reference_to_the_function(start: Start) -> None:
    class Function:
        def __call__(self) -> None:
            pass

    async def begin() -> "weakref.ref[Function]":
        function = Function()
        start(function)
        return weakref.ref(function)

    loop = VirtualClockLoop()
    reference = loop.run_until_complete(begin())
    for task in asyncio.all_tasks(loop):
        task.cancel()
        del task
    loop.turn(3)
    loop.close()
    del loop
    gc.collect()
    assert reference() is None


async def test_after_the_stop_nothing_refers_to_the_function(start: Start) -> None:
    class Function:
        def __call__(self) -> None:
            pass

    function = Function()
    reference = weakref.ref(function)
    callback = start(function)
    await asyncio.sleep(2.5)
    await end(callback)
    del callback, function
    gc.collect()
    assert reference() is None


def test_a_callback_can_be_started_before_the_loop_runs() -> None:
    calls: list[int] = []

    loop = VirtualClockLoop()
    callback = PeriodicCallback(calls.append, 1)
    callback.start(1, loop)
    loop.advance(2.5)
    loop.run_until_complete(callback.finish())
    loop.close()
    assert calls == [1, 1, 1]


def test_a_start_without_a_loop_is_an_error_that_names_the_remedy() -> None:
    with ThreadPoolExecutor(1) as thread, pytest.raises(RuntimeError, match="give one"):
        thread.submit(PeriodicCallback(print).start, 1).result()
