"""Datagram servers that count datagrams, and answer those that request it."""

import asyncio
import importlib
import socket
from typing import Any

from benchmarks.programs.protocol import answer, loop_factory, run

HOST = "127.0.0.1"
ASK = b"answer me"


class Counter:
    """The handler of the services: a coroutine that never waits."""

    seen = 0

    async def handle_datagram(self, data: bytes, addr: Any) -> None:
        """Handle one datagram."""
        self.seen += 1
        if data == ASK:
            self.sendto(data, addr)  # type: ignore[attr-defined]  # the service has it


class PlainCounter(asyncio.DatagramProtocol):
    """The same as a protocol of asyncio."""

    seen = 0
    transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport  # type: ignore[assignment]  # it is one of datagrams

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Handle one datagram."""
        self.seen += 1
        if data == ASK:
            self.transport.sendto(data, addr)


def baseline(loop: str) -> None:
    """Serve with ``loop.create_datagram_endpoint()``."""

    async def serve() -> None:
        running = asyncio.get_running_loop()
        transport, _ = await running.create_datagram_endpoint(PlainCounter, (HOST, 0))
        answer(transport.get_extra_info("sockname")[1])
        await running.create_future()

    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        runner.run(serve())


def svcrun(loop: str) -> None:
    """Serve with a service of svcrun and its defaults."""
    from svcrun import entrypoint
    from svcrun.service import UDPServer

    kind: Any = type("Server", (Counter, UDPServer), {})
    service = kind(address=HOST, port=0)
    with entrypoint(service, loop_factory=loop_factory(loop)) as running:
        answer(service.port)
        running.run_forever()


def aiomisc(loop: str) -> None:
    """Serve with a service of aiomisc and its defaults."""
    library = importlib.import_module("aiomisc")
    services = importlib.import_module("aiomisc.service")
    kind: Any = type("Server", (Counter, services.UDPServer), {})
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind((HOST, 0))
    service = kind(address=HOST, port=sock.getsockname()[1], sock=sock)
    with library.entrypoint(service, loop_factory=loop_factory(loop)) as running:
        answer(sock.getsockname()[1])
        running.run_forever()


def main(side: str, loop: str) -> None:
    {"baseline": baseline, "svcrun": svcrun, "aiomisc": aiomisc}[side](loop)


if __name__ == "__main__":
    run(main)
