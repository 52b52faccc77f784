"""Shutdown: the time from SIGTERM to the exit of the process."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from benchmarks.cases import BASELINE, Budget, Case, Job, Metric, Sample, Target
from benchmarks.processes import Program, program

CONNECTIONS = 1_000
SERVICES = 1_000

# The ways in which the baseline ends its connections.
WRITERS, HANDLERS = "close writers", "cancel handlers"


def cases(budget: Budget) -> Sequence[Case]:
    connections = budget.amount(CONNECTIONS, least=10)
    services = budget.amount(SERVICES, least=10)
    jobs = [
        Job((WRITERS, connections), metrics(f"{connections} connections", 0.3), turns=2),
        Job(
            (HANDLERS, connections), metrics(f"{connections} connections, cancelled", 0.3), turns=2
        ),
        Job((None, services), metrics(f"{services} services", 1.5), turns=2),
    ]
    return [
        Case(
            "shutdown",
            loop,
            {side: partial(start, budget, side, loop) for side in budget.sides("aiomisc")},
            jobs,
        )
        for loop in budget.loops
    ]


def metrics(name: str, limit: float) -> Sequence[Metric]:
    return [Metric(name, limit, "cpu"), Metric(f"{name}, wall clock", None, "wall")]


@contextlib.contextmanager
def start(budget: Budget, side: str, loop: str) -> Iterator[Sample]:
    def sample(job: tuple[str | None, int]) -> Mapping[str, float]:
        way, number = job
        if way is None:
            return end_services(budget, side, loop, number)
        return end_server(budget, side, loop, way, number)

    yield sample


def end_server(
    budget: Budget, side: str, loop: str, way: str, connections: int
) -> Mapping[str, float]:
    with serve(budget, side, loop, way) as server:
        (port,) = server.answer()
        with program(budget.python, "idle_clients", port=port, connections=connections) as clients:
            clients.answer()
            return end(server)


def serve(budget: Budget, side: str, loop: str, way: str) -> Program:
    if side == BASELINE:
        return program(budget.python, "orderly_server", loop=loop, way=way)
    return program(budget.python, "stream_server", side=side, loop=loop, handlers=["drained lines"])


def end_services(budget: Budget, side: str, loop: str, services: int) -> Mapping[str, float]:
    with program(budget.python, "services", side=side, loop=loop, services=services) as running:
        running.answer()
        return end(running)


def end(running: Program) -> Mapping[str, float]:
    cpu, wall = running.terminate()
    return {"cpu": cpu, "wall": wall}


TARGET = Target(
    "shutdown",
    "Processor time from SIGTERM to the end of the process, that of the interpreter included.\n"
    "baseline with idle connections: an asyncio.start_server() program that closes its listener\n"
    'and all writers at once, then waits for the writers and the handlers; if "cancelled", one\n'
    "whose handlers are cancelled by asyncio.Runner, and each closes its writer and waits for it.\n"
    "baseline with services, whose start() runs on: an asyncio.Runner that only waits for SIGTERM",
    cases,
)
