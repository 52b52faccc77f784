"""The documented code for insight into a running process works."""

import re
from collections.abc import Callable

import pytest

from tests.support import Program
from tests.test_spec import DOCUMENT, IMPORTS, end, read_block

pytestmark = pytest.mark.skipif(not DOCUMENT.is_file(), reason="the document is not here")

Start = Callable[..., Program]


def test_the_memory_tracer_finds_the_leak_by_file_and_line(run_program: Start) -> None:
    source = IMPORTS + read_block("Memory Tracer")
    line = source[: source.index("leaking.append")].count("\n") + 1
    program = run_program(source, env={"SVCRUN_LOG_FORMAT": "stream"})
    head = r"^ Objects \| Obj\.Diff \|   Memory \| Mem\.Diff \| Traceback$"
    leaks = []
    for _ in range(2):  # the first table comes at once
        program.wait_for_line("INFO:svcrun.service.tracer:Top memory usage:$", stream="stderr")
        program.wait_for_line(head, stream="stderr")
        leaks.append(program.wait_for_line(r"^ *\d+ \| .*", stream="stderr")[0])
    assert re.fullmatch(
        rf" *(\d{{3,}}) \| *\1 \| +(\d+\.\d[KM]iB) \| +\2 \| [^/]+/program\.py:{line}", leaks[1]
    ), leaks
    outcome = end(program)
    assert "most recent call last" not in outcome.stderr
    for table in outcome.stderr.split("Top memory usage:\n")[1:]:
        assert len(re.findall(r"^ *\d+ \|", table, re.MULTILINE)) <= 5


def test_the_profiler_shows_where_the_time_goes(run_program: Start) -> None:
    source = "import time\n" + read_block("Profiler")
    outcome = run_program(source, env={"SVCRUN_LOG_FORMAT": "stream"}).wait()
    assert outcome.returncode == 0, outcome.stderr
    table = outcome.stderr.rpartition("INFO:svcrun.service.profiler:")[2]
    assert re.match(
        r"\d+ function calls .*in \d\.\d{3} seconds\n\n   Ordered by: cumulative time\n", table
    )
    head, title, rows = table.partition(
        "\n   ncalls  tottime  percall  cumtime  percall filename:lineno(function)\n"
    )
    assert title
    assert len(rows.splitlines()) == 5
    assert re.search(
        r"^ +100 +\d\.\d{3} +0\.0\d\d +\d\.\d{3} +0\.0\d\d \{built-in method time\.sleep\}$",
        rows,
        re.MULTILINE,
    )
