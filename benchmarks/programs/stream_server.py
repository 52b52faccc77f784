"""A server of TCP or TLS clients, the same handlers on all sides; it runs until it is told to end."""

import asyncio
import importlib
import socket
import ssl
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
    """Send every line back, and wait until it may go on writing."""

    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve one client."""
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
        writer.close()


class Chunks:
    """Send back whatever comes."""

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


def baseline(handler: str, loop: str, certificate: dict[str, str] | None) -> None:
    """Serve with ``asyncio.start_server()`` and its defaults."""

    async def serve() -> None:
        context = None
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.load_cert_chain(certificate["cert"], certificate["key"])
        server = await asyncio.start_server(HANDLERS[handler]().handle_client, HOST, 0, ssl=context)
        answer({"port": server.sockets[0].getsockname()[1]})
        await server.serve_forever()

    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        runner.run(serve())


def svcrun(handler: str, loop: str, certificate: dict[str, str] | None) -> None:
    """Serve with a service of svcrun and its defaults."""
    from svcrun import entrypoint
    from svcrun.service import TCPServer, TLSServer

    base = TCPServer if certificate is None else TLSServer
    kind: Any = type("Server", (HANDLERS[handler], base), {})
    service = kind(address=HOST, port=0, **certificate or {})
    with entrypoint(service, loop_factory=loop_factory(loop)) as running:
        answer({"port": service.port})
        running.run_forever()


def aiomisc(handler: str, loop: str, certificate: dict[str, str] | None) -> None:
    """Serve with a service of aiomisc and its defaults."""
    library = importlib.import_module("aiomisc")
    services = importlib.import_module("aiomisc.service")
    base = services.TCPServer if certificate is None else services.TLSServer
    kind: Any = type("Server", (HANDLERS[handler], base), {})
    sock = socket.create_server((HOST, 0), backlog=1024)
    service = kind(address=HOST, port=sock.getsockname()[1], sock=sock, **certificate or {})
    with library.entrypoint(service, loop_factory=loop_factory(loop)) as running:
        answer({"port": sock.getsockname()[1]})
        running.run_forever()


def main(side: str, handler: str, loop: str, certificate: dict[str, str] | None = None) -> None:
    serve = {"baseline": baseline, "svcrun": svcrun, "aiomisc": aiomisc}[side]
    serve(handler, loop, certificate)


if __name__ == "__main__":
    run(main)
