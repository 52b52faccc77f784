"""A TCP echo server that is profiled or traced; it runs until it is killed.

The answer is its port.
"""

import cProfile
import tracemalloc
from collections.abc import Callable
from typing import Any

from benchmarks.programs.protocol import answer, loop_factory, run
from benchmarks.programs.stream_server import HOST, Lines
from svcrun import Service, entrypoint
from svcrun.service import TCPServer
from svcrun.service.profiler import Profiler
from svcrun.service.tracer import MemoryTracer
from svcrun.service.watchdog import LoopWatchdog

# Seconds between two tables, so that there are some during the measurement.
INTERVAL = 1


class Echo(Lines, TCPServer):
    """Sends every line back."""


SERVICES: dict[str, Callable[[], Service]] = {
    "LoopWatchdog": LoopWatchdog,
    "MemoryTracer": lambda: MemoryTracer(interval=INTERVAL),
    "Profiler": lambda: Profiler(interval=INTERVAL),
}

BARE: dict[str, Callable[[], Any]] = {
    "tracemalloc": tracemalloc.start,
    "cProfile": lambda: cProfile.Profile().enable(),
}


def main(within: str, loop: str) -> None:
    """Serve with the service or the tool of that name active, or none."""
    echo = Echo(address=HOST, port=0)
    services = [SERVICES[within]()] if within in SERVICES else []
    with entrypoint(echo, *services, loop_factory=loop_factory(loop)) as running:
        if within in BARE:
            BARE[within]()
        answer(echo.port)
        running.run_forever()


if __name__ == "__main__":
    run(main)
