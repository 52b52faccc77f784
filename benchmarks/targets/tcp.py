"""TCP echo: the cost of a round trip."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from benchmarks.cases import Budget, Case, Job, Metric, Sample, Target
from benchmarks.processes import program
from benchmarks.targets.traffic import connections, cost

LIMIT = 0.85
TRIPS = 1_024

# The measurements: a handler, and a number of connections.
JOBS = (("lines", 1), ("lines", 64), ("lines", 512), ("drained lines", 64), ("chunks", 64))

NAMES = {
    "lines": "readline, write",
    "drained lines": "readline, write, drain",
    "chunks": "read, write",
}


def cases(budget: Budget) -> Sequence[Case]:
    jobs = [
        Job((handler, number), [Metric(f"{NAMES[handler]}; {connections(number)}", LIMIT)])
        for handler, number in JOBS
    ]
    return [
        Case(
            "tcp",
            loop,
            {side: partial(start, budget, side, loop) for side in budget.sides("aiomisc")},
            jobs,
        )
        for loop in budget.loops
    ]


@contextlib.contextmanager
def start(budget: Budget, side: str, loop: str) -> Iterator[Sample]:
    handlers = list(NAMES)
    with (
        program(budget.python, "stream_server", side=side, loop=loop, handlers=handlers) as server,
        program(budget.python, "echo_client") as client,
    ):
        ports = dict(zip(handlers, server.answer(), strict=True))

        def sample(job: tuple[str, int]) -> Mapping[str, float]:
            handler, number = job
            waves = budget.amount(TRIPS // number)
            client.ask((ports[handler], number, 1))  # connects, where it is not connected yet
            return cost(server, client, (ports[handler], number, waves), waves * number)

        yield sample


TARGET = Target(
    "tcp",
    "Processor time that the server takes for a round trip: a client in another process sends a\n"
    "line of 64 bytes on each of its connections, has all of them sent back, and does it again.\n"
    "baseline: asyncio.start_server() with the same handler",
    cases,
)
