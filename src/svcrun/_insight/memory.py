"""Add up the traces of tracemalloc in a thread, without delaying the event loop.

A thread that computes gets the interpreter's lock at each system call of the loop, and keeps it for
5 ms. Adding up a million objects at once would slow down a server for seconds. So this is done in
small portions, with a pause after each.
"""

from __future__ import annotations

import threading
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    Filter = tracemalloc.Filter | tracemalloc.DomainFilter
    Frames = tuple[tuple[str, int], ...]  # the innermost first
    Place = tuple[int, Frames, int]  # domain, frames, number of frames before the limit
    Grouped = dict[tracemalloc.Traceback, tracemalloc.Statistic]

__all__ = ("differences", "forget", "group", "tracing")

# The number of traces in a portion, which takes about half a millisecond, and the seconds of the
# pause after it.
PORTION = 1_000
PAUSE = 0.0005


class Tracing:
    """Counts the users of tracemalloc, and turns it off after the last one if it was off before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._is_ours = False

    def begin(self, frames: int) -> bool:
        """Add a user, and return whether tracemalloc was turned on for it."""
        with self._lock:
            was_off = not tracemalloc.is_tracing()
            if was_off:
                tracemalloc.start(frames)
                self._is_ours = True
            self._users += 1
            return was_off

    def end(self) -> None:
        """Remove a user."""
        with self._lock:
            self._users -= 1
            if not self._users and self._is_ours:
                self._is_ours = False
                tracemalloc.stop()


tracing = Tracing()


def group(
    snapshot: tracemalloc.Snapshot,
    key: str,
    filters: Sequence[Filter] = (),
    leave_out: Collection[str] = (),
) -> Grouped:
    """Add up the traces of a snapshot, as its method ``statistics`` does without pauses.

    :param key: ``"lineno"``, ``"filename"`` or ``"traceback"``.
    :param filters: select the traces that count.
    :param leave_out: files whose own allocations do not count.
    """
    sums = _add_up(snapshot)
    if filters:
        # One trace for each place, and not one for each object allocated there.
        traces = [(domain, 0, frames, total) for domain, frames, total in sums]
        chosen = tracemalloc.Snapshot(traces, snapshot.traceback_limit).filter_traces(filters)
        sums = {
            (domain, frames, total): sums[domain, frames, total]
            for domain, _, frames, total in _traces(chosen)
        }
    grouped: Grouped = {}
    for (_, frames, _), (size, count) in sums.items():
        filename = frames[0][0]
        if filename in leave_out:
            continue
        parts = {"lineno": frames[:1], "filename": ((filename, 0),), "traceback": frames}
        traceback = tracemalloc.Traceback(parts[key])
        statistic = grouped.setdefault(traceback, tracemalloc.Statistic(traceback, 0, 0))
        statistic.size += size
        statistic.count += count
    return grouped


def _add_up(snapshot: tracemalloc.Snapshot) -> dict[Place, list[int]]:
    """Return the bytes and the number of objects that were allocated at each place."""
    sums: dict[Place, list[int]] = {}
    traces = _traces(snapshot)
    for start in range(0, len(traces), PORTION):
        for domain, size, frames, total in traces[start : start + PORTION]:
            place = domain, frames, total
            found = sums.get(place)
            if found is None:
                sums[place] = [size, 1]
            else:
                found[0] += size
                found[1] += 1
        time.sleep(PAUSE)
    return sums


def forget(snapshot: tracemalloc.Snapshot) -> None:
    """Free the memory of a snapshot, with pauses."""
    traces = _traces(snapshot)
    while traces:
        del traces[-PORTION:]
        time.sleep(PAUSE)


def _traces(snapshot: tracemalloc.Snapshot) -> list[tuple[int, int, Frames, int]]:
    """Return the traces as tuples: domain, size, frames, number of frames before the limit."""
    # `snapshot.traces` creates an object for each, which takes ten times as long as all the rest.
    traces: Any = snapshot.traces
    return traces._traces  # type: ignore[no-any-return]  # noqa: SLF001 - for that reason


def differences(before: Grouped, after: Grouped) -> list[tracemalloc.StatisticDiff]:
    """Return the difference of each group to the one before, the greatest growth first."""
    return sorted(
        _differences(before, after), key=lambda one: (one.size_diff, one.size), reverse=True
    )


def _differences(before: Grouped, after: Grouped) -> Iterator[tracemalloc.StatisticDiff]:
    for traceback, new in after.items():
        old = before.get(traceback)
        size, count = (0, 0) if old is None else (old.size, old.count)
        yield tracemalloc.StatisticDiff(
            traceback, new.size, new.size - size, new.count, new.count - count
        )
