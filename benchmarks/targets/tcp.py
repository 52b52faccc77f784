"""TCP echo: what a round trip costs the server."""

from collections.abc import Sequence
from functools import partial

from benchmarks.cases import Budget, Case, Metric, Target
from benchmarks.processes import program
from benchmarks.targets.traffic import cost

LIMIT = 0.85
CONNECTIONS = (1, 64, 512)
TRIPS = 6_000


def cases(budget: Budget) -> Sequence[Case]:
    lines = [
        Metric(str(number), f"lines, {number} connection{'s' * (number > 1)}", LIMIT)
        for number in CONNECTIONS
    ]
    others = {
        "drained lines": "lines and drain(), 64 connections",
        "chunks": "read() and write(), 64 connections",
    }
    made = []
    for loop in budget.loops:
        sides = {
            side: partial(measure, budget, side, loop, "lines", CONNECTIONS)
            for side in budget.sides("aiomisc")
        }
        made.append(Case("tcp", loop, sides, lines))
        for handler, name in others.items():
            sides = {
                side: partial(measure, budget, side, loop, handler, (64,))
                for side in budget.sides("aiomisc")
            }
            made.append(Case("tcp", loop, sides, [Metric("64", name, LIMIT)]))
    return made


def measure(
    budget: Budget, side: str, loop: str, handler: str, connections: Sequence[int]
) -> dict[str, float]:
    trips = budget.repeats(TRIPS, least=100)
    found = {}
    with program(budget.python, "stream_server", side=side, loop=loop, handler=handler) as server:
        port = server.answer()["port"]
        for number in connections:
            client = program(
                budget.python, "echo_client", port=port, connections=number, trips=trips
            )
            found[str(number)] = cost(server, client, trips)
    return found


TARGET = Target(
    "tcp",
    "Processor time that the server takes for a round trip: a client in another process sends a\n"
    "line of 64 bytes on one of its connections and has it sent back.\n"
    "baseline: asyncio.start_server() with the same handler",
    cases,
)
