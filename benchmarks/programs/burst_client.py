"""Connect many clients at once, and measure the time until each has its line back."""

import select
import socket
import time

from benchmarks.programs.protocol import answer, requests, run

LINE = b"x" * 63 + b"\n"


def main(port: int) -> None:
    """Run the requested bursts, and answer each with its seconds."""
    for clients in requests():
        answer(burst(port, clients))


def burst(port: int, number: int) -> float:
    clients = [socket.socket() for _ in range(number)]
    by_fd = {client.fileno(): client for client in clients}
    with select.epoll() as poll:
        for client in clients:
            client.setblocking(False)
        began = time.perf_counter()
        for client in clients:
            client.connect_ex(("127.0.0.1", port))
            poll.register(client, select.EPOLLOUT)
        served = 0
        while served < number:
            events = poll.poll(30)
            if not events:
                raise TimeoutError(f"{served} of {number} clients were served")
            for fd, event in events:
                client = by_fd[fd]
                if event & select.EPOLLIN:
                    client.recv(4096)
                    poll.unregister(fd)
                    served += 1
                else:
                    client.send(LINE)
                    poll.modify(fd, select.EPOLLIN)
        elapsed = time.perf_counter() - began
    for client in clients:
        client.close()
    return elapsed


if __name__ == "__main__":
    run(main)
