"""UDP: the cost of a datagram."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.cases import Budget, Case, Job, Metric, Sample, Target
from benchmarks.processes import program
from benchmarks.targets.traffic import cost

# Three times the throughput is a third of the cost, because the server never waits for a datagram.
LIMITS = {"stock": 1 / 3, "uvloop": 1.2}
DATAGRAMS = 3_200


def cases(budget: Budget) -> Sequence[Case]:
    datagrams = budget.amount(DATAGRAMS, least=640)
    return [
        Case(
            "udp",
            loop,
            {side: partial(start, budget, side, loop) for side in budget.sides("aiomisc")},
            [Job(datagrams, [Metric("a datagram", LIMITS[loop])])],
        )
        for loop in budget.loops
    ]


@contextlib.contextmanager
def start(budget: Budget, side: str, loop: str) -> Iterator[Sample]:
    with program(budget.python, "datagram_server", side=side, loop=loop) as server:
        port = server.answer()
        with program(budget.python, "datagram_client", port=port) as client:
            client.ask(640)  # a warm-up
            yield lambda datagrams: cost(server, client, datagrams, datagrams)


TARGET = Target(
    "udp",
    "Processor time that the server takes for a datagram of 64 bytes, with up to 192 of them\n"
    "in flight; the handler counts, and answers every 32nd.\n"
    "baseline: a DatagramProtocol of asyncio, whose datagram_received() does the same.\n"
    "On the stock loop the target is three times the throughput, so a third of the cost",
    cases,
)
