"""ASGI applications and raw HTTP clients for the tests."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from svcrun.service.asgi import ASGIHTTPService
from tests.service.streams import Streams

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Any]


@contextlib.asynccontextmanager
async def serving(app: Application, **parameters: Any) -> AsyncIterator[ASGIHTTPService]:
    """Serve an application, which has no lifespan unless it asks for one, for the block."""
    parameters = {"address": "127.0.0.1", "port": 0, "lifespan": "off", **parameters}
    service = ASGIHTTPService(app=app, **parameters)
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


@contextlib.asynccontextmanager
async def connected(service: ASGIHTTPService) -> AsyncIterator[Streams]:
    """Connect a client for the block."""
    reader, writer = await asyncio.open_connection(str(service.address), service.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@dataclass
class Answer:
    """A response of a server."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Return the values of all headers of one name."""
        return [value for key, value in self.headers if key == name]


async def read_head(reader: asyncio.StreamReader) -> Answer:
    """Read status and headers."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
    headers = [line.split(": ", 1) for line in lines[1:] if line]
    return Answer(int(lines[0].split()[1]), [(name.lower(), value) for name, value in headers], b"")


async def ask(service: ASGIHTTPService, request: bytes) -> Answer:
    """Send a request on a connection of its own, and read the answer to the end of that."""
    async with connected(service) as (reader, writer):
        writer.write(request)
        answer = await read_head(reader)
        answer.body = await reader.read()
        return answer


def get(target: str = "/", *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    """Make a request that is the last of its connection."""
    lines = (
        f"{method} {target} HTTP/{version}",
        "Host: test",
        "Connection: close",
        *headers,
        "",
        "",
    )
    return "\r\n".join(lines).encode("latin-1")


async def answer(
    send: Send, body: bytes = b"", status: int = 200, headers: Any = (), *, more: bool = False
) -> None:
    """Send a response."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def read_body(receive: Receive) -> bytes:
    """Receive all of a request."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        more = message["more_body"]
    return bytes(body)
