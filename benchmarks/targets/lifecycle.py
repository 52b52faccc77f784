"""The life of services: what it costs to make, start and stop N of them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.cases import Budget, Case, Metric, Target
from benchmarks.processes import ask

SIZES = (1, 10, 100, 1_000, 10_000)

LIMITS = {
    "returns": {1: 1.5, 100: 1.0, 1_000: 1.0, 10_000: 1.0},
    "runs on": dict.fromkeys(SIZES, 1.6),
}


def cases(budget: Budget) -> Sequence[Case]:
    sizes = [size for size in SIZES if size <= max(100_000 * budget.scale, 10)]
    return [
        Case(
            "lifecycle",
            loop,
            {side: partial(measure, budget, side, kind, loop, sizes) for side in sides},
            [
                *(Metric(str(size), name(size, kind), limits.get(size)) for size in sizes),
                Metric("first", f"{name(1, kind)}, first in the process"),
            ],
        )
        for sides in [budget.sides("aiomisc")]
        for kind, limits in LIMITS.items()
        for loop in budget.loops
    ]


def measure(budget: Budget, side: str, kind: str, loop: str, sizes: Sequence[int]) -> Any:
    return ask(
        budget.python, "lifecycle", side=side, kind=kind, loop=loop, sizes=sizes, scale=budget.scale
    )


def name(size: int, kind: str) -> str:
    return f"{size:_} start() {kind}".replace("_", " ")


TARGET = Target(
    "lifecycle",
    "Processor time of the whole life of N services: N objects made, the loop made, start() and\n"
    "stop() of all called and waited for, the loop closed.\n"
    "baseline: asyncio.Runner; N plain objects; gather() of the start() coroutines, then gather()\n"
    "of the stop() coroutines. If start() runs on (it sets an event and sleeps): one turn of the\n"
    "loop between the two, and afterwards the gathered start() are cancelled and awaited.\n"
    "svcrun: `with entrypoint(*services): pass`, with its logging, signal handlers, time limits",
    cases,
)
