"""Statistics of the snapshots of tracemalloc."""

import os
import tracemalloc
from typing import Any

import pytest

from svcrun._insight.memory import PORTION, forget, group


def leak(count: int) -> list[bytes]:
    return [os.urandom(100) for _ in range(count)]


def deeper(count: int, depth: int) -> list[bytes]:
    return deeper(count, depth - 1) if depth else leak(count)


@pytest.fixture(scope="module")
def snapshot() -> tracemalloc.Snapshot:
    """A snapshot of some places, of more than a portion of objects."""
    tracemalloc.start(3)
    kept = [leak(PORTION), deeper(100, 1), deeper(200, 3), [str(number) for number in range(500)]]
    snapshot = tracemalloc.take_snapshot()
    tracemalloc.stop()
    assert kept
    return snapshot


@pytest.mark.parametrize("key", ["lineno", "filename", "traceback"])
@pytest.mark.parametrize(
    "filters",
    [
        [],
        [tracemalloc.Filter(True, __file__)],
        [tracemalloc.Filter(False, "*/test_memory.py", leak.__code__.co_firstlineno + 1)],
        [tracemalloc.Filter(True, "*/python.py", all_frames=True)],
        [tracemalloc.Filter(True, __file__), tracemalloc.DomainFilter(False, 0)],
    ],
)
def test_grouped_statistics_equal_those_of_tracemalloc(
    snapshot: tracemalloc.Snapshot, key: str, filters: list[Any]
) -> None:
    chosen = snapshot.filter_traces(filters) if filters else snapshot
    expected = {it.traceback: (it.size, it.count) for it in chosen.statistics(key)}
    found = group(snapshot, key, filters)
    assert {traceback: (it.size, it.count) for traceback, it in found.items()} == expected


def test_files_can_be_left_out(snapshot: tracemalloc.Snapshot) -> None:
    everything = group(snapshot, "filename")
    here = next(it for it in everything if it[0].filename == __file__)
    rest = group(snapshot, "filename", leave_out=[__file__])
    assert rest.keys() == everything.keys() - {here}


def test_a_released_snapshot_is_empty() -> None:
    tracemalloc.start()
    kept = leak(PORTION + 1)
    snapshot = tracemalloc.take_snapshot()
    tracemalloc.stop()
    assert len(snapshot.traces) > len(kept)
    forget(snapshot)
    assert len(snapshot.traces) == 0
