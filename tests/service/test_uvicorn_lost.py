"""Responses of uvicorn to a disconnected client."""

import asyncio
import contextlib
import logging
import socket
import struct
import threading
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

from tests.service.uvicorns import (
    Receive,
    Send,
    answer,
    begin,
    make,
    raw_client,
    request,
    running,
)
from tests.support import PATIENCE


async def test_a_response_to_a_client_that_has_reset_floods_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    is_reset, done = threading.Event(), asyncio.Event()

    async def stream(scope: Any, receive: Receive, send: Send) -> None:
        await begin(send)
        assert is_reset.wait(PATIENCE)  # and so the loop does not turn
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"news", "more_body": True})
        await send({"type": "http.response.body"})
        done.set()

    def ask_and_vanish(sock: socket.socket) -> None:
        sock.sendall(request())
        assert sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        is_reset.set()

    async with running(make(stream)) as service:
        with raw_client(service) as sock:
            await asyncio.to_thread(ask_and_vanish, sock)
        await asyncio.wait_for(done.wait(), PATIENCE)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
# Code 1000, masked by zeros.
CLOSE = b"\x88\x82\x00\x00\x00\x00\x03\xe8"
HALF_A_BODY = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\nhalf"


async def chat(scope: Any, receive: Receive, send: Send) -> None:
    """Read a web socket as an application of Starlette that expects no end."""
    starlette = pytest.importorskip("starlette.websockets")
    socket = starlette.WebSocket(scope, receive, send)
    await socket.accept()
    while True:
        await socket.receive_text()


async def tick(scope: Any, receive: Receive, send: Send) -> None:
    """Write to a web socket as an application of Starlette that expects no end."""
    starlette = pytest.importorskip("starlette.websockets")
    socket = starlette.WebSocket(scope, receive, send)
    await socket.accept()
    while True:
        await socket.send_text("tick")
        await asyncio.sleep(0)


async def tick_in_a_group(scope: Any, receive: Receive, send: Send) -> None:
    """Write to a web socket in a task of its own."""
    async with asyncio.TaskGroup() as group:
        group.create_task(tick(scope, receive, send))


async def read_all(scope: Any, receive: Receive, send: Send) -> None:
    """Read a request's body."""
    starlette = pytest.importorskip("starlette.requests")
    await starlette.Request(scope, receive).body()
    await answer(send)


async def fall(scope: Any, receive: Receive, send: Send) -> None:
    """Raise an unrelated error when the client has disconnected."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
    while (await receive())["type"] not in {"http.disconnect", "websocket.disconnect"}:
        pass
    raise LookupError("fell")


async def complaints_after(
    handle: Any, sent: bytes, farewell: bytes, caplog: pytest.LogCaptureFixture, **parameters: Any
) -> list[str]:
    """Return the log when the client of *handle* disconnects during the response."""
    entered, left = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        entered.set()
        try:
            await handle(scope, receive, send)
        finally:
            left.set()

    caplog.set_level(logging.INFO)
    async with running(make(app=app, lifespan="off", **parameters)) as service:
        reader, writer = await asyncio.open_connection(str(service.address), service.port)
        writer.write(sent)
        await asyncio.wait_for(entered.wait(), PATIENCE)
        if sent is UPGRADE:
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        writer.write(farewell)
        linger = struct.pack("ii", 1, 0)
        if not farewell:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        await asyncio.wait_for(left.wait(), PATIENCE)
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name != "asyncio"
    ]


async def test_data_for_a_web_socket_that_was_reset_floods_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    is_reset, done = threading.Event(), asyncio.Event()

    async def flood(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        assert is_reset.wait(PATIENCE)  # and so the loop does not turn
        try:
            for _ in range(1000):
                await send({"type": "websocket.send", "text": "news"})
        finally:
            done.set()

    def ask_and_vanish(sock: socket.socket) -> None:
        sock.sendall(UPGRADE)
        assert sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        is_reset.set()

    async with running(make(flood)) as service:
        with raw_client(service) as sock:
            await asyncio.to_thread(ask_and_vanish, sock)
        await asyncio.wait_for(done.wait(), PATIENCE)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


@pytest.mark.parametrize("ws", ["websockets-sansio", "wsproto"])
@pytest.mark.parametrize("farewell", [b"", CLOSE])
@pytest.mark.parametrize("handle", [chat, tick, tick_in_a_group])
async def test_an_application_that_does_not_expect_the_end_of_a_web_socket_is_no_error(
    handle: Any, farewell: bytes, ws: str, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip(ws.partition("-")[0])
    assert await complaints_after(handle, UPGRADE, farewell, caplog, ws=ws) == []


async def test_a_client_that_disconnects_during_its_body_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert await complaints_after(read_all, HALF_A_BODY, b"", caplog) == []


@pytest.mark.parametrize("sent", [UPGRADE, HALF_A_BODY])
async def test_another_error_after_a_disconnection_is_logged(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (message,) = await complaints_after(fall, sent, b"", caplog)
    assert "Exception in ASGI application" in message
