"""Start-up: what the imports cost, each in a fresh interpreter."""

import statistics
from collections.abc import Sequence
from functools import partial

from benchmarks.cases import BASELINE, SVCRUN, Budget, Case, Metric, Target
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
    metrics = (
        Metric("names", "from svcrun import entrypoint, Service", 1.10),
        Metric("package", "import svcrun", 0.50),
        Metric("program", "imports, and one service from start to end"),
    )
    sides = {side: partial(measure, budget, side) for side in budget.sides("aiomisc")}
    return [Case("import", "", sides, metrics)]


def measure(budget: Budget, side: str) -> dict[str, float]:
    return {
        key: statistics.median(
            cost(budget.python, statements[side]) for _ in range(budget.repeats(5))
        )
        for key, statements in STATEMENTS.items()
    }


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
