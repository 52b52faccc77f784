"""The stop of a service with an ASGI application (C33, C34)."""

import asyncio
import contextlib
import logging
from typing import Any

import pytest

pytest.importorskip("aiohttp_asgi")

from svcrun.service.asgi import ASGIHTTPService, ASGIHTTPSSLService
from tests.conftest import Certificates
from tests.service.asgi import (
    Message,
    Receive,
    Send,
    answer,
    connected,
    get,
    read_head,
    serving,
)
from tests.service.streams import Transport
from tests.support import PATIENCE, eventually

SOON: Any = {"shutdown_timeout": 0.2}
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Working:
    """An application that works until a test ends its work."""

    def __init__(self, *, answers_first: bool = False) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.lived: list[str] = []
        self._answers_first = answers_first

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                self.lived.append(step)
                await send({"type": f"lifespan.{step}.complete"})
            return
        try:
            if self._answers_first:
                await answer(send, b"hello")
            self.begun.set()
            await self.go_on.wait()
            if not self._answers_first:
                await answer(send, b"hello")
            self.lived.append("done")
        except asyncio.CancelledError:
            self.lived.append("cancelled")
            raise


async def test_a_request_in_flight_is_answered_and_is_the_last_of_its_connection() -> None:
    app = Working()
    async with serving(app, lifespan="on") as service, connected(service) as (reader, writer):
        writer.write(REQUEST)
        await app.begun.wait()
        stop = asyncio.create_task(service.stop())
        await eventually(lambda: service.socket is None or service.socket.fileno() == -1)
        app.go_on.set()
        found = await read_head(reader)
        assert (found.status, found.all("connection")) == (200, ["close"])
        assert await reader.read() == b"hello"
        await stop
    assert app.lived == ["startup", "done", "shutdown"]


async def test_the_stop_waits_for_work_after_a_response() -> None:
    app = Working(answers_first=True)
    async with serving(app, lifespan="on") as service, connected(service) as (reader, writer):
        writer.write(REQUEST)
        await read_head(reader)
        stop = asyncio.create_task(service.stop())
        assert await reader.read() == b"hello"  # the connection is closed meanwhile
        assert not stop.done()
        app.go_on.set()
        await stop
    assert app.lived == ["startup", "done", "shutdown"]


@pytest.mark.parametrize("answers_first", [True, False])
@pytest.mark.parametrize("timeout", [0, 0.2])
async def test_a_late_request_is_cancelled_before_the_lifespan_ends(
    answers_first: bool, timeout: float, caplog: pytest.LogCaptureFixture
) -> None:
    app = Working(answers_first=answers_first)
    parameters: Any = {"lifespan": "on", "shutdown_timeout": timeout}
    async with serving(app, **parameters) as service, connected(service) as (reader, writer):
        writer.write(REQUEST)
        await app.begun.wait()
        await service.stop()
        with contextlib.suppress(ConnectionError):
            await reader.read()
    assert app.lived == ["startup", "cancelled", "shutdown"]
    (record,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert "still running after shutdown_timeout" in record.getMessage()
    assert "self.go_on.wait()" in record.getMessage()  # where it waited


async def test_an_endless_stream_is_cancelled_at_the_deadline() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.sleep(0.01)

    async with serving(app, **SOON) as service, connected(service) as (reader, writer):
        writer.write(REQUEST)
        await reader.readuntil(b"x\r\n")
        async with asyncio.timeout(PATIENCE):
            await service.stop()
            with contextlib.suppress(ConnectionError):
                assert not (await reader.read()).endswith(b"0\r\n\r\n")


async def test_a_client_that_reads_nothing_delays_no_stop_past_the_deadline() -> None:
    blocked = asyncio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        blocked.set()
        await send({"type": "http.response.body", "body": bytes(64 << 20)})

    async with serving(app, **SOON) as service, connected(service) as (_, writer):
        writer.write(REQUEST)
        await blocked.wait()
        async with asyncio.timeout(PATIENCE):
            await service.stop()


async def test_a_web_socket_client_without_a_close_frame_delays_no_stop_past_the_deadline() -> None:
    told = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        told.append(await receive())

    async with (
        serving(app, **SOON) as service,
        connected(service) as (reader, writer),
    ):
        writer.write(
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            await service.stop()
        assert (await reader.read())[:4] == b"\x88\x18\x03\xe9"  # close, 24 bytes, 1001
    assert told == [{"type": "websocket.disconnect", "code": 1001, "reason": ""}]


async def test_an_application_may_stop_its_service() -> None:
    services: list[ASGIHTTPService] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await services[0].stop()
        await answer(send, b"stopped")

    async with serving(app) as service, connected(service) as (reader, writer):
        services.append(service)
        async with asyncio.timeout(PATIENCE):
            writer.write(get())
            await read_head(reader)
            assert await reader.read() == b"stopped"


async def test_an_application_is_served_by_https(certificates: Certificates) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answer(send, scope["scheme"].encode())

    service = ASGIHTTPSSLService(
        cert=certificates.server_cert,
        key=certificates.server_key,
        address="127.0.0.1",
        port=0,
        app=app,
        lifespan="off",
    )
    await service.start()
    context = Transport(certificates).client_context()
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", service.port, ssl=context, server_hostname="localhost"
    )
    writer.write(get())
    await read_head(reader)
    assert await reader.read() == b"https"
    writer.close()
    service.reload_certificates()
    await service.stop()
