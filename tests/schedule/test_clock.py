"""Laws of the alarms that what recurs shares."""

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


class Ringer:
    def __init__(self, loop: asyncio.AbstractEventLoop, name: str = "") -> None:
        self.loop = loop
        self.name = name
        self.entry: list[Any] | None = None
        self.rung: list[float] = []
        self.set_back: list[float] = []

    def ring(self, now: float) -> None:
        self.rung.append(self.loop.time())

    def on_set_back(self, now: float) -> None:
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


def test_all_ring_at_their_moments(loop: VirtualClockLoop, clock: Clock) -> None:
    ringers = {moment: Ringer(loop) for moment in random.sample(range(1000), 500)}
    for moment, ringer in ringers.items():
        clock.by_loop.add(ringer, moment)
    assert len(loop.timers()) == 1
    loop.advance(1001)
    for moment, ringer in ringers.items():
        assert ringer.rung == pytest.approx([moment], abs=0.001)


def test_the_last_moment_that_was_set_counts(loop: VirtualClockLoop, clock: Clock) -> None:
    ringer = Ringer(loop)
    for moment in (10, 5, 20):
        clock.by_loop.add(ringer, moment)
    loop.advance(30)
    assert ringer.rung == pytest.approx([20], abs=0.001)


def test_an_earlier_moment_is_not_missed(loop: VirtualClockLoop, clock: Clock) -> None:
    late, early = Ringer(loop), Ringer(loop)
    clock.by_loop.add(late, 10)
    clock.by_loop.add(early, 1)
    loop.advance(5)
    assert early.rung == pytest.approx([1], abs=0.001)
    clock.by_loop.discard(late)


def test_what_was_discarded_does_not_ring_and_leaves_no_timer(
    loop: VirtualClockLoop, clock: Clock
) -> None:
    ringers = [Ringer(loop) for _ in range(1000)]
    for alarm, now in (clock.by_loop, clock.time()), (clock.by_wall, clock.wall()):
        for ringer in ringers:
            alarm.add(ringer, now + 10)
        for ringer in ringers:
            alarm.discard(ringer)
            alarm.discard(ringer)
        assert not loop.timers()
        assert not alarm._entries
    loop.advance(20)
    assert not any(ringer.rung for ringer in ringers)


def test_what_was_discarded_does_not_pile_up(loop: VirtualClockLoop, clock: Clock) -> None:
    lasting = Ringer(loop)
    clock.by_loop.add(lasting, 1e9)
    for _ in range(10_000):
        ringer = Ringer(loop)
        clock.by_loop.add(ringer, 1e8)
        clock.by_loop.discard(ringer)
    assert len(clock.by_loop._entries) < 200
    clock.by_loop.discard(lasting)


def test_who_rings_may_set_discard_and_add_others(loop: VirtualClockLoop, clock: Clock) -> None:
    other, third = Ringer(loop), Ringer(loop)

    class Busy(Ringer):
        def ring(self, now: float) -> None:
            super().ring(now)
            clock.by_loop.discard(other)
            clock.by_loop.add(third, 3)
            if len(self.rung) < 3:
                clock.by_loop.add(self, now)

    busy = Busy(loop)
    clock.by_loop.add(busy, 1)
    clock.by_loop.add(other, 1)
    loop.advance(5)
    assert len(busy.rung) == 3
    assert not other.rung
    assert third.rung == pytest.approx([3], abs=0.001)


def test_one_that_fails_does_not_silence_the_others(loop: VirtualClockLoop, clock: Clock) -> None:
    class Failing(Ringer):
        def ring(self, now: float) -> None:
            raise LookupError

    errors: list[object] = []
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
    other = Ringer(loop)
    clock.by_loop.add(Failing(loop), 1)
    clock.by_loop.add(other, 1)
    loop.advance(2)
    assert other.rung
    assert len(errors) == 1


def test_the_wall_clock_rings_when_it_shows_the_moment(
    loop: VirtualClockLoop, wall: Wall, clock: Clock
) -> None:
    ringer = Ringer(loop)
    clock.by_wall.add(ringer, wall() + 100)
    loop.advance(50)
    wall.set(40)
    loop.advance(20)
    assert ringer.rung == pytest.approx([60], abs=0.01)


def test_it_is_noticed_soon_that_the_wall_clock_jumped(
    loop: VirtualClockLoop, wall: Wall, clock: Clock
) -> None:
    ringer = Ringer(loop)
    clock.by_wall.add(ringer, wall() + 1000)
    loop.advance(10.5)
    wall.set(5000)
    loop.advance(2)
    assert 10.5 < ringer.rung[0] <= 10.5 + clocks.LOOK + 0.01


def test_ringers_hear_of_a_wall_clock_that_was_set_back(
    loop: VirtualClockLoop, wall: Wall, clock: Clock
) -> None:
    ringer = Ringer(loop)
    clock.by_wall.add(ringer, wall() + 1000)
    loop.advance(0.1)
    wall.set(-100)
    loop.advance(2)
    assert len(ringer.set_back) == 1
    wall.set(-0.3)
    wall.set(100)
    loop.advance(2)
    assert len(ringer.set_back) == 1
    clock.by_wall.discard(ringer)


def test_what_happened_while_nobody_was_there_is_nobodys_business(
    loop: VirtualClockLoop, wall: Wall, clock: Clock
) -> None:
    first, second = Ringer(loop), Ringer(loop)
    clock.by_wall.add(first, wall() + 10)
    loop.advance(20)
    wall.set(-1000)
    clock.by_wall.add(second, wall() + 10)
    loop.advance(20)
    assert first.rung
    assert second.rung
    assert not second.set_back


def test_a_loop_has_one_clock_as_long_as_it_is_used(loop: VirtualClockLoop) -> None:
    clock = clock_of(loop)
    assert clock_of(loop) is clock
    del clock
    gc.collect()
    assert loop not in clocks._clocks
