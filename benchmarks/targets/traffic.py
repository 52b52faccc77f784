"""What the targets of servers share: clients in one process, what they cost the server in another."""

from benchmarks.processes import Program


def cost(server: Program, client: Program, operations: int) -> float:
    """Have *client* do its work, and return what one of so many *operations* costs the server."""
    with client:
        client.answer()  # it has warmed up
        before = server.cpu_time()
        client.go()
        client.answer()
        return (server.cpu_time() - before) / operations
