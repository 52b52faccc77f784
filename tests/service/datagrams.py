"""UDP servers and their clients for the tests."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

from svcrun.service import UDPServer
from tests.support import PATIENCE, eventually


class Echo(UDPServer):
    """A server that sends each datagram back."""

    async def handle_datagram(self, data: bytes, addr: Any) -> None:
        self.sendto(data, addr)


@contextlib.asynccontextmanager
async def running(server: UDPServer) -> AsyncIterator[UDPServer]:
    """Start a server for the block, and stop it after."""
    server.set_loop(asyncio.get_running_loop())
    await server.start()
    try:
        yield server
    finally:
        await asyncio.wait_for(server.stop(), PATIENCE)


@contextlib.contextmanager
def client(server: UDPServer) -> Iterator[socket.socket]:
    """Connect a socket to a server."""
    family = socket.AF_INET6 if ":" in str(server.address) else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect((server.address, server.port))
        yield sock


async def ask(sock: socket.socket, data: bytes) -> bytes:
    """Send a datagram and return the answer."""
    sock.send(data)
    answers: list[bytes] = []

    def receive() -> bool:
        with contextlib.suppress(BlockingIOError):
            answers.append(sock.recv(65_536))
        return bool(answers)

    await eventually(receive)
    return answers[0]
