"""Laws of calls at times that a function determines."""

import asyncio
import logging
from typing import Any

import pytest

from svcrun import RecurringCallback, StrategyException, StrategySkip, StrategyStop


async def test_the_strategy_is_called_after_each_call() -> None:
    said: list[object] = []

    async def work() -> None:
        said.append("call")
        await asyncio.sleep(0.5)
        said.append("over")

    def strategy(callback: RecurringCallback) -> float:
        said.append(callback.calls)
        if callback.calls == 2:
            raise StrategyStop
        return 1

    await RecurringCallback(work).start(strategy)
    assert said == [0, "call", "over", 1, "call", "over", 2]


async def test_a_strategy_may_be_awaited() -> None:
    async def strategy(callback: RecurringCallback) -> float:
        await asyncio.sleep(0.1)
        if callback.calls == 3:
            raise StrategyStop
        return 0

    callback = RecurringCallback(lambda: None)
    await callback.start(strategy)
    assert callback.calls == 3


async def test_no_call_is_due_before_the_strategy_returns() -> None:
    due: list[float | None] = []

    def strategy(callback: RecurringCallback) -> float:
        due.append(callback.next_due)
        if callback.calls == 2:
            raise StrategyStop
        return 1

    callback = RecurringCallback(lambda: due.append(callback.next_due))
    await callback.start(strategy)
    assert due == [None] * 5


async def test_a_call_can_be_skipped() -> None:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    answers: Any = iter([StrategySkip(5), 1, StrategySkip(7), StrategyException()])

    def strategy(_: object) -> float:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        seconds: float = answer
        return seconds

    callback = RecurringCallback(lambda: None)
    await callback.start(strategy)
    assert callback.calls == 1
    assert loop.time() - begin == pytest.approx(13, abs=0.01)


@pytest.mark.parametrize("wrong", [None, "1", True, float("nan"), float("inf"), b""])
async def test_a_strategy_that_returns_no_number_ends_the_calls(
    wrong: Any, caplog: pytest.LogCaptureFixture
) -> None:
    callback = RecurringCallback(lambda: None)
    await callback.start(lambda _: wrong)
    assert callback.calls == 0
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert repr(wrong) in record.getMessage()


async def test_a_negative_number_of_a_strategy_counts_as_zero(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def strategy(callback: RecurringCallback) -> float:
        if callback.calls:
            raise StrategyStop
        return -1

    callback = RecurringCallback(lambda: None)
    await callback.start(strategy)
    assert callback.calls == 1
    assert "-1" in caplog.text


async def test_a_strategy_that_fails_ends_the_calls_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def strategy(_: object) -> float:
        raise LookupError("no plan")

    task = RecurringCallback(print).start(strategy)
    with pytest.raises(LookupError):
        await task
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "no more calls" in record.getMessage()


@pytest.mark.parametrize("strategy", [None, 1])
async def test_a_strategy_that_is_not_callable_is_refused(strategy: Any) -> None:
    with pytest.raises(TypeError, match="strategy must be a function"):
        await RecurringCallback(print).start(strategy)


async def test_cancelling_the_task_of_the_strategy_cancels_the_call() -> None:
    said: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)
            said.append("cancelled")
            raise

    task = RecurringCallback(work).start(lambda _: 0)
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert said == ["cancelled"]


async def test_cancelling_the_task_of_the_strategy_does_not_cancel_a_shielded_call() -> None:
    said: list[str] = []

    async def work() -> None:
        await asyncio.sleep(1)
        said.append("over")

    task = RecurringCallback(work).start(lambda _: 0, shield=True)
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not said
    await asyncio.sleep(1)
    assert said == ["over"]


async def test_the_end_does_not_wait_for_a_strategy_that_hangs() -> None:
    async def strategy(_: object) -> float:
        await asyncio.sleep(1000)
        return 0

    callback = RecurringCallback(print)
    task = callback.start(strategy)
    await asyncio.sleep(1)
    async with asyncio.timeout(1):
        await callback.finish()
    assert task.cancelled()
