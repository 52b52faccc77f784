"""Send datagrams as fast as the server handles them, so that it never waits for one."""

import socket

from benchmarks.programs.datagram_server import ASK
from benchmarks.programs.protocol import answer, requests, run

DATA = b"x" * 64

# One datagram in so many requests an answer, and so many answers may be pending. All datagrams in
# flight fit into a receive buffer of the default size, so none is lost.
GROUP = 32
OWED = 6


def main(port: int) -> None:
    """Send the requested number of datagrams."""
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", port))
        client.settimeout(30)
        for datagrams in requests():
            send(client, datagrams)
            answer("done")


def send(client: socket.socket, datagrams: int) -> None:
    owed = 0
    for _ in range(datagrams // GROUP):
        for _ in range(GROUP - 1):
            client.send(DATA)
        client.send(ASK)
        owed += 1
        if owed == OWED:
            client.recv(4096)
            owed -= 1
    for _ in range(owed):
        client.recv(4096)


if __name__ == "__main__":
    run(main)
