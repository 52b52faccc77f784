"""Imports: the cost of each, in a fresh interpreter."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.cases import BASELINE, SVCRUN, Budget, Case, Job, Metric, Sample, Target
from benchmarks.processes import evaluate

ASYNCIO = "import asyncio, logging"

PLAIN_PROGRAM = """
import asyncio, logging
async def main(): pass
asyncio.run(main())
"""

SERVICE_PROGRAM = """
import asyncio, logging
from {library} import Service, entrypoint
class Nothing(Service):
    async def start(self): pass
with entrypoint(Nothing(), loop_factory=asyncio.new_event_loop): pass
"""

STATEMENTS = {
    "names": {
        BASELINE: ASYNCIO,
        SVCRUN: "from svcrun import entrypoint, Service",
        "aiomisc": "from aiomisc import entrypoint, Service",
    },
    "package": {BASELINE: ASYNCIO, SVCRUN: "import svcrun", "aiomisc": "import aiomisc"},
    "program": {
        BASELINE: PLAIN_PROGRAM,
        SVCRUN: SERVICE_PROGRAM.format(library="svcrun"),
        "aiomisc": SERVICE_PROGRAM.format(library="aiomisc"),
    },
}


def cases(budget: Budget) -> Sequence[Case]:
    turns = budget.amount(5)
    jobs = [
        Job("names", [Metric("from svcrun import entrypoint, Service", 1.10)], turns),
        Job("package", [Metric("import svcrun", 0.50)], turns),
        Job("program", [Metric("imports, and one service from start to end")], turns),
    ]
    sides = {side: partial(start, budget, side) for side in budget.sides("aiomisc")}
    return [Case("import", "", sides, jobs)]


@contextlib.contextmanager
def start(budget: Budget, side: str) -> Iterator[Sample]:
    yield lambda job: {"cost": cost(budget.python, STATEMENTS[job][side])}


def cost(python: str, statements: str) -> float:
    source = (
        f"import time\nbegan = time.process_time()\n{statements}\n"
        "print(time.process_time() - began)"
    )
    return float(evaluate([python, "-c", source]))


TARGET = Target(
    "import",
    "Processor time of imports in a fresh interpreter, with their bytecode there.\n"
    "baseline: import asyncio, logging; in the last line, asyncio.run() of nothing besides",
    cases,
)
