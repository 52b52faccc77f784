"""A service that logs the lines of the program that hold memory."""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import sys
import tracemalloc
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from svcrun._insight import memory as _memory
from svcrun._insight.memory import differences, forget, group, tracing
from svcrun._util.validation import function, instance_of, number, one_of, optional
from svcrun.errors import AlreadyRunning, ParameterTypeError
from svcrun.periodic import PeriodicCallback
from svcrun.service._internals import part_of
from svcrun.service._parameters import check_parameters, kept, parameter
from svcrun.service.base import Service
from svcrun.thread_pool.separate_threads import start_in_new_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcrun._insight.memory import Filter, Grouped

log = logging.getLogger(__name__)

__all__ = ("GroupBy", "MemoryTracer")

# The frames recorded per allocation if rows are tracebacks, and the maximum of tracemalloc.
TRACEBACK_FRAMES, MAX_FRAMES = 10, 65_535

# The files of the tracer itself.
OWN_FILES = frozenset({__file__, _memory.__file__, tracemalloc.__file__})


class GroupBy(enum.Enum):
    """The grouping of allocations into rows of the table."""

    lineno = "lineno"
    """A line of a file."""
    filename = "filename"
    """A file."""
    traceback = "traceback"
    """A line and the calls that led to it."""


def _check_filters(owner: object, name: str, value: Any) -> Any:
    value = kept(value)
    _read_filters(owner, name, value)
    return value


def _read_filters(owner: object, name: str, value: Any) -> list[Filter]:
    given = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else value
    filters: list[Filter] = []
    for one in given:
        if isinstance(one, str):
            filters.append(tracemalloc.Filter(True, one))
        elif isinstance(one, tracemalloc.Filter | tracemalloc.DomainFilter):
            filters.append(one)
        else:
            accepted = "patterns of file names or filters of tracemalloc"
            raise ParameterTypeError(owner, name, one, accepted)
    return filters


