"""Schedules: the cost of a call, its lateness, and the time to stop many callbacks."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.cases import Budget, Case, Job, Metric, Sample, Target
from benchmarks.processes import program

CALL, LATE = 1.3, 2.0
DRIFT, STOP = 0.005, 1.0  # seconds

FEW, MANY = 1_000, 10_000

LINES = ("*/5 * * * *", "30 2 * * mon-fri")
ZONE = "Europe/Berlin"


def cases(budget: Budget) -> Sequence[Case]:
    with program(budget.python, "about", libraries=["croniter"]) as about:
        has_croniter = bool(about.answer()["libraries"])
    return [
        *(periodic(budget, loop, job) for loop in budget.loops for job in jobs(budget)),
        *(cron(budget) if has_croniter else ()),
    ]


def periodic(budget: Budget, loop: str, job: Job) -> Case:
    sides = {
        side: partial(start, budget, "recurring", side=side, loop=loop)
        for side in budget.sides("aiomisc", "apscheduler")
    }
    return Case("recurring", loop, sides, [job])


def jobs(budget: Budget) -> Iterator[Job]:
    # The number of callbacks, of intervals, the part of an interval over which they are spread, and
    # the seconds that each call takes.
    few, many = budget.amount(FEW, least=10), budget.amount(MANY, least=10)
    ticks = budget.amount(100, least=3)
    yield Job(
        (few, ticks, 1, 0),
        [
            Metric(f"{few} callbacks: a call", CALL),
            Metric(f"{few} callbacks: lateness, p99", LATE, "late"),
            Metric(f"{few} callbacks: drift in {ticks} intervals", None, "drift", DRIFT),
        ],
        turns=1,
    )
    yield Job(
        (few, budget.amount(20, least=3), 0, 0),
        [
            Metric(f"{few} callbacks at once: a call", CALL),
            Metric(f"{few} callbacks at once: lateness, p99", LATE, "late"),
        ],
        turns=2,
    )
    yield Job(
        (many, budget.amount(10, least=3), 1, 0),
        [
            Metric(f"{many} callbacks: a call", CALL),
            Metric(f"{many} callbacks: the stop of all", None, "stop", STOP),
        ],
        turns=2,
    )
    yield Job(
        (many, budget.amount(10, least=3), 1, 50e-6),
        [Metric(f"{many} callbacks of 50 us: the stop", None, "stop", STOP)],
        turns=1,
    )


def cron(budget: Budget) -> Iterator[Case]:
    for line in LINES:
        sides = {
            side: partial(start, budget, "cron_times", side=side, line=line, zone=ZONE)
            for side in budget.sides()
        }
        metric = Metric(f"the next time of {line}")
        yield Case("recurring", "", sides, [Job(budget.amount(1_000), [metric])])


@contextlib.contextmanager
def start(budget: Budget, name: str, **parameters: Any) -> Iterator[Sample]:
    with program(budget.python, name, **parameters) as running:
        if name == "recurring":
            yield running.ask
        else:
            running.ask(100)  # a warm-up
            yield lambda job: {"cost": running.ask(job)}


TARGET = Target(
    "recurring",
    "Functions that are called every 100 ms: processor time of a call; lateness, drift; seconds\n"
    "until all have ended. They are due one after the other, or all at once. 10000 may be more\n"
    "than a processor can do: a call is one that was made. 10000 of 50 us are far too many.\n"
    "baseline: loop.call_at() for each, which starts a task, keeps it until it is done, and sets\n"
    "the next timer. svcrun: a PeriodicCallback for each.\n"
    "Cron expressions, in Europe/Berlin: processor time to find the next time.\n"
    "baseline: croniter with datetimes in that zone",
    cases,
)
