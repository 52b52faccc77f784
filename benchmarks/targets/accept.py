"""Accepting: the cost of a connection, from its beginning to its end."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from benchmarks.cases import Budget, Case, Job, Metric, Sample, Target
from benchmarks.processes import program
from benchmarks.targets.traffic import cost

LIMIT = 0.90
CONNECTIONS = 256

NAMES = {"nothing": "connect, be disconnected", "one line": "connect, one line, be disconnected"}


def cases(budget: Budget) -> Sequence[Case]:
    jobs = [Job(handler, [Metric(name, LIMIT)]) for handler, name in NAMES.items()]
    return [
        Case(
            "accept",
            loop,
            {side: partial(start, budget, side, loop) for side in budget.sides("aiomisc")},
            jobs,
        )
        for loop in budget.loops
    ]


@contextlib.contextmanager
def start(budget: Budget, side: str, loop: str) -> Iterator[Sample]:
    handlers = list(NAMES)
    connections = budget.amount(CONNECTIONS, least=32)
    with (
        program(budget.python, "stream_server", side=side, loop=loop, handlers=handlers) as server,
        program(budget.python, "connect_client") as client,
    ):
        ports = dict(zip(handlers, server.answer(), strict=True))

        def sample(handler: str) -> Mapping[str, float]:
            request = (ports[handler], connections, handler == "one line")
            return cost(server, client, request, connections)

        for handler in handlers:
            sample(handler)  # a warm-up
        yield sample


TARGET = Target(
    "accept",
    "Processor time that the server takes for a connection; 32 clients come at a time, and the\n"
    "server closes it.\n"
    "baseline: asyncio.start_server() with the same handler",
    cases,
)
