"""Send lines on many connections in waves, and wait for their echoes."""

import socket
import ssl

from benchmarks.programs.protocol import answer, requests, run

LINE = b"x" * 63 + b"\n"


def main(tls: bool = False) -> None:
    """Send the requested number of waves to a port, on a number of connections."""
    here: tuple[int, int] | None = None
    clients: list[socket.socket] = []
    for port, connections, waves in requests():
        if (port, connections) != here:
            for client in clients:
                client.close()
            here = (port, connections)
            clients = [connect(port, tls=tls) for _ in range(connections)]
        exchange(clients, waves)
        answer("done")


def connect(port: int, *, tls: bool) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        client = context.wrap_socket(client)
    return client


def exchange(clients: list[socket.socket], waves: int) -> None:
    """Send a line on each connection, then wait for all echoes; repeat.

    In waves, because a client that answers each line at once would let the faster server find fewer
    lines at each turn of its loop, and seem the slower one.
    """
    for _ in range(waves):
        for client in clients:
            client.sendall(LINE)
        for client in clients:
            received = b""
            while len(received) < len(LINE):
                data = client.recv(4096)
                if not data:
                    raise ConnectionError("the server closed a connection")
                received += data


if __name__ == "__main__":
    run(main)