class MemoryTracer(Service, base=True):
    """Log a table of the lines that hold most memory, every `interval` seconds.

    The greatest growth is at the top, so that a leak gets there sooner or later. The table has the
    allocations since ``tracemalloc`` was turned on. The start of the service turns it on, unless it
    was on before, and the stop turns it off again.

    :param interval: seconds between two tables; 5 by default. The first one is logged at once.
    :param top_results: the maximum number of rows in a table; 20 by default.
    :param group_by: a :class:`GroupBy`: one row for each line (the default), for each file, or for
        each line together with the calls that led to it.
    :param name: names the service in log messages; ``"memory-tracer"`` by default.
    :param logger: a function that is called with the text of each table, in a thread; by default it
        logs the text.
    :param compare_to: whether differences are to the ``"start"`` of the service (the default) or to
        the ``"previous"`` table.
    :param filters: patterns of the file names to show, such as ``"*/myapp/*"``, or
        :class:`tracemalloc.Filter` objects; all files by default.
    :param frames: the number of frames recorded per allocation; 10 if rows are tracebacks, else 1.
        If tracemalloc is on already, its number of frames stays.

    :raises ValueError, TypeError: naming the parameter that has a wrong value.

    A snapshot blocks the whole process for about half a second per million objects. The rest is
    done in a thread, with pauses.

    >>> from svcrun.service import MemoryTracer
    >>> MemoryTracer(interval=60, top_results=5)
    <MemoryTracer name='memory-tracer' NEW>
    """

    STAT_FORMAT = "%(count)8s | %(count_diff)8s | %(size)8s | %(size_diff)8s | %(traceback)s"
    """A row of the table."""

    name: str | None = "memory-tracer"
    interval: float = parameter(default=5, check=number(above=0, unit="seconds"))
    top_results: int = parameter(default=20, check=number(low=1, whole=True))
    group_by: GroupBy = parameter(
        default=GroupBy.lineno, check=instance_of(GroupBy, "a member of GroupBy")
    )
    logger: Callable[..., object] = parameter(default=log.info, check=function)
    compare_to: Literal["start", "previous"] = parameter(
        default="start", check=one_of("start", "previous")
    )
    filters: str | Filter | Iterable[str | Filter] = parameter(default=(), check=_check_filters)
    frames: int | None = parameter(
        default=None, check=optional(number(low=1, high=MAX_FRAMES, whole=True))
    )

    def _svcrun_check_together(self) -> None:
        super()._svcrun_check_together()
        _ = self.__own

    @property
    def __own(self) -> _Tracing:
        return part_of(self, _Tracing)

    async def start(self) -> None:
        """Turn tracemalloc on, and start to log tables.

        :raises AlreadyRunning: if it was started and not stopped.
        """
        if self.__own.is_tracing:
            raise AlreadyRunning(self)
        check_parameters(self)
        frames = self.frames or (TRACEBACK_FRAMES if self.group_by is GroupBy.traceback else 1)
        self.__own.periodic.start(self.interval, loop=asyncio.get_running_loop())
        # If tracemalloc was on before, the first snapshot has older allocations. Then differences
        # are to that snapshot.
        self.__own.before = {} if tracing.begin(frames) else None
        self.__own.is_tracing = True

    async def stop(self, exception: Any = None) -> None:
        """Log no more tables, wait for a table in progress, and turn tracemalloc off again."""
        was_tracing, self.__own.is_tracing = self.__own.is_tracing, False
        try:
            await self.__own.periodic.finish()
        finally:
            if was_tracing:
                self.__own.before = None
                tracing.end()
        await super().stop(exception)

    async def show_stats(self) -> None:
        """Log a table now; a thread does the work.

        :raises RuntimeError: if tracemalloc is off.
        """
        # Not in the thread pool, which may be exhausted by the fault that is being traced.
        await start_in_new_thread(
            asyncio.get_running_loop(), self.__show, name=self.name or "memory-tracer"
        )

    def __show(self) -> None:
        was_tracing = self.__own.is_tracing
        snapshot = self.take_snapshot()
        if not was_tracing or self.__own.is_tracing:  # race: a stop has begun in the meantime
            grouped = self.__group(snapshot)
            before = self.__own.before
            if before is None or self.compare_to == "previous":
                self.__own.before = grouped
            self.log_diff(differences(grouped if before is None else before, grouped))
        forget(snapshot)

    def __group(self, snapshot: tracemalloc.Snapshot) -> Grouped:
        return group(
            snapshot, self.group_by.value, _read_filters(self, "filters", self.filters), OWN_FILES
        )

    def compare_snapshot(
        self, snapshot_from: tracemalloc.Snapshot, snapshot_to: tracemalloc.Snapshot
    ) -> list[tracemalloc.StatisticDiff]:
        """Return the differences of `snapshot_to` to `snapshot_from`, the greatest growth first."""
        return differences(self.__group(snapshot_from), self.__group(snapshot_to))

    def log_diff(self, diff: Iterable[tracemalloc.StatisticDiff]) -> None:
        """Log a table of the first `top_results` differences."""
        head = {
            "count": "Objects",
            "count_diff": "Obj.Diff",
            "size": "Memory",
            "size_diff": "Mem.Diff",
            "traceback": "Traceback",
        }
        lines = ["Top memory usage:", self.STAT_FORMAT % head]
        for statistic in islice(diff, self.top_results):
            place, *callers = (_show_frame(frame) for frame in reversed(statistic.traceback))
            row = {
                "count": statistic.count,
                "count_diff": statistic.count_diff,
                "size": self.humanize(statistic.size),
                "size_diff": self.humanize(statistic.size_diff),
                "traceback": place,
            }
            lines.append(self.STAT_FORMAT % row)
            blank = dict.fromkeys(head, "")
            lines += [self.STAT_FORMAT % {**blank, "traceback": f"  {it}"} for it in callers]
        self.logger("\n".join(lines))

    @staticmethod
    def take_snapshot() -> tracemalloc.Snapshot:
        """Take a snapshot of all allocations, which blocks the whole process."""
        return tracemalloc.take_snapshot()

    @staticmethod
    def humanize(num: float, suffix: str = "B") -> str:
        """Return a number of bytes as text with a unit.

        >>> MemoryTracer.humanize(1536)
        '1.5KiB'
        """
        for prefix in ("", "Ki", "Mi", "Gi", "Ti", "Pi"):
            shown = f"{num:.1f}"
            if abs(float(shown)) < 1024:  # noqa: PLR2004 - bytes of a KiB
                return f"{shown}{prefix}{suffix}"
            num /= 1024
        return f"{num:.1f}Ei{suffix}"


class _Tracing:
    """The state of a tracer."""

    def __init__(self, service: MemoryTracer) -> None:
        self.periodic = PeriodicCallback(service.show_stats, name=service.name or "memory-tracer")
        self.is_tracing = False
        # The snapshot that differences refer to; None before the first one.
        self.before: Grouped | None = None


def _show_frame(frame: tracemalloc.Frame) -> str:
    name = _shorten(frame.filename)
    return f"{name}:{frame.lineno}" if frame.lineno else name  # a whole file has no line


def _shorten(filename: str) -> str:
    """Return the path of a file relative to `sys.path`, at least its last two parts."""
    folders = [path.rstrip(os.sep) + os.sep for path in sys.path if path]
    folder = max((it for it in folders if filename.startswith(it)), key=len, default="")
    path = filename[len(folder) :]
    return path if folder and os.sep in path else os.sep.join(filename.split(os.sep)[-2:])
