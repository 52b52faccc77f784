"""Hold connections open on which nothing happens."""

import socket
import sys

from benchmarks.programs.protocol import answer, run


def main(port: int, connections: int) -> None:
    clients = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(connections)]
    # Each has been accepted and its handler waits for more when it has had a line back.
    for client in clients:
        client.sendall(b"hello\n")
    for client in clients:
        client.recv(100)
    answer("connected")
    sys.stdin.read()


if __name__ == "__main__":
    run(main)
