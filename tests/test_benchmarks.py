"""The benchmarks: each target can be measured, and the printed ratios are the measured ones."""

import contextlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command, report, runner
from benchmarks.cases import (
    BASELINE,
    SVCRUN,
    Budget,
    Case,
    Job,
    Metric,
    Sample,
    Target,
    Unavailable,
)
from benchmarks.processes import Program
from tests.support import PATIENCE, PROFILE, ROOT

pytestmark = pytest.mark.skipif(PROFILE == "quick", reason="slow, and one environment tells it all")

LINE = re.compile(
    r"  (?P<name>\S.*?) +(stock|uvloop)? +[\d.]+ (s|ms|us|ns|B|KB|lost)"
    r" +[\d.]+ (s|ms|us|ns|B|KB|lost)"
    r" +(?P<ratio>[\d.]+) \([\d.]+-[\d.]+\) *(?P<limit>[\d.]+( (s|ms|us|ns|lost))?)?"
    r" *(?P<verdict>ok|over)?"
)


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
    )


@pytest.mark.parametrize("target", [target.name for target in command.TARGETS])
def test_a_target_is_measured_on_both_sides_and_printed_as_ratios(
    target: str, tmp_path: Path
) -> None:
    file = tmp_path / "found.json"
    done = benchmark(
        target, "--loop", "stock", "--rounds", "1", "--scale", "0.001", "--json", str(file)
    )
    assert done.returncode == 0, done.stderr
    if "left out:" in done.stdout:
        pytest.skip(done.stdout)

    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    printed = [match for line in done.stdout.splitlines() if (match := LINE.fullmatch(line))]
    assert [match["name"] for match in printed] == [row["name"] for row in rows]
    for row, match in zip(rows, printed, strict=True):
        assert set(row["samples"]) == {BASELINE, SVCRUN}
        assert all(
            (cost > 0 or row["unit"] == "lost") and math.isfinite(cost)
            for side in row["samples"].values()
            for cost in side
        )
        assert match["ratio"] == f"{row['ratio']:.2f}"
        assert match["verdict"] == {True: "ok", False: "over", None: None}[row["ok"]]
    assert any(row["limit"] or row["bound"] is not None for row in rows)


def test_an_unknown_target_is_refused_with_the_known_names() -> None:
    done = benchmark("speed")
    assert done.returncode == 2
    assert "'speed'" in done.stderr
    assert all(target.name in done.stderr for target in command.TARGETS)


def test_the_sides_take_turns_and_start_afresh_in_each_round() -> None:
    seen: list[str] = []

    @contextlib.contextmanager
    def start(name: str) -> Iterator[Sample]:
        def sample(job: Any) -> Mapping[str, float]:
            seen.append(f"{name} {job}")
            return {"cost": 1.0}

        seen.append(f"{name} starts")
        yield sample
        seen.append(f"{name} ends")

    def a() -> AbstractContextManager[Sample]:
        return start("A")

    def b() -> AbstractContextManager[Sample]:
        return start("B")

    case = Case("target", "", {BASELINE: a, SVCRUN: b}, [Job("works", [Metric("name")], turns=2)])
    runner.measure([case], 2, lambda _: None)
    assert seen == [
        *("A starts", "B starts", "A works", "B works", "B works", "A works", "B ends", "A ends"),
        *("A starts", "B starts", "B works", "A works", "A works", "B works", "B ends", "A ends"),
    ]


def make_row(samples: Mapping[str, list[float]], limit: float | None = None) -> runner.Row:
    return runner.Row("target", "stock", Metric("name", limit), dict(samples))


def test_a_ratio_is_the_median_of_the_turns_and_not_that_of_the_costs() -> None:
    row = make_row({BASELINE: [1, 10, 4], SVCRUN: [2, 20, 1]})
    assert row.ratio() == 2
    assert row.median(SVCRUN) / row.median(BASELINE) == 0.5
    assert row.middle_half() == (1.125, 2)


@pytest.mark.parametrize(("limit", "verdict"), [(2.0, "ok"), (1.99, "over"), (None, "")])
def test_a_ratio_up_to_the_target_is_ok_and_one_above_it_is_over(
    limit: float | None, verdict: str
) -> None:
    row = make_row({BASELINE: [1.0], SVCRUN: [2.0]}, limit)
    match = LINE.fullmatch(report.line(row, ()))
    assert match
    assert (match["verdict"] or "") == verdict
    asked, good = int(limit is not None), int(verdict == "ok")
    assert report.verdict([row]) == f"{good} of {asked} targets reached"


@pytest.mark.parametrize(("bound", "verdict"), [(2.0, "ok"), (1.99, "over")])
def test_a_time_above_the_bound_is_over_at_any_ratio(bound: float, verdict: str) -> None:
    row = runner.Row(
        "target",
        "stock",
        Metric("name", bound=bound),
        {BASELINE: [0.01, 0.01, 9.0], SVCRUN: [2.0, 0.1, 3.0]},
    )
    match = LINE.fullmatch(report.line(row, ()))
    assert match
    assert (match["limit"], match["verdict"]) == (report.duration(bound), verdict)
    assert report.verdict([row]) == f"{int(verdict == 'ok')} of 1 targets reached"


def test_lost_requests_are_added_up_and_one_is_over_the_bound() -> None:
    metric = Metric("name", bound=0, unit="lost")
    for lost, verdict in (([0.0, 0.0, 0.0], "ok"), ([0.0, 1.0, 0.0], "over")):
        row = runner.Row("target", "stock", metric, {BASELINE: [3.0, 0.0, 1.0], SVCRUN: lost})
        match = LINE.fullmatch(report.line(row, ()))
        assert match
        assert (match["limit"], match["verdict"]) == ("0 lost", verdict)
        assert row.ratio() == sum(lost) / 4


def test_a_target_without_its_library_is_skipped_with_the_reason() -> None:
    def cases(_: Budget) -> list[Case]:
        raise Unavailable("there is no compiler")

    target = Target("native", "Something in C.", cases)
    planned, skipped = command.plan([target], Budget(sys.executable, ["stock"]))
    assert planned == []
    assert "  skipped: there is no compiler" in report.table([], [target], skipped, ())


def test_the_error_of_a_failed_program_has_its_output() -> None:
    with (
        Program(sys.executable, "-c", "raise SystemExit('it went wrong')") as program,
        pytest.raises(RuntimeError, match="it went wrong"),
    ):
        program.answer()


def test_a_program_has_ended_when_its_block_is_left() -> None:
    with Program(sys.executable, "-c", "print(1, flush=True); input()") as program:
        assert program.answer() == 1
        assert program.cpu_time() > 0
    with pytest.raises(OSError, match="Invalid argument"):
        program.cpu_time()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (12.34, "12.3 s"),
        (0.0123, "12.3 ms"),
        (0.99996, "1000 ms"),
        (1.5e-4, "150 us"),
        (2.25e-6, "2.25 us"),
        (4e-8, "40.0 ns"),
    ],
)
def test_a_duration_is_printed_with_three_significant_figures(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999 B"), (3612.4, "3.61 KB"), (12345, "12.3 KB")]
)
def test_memory_is_printed_with_three_significant_figures(number: float, text: str) -> None:
    assert report.size(number) == text
