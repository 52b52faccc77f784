"""UDP: what a datagram costs the server."""

from collections.abc import Sequence
from functools import partial

from benchmarks.cases import Budget, Case, Metric, Target
from benchmarks.processes import program
from benchmarks.targets.traffic import cost

# Three times the throughput is a third of the cost: a server that is never out of datagrams handles
# as many in a second as that has time for.
LIMITS = {"stock": 1 / 3, "uvloop": 1.2}
DATAGRAMS = 32_000


def cases(budget: Budget) -> Sequence[Case]:
    return [
        Case(
            "udp",
            loop,
            {side: partial(measure, budget, side, loop) for side in budget.sides("aiomisc")},
            [Metric("cost", "a datagram", LIMITS[loop])],
        )
        for loop in budget.loops
    ]


def measure(budget: Budget, side: str, loop: str) -> dict[str, float]:
    datagrams = budget.repeats(DATAGRAMS, least=640)
    with program(budget.python, "datagram_server", side=side, loop=loop) as server:
        client = program(
            budget.python, "datagram_client", port=server.answer()["port"], datagrams=datagrams
        )
        return {"cost": cost(server, client, datagrams)}


TARGET = Target(
    "udp",
    "Processor time that the server takes for a datagram of 64 bytes, with up to 192 of them under\n"
    "way; the handler counts, and answers every 32nd.\n"
    "baseline: a DatagramProtocol of asyncio, whose datagram_received() does the same.\n"
    "On the stock loop the target is three times the throughput, so a third of the cost",
    cases,
)
