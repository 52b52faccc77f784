"""Hold idle connections open."""

import socket
import sys

from benchmarks.programs.protocol import answer, run


def main(port: int, connections: int) -> None:
    clients = []
    for _ in range(connections):
        client = socket.create_connection(("127.0.0.1", port), 30)
        clients.append(client)
        # After the echo of a line, the connection is accepted and its handler waits for more. More
        # connections at a time would be too many for the default backlog of asyncio.
        client.sendall(b"hello\n")
        if client.recv(100) != b"hello\n":
            raise RuntimeError("a connection was not served")
    answer("connected")
    sys.stdin.read()


if __name__ == "__main__":
    run(main)
