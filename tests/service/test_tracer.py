"""The service that shows which lines hold memory (C35)."""

import asyncio
import logging
import os
import pickle
import re
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svcrun import entrypoint
from svcrun.service.tracer import GroupBy, MemoryTracer
from tests.support import PATIENCE, eventually, nothing_left, refuses

HEAD = " Objects | Obj.Diff |   Memory | Mem.Diff | Traceback"
SIZE = r"-?\d+\.\d(?:B|KiB|MiB|GiB)"
ROW = re.compile(
    rf"(?P<objects> *\d+) \| (?P<more_objects> *-?\d+) \| (?P<size> *{SIZE}) \|"
    rf" (?P<more> *{SIZE}) \| (?P<place>\S.*)"
)

Row = tuple[int, int, str, str, str]


def read(table: str) -> list[Row]:
    """Return the rows of a table, which must look like that of the document."""
    title, head, *lines = table.splitlines()
    assert title == "Top memory usage:"
    assert head == HEAD
    rows = []
    for line in lines:
        if line.startswith(" " * 9 + "|"):
            continue  # one of the calls that led to the row above
        match = ROW.fullmatch(line)
        assert match, line
        assert line.index("|") >= 9  # at the right of its column
        rows.append(
            (
                int(match["objects"]),
                int(match["more_objects"]),
                match["size"].strip(),
                match["more"].strip(),
                match["place"],
            )
        )
    return rows


class Tables(list[str]):
    """Collects the tables of a tracer that makes one on request."""

    def tracer(self, **options: Any) -> MemoryTracer:
        return MemoryTracer(**{"interval": 3600, "logger": self.append, **options})

    async def next(self, tracer: MemoryTracer) -> list[Row]:
        await eventually(lambda: self)  # the one that comes by itself
        await tracer.show_stats()
        return read(self[-1])


@pytest.fixture
def tables() -> Tables:
    return Tables()


@pytest.fixture(autouse=True)
def tracemalloc_is_off() -> Iterator[None]:
    """Begin without traces, and see that a test ends like that."""
    assert not tracemalloc.is_tracing()
    yield
    was_tracing = tracemalloc.is_tracing()
    tracemalloc.stop()
    assert not was_tracing


def leak(count: int = 2_000) -> list[bytes]:
    return [os.urandom(1_000) for _ in range(count)]


LEAK = leak.__code__.co_firstlineno + 1
HERE = f"service/{Path(__file__).name}"


async def test_a_leak_is_logged_with_file_and_line(tables: Tables) -> None:
    tracer = tables.tracer()
    async with entrypoint(tracer):
        kept = leak()
        rows = await tables.next(tracer)
    objects, more_objects, size, more, place = rows[0]
    assert place.endswith(f"{HERE}:{LEAK}")
    assert len(kept) <= objects == more_objects <= len(kept) + 10
    assert (size, more) == ("2.0MiB", "2.0MiB")


async def test_a_table_is_logged_at_once_and_then_at_each_interval(tables: Tables) -> None:
    async with entrypoint(tables.tracer(interval=0.05)):
        await eventually(lambda: len(tables) >= 3)
    assert all(read(table) for table in tables)
    count = len(tables)
    await asyncio.sleep(0.15)
    assert len(tables) == count


async def test_a_table_has_top_results_rows_with_the_largest_growth_first(
    tables: Tables,
) -> None:
    tracer = tables.tracer(top_results=2)
    async with entrypoint(tracer):
        kept = [leak(), [os.urandom(500) for _ in range(1_000)]]
        rows = await tables.next(tracer)
    assert len(rows) == 2
    assert rows[0][2] == "2.0MiB"
    assert rows[1][2].startswith("52")  # and nine bytes or more around each object
    assert kept


async def test_the_differences_are_relative_to_the_start(tables: Tables) -> None:
    tracer = tables.tracer(top_results=1)
    async with entrypoint(tracer):
        kept = [leak(1_000)]
        first = await tables.next(tracer)
        kept.append(leak(1_000))
        second = await tables.next(tracer)
    assert 1_000 <= first[0][0] == first[0][1] <= 1_010
    assert 2_000 <= second[0][0] == second[0][1] <= 2_010


async def test_the_differences_may_be_relative_to_the_previous_table(tables: Tables) -> None:
    tracer = tables.tracer(top_results=1, compare_to="previous")
    async with entrypoint(tracer):
        kept = [leak(2_000)]
        await tables.next(tracer)
        kept.append(leak(1_000))
        ((objects, more_objects, *_),) = await tables.next(tracer)
    assert objects >= 3_000
    assert 990 <= more_objects <= 1_010


