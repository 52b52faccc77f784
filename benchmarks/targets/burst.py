"""A crowd: how long it takes until many clients that come at once are served."""

import functools
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.cases import BASELINE, SVCRUN, Budget, Case, Metric, Target, Unavailable
from benchmarks.processes import ROOT, Program, ask, program

LIMIT = 1.5
CLIENTS = 512
REPEATS = 5


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder with the server in C, which lasts as long as this process."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise Unavailable("the server to compare with is in C, and there is no cc to compile it")
    made = tempfile.TemporaryDirectory(prefix="svcrun-benchmark-")
    source = ROOT / "benchmarks" / "programs" / "echo_server.c"
    command = [compiler, "-O2", "-o", f"{made.name}/echo_server", str(source)]
    subprocess.run(command, check=True)
    return made


def cases(budget: Budget) -> Sequence[Case]:
    native = str(Path(folder().name, "echo_server"))
    metrics = [Metric("elapsed", f"{CLIENTS} clients at once", LIMIT)]
    return [
        Case(
            "burst",
            loop,
            {
                BASELINE: partial(measure, budget, partial(Program, native)),
                SVCRUN: partial(measure, budget, partial(serve, budget, loop)),
            },
            metrics,
        )
        for loop in budget.loops
    ]


def serve(budget: Budget, loop: str) -> Program:
    return program(budget.python, "stream_server", side=SVCRUN, loop=loop, handler="lines")


def measure(budget: Budget, start: partial[Program]) -> dict[str, float]:
    with start() as server:
        found = ask(
            budget.python,
            "burst_client",
            port=server.answer()["port"],
            clients=CLIENTS,
            repeats=budget.repeats(REPEATS),
        )
    return {"elapsed": statistics.median(found)}


TARGET = Target(
    "burst",
    "Wall-clock time from the first of 512 clients that connect at once, to the last one's line\n"
    "having come back.\n"
    "baseline: an epoll server in C with the same back-log of 1024",
    cases,
)
