"""What the targets of servers share: the clients are in one process, the server is in another."""

from collections.abc import Mapping
from typing import Any

from benchmarks.processes import Program


def cost(server: Program, client: Program, request: Any, operations: int) -> Mapping[str, float]:
    """Have *client* do as asked, and return what one of its *operations* costs the server."""
    before = server.cpu_time()
    client.ask(request)
    return {"cost": (server.cpu_time() - before) / operations}


def connections(number: int) -> str:
    """Say how many there are."""
    return f"{number} connection" if number == 1 else f"{number} connections"
