"""The service that shows where a program spends its time (C35)."""

import asyncio
import cProfile
import gc
import logging
import os
import pickle
import pstats
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svcrun import entrypoint
from svcrun.errors import AlreadyRunning, ProfilerActive
from svcrun.service.profiler import Profiler
from tests.support import PATIENCE, Program, eventually

LOGGER = "svcrun.service.profiler"


def find_active() -> object:
    """Return the active profiler of this thread, or None."""
    if sys.version_info >= (3, 12):
        tool = sys.monitoring.get_tool(sys.monitoring.PROFILER_ID)
        if tool is not None:
            return tool
    return sys.getprofile()


def work(seconds: float = 0.001) -> None:
    """Be called by a program that is measured."""
    time.sleep(seconds)


def find_tables(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = (it.getMessage() for it in caplog.records if it.name == LOGGER)
    return [message for message in messages if "function calls" in message]


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    """Capture the tables in `caplog`."""
    caplog.set_level(logging.INFO, LOGGER)


async def test_the_last_table_counts_all_calls_since_the_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with entrypoint(Profiler(interval=60, top_results=1000), log_config=False):
        for _ in range(7):
            work()
    table = find_tables(caplog)[-1]
    assert re.match(r"\d+ function calls .*in \d+\.\d+ seconds\n", table)
    assert "Ordered by: cumulative time\n" in table
    assert "ncalls  tottime  percall  cumtime  percall filename:lineno(function)\n" in table
    assert re.search(r"^ +7 .* test_profiler.py:\d+\(work\)$", table, re.MULTILINE)


async def test_a_table_is_logged_at_the_start_and_in_each_interval(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with entrypoint(Profiler(interval=0.01), log_config=False):
        assert len(find_tables(caplog)) >= 1
        await eventually(lambda: len(find_tables(caplog)) >= 5)
    assert find_active() is None


@pytest.mark.parametrize(
    ("order", "title"),
    [
        ("cumulative", "cumulative time"),
        ("cumu", "cumulative time"),
        (pstats.SortKey.CALLS, "call count"),
        ("ncalls", "call count"),
        ("tottime", "internal time"),
        ("name", "function name"),
    ],
)
async def test_order_and_top_results_define_order_and_length_of_a_table(
    order: Any, title: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with entrypoint(Profiler(interval=60, order=order, top_results=3), log_config=False):
        pass
    table = find_tables(caplog)[-1]
    assert f"Ordered by: {title}\n" in table
    _, _, rows = table.partition("filename:lineno(function)\n")
    assert len(rows.splitlines()) == 3


async def test_a_table_is_formatted_outside_of_the_thread_of_the_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with entrypoint(Profiler(interval=60), log_config=False):
        pass
    threads = {it.thread for it in caplog.records if "function calls" in it.getMessage()}
    assert threading.get_ident() not in threads
    assert len(threads) >= 1


def test_frames_of_the_event_loop_are_in_the_file_and_not_in_the_table(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    profiler = Profiler(interval=60, top_results=1000, path=tmp_path / "profile")
    factory = asyncio.SelectorEventLoop
    with entrypoint(profiler, log_config=False, loop_factory=factory) as loop:
        loop.run_until_complete(asyncio.sleep(0.01))
    stats: Any = pstats.Stats(str(tmp_path / "profile"))
    names = {name for _, _, name in stats.stats}
    for name in ("run_until_complete", "run_forever", "_run_once", "_run"):
        assert name in names
        assert not re.search(rf"(base_events|events)\.py:\d+\({name}\)$", caplog.text, re.MULTILINE)
    assert "'run' of '_contextvars.Context'" not in caplog.text


async def test_the_profiler_itself_is_not_at_the_top_of_the_table(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with entrypoint(Profiler(interval=0.01, order="tottime"), log_config=False):
        await eventually(lambda: len(find_tables(caplog)) >= 3)
        work(0.5)
    _, _, rows = find_tables(caplog)[-1].partition("filename:lineno(function)\n")
    assert rows.splitlines()[0].endswith("{built-in method time.sleep}")


async def test_the_file_has_all_calls_since_the_start(tmp_path: Path) -> None:
    path = tmp_path / "profile"
    async with entrypoint(Profiler(interval=60, path=path), log_config=False):
        first: Any = pstats.Stats(str(path))
        work()
    last: Any = pstats.Stats(str(path))
    key = (__file__, work.__code__.co_firstlineno, "work")
    assert key not in first.stats
    assert last.stats[key][0] == 1
    assert os.listdir(tmp_path) == ["profile"]  # noqa: PTH208 - pathlib's is refused in coroutines


async def test_an_unwritable_file_is_logged_and_the_profiler_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "absent" / "profile"
    async with entrypoint(Profiler(interval=0.01, path=path), log_config=False):
        await eventually(lambda: len(find_tables(caplog)) >= 3)
        path.parent.mkdir()
        await eventually(path.is_file)
    warnings = [it.getMessage() for it in caplog.records if it.levelno == logging.WARNING]
    assert len([warning for warning in warnings if "could not write" in warning]) == 1


def test_a_full_disk_keeps_the_last_file_and_the_profiler_continues(
    run_program: Callable[..., Program], tmp_path: Path
) -> None:
    path = tmp_path / "profile"
    path.write_bytes(b"before")
    source = f"""
import resource
from svcrun import entrypoint
from svcrun.service import Profiler
with entrypoint(Profiler(path={str(path)!r}), log_format="stream"):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
"""
    outcome = run_program(source, measured=False).wait()
    assert outcome.returncode == 0
    assert "could not write" in outcome.stderr
    pstats.Stats(str(path))  # of the start
    assert list(tmp_path.iterdir()) == [path]


async def test_an_active_profiler_is_named_and_stays_active(no_leaks: None) -> None:
    theirs = cProfile.Profile()
    theirs.enable()
    try:
        before = find_active()
        service = Profiler(name="mine")
        with pytest.raises(ProfilerActive, match=r"mine.* can't measure: .*cProfile.* is active"):
            await service.start()
        assert find_active() is before
        await service.stop()
        assert find_active() is before
    finally:
        theirs.disable()
    await service.start()
    await service.stop()
    assert find_active() is None


async def test_an_active_profile_function_is_named() -> None:
    sys.setprofile(do_nothing)
    try:
        with pytest.raises(ProfilerActive, match=r"do_nothing.* is active"):
            await Profiler().start()
        assert sys.getprofile() is do_nothing
    finally:
        sys.setprofile(None)


def do_nothing(*_: object) -> None: ...


async def test_the_second_of_two_profilers_does_not_start() -> None:
    first, second = Profiler(name="first"), Profiler(name="second")
    with pytest.raises(ProfilerActive, match="leave out one of the two"):
        async with entrypoint(first, second, log_config=False):
            pass  # pragma: no cover - not reached
    assert find_active() is None


PROGRAM = """
import bdb, sys
from svcrun import entrypoint
from svcrun.service import Profiler
{0}
with entrypoint(Profiler(), log_config=False):
    print("runs")
"""


def test_an_active_debugger_is_named(run_program: Callable[..., Program]) -> None:
    program = run_program(PROGRAM.format("bdb.Bdb().set_trace()"), measured=False)
    outcome = program.wait()
    assert "runs" not in outcome.stdout
    assert re.search(r"ProfilerActive: .*bdb\.Bdb object .* is active", outcome.stderr)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there is no sys.monitoring")
@pytest.mark.parametrize("tool", ["PROFILER_ID", "DEBUGGER_ID"])
def test_an_active_monitoring_tool_is_named(run_program: Callable[..., Program], tool: str) -> None:
    take = f"sys.monitoring.use_tool_id(sys.monitoring.{tool}, 'the other one')"
    outcome = run_program(PROGRAM.format(take), measured=False).wait()
    assert "runs" not in outcome.stdout
    assert "can't measure: 'the other one' is active" in outcome.stderr


def test_a_coverage_tracer_does_not_count_as_a_profiler(
    run_program: Callable[..., Program],
) -> None:
    outcome = run_program(PROGRAM.format("sys.settrace(lambda *_: None)"), measured=False).wait()
    assert (outcome.returncode, outcome.stdout) == (0, "runs\n")


async def test_a_profiler_that_replaced_the_service_s_stays_active(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Profiler(interval=0.01)
    theirs = cProfile.Profile()
    async with entrypoint(service, log_config=False):
        if sys.version_info >= (3, 12):
            sys.monitoring.free_tool_id(sys.monitoring.PROFILER_ID)
            sys.monitoring.use_tool_id(sys.monitoring.PROFILER_ID, "theirs")
        else:
            theirs.enable()
        active = find_active()
        work()
        count = len(find_tables(caplog))
        await eventually(lambda: len(find_tables(caplog)) >= count + 3)
    del service  # and with it its profiler
    gc.collect()
    still_active = find_active()
    if sys.version_info >= (3, 12):
        sys.monitoring.free_tool_id(sys.monitoring.PROFILER_ID)
    else:
        theirs.disable()
    assert active is not None
    assert still_active is active
    warnings = [it.getMessage() for it in caplog.records if it.levelno == logging.WARNING]
    assert len([warning for warning in warnings if "profiling ended" in warning]) == 1


async def test_a_profiler_that_other_code_switched_off_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with entrypoint(Profiler(), log_config=False):
        if sys.version_info >= (3, 12):
            sys.monitoring.free_tool_id(sys.monitoring.PROFILER_ID)
        else:
            sys.setprofile(None)
        work()
    assert "profiling ended: the profiler was disabled" in caplog.text
    async with entrypoint(Profiler(), log_config=False):
        assert find_active() is not None
    assert find_active() is None


async def test_a_profiler_that_is_started_again_measures_anew(
    tmp_path: Path, no_leaks: None
) -> None:
    path = tmp_path / "profile"
    service = Profiler(path=path)
    for _ in range(2):
        await service.start()
        work()
        await service.stop()
        stats: Any = pstats.Stats(str(path))
        assert stats.stats[__file__, work.__code__.co_firstlineno, "work"][0] == 1
    assert find_active() is None


async def test_a_running_profiler_is_not_started_again() -> None:
    service = Profiler()
    await service.start()
    with pytest.raises(AlreadyRunning):
        await service.start()
    assert find_active() is not None
    await service.stop()
    assert find_active() is None


async def test_a_stop_without_a_start_and_a_second_stop_do_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Profiler()
    await service.stop()
    await service.start()
    await service.stop()
    count = len(caplog.records)
    await service.stop()
    assert len(caplog.records) == count


class Stuck(logging.Handler):
    """A handler that hangs."""

    def __init__(self) -> None:
        super().__init__()
        self.is_reached = threading.Event()
        self.is_free = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.is_reached.set()
        self.is_free.wait(PATIENCE)


async def test_a_cancelled_start_leaves_nothing_behind(no_leaks: None, tmp_path: Path) -> None:
    handler = Stuck()
    logging.getLogger(LOGGER).addHandler(handler)
    service = Profiler(interval=0.01)
    try:
        task = asyncio.create_task(service.start())
        await eventually(handler.is_reached.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert find_active() is None
    finally:
        handler.is_free.set()
        logging.getLogger(LOGGER).removeHandler(handler)
    await service.stop()
    calls = service.periodic.calls
    await asyncio.sleep(0.05)
    assert service.periodic.calls == calls


async def test_a_stop_during_the_start_waits_for_the_table(no_leaks: None) -> None:
    handler = Stuck()
    logging.getLogger(LOGGER).addHandler(handler)
    service = Profiler()
    try:
        start = asyncio.create_task(service.start())
        await eventually(handler.is_reached.is_set)
        stop = asyncio.create_task(service.stop())
        await asyncio.sleep(0)
        assert find_active() is None
        assert not stop.done()
    finally:
        handler.is_free.set()
        logging.getLogger(LOGGER).removeHandler(handler)
    await start
    await stop


def test_a_stop_in_another_thread_leaves_no_profiler(no_leaks: None) -> None:
    with asyncio.Runner() as runner:
        service = Profiler()
        loop = runner.get_loop()
        thread = threading.Thread(target=loop.run_until_complete, args=(service.start(),))
        thread.start()
        thread.join()
        runner.run(service.stop())
    assert find_active() is None


async def test_a_loop_in_any_thread_can_be_measured() -> None:
    def program() -> list[Any]:
        with entrypoint(service := Profiler(), log_config=False):
            work()
        assert find_active() is None
        return service.profiler.getstats()

    entries = await asyncio.to_thread(program)
    assert any(entry.code is work.__code__ for entry in entries)


async def test_calls_of_other_threads_are_omitted() -> None:
    def work_elsewhere() -> None:
        is_begun.set()
        is_over.wait(PATIENCE)

    is_begun, is_over = threading.Event(), threading.Event()
    async with entrypoint(service := Profiler(), log_config=False):
        thread = threading.Thread(target=work_elsewhere)
        thread.start()
        await eventually(is_begun.is_set)
        for _ in range(5):
            work(0.01)
        is_over.set()
        thread.join()
    entries = {entry.code: entry for entry in service.profiler.getstats()}
    assert work_elsewhere.__code__ not in entries
    assert entries[work.__code__].callcount == 5
    assert entries[work.__code__].totaltime >= 0.05


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("interval", 0, ValueError),
        ("interval", "1", TypeError),
        ("top_results", 0, ValueError),
        ("top_results", True, TypeError),
        ("top_results", 1.5, TypeError),
        ("order", "fastest", ValueError),
        ("order", "", ValueError),
        ("order", 1, TypeError),
        ("path", "", ValueError),
        ("path", 1, TypeError),
        ("flamegraph", "", ValueError),
        ("flamegraph", b"page", TypeError),
    ],
)
def test_a_wrong_parameter_is_named(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{name} must be .*, not {re.escape(repr(value))}"):
        Profiler(**{name: value})


def test_the_defaults_are_those_of_aiomisc() -> None:
    service = Profiler()
    assert (service.interval, service.top_results, service.order) == (10, 10, "cumulative")
    assert (service.path, service.name) == (None, "profiler")


def test_a_profiler_can_be_pickled_before_it_runs() -> None:
    copy = pickle.loads(pickle.dumps(Profiler(interval=1, path="profile")))  # noqa: S301 - our own
    assert (copy.interval, copy.path) == (1, "profile")


def test_other_services_can_be_imported_without_the_profile_modules() -> None:
    check = "import sys, svcrun.service.periodic; print('cProfile' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert found.stdout == "False\n"
