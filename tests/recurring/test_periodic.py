"""Laws of calls every so many seconds (C29)."""

import asyncio
import logging
import random
import time
from typing import Any

import pytest

from svcrun import PeriodicCallback
from svcrun._schedule.clock import Clock
from tests.support_clock import block

Moments = list[float]


@pytest.fixture
def moments() -> Moments:
    """The times at which calls began, from the beginning of the test."""
    return []


@pytest.fixture
def note(moments: Moments) -> Any:
    def note() -> None:
        moments.append(asyncio.get_running_loop().time())

    return note


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [it.getMessage() for it in caplog.records if it.levelno >= logging.WARNING]


# The times.


async def test_the_first_call_comes_at_once(moments: Moments, note: Any) -> None:
    callback = PeriodicCallback(note)
    callback.start(10)
    assert not moments  # but not within start()
    await asyncio.sleep(0.1)
    assert moments == [0.0]
    await callback.finish()


async def test_the_first_call_comes_after_the_delay(moments: Moments, note: Any) -> None:
    callback = PeriodicCallback(note)
    callback.start(10, delay=3)
    await asyncio.sleep(25)
    await callback.finish()
    assert moments == pytest.approx([3, 13, 23], abs=0.001)


async def test_ten_thousand_calls_end_where_arithmetic_says() -> None:
    callback = PeriodicCallback(lambda: None)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    callback.start(0.1)
    await asyncio.sleep(1000.05)
    await callback.finish()
    assert callback.calls == 10_001
    assert callback._runner is not None
    assert callback._runner.next_due == begin + 10_001 * 0.1


async def test_the_duration_of_a_call_does_not_delay_the_next_call(
    moments: Moments, note: Any
) -> None:
    async def work() -> None:
        note()
        await asyncio.sleep(random.random() * 0.9)

    callback = PeriodicCallback(work)
    callback.start(1)
    await asyncio.sleep(50.95)
    await callback.finish()
    assert moments == pytest.approx(range(51), abs=0.001)


async def test_jitter_delays_calls_and_does_not_add_up(moments: Moments, note: Any) -> None:
    callback = PeriodicCallback(note)
    callback.start(1, jitter=0.5)
    await asyncio.sleep(99.9)
    await callback.finish()
    late = [moment - number for number, moment in enumerate(moments)]
    assert len(late) == 100
    assert -0.001 <= min(late) < 0.1
    assert 0.4 < max(late) <= 0.501


# Calls that take longer than the interval.


async def test_calls_due_during_a_long_call_are_skipped_with_one_warning(
    moments: Moments, note: Any, caplog: pytest.LogCaptureFixture
) -> None:
    durations = [3.5, 0, 0, 2.5, 0]

    async def work() -> None:
        note()
        await asyncio.sleep(durations[len(moments) - 1])

    callback = PeriodicCallback(work)
    callback.start(1)
    await asyncio.sleep(9.5)
    await callback.finish()
    assert moments[:5] == pytest.approx([0, 4, 5, 6, 9], abs=0.001)
    assert callback.skipped == 5
    first, second = warnings(caplog)
    assert "work" in first
    assert "skipped" in first
    assert "skipped" in second


async def test_an_overlap_is_logged_while_the_call_is_in_flight(
    caplog: pytest.LogCaptureFixture,
) -> None:
    callback = PeriodicCallback(asyncio.sleep, 1000)
    callback.start(1)
    await asyncio.sleep(1.5)
    assert len(warnings(caplog)) == 1
    await asyncio.sleep(100)
    assert len(warnings(caplog)) == 1
    assert callback.skipped == 101
    await callback.stop(return_exceptions=True)


