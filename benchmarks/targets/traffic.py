"""Common code of the targets of servers: clients in one process, the server in another."""

import time
from collections.abc import Mapping
from typing import Any

from benchmarks.processes import Program


def cost(server: Program, client: Program, request: Any, operations: int) -> Mapping[str, float]:
    """Run the operations of a client's request, and return the cost of each of *operations*.

    ``"cost"`` is the processor time of the server, ``"elapsed"`` the wall-clock time.
    """
    before = server.cpu_time()
    began = time.perf_counter()
    client.ask(request)
    elapsed = time.perf_counter() - began
    return {
        "cost": (server.cpu_time() - before) / operations,
        "elapsed": elapsed / operations,
    }


def connections(number: int) -> str:
    """Name the number of connections."""
    return f"{number} connection" if number == 1 else f"{number} connections"
