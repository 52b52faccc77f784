"""Servers and clients of byte streams for the tests, without TLS and with it."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from svcrun.service._stream import StreamServer
from svcrun.service.base import Service
from svcrun.service.tcp import TCPServer
from svcrun.service.tls import TLSServer
from tests.conftest import Certificates

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, Any]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Running = TypeVar("Running", bound=Service)


@contextlib.asynccontextmanager
async def running(service: Running) -> AsyncIterator[Running]:
    """Start a service for the block, and stop it after."""
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send each line back, as a careful handler does."""
    async for line in reader:
        writer.write(line)
        await writer.drain()


async def careless_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send each line back as the example of the manual does: for ever, and without drain()."""
    while True:
        writer.write(await reader.readline())


class Transport:
    """Create servers and clients with or without TLS.

    :param certificates: those of both sides for TLS, None for plain TCP.
    """

    def __init__(self, certificates: Certificates | None) -> None:
        self.certificates = certificates
        self.is_tls = certificates is not None

    def server(self, handler: Handler, /, **parameters: Any) -> TCPServer | TLSServer:
        """Return a server on a free port whose handler is `handler`."""

        async def handle_client(
            _: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> Any:
            return await handler(reader, writer)

        parameters = {"address": "127.0.0.1", "port": 0, **parameters}
        base: Any = TCPServer
        if self.certificates is not None:
            base = TLSServer
            parameters.setdefault("cert", self.certificates.server_cert)
            parameters.setdefault("key", self.certificates.server_key)
        made: Any = type("Server", (base,), {"handle_client": handle_client})(**parameters)
        return made  # type: ignore[no-any-return]

    def client_context(self) -> ssl.SSLContext | None:
        """Return the parameters of a client that trusts the server."""
        if self.certificates is None:
            return None
        return ssl.create_default_context(cafile=self.certificates.ca)

    async def connect(self, server: StreamServer, **options: Any) -> Streams:
        """Connect a client of asyncio's."""
        name = "localhost" if self.is_tls else None
        return await asyncio.open_connection(
            str(server.address),
            server.port,
            ssl=self.client_context(),
            server_hostname=name,
            **options,
        )

    @contextlib.asynccontextmanager
    async def client(self, server: StreamServer, **options: Any) -> AsyncIterator[Streams]:
        """Connect a client for the block."""
        reader, writer = await self.connect(server, **options)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.contextmanager
def raw_client(
    server: StreamServer, *, receive_buffer: int | None = None
) -> Iterator[socket.socket]:
    """Connect a socket that does nothing by itself."""
    with socket.socket() as sock:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(30)
        sock.connect((str(server.address), server.port or 0))
        yield sock