async def test_memory_allocated_before_the_start_is_no_growth(tables: Tables) -> None:
    tracemalloc.start()
    try:
        old = leak(3_000)
        tracer = tables.tracer(top_results=2)
        async with entrypoint(tracer):
            await eventually(lambda: tables)
            at_start = read(tables[0])
            new = [os.urandom(1_000) for _ in range(1_000)]
            line = sys._getframe().f_lineno - 1
            rows = await tables.next(tracer)
        assert at_start[0][1:] == (0, "3.0MiB", "0.0B", f"tests/{HERE}:{LEAK}")
        assert rows[0][4] == f"tests/{HERE}:{line}"
        assert old
        assert new
    finally:
        tracemalloc.stop()


async def test_rows_may_be_files(tables: Tables) -> None:
    tracer = tables.tracer(top_results=1, group_by=GroupBy.filename)
    async with entrypoint(tracer):
        kept = leak(), leak()
        rows = await tables.next(tracer)
    assert rows[0][4].endswith(HERE)
    assert kept


async def test_rows_may_be_tracebacks(tables: Tables) -> None:
    tracer = tables.tracer(top_results=1, group_by=GroupBy.traceback)
    async with entrypoint(tracer):
        kept = leak()
        line = sys._getframe().f_lineno - 1
        await tables.next(tracer)
    callers = tables[-1].splitlines()[3:]
    assert any(caller.endswith(f"{HERE}:{line}") for caller in callers), tables[-1]
    assert kept


@pytest.mark.parametrize(
    "filters",
    [
        "*/test_tracer.py",
        ["*/test_tracer.py"],
        (tracemalloc.Filter(True, __file__),),
        [tracemalloc.Filter(False, "*/asyncio/*"), "*/test_tracer.py"],
    ],
)
async def test_filters_select_the_rows(tables: Tables, filters: Any) -> None:
    tracer = tables.tracer(filters=filters)
    async with entrypoint(tracer):
        kept = leak()
        rows = await tables.next(tracer)
    assert rows
    assert all(HERE in row[4] for row in rows)
    assert kept


async def test_the_tracer_does_not_show_itself(tables: Tables) -> None:
    tracer = tables.tracer(top_results=10_000)
    async with entrypoint(tracer):
        for _ in range(3):
            rows = await tables.next(tracer)
    assert not [row for row in rows if "tracer.py" in row[4].replace(HERE, "")]
    assert not [row for row in rows if "tracemalloc.py" in row[4]]


async def test_a_table_is_logged_by_default(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "svcrun.service.tracer")
    async with entrypoint(MemoryTracer(), log_config=False):
        await eventually(lambda: caplog.records)
    record = caplog.records[0]
    assert (record.name, record.levelname) == ("svcrun.service.tracer", "INFO")
    assert read(record.getMessage())


async def test_snapshots_are_processed_outside_of_the_thread_of_the_loop(tables: Tables) -> None:
    threads: list[int] = []

    class Watched(MemoryTracer):
        @staticmethod
        def take_snapshot() -> tracemalloc.Snapshot:
            threads.append(threading.get_ident())
            return MemoryTracer.take_snapshot()

    async with entrypoint(
        Watched(interval=3600, logger=lambda _: threads.append(threading.get_ident()))
    ):
        await eventually(lambda: len(threads) == 2)
    assert threading.get_ident() not in threads


