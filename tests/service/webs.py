"""Clients of web services: they send given bytes, and read the responses."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from svcrun.service.aiohttp import AIOHTTPService, AIOHTTPSSLService
from tests.conftest import Certificates
from tests.service.streams import Streams
from tests.support import PATIENCE

Handler = Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]


@dataclass(frozen=True)
class Answer:
    """A response as it was read from a connection."""

    status: int
    headers: Mapping[str, str]
    """By names in lower case."""
    body: bytes

    @property
    def closes(self) -> bool:
        """Whether the server says that it is the last one of its connection."""
        return self.headers.get("connection", "").lower() == "close"


class Truncated(Exception):
    """A connection ended in the middle of a response."""


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Read a status line and headers.

    :raises EOFError: if the connection ends before the first byte.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            raise EOFError from None
        raise Truncated(error.partial) from None
    status, *lines = head.decode("latin-1").splitlines()
    headers = dict(line.split(": ", 1) for line in lines if line)
    return int(status.split()[1]), {name.lower(): value for name, value in headers.items()}


async def read_answer(reader: asyncio.StreamReader, *, head_only: bool = False) -> Answer:
    """Read a response.

    :param head_only: whether it is the answer to HEAD.
    :raises EOFError: if the connection ends before its first byte.
    :raises Truncated: if it ends before the last one.
    """
    status, headers = await read_head(reader)
    try:
        if head_only or status in {204, 304}:
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        elif "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            body = await reader.read()
    except asyncio.IncompleteReadError as error:
        raise Truncated(error.partial) from None
    return Answer(status, headers, body)


def request(path: str = "/", *lines: str, method: str = "GET", body: bytes = b"") -> bytes:
    """Put a request together.

    :param lines: headers besides ``Host``, and ``Content-Length`` if there is a `body`.
    """
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", *lines]
    if body:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


class Web:
    """How services and clients of one kind are made.

    :param certificates: those of both sides for TLS, None for plain HTTP.
    """

    def __init__(self, certificates: Certificates | None) -> None:
        self.certificates = certificates
        self.is_tls = certificates is not None

    def service(self, handler: Handler | None = None, /, **parameters: Any) -> AIOHTTPService:
        """Return a service on a free port that answers everything by `handler`.

        :param parameters: of the service; ``app=`` if there is no `handler`.
        """
        parameters = {"address": "127.0.0.1", "port": 0, **parameters}
        if handler is not None:
            parameters["app"] = lambda: application(handler)
        if self.certificates is None:
            return AIOHTTPService(**parameters)
        parameters.setdefault("cert", self.certificates.server_cert)
        parameters.setdefault("key", self.certificates.server_key)
        return AIOHTTPSSLService(**parameters)

    def client_context(self) -> ssl.SSLContext | None:
        """Return the context of a client that trusts the server."""
        if self.certificates is None:
            return None
        return ssl.create_default_context(cafile=self.certificates.ca)

    def client(self, service: AIOHTTPService) -> AbstractAsyncContextManager[Streams]:
        """Connect for the block."""
        return client(service, context=self.client_context())

    async def get(self, service: AIOHTTPService, path: str = "/") -> Answer:
        """Ask for `path` on a connection of its own."""
        async with self.client(service) as (reader, writer):
            writer.write(request(path))
            return await read_answer(reader)


def application(handler: Handler) -> web.Application:
    """Make an application that answers everything by `handler`."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    return app


async def connect(
    service: AIOHTTPService, *, host: str | None = None, context: ssl.SSLContext | None = None
) -> Streams:
    """Connect to where `service` listens, or to its port on `host`."""
    name = None if context is None else "localhost"
    if service.port is None:
        # Connected by itself, as uvloop does not know abstract names.
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(service.address))
        return await asyncio.open_unix_connection(sock=sock, ssl=context, server_hostname=name)
    return await asyncio.open_connection(
        host or str(service.address), service.port, ssl=context, server_hostname=name
    )


@contextlib.asynccontextmanager
async def client(
    service: AIOHTTPService, *, host: str | None = None, context: ssl.SSLContext | None = None
) -> AsyncIterator[Streams]:
    """Connect to `service` for the block, without TLS unless there is a `context`."""
    reader, writer = await connect(service, host=host, context=context)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def get(service: AIOHTTPService, path: str = "/", *, host: str | None = None) -> Answer:
    """Ask a plain service for `path` on a connection of its own."""
    async with client(service, host=host) as (reader, writer):
        writer.write(request(path))
        return await read_answer(reader)


@contextlib.contextmanager
def raw_client(
    service: AIOHTTPService, *, receive_buffer: int | None = None
) -> Iterator[socket.socket]:
    """Connect a socket that reads only on request, and with a small receive buffer."""
    with socket.socket() as sock:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(PATIENCE)
        sock.connect((str(service.address), service.port or 0))
        yield sock


async def warm_up() -> None:
    """Make libuv open the descriptors that it keeps as long as the loop lasts."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    server.close()
    await server.wait_closed()


def complaints(caplog: Any, level: int = logging.WARNING) -> list[logging.LogRecord]:
    """Return the records from `level` on."""
    return [record for record in caplog.records if record.levelno >= level]
