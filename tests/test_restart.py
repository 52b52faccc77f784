"""The policy that restarts a crashed service."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given, strategies as st

from svcrun.restart import Restart


def test_each_delay_within_the_window_is_longer_up_to_the_maximum() -> None:
    policy = Restart(limit=5, window=100, delay=1, factor=3, max_delay=10, jitter=0)
    crashes: deque[float] = deque()
    assert [policy.next_delay(crashes, now) for now in range(5)] == [1, 3, 9, 10, 10]


def test_there_is_no_delay_after_too_many_crashes_within_the_window() -> None:
    policy = Restart(limit=2, window=10, delay=1, jitter=0)
    crashes: deque[float] = deque()
    assert policy.next_delay(crashes, 0) is not None
    assert policy.next_delay(crashes, 1) is not None
    assert policy.next_delay(crashes, 2) is None


def test_crashes_that_are_older_than_the_window_are_forgotten() -> None:
    policy = Restart(limit=1, window=10, delay=1, jitter=0)
    crashes: deque[float] = deque()
    assert policy.next_delay(crashes, 0) == 1
    assert policy.next_delay(crashes, 10) == 1
    assert policy.next_delay(crashes, 19) is None


@given(
    st.floats(0, 1),
    st.floats(0.01, 100),
    st.floats(1, 10),
    st.lists(st.floats(0, 1000), min_size=1, max_size=200),
)
def test_every_delay_is_within_the_jitter(
    jitter: float, delay: float, factor: float, pauses: list[float]
) -> None:
    policy = Restart(
        limit=1000, window=1e9, delay=delay, factor=factor, max_delay=50, jitter=jitter
    )
    crashes: deque[float] = deque()
    now = 0.0
    for number, pause in enumerate(pauses):
        now += pause
        wait = policy.next_delay(crashes, now)
        longest = min(50, delay * factor ** min(number, 64))
        assert wait is not None
        assert longest * (1 - jitter) <= wait <= longest


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("limit", 0, ValueError),
        ("limit", "many", TypeError),
        ("limit", True, TypeError),
        ("window", -1, ValueError),
        ("delay", float("nan"), ValueError),
        ("factor", 0.5, ValueError),
        ("max_delay", -0.1, ValueError),
        ("jitter", 1.5, ValueError),
        ("jitter", None, TypeError),
    ],
)
def test_a_wrong_parameter_is_refused_by_name_and_value(
    name: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"Restart: {name} must be") as caught:
        Restart(**{name: value})
    assert repr(value) in str(caught.value)


def test_the_representation_of_a_restart_policy_shows_every_parameter() -> None:
    text = repr(Restart(limit=3, window=60, delay=0.5, factor=2, max_delay=30, jitter=0.1))
    for part in ("limit=3", "window=60", "delay=0.5", "factor=2", "max_delay=30", "jitter=0.1"):
        assert part in text
