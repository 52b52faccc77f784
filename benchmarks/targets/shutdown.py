"""The end: how long it takes from SIGTERM to the exit of the process."""

from collections.abc import Sequence
from functools import partial

from benchmarks.cases import BASELINE, SVCRUN, Budget, Case, Metric, Target
from benchmarks.processes import Program, program

CONNECTION_LIMIT = 0.3
SERVICE_LIMIT = 1.5
CONNECTIONS = 1_000
SERVICES = 1_000


def cases(budget: Budget) -> Sequence[Case]:
    connections = budget.repeats(CONNECTIONS, least=10)
    services = budget.repeats(SERVICES, least=10)
    made = []
    for loop in budget.loops:
        sides = {
            side: partial(measure_server, budget, side, loop, connections)
            for side in budget.sides("aiomisc")
        }
        name = f"{connections} idle connections"
        made.append(Case("shutdown", loop, sides, metrics(name, CONNECTION_LIMIT)))
        for kind in ("returns", "runs on"):
            sides = {
                side: partial(measure_services, budget, side, loop, kind, services)
                for side in budget.sides("aiomisc")
            }
            name = f"{services} services, start() {kind}"
            made.append(Case("shutdown", loop, sides, metrics(name, SERVICE_LIMIT)))
    return made


def metrics(name: str, limit: float) -> Sequence[Metric]:
    return [Metric("cpu", name, limit), Metric("wall", f"{name}, wall clock")]


def measure_server(budget: Budget, side: str, loop: str, connections: int) -> dict[str, float]:
    with (
        serve(budget, side, loop) as server,
        program(
            budget.python, "idle_clients", port=server.answer()["port"], connections=connections
        ) as clients,
    ):
        clients.answer()
        return end(server)


def serve(budget: Budget, side: str, loop: str) -> Program:
    if side == BASELINE:
        return program(budget.python, "orderly_server", loop=loop)
    return program(budget.python, "stream_server", side=side, loop=loop, handler="drained lines")


def measure_services(
    budget: Budget, side: str, loop: str, kind: str, services: int
) -> dict[str, float]:
    with program(
        budget.python, "services", side=side, loop=loop, kind=kind, services=services
    ) as running:
        running.answer()
        return end(running)


def end(running: Program) -> dict[str, float]:
    cpu, wall = running.terminate()
    return {"cpu": cpu, "wall": wall}


TARGET = Target(
    "shutdown",
    "Time from SIGTERM to the end of the process, that of the interpreter included.\n"
    "baseline: with connections, an asyncio.start_server() program that closes the listener and\n"
    "every writer, then waits for all writers and all handlers; with services, an asyncio.run() of\n"
    "nothing but waiting for SIGTERM",
    cases,
)
