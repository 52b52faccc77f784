"""Logging: what a record costs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.cases import BASELINE, Budget, Case, Metric, Target
from benchmarks.processes import ask

LIMIT = 0.6

# By format, how many records: rich takes its time for each, though in a thread of its own.
RECORDS = {"stream": 15_000, "plain": 15_000, "color": 15_000, "json": 15_000, "rich": 1_500}

NEEDS = {"color": "colorlog", "json": "pythonjsonlogger", "rich": "rich"}


def cases(budget: Budget) -> Sequence[Case]:
    there = ask(budget.python, "about", libraries=list(NEEDS.values()))["libraries"]
    return [
        Case(
            "log",
            "",
            {side: partial(measure, budget, side, log_format) for side in budget.sides("aiomisc")},
            [
                Metric("caller", f"{log_format}: the calling thread", LIMIT),
                Metric("process", f"{log_format}: the whole process"),
            ],
        )
        for log_format in RECORDS
        if NEEDS.get(log_format) is None or NEEDS[log_format] in there
    ]


def measure(budget: Budget, side: str, log_format: str) -> Any:
    records = budget.repeats(RECORDS["stream" if side == BASELINE else log_format], least=100)
    return ask(budget.python, "log", side=side, log_format=log_format, records=records)


TARGET = Target(
    "log",
    "Processor time of a log.info() with three arguments, in the thread that calls; and that of the\n"
    "whole process until all records are written. Both write to a file.\n"
    "baseline: logging.basicConfig(level=logging.INFO), whatever the format of svcrun",
    cases,
)
