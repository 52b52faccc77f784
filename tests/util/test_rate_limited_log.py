"""Frequent events are logged at a limited rate, and all are counted."""

import logging

import pytest

from svcrun._util import rate_limited_log as rate_limited_log
from svcrun._util.rate_limited_log import INTERVAL, RateLimitedLog


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(rate_limited_log, "monotonic", made)
    return made


@pytest.fixture
def events() -> RateLimitedLog:
    return RateLimitedLog(logging.getLogger("test"))


def test_the_first_event_is_logged_at_once_and_others_after_some_seconds(
    clock: Clock, events: RateLimitedLog, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1000):
        events.add("%s was too slow", f"peer {number}")
        clock.now += INTERVAL / 2000
    assert caplog.messages == ["peer 0 was too slow (1 times, 1 in all)"]
    clock.now += INTERVAL
    events.add("%s was too slow", "peer x")
    assert caplog.messages[1:] == ["peer x was too slow (1000 times, 1001 in all)"]
    assert events.total == 1001


def test_close_logs_the_events_since_the_last_line(
    clock: Clock, events: RateLimitedLog, caplog: pytest.LogCaptureFixture
) -> None:
    events.close()
    assert not caplog.messages
    for _ in range(3):
        events.add("late")
    events.close()
    events.close()
    assert caplog.messages == ["late (1 times, 1 in all)", "late (2 times, 3 in all)"]


def test_after_the_end_the_next_event_is_logged_at_once(
    clock: Clock, events: RateLimitedLog, caplog: pytest.LogCaptureFixture
) -> None:
    events.add("late")
    events.close()
    events.add("late")
    assert caplog.messages == ["late (1 times, 1 in all)", "late (1 times, 2 in all)"]


def test_many_events_may_be_counted_at_once(
    events: RateLimitedLog, caplog: pytest.LogCaptureFixture
) -> None:
    events.add("lost", count=30)
    events.add("lost", count=12)
    events.close()
    assert caplog.messages == ["lost (30 times, 30 in all)", "lost (12 times, 42 in all)"]
