import asyncio
from collections.abc import Iterator

import pytest

from svcrun._util.per_loop import PerLoop, running_loop


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_the_newest_value_of_a_loop_counts(loop: asyncio.AbstractEventLoop) -> None:
    values: PerLoop[str] = PerLoop()
    assert values.get(loop) is None
    values.add(loop, "older")
    values.add(loop, "newer")
    assert values.get(loop) == "newer"
    assert list(values) == ["older", "newer"]


def test_values_are_discarded_in_any_order(loop: asyncio.AbstractEventLoop) -> None:
    values: PerLoop[str] = PerLoop()
    for value in ("first", "second", "third"):
        values.add(loop, value)
    values.discard(loop, "second")
    assert values.get(loop) == "third"
    values.discard(loop, "third")
    assert values.get(loop) == "first"
    values.discard(loop, "first")
    values.discard(loop, "first")
    assert values.get(loop) is None
    assert not values._values


async def test_the_running_loop_is_found_inside_of_it() -> None:
    assert running_loop() is asyncio.get_running_loop()


def test_without_a_running_loop_there_is_none() -> None:
    assert running_loop() is None
