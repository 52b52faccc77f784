"""Reports of a flood of errors: the cost of one, and the loop lag."""

import contextlib
from collections.abc import Iterator, Sequence
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
from benchmarks.processes import program

LIMIT = 0.3

LATEST = 0.05
"""The maximum of the loop lag, in seconds."""

# Each service, its baseline, the library that both need, and the number of exceptions: sentry-sdk
# takes long for each.
PAIRS = (
    ("RavenSender", "raven", "raven", 10_000),
    ("SentrySender", "sentry-sdk", "sentry_sdk", 2_000),
)


def cases(budget: Budget) -> Iterator[Case]:
    with program(budget.python, "about", libraries=[needs for _, _, needs, _ in PAIRS]) as about:
        there = about.answer()["libraries"]
    for service, baseline, needs, exceptions in PAIRS:
        if needs not in there:
            raise Unavailable(f"{needs} is not installed for {budget.python}")
        for loop in budget.loops:
            yield Case(
                "reports",
                loop,
                {
                    BASELINE: partial(start, budget, baseline, loop),
                    SVCRUN: partial(start, budget, service, loop),
                },
                [Job(budget.amount(exceptions, least=20), metrics(service), turns=1)],
            )


def metrics(service: str) -> Sequence[Metric]:
    return [
        Metric(f"{service}: a log.exception()", LIMIT, "cost"),
        Metric(f"{service}: the maximum lag", None, "late", LATEST),
    ]


@contextlib.contextmanager
def start(budget: Budget, side: str, loop: str) -> Iterator[Sample]:
    with program(budget.python, "reports", side=side, loop=loop) as running:
        running.ask(20)  # a warm-up
        yield running.ask


TARGET = Target(
    "reports",
    "Exceptions that a coroutine logs, 10 000 in a second if it gets to it: processor time of the\n"
    "loop's thread for each, and the longest time by which a timer of another coroutine was late.\n"
    "The log has no other handler.\n"
    "baseline: the library's own handler, which makes the event in the log call; it is not sent",
    cases,
)
