"""Laws of calls at the times of cron expressions: clocks that are set, missed times (C31)."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from svcrun._schedule.clock import Clock
from svcrun.cron import CronCallback, CronSpec
from tests.support_clock import VirtualClockLoop, Wall, block

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
async def wall() -> Wall:
    return Wall(asyncio.get_running_loop(), NOON)


class Job(CronCallback):
    """A callback that records the wall-clock times of its calls."""

    def __init__(self, wall: Wall) -> None:
        super().__init__(self.note, name="job")
        self.wall = wall
        self.times: list[str] = []

    def note(self) -> None:
        self.times.append(datetime.fromtimestamp(self.wall(), UTC).strftime("%H:%M:%S"))

    def begin(self, spec: str, **options: Any) -> None:
        self.start(spec, clock=Clock(asyncio.get_running_loop(), self.wall), **options)


@pytest.fixture
async def job(wall: Wall) -> AsyncIterator[Job]:
    job = Job(wall)
    yield job
    await job.finish()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [it.getMessage() for it in caplog.records if it.levelno >= logging.WARNING]


async def test_calls_begin_at_the_times_of_the_expression(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    job.begin("*/20 * * * *")
    await asyncio.sleep(3700)
    assert job.times == ["12:20:00", "12:40:00", "13:00:00"]
    assert job.next_due == datetime(2026, 1, 1, 13, 20, tzinfo=UTC).timestamp()
    assert not caplog.records


async def test_no_call_is_early(wall: Wall) -> None:
    times: list[float] = []
    callback = CronCallback(lambda: times.append(wall()))
    wall.set(0.123456789)
    callback.start("* * * * * *", clock=Clock(asyncio.get_running_loop(), wall))
    await asyncio.sleep(100)
    await callback.finish()
    late = [it % 1 for it in times]
    assert len(late) == 100
    assert max(late) < 0.01  # and not 0.9999


async def test_a_spec_object_can_be_passed(job: Job) -> None:
    spec = CronSpec("30 13 * * *", "Europe/Berlin")
    job.start(spec, clock=Clock(asyncio.get_running_loop(), job.wall))
    await asyncio.sleep(3600)
    assert job.times == ["12:30:00"]


async def test_the_expression_is_evaluated_in_its_time_zone(job: Job) -> None:
    job.begin("30 13 * * *", timezone="Europe/Berlin")
    await asyncio.sleep(3600)
    assert job.times == ["12:30:00"]


async def test_calls_follow_daylight_saving_time(wall: Wall) -> None:
    wall.set(datetime(2026, 10, 24, 12, tzinfo=UTC).timestamp() - NOON.timestamp())
    job = Job(wall)
    job.begin("30 2 * * *", timezone="Europe/Berlin")
    await asyncio.sleep(2 * 86400)
    await job.finish()
    assert job.times == ["00:30:00", "01:30:00"]


# A wall clock that is set.


async def test_a_wall_clock_set_forward_is_noticed(job: Job, wall: Wall) -> None:
    job.begin("0 18 * * *")
    await asyncio.sleep(10)
    wall.set(6 * 3600 - 15)
    await asyncio.sleep(10)
    assert job.times == ["18:00:00"]


async def test_times_that_the_wall_clock_jumps_over_are_one_call(
    job: Job, wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    job.begin("*/10 * * * *")
    await asyncio.sleep(300)
    wall.set(1800)  # 12:35
    await asyncio.sleep(601)
    assert len(job.times) == 2
    assert job.times[0] < "12:35:03"
    assert job.times[1] == "12:40:00"
    assert job.skipped == 2
    (warning,) = warnings(caplog)
    assert "missed calls: 3," in warning
    assert "2026-01-01T12:10:00+00:00 to 2026-01-01T12:30:00+00:00" in warning


async def test_with_misfire_skip_missed_times_are_skipped(
    job: Job, wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    job.begin("*/10 * * * *", misfire="skip")
    await asyncio.sleep(300)
    wall.set(1800)
    await asyncio.sleep(601)
    assert job.times == ["12:40:00"]
    assert job.skipped == 3
    assert "12:10:00" in warnings(caplog)[0]


@pytest.mark.parametrize(("misfire", "told"), [("skip", "skipping them"), ("once", "calling once")])
async def test_after_missed_times_the_time_that_is_due_now_is_called(
    job: Job, wall: Wall, misfire: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    job.begin("* * * * * *", misfire=misfire)
    await block(3.5)
    await asyncio.sleep(1)
    assert job.times == ["12:00:03", "12:00:04"]
    assert job.skipped == 2
    (warning,) = warnings(caplog)
    assert "12:00:01" in warning
    assert "12:00:02" in warning
    assert told in warning


async def test_a_jump_over_years_takes_no_time(
    job: Job, wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    job.begin("* * * * * *")
    await asyncio.sleep(1.5)
    wall.set(10 * 365 * 86400)
    await asyncio.sleep(1)
    assert len(job.times) in {2, 3}
    assert "or more" in warnings(caplog)[0]


@pytest.mark.parametrize("spec", ["0,10,20,30,40 * * * *", "0,10,20-40/10 11-13 * * *"])
async def test_fixed_times_are_not_called_again_after_the_clock_was_set_back(
    job: Job, wall: Wall, caplog: pytest.LogCaptureFixture, spec: str
) -> None:
    job.begin(spec)
    await asyncio.sleep(1900)  # 12:31:40
    wall.set(-1500)  # 12:06:40
    await asyncio.sleep(2100)
    assert job.times == ["12:10:00", "12:20:00", "12:30:00", "12:40:00"]
    (warning,) = warnings(caplog)
    assert "set back" in warning
    assert "2026-01-01T12:30:00+00:00" in warning


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("* * * * *", ["12:31:00", "11:32:00", "11:33:00"]),
        ("*/1 * * * *", ["12:31:00", "11:32:00", "11:33:00"]),
        ("0-59 * * * *", ["12:31:00", "11:32:00", "11:33:00"]),
        ("*/2 * * * *", ["12:30:00", "11:32:00"]),
        ("0/2 * * * *", ["12:30:00", "11:32:00"]),
        ("* * * * * 30", ["12:31:30", "11:32:30", "11:33:30"]),
        ("* * * * * *", ["12:31:40", "11:31:41", "11:31:42"]),
        ("31-33 11,12 * * * */30", ["12:31:30", "11:32:00", "11:32:30", "11:33:00", "11:33:30"]),
    ],
)
async def test_an_expression_with_a_wildcard_follows_a_clock_set_back_at_once(
    job: Job, wall: Wall, caplog: pytest.LogCaptureFixture, spec: str, expected: list[str]
) -> None:
    job.begin(spec)
    await asyncio.sleep(1900.5)  # 12:31:40
    last = job.times[-1]
    del job.times[:]
    wall.set(-3600)  # 11:31:40
    await asyncio.sleep(120)
    assert [last, *job.times][: len(expected)] == expected
    (warning,) = warnings(caplog)
    assert "may be repeated" in warning


@pytest.mark.parametrize("spec", ["0 * * * *", "@hourly", "*/60 * * * *"])
async def test_an_hourly_expression_has_fixed_times(job: Job, wall: Wall, spec: str) -> None:
    job.begin(spec)
    await asyncio.sleep(3700)  # 13:01:40
    wall.set(-7200)
    await asyncio.sleep(7300)
    assert job.times == ["13:00:00"]
    await asyncio.sleep(3600)
    assert job.times == ["13:00:00", "14:00:00"]


async def test_a_clock_set_back_repeatedly_loses_no_call(job: Job, wall: Wall) -> None:
    job.begin("* * * * * *")
    for _ in range(10):
        await asyncio.sleep(10)
        wall.set(-3600)
    assert len(job.times) >= 90
    assert len(set(job.times)) == len(job.times)


async def test_a_clock_set_back_and_forward_again_misses_only_times_never_reached(
    job: Job, wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    job.begin("* * * * *")
    await asyncio.sleep(1830)  # 12:30:30
    wall.set(-3600)
    await asyncio.sleep(60)  # 11:31:30
    caplog.clear()
    wall.set(3600 - 50)  # 12:30:40
    await asyncio.sleep(60)
    assert job.times[-2:] == ["11:31:00", "12:31:00"]
    assert (job.skipped, warnings(caplog)) == (0, [])
    wall.set(-3600)  # 11:31:40
    await asyncio.sleep(2)
    caplog.clear()
    wall.set(3600 + 17.5)  # 12:31:59.5, and the clock is looked at a second later
    await asyncio.sleep(1)
    assert job.times[-1] == "12:32:00"
    assert (job.skipped, warnings(caplog)) == (0, [])
    wall.set(-3600)
    await asyncio.sleep(2)
    caplog.clear()
    wall.set(3600 + 180)  # 12:35:02
    await asyncio.sleep(2)
    assert job.skipped == 2
    (warning,) = warnings(caplog)
    assert "missed calls: 3, from 2026-01-01T12:33" in warning


async def test_a_call_that_is_late_after_a_set_back_is_missed_like_any_other(
    job: Job, wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    job.begin("* * * * *")
    await asyncio.sleep(1830)  # 12:30:30
    wall.set(-3600)
    await asyncio.sleep(25)
    caplog.clear()
    await block(65)  # 11:32:00
    await asyncio.sleep(5)
    assert len(warnings(caplog)) == 1
    assert "missed" in warnings(caplog)[0]


async def test_times_missed_before_the_clock_is_set_back_are_logged(
    job: Job, wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    job.begin("* * * * *")
    await asyncio.sleep(90)  # 12:01:30
    wall.set(-60)  # 12:00:30, but the loop is blocked
    await block(200)  # 12:03:50
    await asyncio.sleep(1)
    assert any("missed" in warning for warning in warnings(caplog))


async def test_fixed_times_are_called_again_after_the_clock_was_set_back_by_hours(
    job: Job, wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    job.begin("0 * * * *")
    await asyncio.sleep(5 * 3600 + 60)  # 17:01
    wall.set(-5 * 3600)  # 12:01
    await asyncio.sleep(3600)
    assert job.times[-2:] == ["17:00:00", "13:00:00"]
    (warning,) = warnings(caplog)
    assert "may be repeated" in warning


async def test_a_clock_set_back_before_the_first_call_loses_none(
    job: Job, wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    job.begin("0 13 * * *")
    await asyncio.sleep(60)
    wall.set(-86400)
    await asyncio.sleep(3600)
    assert job.times == ["13:00:00"]
    assert not caplog.records


async def test_small_corrections_of_the_clock_are_not_logged(
    job: Job, wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    job.begin("* * * * *")
    for _ in range(300):
        await asyncio.sleep(1)
        wall.set(-0.1)
    await asyncio.sleep(60)
    assert job.times == ["12:01:00", "12:02:00", "12:03:00", "12:04:00", "12:05:00"]
    assert not caplog.records


async def test_the_wall_clock_is_read_every_second_while_the_loop_is_idle(job: Job) -> None:
    job.begin("0 0 1 1 *")
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    assert len(loop.timers()) == 1
    assert loop.timers()[0].when() - loop.time() <= 1


# Overlap.


async def test_a_time_during_a_call_is_skipped(
    wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    callback = CronCallback(asyncio.sleep, 150)
    callback.start("* * * * *", clock=Clock(asyncio.get_running_loop(), wall))
    await asyncio.sleep(250)
    assert (callback.calls, callback.skipped) == (2, 2)
    assert len(warnings(caplog)) == 1
    await callback.finish()


# Subclasses and bad input.


async def test_a_subclass_may_override_get_next(wall: Wall) -> None:
    class Often(Job):
        def get_next(self, spec: CronSpec, after: float) -> float:
            return 0.25

    often = Often(wall)
    often.begin("0 0 1 1 *")
    await asyncio.sleep(1.1)
    await often.finish()
    assert often.calls == 4


@pytest.mark.parametrize(
    "options", [{"misfire": "twice"}, {"overlap": "wait"}, {"timezone": "Mars/Olympus"}]
)
async def test_wrong_options_are_refused(job: Job, options: dict[str, str]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} must be .*, not '{value}'"):
        job.begin("* * * * *", **options)
    assert job.next_due is None


async def test_a_second_start_is_refused(job: Job) -> None:
    job.begin("* * * * *")
    with pytest.raises(asyncio.InvalidStateError):
        job.begin("* * * * *")
