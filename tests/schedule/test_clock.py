"""Laws of the timers that all callbacks of a loop share."""

import asyncio
import gc
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from svcrun._schedule import clock as clocks
from svcrun._schedule.clock import Clock, clock_of
from tests.support_clock import VirtualClockLoop, Wall


class FakeTimer:
    def __init__(self, loop: asyncio.AbstractEventLoop, name: str = "") -> None:
        self.loop = loop
        self.name = name
        self.entry: list[Any] | None = None
        self.fired: list[float] = []
        self.set_back: list[float] = []

    def fire(self, now: float) -> None:
        self.fired.append(self.loop.time())

    def on_clock_set_back(self, now: float) -> None:
        self.set_back.append(now)


@pytest.fixture
def loop() -> Iterator[VirtualClockLoop]:
    loop = VirtualClockLoop()
    yield loop
    assert not loop.timers()
    loop.close()


@pytest.fixture
def wall(loop: VirtualClockLoop) -> Wall:
    return Wall(loop, datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def clock(loop: VirtualClockLoop, wall: Wall) -> Clock:
    return Clock(loop, wall)


def test_timers_fire_at_their_times(loop: VirtualClockLoop, clock: Clock) -> None:
    timers = {moment: FakeTimer(loop) for moment in random.sample(range(1000), 500)}
    for moment, timer in timers.items():
        clock.loop_timers.add(timer, moment)
    assert len(loop.timers()) == 1
    loop.advance(1001)
    for moment, timer in timers.items():
        assert timer.fired == pytest.approx([moment], abs=0.001)


def test_a_timer_that_is_added_again_fires_at_its_last_time_only(
    loop: VirtualClockLoop, clock: Clock
) -> None:
    timer = FakeTimer(loop)
    for moment in (10, 5, 20):
        clock.loop_timers.add(timer, moment)
    loop.advance(30)
    assert timer.fired == pytest.approx([20], abs=0.001)


def test_a_timer_added_later_fires_first_if_its_time_is_earlier(
    loop: VirtualClockLoop, clock: Clock
) -> None:
    late, early = FakeTimer(loop), FakeTimer(loop)
    clock.loop_timers.add(late, 10)
    clock.loop_timers.add(early, 1)
    loop.advance(5)
    assert early.fired == pytest.approx([1], abs=0.001)
    clock.loop_timers.discard(late)


def test_a_discarded_timer_does_not_fire_and_leaves_no_timer_in_the_loop(
    loop: VirtualClockLoop, clock: Clock
) -> None:
    timers = [FakeTimer(loop) for _ in range(1000)]
    for queue, now in (clock.loop_timers, clock.time()), (clock.wall_timers, clock.wall()):
        for timer in timers:
            queue.add(timer, now + 10)
        for timer in timers:
            queue.discard(timer)
            queue.discard(timer)
        assert not loop.timers()
        assert not queue._entries
    loop.advance(20)
    assert not any(timer.fired for timer in timers)


def test_entries_of_discarded_timers_do_not_pile_up(loop: VirtualClockLoop, clock: Clock) -> None:
    lasting = FakeTimer(loop)
    clock.loop_timers.add(lasting, 1e9)
    for _ in range(10_000):
        timer = FakeTimer(loop)
        clock.loop_timers.add(timer, 1e8)
        clock.loop_timers.discard(timer)
    assert len(clock.loop_timers._entries) < 200
    clock.loop_timers.discard(lasting)


def test_a_timer_that_fires_may_add_and_discard_timers(
    loop: VirtualClockLoop, clock: Clock
) -> None:
    other, third = FakeTimer(loop), FakeTimer(loop)

    class Busy(FakeTimer):
        def fire(self, now: float) -> None:
            super().fire(now)
            clock.loop_timers.discard(other)
            clock.loop_timers.add(third, 3)
            if len(self.fired) < 3:
                clock.loop_timers.add(self, now)

    busy = Busy(loop)
    clock.loop_timers.add(busy, 1)
    clock.loop_timers.add(other, 1)
    loop.advance(5)
    assert len(busy.fired) == 3
    assert not other.fired
    assert third.fired == pytest.approx([3], abs=0.001)


def test_a_timer_that_raises_does_not_keep_others_from_firing(
    loop: VirtualClockLoop, clock: Clock
) -> None:
    class Failing(FakeTimer):
        def fire(self, now: float) -> None:
            raise LookupError

    errors: list[object] = []
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
    other = FakeTimer(loop)
    clock.loop_timers.add(Failing(loop), 1)
    clock.loop_timers.add(other, 1)
    loop.advance(2)
    assert other.fired
    assert len(errors) == 1


def test_a_wall_clock_timer_fires_when_the_wall_clock_shows_its_time(
    loop: VirtualClockLoop, wall: Wall, clock: Clock
) -> None:
    timer = FakeTimer(loop)
    clock.wall_timers.add(timer, wall() + 100)
    loop.advance(50)
    wall.set(40)
    loop.advance(20)
    assert timer.fired == pytest.approx([60], abs=0.01)


def test_a_wall_clock_that_jumps_forward_is_noticed_within_a_second(
    loop: VirtualClockLoop, wall: Wall, clock: Clock
) -> None:
    timer = FakeTimer(loop)
    clock.wall_timers.add(timer, wall() + 1000)
    loop.advance(10.5)
    wall.set(5000)
    loop.advance(2)
    assert 10.5 < timer.fired[0] <= 10.5 + clocks.WALL_CLOCK_CHECK + 0.01


def test_timers_are_notified_of_a_wall_clock_that_was_set_back(
    loop: VirtualClockLoop, wall: Wall, clock: Clock
) -> None:
    timer = FakeTimer(loop)
    clock.wall_timers.add(timer, wall() + 1000)
    loop.advance(0.1)
    wall.set(-100)
    loop.advance(2)
    assert len(timer.set_back) == 1
    wall.set(-0.3)
    wall.set(100)
    loop.advance(2)
    assert len(timer.set_back) == 1
    clock.wall_timers.discard(timer)


def test_a_wall_clock_set_back_while_no_timer_is_queued_is_not_noticed(
    loop: VirtualClockLoop, wall: Wall, clock: Clock
) -> None:
    first, second = FakeTimer(loop), FakeTimer(loop)
    clock.wall_timers.add(first, wall() + 10)
    loop.advance(20)
    wall.set(-1000)
    clock.wall_timers.add(second, wall() + 10)
    loop.advance(20)
    assert first.fired
    assert second.fired
    assert not second.set_back


def test_a_loop_has_one_clock_while_it_is_referred_to(loop: VirtualClockLoop) -> None:
    clock = clock_of(loop)
    assert clock_of(loop) is clock
    del clock
    gc.collect()
    assert loop not in clocks._clocks
