"""Logging: the cost of a record."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.cases import Budget, Case, Job, Metric, Sample, Target
from benchmarks.processes import program

LIMIT = 0.6

# The number of records by format: rich takes long for each, though in a thread of its own.
RECORDS = {"stream": 2_000, "plain": 2_000, "color": 2_000, "json": 2_000, "rich": 200}

NEEDS = {"color": "colorlog", "json": "pythonjsonlogger", "rich": "rich"}


def cases(budget: Budget) -> Sequence[Case]:
    with program(budget.python, "about", libraries=list(NEEDS.values())) as about:
        there = about.answer()["libraries"]
    return [
        Case(
            "log",
            "",
            {side: partial(start, budget, side, name) for side in budget.sides()},
            [
                Job(
                    budget.amount(records),
                    [
                        Metric(f"{name}: the calling thread", LIMIT, "caller"),
                        Metric(f"{name}: the whole process", None, "process"),
                    ],
                )
            ],
        )
        for name, records in RECORDS.items()
        if NEEDS.get(name) is None or NEEDS[name] in there
    ]


@contextlib.contextmanager
def start(budget: Budget, side: str, log_format: str) -> Iterator[Sample]:
    with program(budget.python, "log", side=side, log_format=log_format) as running:
        running.ask(100)  # a warm-up
        yield running.ask


TARGET = Target(
    "log",
    "Processor time of a log.info() with three arguments in the thread that calls; and that of\n"
    "the whole process until all records are written. Both write to a file.\n"
    "baseline: logging.basicConfig(level=logging.INFO), whatever the format of svcrun",
    cases,
)
