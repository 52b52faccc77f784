"""A burst: the time until many clients that connect at once are served."""

import contextlib
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial

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
from benchmarks.processes import ROOT, Program, program

LIMIT = 1.5
CLIENTS = 512


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """Compile the server in C into a folder that lasts as long as this process."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise Unavailable("the server to compare with is in C, and there is no cc to compile it")
    made = tempfile.TemporaryDirectory(prefix="svcrun-benchmark-")
    source = ROOT / "benchmarks" / "programs" / "echo_server.c"
    subprocess.run([compiler, "-O2", "-o", f"{made.name}/echo_server", str(source)], check=True)
    return made


def cases(budget: Budget) -> Sequence[Case]:
    native = f"{folder().name}/echo_server"
    jobs = [Job(CLIENTS, [Metric(f"{CLIENTS} clients at once", LIMIT)])]
    return [
        Case(
            "burst",
            loop,
            {
                BASELINE: partial(start, budget, partial(Program, native)),
                SVCRUN: partial(start, budget, partial(serve, budget, loop)),
            },
            jobs,
        )
        for loop in budget.loops
    ]


def serve(budget: Budget, loop: str) -> Program:
    return program(budget.python, "stream_server", side=SVCRUN, loop=loop, handlers=["lines"])


@contextlib.contextmanager
def start(budget: Budget, server: Callable[[], Program]) -> Iterator[Sample]:
    with server() as serving:
        (port,) = serving.answer()
        with program(budget.python, "burst_client", port=port) as crowd:
            crowd.ask(CLIENTS)  # a warm-up
            yield lambda clients: {"cost": crowd.ask(clients)}


TARGET = Target(
    "burst",
    "Wall-clock time from the first of 512 clients that connect at once, to the last one's line\n"
    "having come back.\n"
    "baseline: an epoll server in C with the same back-log of 1024",
    cases,
)
