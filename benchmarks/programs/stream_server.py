"""TCP and TLS servers, with the same handlers on all sides; they run until they are killed.

The answer is the list of their ports, one for each handler.
"""

import asyncio
import importlib
import socket
import ssl
from collections.abc import Sequence
from typing import Any

from benchmarks.programs.protocol import answer, loop_factory, run

HOST = "127.0.0.1"


class Lines:
    """Send every line back."""

    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve one client."""
        while line := await reader.readline():
            writer.write(line)
        writer.close()


class DrainedLines:
    """Send every line back, and wait until the writer has room."""

    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve one client."""
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
        writer.close()


class Chunks:
    """Send all data back."""

    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve one client."""
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()


class OneLine:
    """Send one line back and close."""

    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve one client."""
        writer.write(await reader.readline())
        writer.close()


class Nothing:
    """Close at once."""

    async def handle_client(
        self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve one client."""
        writer.close()


HANDLERS: dict[str, Any] = {
    "lines": Lines,
    "drained lines": DrainedLines,
    "chunks": Chunks,
    "one line": OneLine,
    "nothing": Nothing,
}


Certificate = dict[str, str]


def baseline(handlers: Sequence[str], loop: str, certificate: Certificate) -> None:
    """Serve with ``asyncio.start_server()`` and its defaults."""

    async def serve() -> None:
        context = None
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.load_cert_chain(certificate["cert"], certificate["key"])
        servers = [
            await asyncio.start_server(HANDLERS[handler]().handle_client, HOST, 0, ssl=context)
            for handler in handlers
        ]
        answer([server.sockets[0].getsockname()[1] for server in servers])
        await asyncio.get_running_loop().create_future()

    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        runner.run(serve())


def svcrun(handlers: Sequence[str], loop: str, certificate: Certificate) -> None:
    """Serve with services of svcrun and their defaults."""
    from svcrun import entrypoint
    from svcrun.service import TCPServer, TLSServer

    base = TLSServer if certificate else TCPServer
    services = [derive(base, handler)(address=HOST, port=0, **certificate) for handler in handlers]
    with entrypoint(*services, loop_factory=loop_factory(loop)) as running:
        answer([service.port for service in services])
        running.run_forever()


def aiomisc(handlers: Sequence[str], loop: str, certificate: Certificate) -> None:
    """Serve with services of aiomisc and their defaults."""
    library = importlib.import_module("aiomisc")
    kinds = importlib.import_module("aiomisc.service")
    base = kinds.TLSServer if certificate else kinds.TCPServer
    socks = [socket.create_server((HOST, 0), backlog=1024) for _ in handlers]
    ports = [sock.getsockname()[1] for sock in socks]
    services = [
        derive(base, handler)(address=HOST, port=port, sock=sock, **certificate)
        for handler, port, sock in zip(handlers, ports, socks, strict=True)
    ]
    with library.entrypoint(*services, loop_factory=loop_factory(loop)) as running:
        answer(ports)
        running.run_forever()


def derive(base: type, handler: str) -> Any:
    """Create a service class with one of the handlers."""
    return type("Server", (HANDLERS[handler], base), {})


def main(
    side: str, handlers: Sequence[str], loop: str, certificate: Certificate | None = None
) -> None:
    serve = {"baseline": baseline, "svcrun": svcrun, "aiomisc": aiomisc}[side]
    serve(handlers, loop, certificate or {})


if __name__ == "__main__":
    run(main)
