"""Many idle connections: the memory of each, and the time that their server takes to stop."""

import contextlib
import resource
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from benchmarks.cases import BASELINE, Budget, Case, Job, Metric, Sample, Target, Unavailable
from benchmarks.processes import Program, program

CONNECTIONS = 10_000
CLIENTS = 4  # processes

# As few connections take so little memory that the measurement says nothing.
LEAST = 400

# Descriptors of a server besides its connections.
OTHERS = 100

MEMORY_LIMIT = 0.71
STOP_BOUND = 2.0  # seconds

MEMORY, STOP = "memory", "stop"


def cases(budget: Budget) -> Sequence[Case]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = CONNECTIONS if hard == resource.RLIM_INFINITY else hard - OTHERS
    number = min(budget.amount(CONNECTIONS, least=LEAST), most)
    if number < LEAST:
        raise Unavailable(f"a process may open only {hard} files: raise the hard limit")
    jobs = [
        Job((MEMORY, number), [Metric(f"memory of 1 of {number}", MEMORY_LIMIT, unit="B")], 1),
        Job((STOP, number), [Metric(f"end of {number}", key="end", bound=STOP_BOUND)], 1),
    ]
    sides = budget.sides("aiomisc")
    return [
        Case(
            "connections", loop, {side: partial(start, budget, side, loop) for side in sides}, jobs
        )
        for loop in budget.loops
    ]


@contextlib.contextmanager
def start(budget: Budget, side: str, loop: str) -> Iterator[Sample]:
    def sample(job: tuple[str, int]) -> Mapping[str, float]:
        subject, connections = job
        with serve(budget, side, loop, subject) as server:
            (port,) = server.answer()
            with clients(budget, port, CLIENTS):  # a warm-up
                pass
            before = server.memory()
            with clients(budget, port, connections):
                if subject == MEMORY:
                    return {"cost": (server.memory() - before) / connections}
                return {"end": server.terminate()[1]}

    yield sample


def serve(budget: Budget, side: str, loop: str, subject: str) -> Program:
    if side == BASELINE and subject == STOP:
        return program(budget.python, "orderly_server", loop=loop, way="close writers")
    return program(budget.python, "stream_server", side=side, loop=loop, handlers=["drained lines"])


@contextlib.contextmanager
def clients(budget: Budget, port: int, connections: int) -> Iterator[None]:
    """Hold so many connections for the block, each of which was served."""
    with contextlib.ExitStack() as stack:
        programs = [
            stack.enter_context(
                program(
                    budget.python,
                    "idle_clients",
                    port=port,
                    connections=connections // CLIENTS + (number < connections % CLIENTS),
                )
            )
            for number in range(CLIENTS)
        ]
        for one in programs:
            one.answer()
        yield


TARGET = Target(
    "connections",
    "Memory that the server takes for an idle connection, whose first line was echoed, and the\n"
    f"time from SIGTERM to the end of the process. The clients are in {CLIENTS} processes.\n"
    "baseline of the memory: asyncio.start_server() with the same handler\n"
    "baseline of the end: one that closes its listener and all writers, and waits for them",
    cases,
)
