"""Send lines on many connections and wait for them to come back; one line under way on each."""

import select
import socket
import ssl

from benchmarks.programs.protocol import answer, run, wait

LINE = b"x" * 63 + b"\n"


def main(port: int, connections: int, trips: int, tls: bool = False) -> None:
    clients = [connect(port, tls=tls) for _ in range(connections)]
    exchange(clients, max(trips // 5, connections))
    answer("warm")
    wait()
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
