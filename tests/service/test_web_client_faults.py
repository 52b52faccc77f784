"""A wrong request and a vanished client are logged in one line each (C26, C34)."""

import asyncio
import contextlib
import gzip
import logging
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("aiohttp_asgi")

from aiohttp import web as aioweb

from svcrun.service.aiohttp import AIOHTTPService
from svcrun.service.asgi import ASGIHTTPService
from tests.service.asgi import Message, Receive, Send, answer
from tests.service.streams import running
from tests.service.webs import Web, application, client, complaints, read_answer, request
from tests.support import PATIENCE, eventually


async def handle(request: aioweb.Request) -> aioweb.StreamResponse:
    """Read as much of a body as the path says."""
    match request.path:
        case "/all":
            await request.read()
        case "/tolerant":
            with contextlib.suppress(Exception):
                await request.read()
        case "/part":
            await request.content.readany()
    return aioweb.Response(text="hello")


async def asgi(scope: Message, receive: Receive, send: Send) -> None:
    """Read as much of a body as the path says."""
    path = scope["path"]
    more = path != "/none"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect" and path != "/tolerant":
            return
        more = message.get("more_body", False) and path != "/part"
    await answer(send, b"hello", headers=[(b"content-length", b"5")])


SERVICES: dict[str, Callable[[], AIOHTTPService]] = {
    "aiohttp": lambda: AIOHTTPService("127.0.0.1", 0, app=lambda: application(handle)),
    "asgi": lambda: ASGIHTTPService("127.0.0.1", 0, app=asgi, lifespan="off"),
}

COMPRESSED = gzip.compress(b"x" * 10_000)


def body(encoding: str, data: bytes) -> bytes:
    """Return headers and a body."""
    return f"Content-Encoding: {encoding}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


# Bodies that the parser of HTTP accepts only for aiohttp's own applications, or for none.
BROKEN = {
    "gzip": body("gzip", b"no gzip"),
    "gzip, later": body("gzip", COMPRESSED[:20] + b"\xff" * 20),
    "gzip, truncated": body("gzip", COMPRESSED[:20]),
    "deflate": body("deflate", b"\xff" * 20),
    "chunked gzip": b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"7\r\nno gzip\r\n0\r\n\r\n",
    "chunked": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "chunked, later": b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("path", ["none", "part", "all", "tolerant"])
@pytest.mark.parametrize("kind", SERVICES)
async def test_a_broken_body_is_logged_in_one_line_at_most(
    kind: str, path: str, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    head = f"POST /{path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n".encode()
    async with running(SERVICES[kind]()) as service:
        async with client(service) as (reader, writer):
            writer.write(head + BROKEN[broken])
            assert (await read_answer(reader)).status in {200, 400}
            await reader.read()
        async with client(service) as (reader, writer):
            writer.write(request("/none"))
            assert (await read_answer(reader)).body == b"hello"
    found = complaints(caplog)
    assert len(found) <= 1
    for record in found:
        assert record.levelno == logging.WARNING
        assert record.exc_info is None
        assert "malformed request" in record.getMessage()


async def test_a_malformed_body_that_the_handler_reads_is_logged_once_per_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(SERVICES["aiohttp"]()) as service:
        for _ in range(2):
            async with client(service) as (reader, writer):
                writer.write(b"POST /all HTTP/1.1\r\nHost: test\r\n" + BROKEN["gzip"])
                assert (await read_answer(reader)).status == 400
                await reader.read()
    assert len(complaints(caplog)) == 2


def vanish(writer: asyncio.StreamWriter) -> None:
    """Reset a connection."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)
PINGS = (b"\x89\xfd" + bytes(4) + b"?" * 125) * 1000


async def listen(request: aioweb.Request, ends: list[BaseException | int | None]) -> Any:
    """Listen to a web socket."""
    web_socket = aioweb.WebSocketResponse()
    await web_socket.prepare(request)
    async for _ in web_socket:
        pass
    ends.append(web_socket.close_code)
    return web_socket


async def talk(request: aioweb.Request, ends: list[BaseException | int | None]) -> Any:
    """Send messages to a web socket."""
    del ends
    web_socket = aioweb.WebSocketResponse()
    await web_socket.prepare(request)
    while True:
        await web_socket.send_bytes(bytes(100_000))


async def stream(request: aioweb.Request, ends: list[BaseException | int | None]) -> Any:
    """Send a response that has no end."""
    del ends
    response = aioweb.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(bytes(100_000))


@pytest.mark.parametrize("act", [listen, talk, stream])
@pytest.mark.parametrize("handler_cancellation", [False, True])
async def test_a_client_that_disconnects_during_a_handler_of_aiohttp_is_no_error(
    http: Web, caplog: pytest.LogCaptureFixture, act: Any, *, handler_cancellation: bool
) -> None:
    caplog.set_level(logging.INFO)
    ends: list[BaseException | int | None] = []

    async def handle(request: aioweb.Request) -> aioweb.StreamResponse:
        try:
            response: aioweb.StreamResponse = await act(request, ends)
        except BaseException as error:
            ends.append(error)
            raise
        return response

    service = http.service(handle, handler_cancellation=handler_cancellation)
    async with running(service), client(service) as (reader, writer):
        reader._limit = 1024  # type: ignore[attr-defined]  # it does not read on by itself
        writer.write(request("/", *UPGRADE) if act is not stream else request())
        await reader.readuntil(b"\r\n\r\n")
        if act is listen:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    while True:
                        writer.write(PINGS)
                        await writer.drain()
        vanish(writer)
        await asyncio.wait_for(eventually(lambda: ends), PATIENCE)
    assert not complaints(caplog)
    assert not any(record.exc_info for record in caplog.records)