async def test_queued_calls_come_one_after_the_other(
    moments: Moments, note: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        note()
        await asyncio.sleep(3.5 if len(moments) == 1 else 0.1)

    callback = PeriodicCallback(work)
    callback.start(1, overlap="queue")
    await asyncio.sleep(6.5)
    await callback.finish()
    assert moments == pytest.approx([0, 3.5, 3.6, 3.7, 4, 5, 6], abs=0.001)
    assert callback.skipped == 0
    assert len(warnings(caplog)) == 1


async def test_queued_calls_do_not_begin_after_the_end() -> None:
    callback = PeriodicCallback(asyncio.sleep, 3.5)
    callback.start(1, overlap="queue")
    await asyncio.sleep(2.5)
    await callback.finish()
    assert callback.calls == 1


async def test_with_overlap_cancel_a_call_is_cancelled_when_the_next_one_is_due(
    moments: Moments, note: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        note()
        await asyncio.sleep(1.5)

    callback = PeriodicCallback(work)
    callback.start(1, overlap="cancel")
    await asyncio.sleep(3.5)
    await callback.stop(return_exceptions=True)
    assert moments == pytest.approx([0, 1, 2, 3], abs=0.001)
    assert callback.failures == 0
    assert len(warnings(caplog)) == 1


async def test_a_call_that_ignores_its_cancellation_is_waited_for(
    moments: Moments, note: Any
) -> None:
    async def work() -> None:
        note()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(2.2)

    callback = PeriodicCallback(work)
    callback.start(1, overlap="cancel")
    await asyncio.sleep(6)
    assert moments == pytest.approx([0, 3.2, 6.2][: len(moments)], abs=0.001)
    assert callback.skipped > 0
    await callback.stop(return_exceptions=True)


# A blocked event loop.


async def test_calls_missed_while_the_loop_was_blocked_are_one_call(
    moments: Moments, note: Any, caplog: pytest.LogCaptureFixture
) -> None:
    callback = PeriodicCallback(note)
    callback.start(1)
    await asyncio.sleep(0.5)
    await block(5.2)
    await asyncio.sleep(2)
    await callback.finish()
    assert moments == pytest.approx([0, 5.7, 6, 7], abs=0.001)
    assert callback.skipped == 4
    (warning,) = warnings(caplog)
    assert "blocked" in warning


async def test_queued_calls_are_not_lost_when_the_loop_is_blocked(
    moments: Moments, note: Any
) -> None:
    callback = PeriodicCallback(note)
    callback.start(1, overlap="queue")
    await asyncio.sleep(0.5)
    await block(5.2)
    await asyncio.sleep(1)
    await callback.finish()
    assert moments == pytest.approx([0, 5.7, 5.7, 5.7, 5.7, 5.7, 6], abs=0.001)
    assert callback.skipped == 0


async def test_missed_calls_of_many_callbacks_are_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    callbacks = [PeriodicCallback(lambda: None) for _ in range(100)]
    for callback in callbacks:
        callback.start(1)
    await asyncio.sleep(0.5)
    await block(5)
    await asyncio.sleep(0.1)
    assert len(warnings(caplog)) == 1
    assert sum(callback.skipped for callback in callbacks) >= 400
    for callback in callbacks:
        await callback.finish()


async def test_other_tasks_run_between_many_calls() -> None:
    def work() -> None:
        time.sleep(0.003)

    loop = asyncio.get_running_loop()
    callbacks = [PeriodicCallback(work) for _ in range(30)]
    for callback in callbacks:
        callback.start(10)
    turns = 0
    while callbacks[-1].calls == 0:
        turns += 1
        await asyncio.sleep(0)
    assert turns > 10
    assert loop.time() < 1
    for callback in callbacks:
        await callback.finish()


# Bad input.


@pytest.mark.parametrize(
    ("interval", "error"),
    [
        *(
            (0, ValueError),
            (-1, ValueError),
            (float("nan"), ValueError),
            (float("inf"), ValueError),
        ),
        *(("1", TypeError), (None, TypeError), (True, TypeError)),
    ],
)
async def test_a_wrong_interval_is_refused(interval: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"interval must be .*, not {interval!r}"):
        PeriodicCallback(print).start(interval)


@pytest.mark.parametrize(
    ("delay", "error"),
    [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError), (None, TypeError)],
)
async def test_a_wrong_delay_is_refused(delay: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"delay must be .*, not {delay!r}"):
        PeriodicCallback(print).start(1, delay=delay)


@pytest.mark.parametrize(
    ("jitter", "error"), [(-1, ValueError), (1, ValueError), (2, ValueError), ("1", TypeError)]
)
async def test_a_wrong_jitter_is_refused(jitter: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"jitter must be .*, not {jitter!r}"):
        PeriodicCallback(print).start(1, jitter=jitter)


async def test_a_wrong_policy_is_refused() -> None:
    wrong: Any = "wait"
    with pytest.raises(ValueError, match="overlap must be 'skip', 'queue' or 'cancel', not 'wait'"):
        PeriodicCallback(print).start(1, overlap=wrong)


async def test_a_callback_with_a_wrong_parameter_is_not_started() -> None:
    callback = PeriodicCallback(print)
    with pytest.raises(ValueError, match="interval must be"):
        callback.start(0)
    assert callback.next_due is None
    callback.start(1, delay=1, clock=Clock(asyncio.get_running_loop()))
    await callback.finish()
