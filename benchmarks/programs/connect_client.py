"""Connect repeatedly, with one line or none, until the server closes each connection."""

import socket

from benchmarks.programs.protocol import answer, requests, run

LINE = b"x" * 63 + b"\n"

# The number of clients that connect at the same time.
GROUP = 32


def main() -> None:
    """Make the requested number of connections to a port, with a line or without."""
    for port, connections, sends in requests():
        visit(port, connections, LINE if sends else b"")
        answer("done")


def visit(port: int, connections: int, line: bytes) -> None:
    for done in range(0, connections, GROUP):
        group = [
            socket.create_connection(("127.0.0.1", port), timeout=30)
            for _ in range(min(GROUP, connections - done))
        ]
        for client in group:
            if line:
                client.sendall(line)
        for client in group:
            received = b""
            while data := client.recv(4096):
                received += data
            if received != line:
                raise RuntimeError(f"received {received!r} in place of {line!r}")
            client.close()


if __name__ == "__main__":
    run(main)