async def test_a_failed_snapshot_is_logged_and_the_next_one_is_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said: list[str] = []

    def fail_once(text: str) -> None:
        said.append(text)
        if len(said) == 1:
            raise OSError("the disk is full")

    async with entrypoint(MemoryTracer(interval=0.05, logger=fail_once), log_config=False):
        await eventually(lambda: len(said) >= 2)
    (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "memory-tracer" in error.getMessage()
    assert error.exc_info
    assert isinstance(error.exc_info[1], OSError)


@pytest.mark.parametrize("was_on", [False, True])
async def test_the_stop_restores_the_state_of_tracemalloc(was_on: bool, tables: Tables) -> None:
    if was_on:
        tracemalloc.start(3)
    try:
        with nothing_left():
            for _ in range(2):
                async with entrypoint(tables.tracer()):
                    assert tracemalloc.is_tracing()
                assert tracemalloc.is_tracing() is was_on
        assert tracemalloc.get_traceback_limit() == (3 if was_on else 1)
    finally:
        tracemalloc.stop()


async def test_the_last_tracer_to_stop_turns_tracemalloc_off(tables: Tables) -> None:
    first, second = tables.tracer(), tables.tracer()
    await first.start()
    await second.start()
    await first.stop()
    assert tracemalloc.is_tracing()
    await second.show_stats()
    await second.stop()
    assert not tracemalloc.is_tracing()
    await first.stop()
    await second.stop()


async def test_tracers_of_several_threads_share_tracemalloc(tables: Tables) -> None:
    async def live() -> None:
        async with entrypoint(tables.tracer(), log_config=False):
            await asyncio.sleep(0.01)
            assert tracemalloc.is_tracing()

    await asyncio.gather(*(asyncio.to_thread(asyncio.run, live()) for _ in range(8)))
    assert not tracemalloc.is_tracing()


async def test_a_warning_is_logged_if_other_code_turns_tracemalloc_off(
    caplog: pytest.LogCaptureFixture, tables: Tables
) -> None:
    async with entrypoint(tables.tracer(interval=0.05), log_config=False):
        await eventually(lambda: tables)
        tracemalloc.stop()
        await eventually(lambda: "must be tracing" in caplog.text)


async def test_a_running_tracer_is_not_started_again(tables: Tables) -> None:
    tracer = tables.tracer()
    async with entrypoint(tracer):
        with pytest.raises(RuntimeError, match="is running already"):
            await tracer.start()
    assert not tracemalloc.is_tracing()


async def test_a_stop_without_a_start_does_nothing(tables: Tables) -> None:
    tracemalloc.start()
    try:
        await tables.tracer().stop()
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()


async def test_a_start_that_fails_leaves_tracemalloc_off(tables: Tables) -> None:
    class Failing(MemoryTracer):
        async def start(self) -> None:
            await super().start()
            raise OSError("broken")

    with nothing_left(), pytest.raises(OSError, match="broken"):
        async with entrypoint(Failing(logger=tables.append), log_config=False):
            pass
    assert not tracemalloc.is_tracing()


class Held(MemoryTracer):
    """Has a snapshot take as long as the test wants."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        begun, release = threading.Event(), threading.Event()

        def take_snapshot() -> tracemalloc.Snapshot:
            begun.set()
            assert release.wait(PATIENCE)
            return MemoryTracer.take_snapshot()

        self.take_snapshot = take_snapshot  # type: ignore[method-assign]
        self.begun, self.release = begun, release


async def test_a_stop_waits_only_for_the_snapshot_in_progress(
    tables: Tables,
) -> None:
    with nothing_left():
        tracer = Held(interval=3600, logger=tables.append)
        await tracer.start()
        await eventually(tracer.begun.is_set)
        stop = asyncio.create_task(tracer.stop())
        await asyncio.sleep(0.05)
        assert not stop.done()
        tracer.release.set()
        await stop
    assert not tables


async def test_a_cancelled_stop_still_turns_tracemalloc_off(tables: Tables) -> None:
    with nothing_left():
        tracer = Held(interval=3600, logger=tables.append)
        await tracer.start()
        await eventually(tracer.begun.is_set)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(tracer.stop(), 0.05)
        assert not tracemalloc.is_tracing()
        tracer.release.set()
    assert not tables


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0.0B"),
        (976, "976.0B"),
        (1_946, "1.9KiB"),
        (-1_946, "-1.9KiB"),
        (1_048_570, "1.0MiB"),
        (7_444_890, "7.1MiB"),
        (5 * 1024**3, "5.0GiB"),
        (3 * 1024**6, "3.0EiB"),
    ],
)
def test_sizes_have_binary_units(size: int, text: str) -> None:
    assert MemoryTracer.humanize(size) == text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"interval": 0}, ValueError, "interval=0"),
        ({"interval": "5"}, TypeError, "interval='5'"),
        ({"top_results": 0}, ValueError, "top_results=0"),
        ({"top_results": 2.5}, TypeError, "top_results=2.5"),
        ({"group_by": "lineno"}, TypeError, "group_by='lineno'"),
        ({"logger": "print"}, TypeError, "logger='print'"),
        ({"compare_to": "end"}, ValueError, "compare_to='end'"),
        ({"filters": [5]}, TypeError, "filters=5"),
        ({"filters": 5}, TypeError, "filters=5"),
        ({"frames": 0}, ValueError, "frames=0"),
        ({"frames": 65_536}, ValueError, "frames=65536"),
    ],
)
def test_wrong_parameters_are_refused_at_once(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match="memory-tracer") as raised:
        MemoryTracer(**options)
    assert refuses(raised.value, message)


async def test_a_parameter_changed_to_a_wrong_value_is_refused_at_the_start(tables: Tables) -> None:
    tracer = tables.tracer()
    tracer.top_results = -1
    with pytest.raises(ValueError, match="top_results must be at least 1, not -1"):
        await tracer.start()
    assert not tracemalloc.is_tracing()


def test_a_tracer_can_be_pickled_before_it_runs() -> None:
    tracer = MemoryTracer(interval=42, group_by=GroupBy.filename, filters=["*/x.py"])
    copy = pickle.loads(pickle.dumps(tracer))  # noqa: S301 - our own
    assert (copy.interval, copy.group_by, copy.filters) == (42, GroupBy.filename, ["*/x.py"])


def test_snapshots_can_be_compared_by_hand() -> None:
    tracer = MemoryTracer()
    tracemalloc.start()
    before = tracer.take_snapshot()
    kept = leak()
    after = tracer.take_snapshot()
    tracemalloc.stop()
    most = tracer.compare_snapshot(before, after)[0]
    assert most.traceback[0].lineno == LEAK
    assert most.count_diff >= len(kept)
