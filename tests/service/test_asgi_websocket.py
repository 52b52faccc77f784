"""Laws of web sockets of an ASGI application (C34); several name a defect of aiohttp-asgi."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("aiohttp_asgi")
pytest.importorskip("websockets")

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from svcrun.errors import ClientDisconnected
from svcrun.service.asgi import ASGIHTTPService
from tests.service.asgi import Application, Message, Receive, Send, ask, get, serving
from tests.support import PATIENCE, eventually


class WebSocketApplication:
    """An application that accepts web sockets, and records the messages that it receives."""

    def __init__(self, handle: Any = None, **accept: Any) -> None:
        self.scope: Message = {}
        self.received: list[Message] = []
        self.raised: BaseException | None = None
        self.ended = asyncio.Event()
        self._accept = {"type": "websocket.accept", **accept}
        self._handle = handle

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.scope = scope
        try:
            assert await receive() == {"type": "websocket.connect"}
            await send(self._accept)
            if self._handle is not None:
                await self._handle(receive, send)
            while True:
                message = await receive()
                self.received.append(message)
                if message["type"] == "websocket.disconnect":
                    return
                if self._handle is None:
                    await send({**message, "type": "websocket.send"})
        except BaseException as error:
            self.raised = error
            raise
        finally:
            self.ended.set()


@asynccontextmanager
async def web_socket(
    app: Application, target: str = "/", *, parameters: Any = None, **options: Any
) -> AsyncIterator[tuple[ASGIHTTPService, ClientConnection]]:
    async with serving(app, **(parameters or {})) as service:
        url = f"ws://{service.address}:{service.port}{target}"
        async with connect(url, max_size=None, **options) as client:
            yield service, client


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_the_scope_is_that_of_a_web_socket() -> None:
    app = WebSocketApplication()
    async with web_socket(app, "/a?b", subprotocols=["one", "two"]):
        pass
    scope = app.scope
    assert (scope["type"], scope["scheme"], scope["path"]) == ("websocket", "ws", "/a")
    assert scope["query_string"] == b"b"
    assert scope["subprotocols"] == ["one", "two"]
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.4"}
    assert scope["extensions"] == {"websocket.http.response": {}}
    assert "method" not in scope
    assert scope["client"] is not None


@pytest.mark.parametrize("message", ["", "hello", "\U0001f600", b"", b"\x00\xff"])
async def test_a_message_is_received_as_it_was_sent_even_if_it_is_empty(
    message: str | bytes,
) -> None:
    # aiohttp-asgi refuses to send an empty one.
    app = WebSocketApplication()
    async with web_socket(app) as (_, client):
        await client.send(message)
        assert await client.recv() == message
    key = "text" if isinstance(message, str) else "bytes"
    assert app.received[0] == {"type": "websocket.receive", key: message}


async def test_the_subprotocol_is_the_one_that_the_application_chose() -> None:
    # aiohttp-asgi takes the first one that the client offers.
    app = WebSocketApplication(subprotocol="two")
    async with web_socket(app, subprotocols=["one", "two"]) as (_, client):
        assert client.subprotocol == "two"


async def test_no_subprotocol_is_chosen_unless_the_application_does() -> None:
    async with web_socket(WebSocketApplication(), subprotocols=["one"]) as (_, client):
        assert client.subprotocol is None


async def test_headers_of_the_acceptance_reach_the_client() -> None:
    app = WebSocketApplication(headers=[(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")])
    async with web_socket(app) as (_, client):
        assert client.response is not None
        assert client.response.headers.get_all("set-cookie") == ["a=1", "b=2"]


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "bye"), (3000, ""), (4001, "ü")])
async def test_the_application_closes_with_its_code_and_reason(code: int, reason: str) -> None:
    # aiohttp-asgi ignores the code of the application and closes with 1000.
    async def close(receive: Receive, send: Send) -> None:
        await send({"type": "websocket.close", "code": code, "reason": reason})

    async with web_socket(WebSocketApplication(close)) as (_, client):
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert (client.close_code, client.close_reason) == (code, reason)


async def test_the_code_of_a_close_is_1000_by_default() -> None:
    async def close(receive: Receive, send: Send) -> None:
        await send({"type": "websocket.close"})

    async with web_socket(WebSocketApplication(close)) as (_, client):
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1000


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "bye"), (4001, "ü")])
async def test_the_application_receives_code_and_reason_of_its_client(
    code: int, reason: str
) -> None:
    app = WebSocketApplication()
    async with web_socket(app) as (_, client):
        await client.close(code, reason)
        await app.ended.wait()
    assert app.received == [{"type": "websocket.disconnect", "code": code, "reason": reason}]


async def test_a_lost_connection_is_code_1006() -> None:
    # aiohttp says 1000, as if all were well.
    app = WebSocketApplication()
    async with web_socket(app) as (_, client):
        client.transport.abort()
        async with asyncio.timeout(PATIENCE):
            await app.ended.wait()
    assert app.received == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]


async def test_receive_after_a_disconnect_returns_the_disconnect_again() -> None:
    codes = []

    async def receive_all(receive: Receive, send: Send) -> None:
        for _ in range(3):
            message = await receive()
            codes.append((message["type"], message["code"]))

    app = WebSocketApplication(receive_all)
    async with web_socket(app) as (_, client):
        await client.close(4000)
        await app.ended.wait()
    assert codes == [("websocket.disconnect", 4000)] * 3


async def test_sending_to_a_disconnected_client_raises_an_os_error() -> None:
    async def wait_and_send(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.send", "text": "late"})

    app = WebSocketApplication(wait_and_send)
    async with web_socket(app) as (_, client):
        await client.close()
        await app.ended.wait()
    assert isinstance(app.raised, ClientDisconnected)
    assert isinstance(app.raised, OSError)


async def test_an_application_that_returns_closes_with_1000() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})

    async with web_socket(app) as (_, client):
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1000


async def test_an_application_that_fails_closes_with_1011_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(receive: Receive, send: Send) -> None:
        raise ZeroDivisionError("no")

    async with web_socket(WebSocketApplication(fail)) as (_, client):
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1011
        await eventually(lambda: errors(caplog))
    (record,) = errors(caplog)
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


async def refuse(scope: Message, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": 4003})


async def deny(scope: Message, receive: Receive, send: Send) -> None:
    await receive()
    headers = [(b"x-why", b"because")]
    await send({"type": "websocket.http.response.start", "status": 401, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": b"a ", "more_body": True})
    await send({"type": "websocket.http.response.body", "body": b"visitor"})


async def return_undecided(scope: Message, receive: Receive, send: Send) -> None:
    await receive()


@pytest.mark.parametrize(
    ("app", "status", "body"),
    [(refuse, 403, b""), (deny, 401, b"a visitor"), (return_undecided, 500, None)],
)
async def test_a_web_socket_that_is_not_accepted_is_an_http_response(
    app: Any, status: int, body: bytes | None
) -> None:
    # aiohttp-asgi raises when an application rejects before it accepts.
    with pytest.raises(InvalidStatus) as caught:
        async with web_socket(app):
            pass
    response = caught.value.response
    assert response.status_code == status
    assert body is None or response.body == body


@pytest.mark.parametrize(
    "headers",
    [
        ("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 12"),
        ("Sec-WebSocket-Key: short", "Sec-WebSocket-Version: 13"),
        ("Sec-WebSocket-Version: 13",),
    ],
)
async def test_an_invalid_handshake_does_not_reach_the_application(
    headers: tuple[str, ...],
) -> None:
    app = WebSocketApplication()
    request = "\r\n".join(
        ("GET / HTTP/1.1", "Host: x", "Connection: Upgrade", "Upgrade: websocket", *headers, "", "")
    )
    async with serving(app) as service:
        assert (await ask(service, request.encode())).status == 400
    assert app.scope == {}


@pytest.mark.parametrize(
    "headers", [("Upgrade: h2c",), ("Upgrade: websocket",), ("Sec-WebSocket-Version: 13",)]
)
async def test_a_request_without_an_upgrade_is_an_http_request(headers: tuple[str, ...]) -> None:
    kinds = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        kinds.append(scope["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async with serving(app) as service:
        assert (await ask(service, get("/", *headers))).status == 200
    assert kinds == ["http"]


@pytest.mark.parametrize(
    "messages",
    [
        [{"type": "websocket.accept"}, {"type": "websocket.accept"}],
        [{"type": "websocket.accept"}, {"type": "websocket.send"}],
        [{"type": "websocket.accept"}, {"type": "websocket.send", "text": "a", "bytes": b"b"}],
        [{"type": "websocket.accept"}, {"type": "http.response.start", "status": 200}],
        [{"type": "websocket.send", "text": "a"}],
        [{"type": "websocket.http.response.body"}],
        [{"type": "websocket.accept"}, {"type": "websocket.close"}, {"type": "websocket.close"}],
        [{"type": "nonsense"}],
    ],
)
async def test_an_invalid_message_of_the_application_is_refused_and_the_service_continues(
    messages: list[Message],
) -> None:
    refused = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        for message in messages[:-1]:
            await send(message)
        try:
            await send(messages[-1])
        except RuntimeError as error:
            refused.append(str(error))
            raise

    async with serving(app) as service:
        for _ in range(2):
            url = f"ws://{service.address}:{service.port}"
            with pytest.raises((ConnectionClosed, InvalidStatus)):
                async with connect(url) as client:
                    await client.recv()
        await eventually(lambda: len(refused) == 2)
    assert messages[-1]["type"] in refused[0]


async def test_a_message_up_to_the_limit_is_accepted_and_a_longer_one_is_not() -> None:
    app = WebSocketApplication()
    async with web_socket(app, parameters={"ws_max_size": 1000}, compression=None) as (_, client):
        await client.send("x" * 1000)
        assert await client.recv() == "x" * 1000
        await client.send("x" * 1001)
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1009
        await app.ended.wait()
    assert app.received[-1]["code"] == 1009


async def test_a_client_that_does_not_answer_pings_is_disconnected() -> None:
    app = WebSocketApplication()
    async with serving(app, ws_ping_interval=0.05) as service:
        reader, writer = await asyncio.open_connection(str(service.address), service.port)
        writer.write(
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            await app.ended.wait()
        assert app.received[-1]["code"] == 1006
        writer.close()


@pytest.mark.parametrize("deflate", [True, False])
async def test_messages_are_compressed_if_both_sides_agree(deflate: bool) -> None:
    parameters = {"ws_per_message_deflate": deflate}
    async with web_socket(WebSocketApplication(), parameters=parameters) as (_, client):
        assert client.response is not None
        assert ("Sec-WebSocket-Extensions" in client.response.headers) is deflate
        await client.send("x" * 10_000)
        assert await client.recv() == "x" * 10_000


async def test_a_stop_closes_web_sockets_with_1001_and_the_application_receives_it() -> None:
    app = WebSocketApplication()
    async with web_socket(app) as (service, client):
        stop = asyncio.create_task(service.stop())
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1001
        await stop
    assert app.received == [{"type": "websocket.disconnect", "code": 1001, "reason": ""}]
    assert app.raised is None


@pytest.mark.parametrize("closes", ["client", "application"])
async def test_each_web_socket_is_one_line_of_the_access_log(
    closes: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiohttp.access")

    async def close(receive: Receive, send: Send) -> None:
        if closes == "application":
            await send({"type": "websocket.close"})

    app = WebSocketApplication(close)
    async with web_socket(app, "/path") as (_, client):
        if closes == "client":
            await client.close()
        await client.wait_closed()
        await app.ended.wait()
    lines = [one for one in caplog.records if one.name == "aiohttp.access"]
    assert ['"GET /path HTTP/1.1" 101' in one.getMessage() for one in lines] == [True]
