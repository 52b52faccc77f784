"""Hold idle connections open."""

import socket
import sys

from benchmarks.programs.protocol import answer, run


def main(port: int, connections: int) -> None:
    clients = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(connections)]
    # After the echo of a line, each connection is accepted and its handler waits for more.
    for client in clients:
        client.sendall(b"hello\n")
    for client in clients:
        client.recv(100)
    answer("connected")
    sys.stdin.read()


if __name__ == "__main__":
    run(main)
