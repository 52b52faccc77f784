"""Send lines on many connections and wait for them to come back; one line under way on each."""

import select
import socket
import ssl

from benchmarks.programs.protocol import answer, requests, run

LINE = b"x" * 63 + b"\n"


def main(tls: bool = False) -> None:
    """Do as asked: a number of trips to a port, on a number of connections."""
    here: tuple[int, int] | None = None
    clients: list[socket.socket] = []
    for port, connections, trips in requests():
        if (port, connections) != here:
            for client in clients:
                client.close()
            here = (port, connections)
            clients = [connect(port, tls=tls) for _ in range(connections)]
        exchange(clients, trips)
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


def exchange(clients: list[socket.socket], trips: int) -> None:
    """Have so many lines come back, on all connections together."""
    by_fd = {client.fileno(): client for client in clients}
    started = 0
    finished = 0
    with select.epoll() as poll:
        for client in clients[:trips]:
            poll.register(client, select.EPOLLIN)
            client.sendall(LINE)
            started += 1
        while finished < trips:
            for fd, _ in poll.poll():
                client = by_fd[fd]
                if not client.recv(4096).endswith(b"\n"):
                    continue  # the rest is still to come
                finished += 1
                if started < trips:
                    client.sendall(LINE)
                    started += 1


if __name__ == "__main__":
    run(main)
