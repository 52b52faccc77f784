"""What tracemalloc knows of a program, added up beside an event loop that goes on.

A thread that computes takes the interpreter's lock at each system call of the loop, and keeps it
for 5 ms. With a million of objects to add up, a server would be at a crawl for seconds. So this is
done in small portions, each followed by a rest.
"""

from __future__ import annotations

import threading
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    Filter = tracemalloc.Filter | tracemalloc.DomainFilter
    LineTemplates = tuple[tuple[str, int], ...]  # the innermost first
    Place = tuple[int, LineTemplates, int]  # domain, frames, how many there were
    Grouped = dict[tracemalloc.Traceback, tracemalloc.Statistic]

__all__ = ("differences", "forget", "group", "tracing")

# How many traces are a portion, which takes about half a millisecond, and the rest after it.
PORTION = 1_000
REST = 0.0005


class Tracing:
    """Keeps tracemalloc on as long as anybody needs it, if it was not on before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._is_ours = False

    def begin(self, frames: int) -> bool:
        """Count one more who needs it, and tell whether it was turned on for that one."""
        with self._lock:
            was_off = not tracemalloc.is_tracing()
            if was_off:
                tracemalloc.start(frames)
                self._is_ours = True
            self._users += 1
            return was_off

    def end(self) -> None:
        """Count one less."""
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
    """Add up the traces of a snapshot, as its method ``statistics`` does in one go.

    :param key: ``"lineno"``, ``"filename"`` or ``"traceback"``.
    :param filters: say which traces count.
    :param leave_out: files whose own allocations do not count.
    """
    sums = _add_up(snapshot)
    if filters:
        # One for each place, and not one for each of the objects that come from there.
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
    """Return how many bytes, and how many objects, come from each place."""
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
        time.sleep(REST)
    return sums


def forget(snapshot: tracemalloc.Snapshot) -> None:
    """Empty a snapshot that nobody needs any more."""
    traces = _traces(snapshot)
    while traces:
        del traces[-PORTION:]
        time.sleep(REST)


def _traces(snapshot: tracemalloc.Snapshot) -> list[tuple[int, int, LineTemplates, int]]:
    """Return the traces as they are kept: domain, size, frames, how many frames there were."""
    # `snapshot.traces` makes an object of each, which takes ten times as long as all the rest.
    traces: Any = snapshot.traces
    return traces._traces  # type: ignore[no-any-return]  # noqa: SLF001 - for that reason


def differences(before: Grouped, after: Grouped) -> list[tracemalloc.StatisticDiff]:
    """Return how all that is there differs from before; what grew most comes first."""
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
