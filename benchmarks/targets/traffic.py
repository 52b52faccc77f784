"""What the targets of servers share: the clients are in one process, the server is in another."""

import time
from collections.abc import Mapping
from typing import Any

from benchmarks.processes import Program


def cost(server: Program, client: Program, request: Any, operations: int) -> Mapping[str, float]:
    """Have *client* do as asked, and return what one of its *operations* takes.

    ``"cost"`` is the processor time of the server, ``"elapsed"`` is what the clock says.
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
    """Say how many there are."""
    return f"{number} connection" if number == 1 else f"{number} connections"
