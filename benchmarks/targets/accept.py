"""Accepting: what a connection costs the server, from its coming to its end."""

from collections.abc import Sequence
from functools import partial

from benchmarks.cases import Budget, Case, Metric, Target
from benchmarks.processes import program
from benchmarks.targets.traffic import cost

LIMIT = 0.90
CONNECTIONS = 2_000

HANDLERS = {"nothing": "connect, be disconnected", "one line": "connect, one line, be disconnected"}


def cases(budget: Budget) -> Sequence[Case]:
    return [
        Case(
            "accept",
            loop,
            {
                side: partial(measure, budget, side, loop, handler)
                for side in budget.sides("aiomisc")
            },
            [Metric("cost", name, LIMIT)],
        )
        for loop in budget.loops
        for handler, name in HANDLERS.items()
    ]


def measure(budget: Budget, side: str, loop: str, handler: str) -> dict[str, float]:
    connections = budget.repeats(CONNECTIONS, least=100)
    with program(budget.python, "stream_server", side=side, loop=loop, handler=handler) as server:
        client = program(
            budget.python,
            "connect_client",
            port=server.answer()["port"],
            connections=connections,
            line=handler == "one line",
        )
        return {"cost": cost(server, client, connections)}


TARGET = Target(
    "accept",
    "Processor time that the server takes for a connection; 32 clients come at a time, and the\n"
    "server is the one who closes.\n"
    "baseline: asyncio.start_server() with the same handler",
    cases,
)
