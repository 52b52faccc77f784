"""The life of services: the cost to create, start and stop N of them."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.cases import Budget, Case, Job, Metric, Sample, Target
from benchmarks.processes import program

# By the number of services: the number of entrypoints in one measurement, and that of turns.
LIVES = {1: 20, 10: 15, 100: 5, 1_000: 1, 10_000: 1}
TURNS = {1: 10, 10: 5, 100: 5, 1_000: 5, 10_000: 2}

LIMITS = {
    "returns": {1: 1.5, 100: 1.0, 1_000: 1.0, 10_000: 1.0},
    "runs on": dict.fromkeys(LIVES, 1.6),
}


def cases(budget: Budget) -> Sequence[Case]:
    return [
        Case(
            "lifecycle",
            loop,
            {side: partial(start, budget, side, kind, loop) for side in budget.sides("aiomisc")},
            list(jobs(budget, kind)),
        )
        for kind in LIMITS
        for loop in budget.loops
    ]


def jobs(budget: Budget, kind: str) -> Iterator[Job]:
    yield Job((1, 1), [Metric(f"{name(1, kind)}, first in the process")], turns=1)
    for number, lives in LIVES.items():
        if number <= max(100_000 * budget.scale, 10):
            metric = Metric(name(number, kind), LIMITS[kind].get(number))
            # Never one alone of the smallest: the first one was that.
            least = 2 if number == 1 else 1
            yield Job((number, budget.amount(lives, least=least)), [metric], TURNS[number])


@contextlib.contextmanager
def start(budget: Budget, side: str, kind: str, loop: str) -> Iterator[Sample]:
    with program(budget.python, "lifecycle", side=side, kind=kind, loop=loop) as running:
        yield lambda job: {"cost": running.ask(job)}


def name(number: int, kind: str) -> str:
    return f"{number:_} start() {kind}".replace("_", " ")


TARGET = Target(
    "lifecycle",
    "Processor time of the whole life of N services: N objects made, the loop made, start() and\n"
    "stop() of all called and waited for, the loop closed.\n"
    "baseline: asyncio.Runner; N plain objects; gather() of the start() coroutines, then gather()\n"
    "of the stop() coroutines. If start() runs on (it sets an event and sleeps): one turn of the\n"
    "loop between the two, and afterwards the gathered start() are cancelled and awaited.\n"
    "svcrun: `with entrypoint(*services): pass`, with its logging, signal handlers, time limits",
    cases,
)
