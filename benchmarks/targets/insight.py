"""Insight: the cost of profilers and tracers to a TCP echo."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from benchmarks.cases import BASELINE, SVCRUN, Budget, Case, Job, Metric, Sample, Target
from benchmarks.processes import program
from benchmarks.targets.traffic import cost

CONNECTIONS = 64

# Each side and its baseline, the number of round trips, of turns, and the ratio to reach. It takes
# long measurements to see a hundredth.
PAIRS = (
    ("LoopWatchdog", "nothing", 32_768, 15, 1.01),
    ("MemoryTracer", "tracemalloc", 16_384, 3, None),
    ("MemoryTracer", "nothing", 16_384, 3, None),
    ("Profiler", "cProfile", 16_384, 3, None),
    ("Profiler", "nothing", 16_384, 3, None),
)


def cases(budget: Budget) -> Sequence[Case]:
    return [
        Case(
            "insight",
            loop,
            {
                BASELINE: partial(start, budget, baseline, loop),
                SVCRUN: partial(start, budget, service, loop),
            },
            [
                Job(
                    budget.amount(trips // CONNECTIONS),
                    [Metric(f"{service}, beside {baseline}", limit)],
                    turns,
                )
            ],
        )
        for service, baseline, trips, turns, limit in PAIRS
        for loop in budget.loops
    ]


@contextlib.contextmanager
def start(budget: Budget, within: str, loop: str) -> Iterator[Sample]:
    with (
        program(budget.python, "insight", within=within, loop=loop) as server,
        program(budget.python, "echo_client") as client,
    ):
        port = server.answer()
        client.ask((port, CONNECTIONS, budget.amount(16)))  # connects, and warms up

        def sample(waves: int) -> Mapping[str, float]:
            return cost(server, client, (port, CONNECTIONS, waves), waves * CONNECTIONS)

        yield sample


TARGET = Target(
    "insight",
    "Processor time that svcrun's TCP echo takes for a round trip of a line, on 64 connections,\n"
    "while a service of svcrun looks into it.\n"
    "baseline: the same server, looked into by nothing, by tracemalloc.start(), or by\n"
    "cProfile.Profile().enable(). MemoryTracer and Profiler log a table each second",
    cases,
)
