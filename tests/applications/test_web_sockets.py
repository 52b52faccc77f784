"""Web sockets of ASGI applications, in the cases that clients have: Autobahn's, in short."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Final

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("websockets")

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from starlette.types import Message, Receive, Scope, Send
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Close, Opcode
from websockets.typing import Subprotocol

from tests.applications.serving import Logged, Serve, Serving, Streams, only_asgi
from tests.support import PATIENCE

MEGABYTES_16: Final = 16 * 1024 * 1024
HANDSHAKE: Final = (
    b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: keep-alive, Upgrade\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
)


class Echo:
    """An application that echoes messages, and records how each web socket ended."""

    def __init__(self) -> None:
        self.ends: asyncio.Queue[Message] = asyncio.Queue()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            with contextlib.suppress(OSError):  # race: the client may disconnect meanwhile
                await send({**message, "type": "websocket.send"})
        self.ends.put_nowait(message)

    async def end(self) -> tuple[int, str]:
        """Return the code and the reason of the next web socket that ends."""
        message = await asyncio.wait_for(self.ends.get(), PATIENCE)
        assert message["type"] == "websocket.disconnect"
        return message["code"], message.get("reason") or ""


@pytest.fixture
def echo() -> Echo:
    return Echo()


def frame(
    opcode: int, data: bytes, *, fin: bool = True, mask: bool = True, reserved: int = 0
) -> bytes:
    """Return a frame of up to 64 KiB, whether it is allowed or not."""
    head = bytes([fin << 7 | reserved << 4 | opcode])
    bit = mask << 7
    if len(data) < 126:
        head += bytes([bit | len(data)])
    else:
        head += bytes([bit | 126]) + len(data).to_bytes(2, "big")
    if not mask:
        return head + data
    key = b"\x12\x34\x56\x78"
    return head + key + bytes(byte ^ key[index % 4] for index, byte in enumerate(data))


class Raw:
    """A client that sends given frames."""

    def __init__(self, streams: Streams) -> None:
        self.reader, self.writer = streams

    def send(
        self, opcode: int, data: bytes, *, fin: bool = True, mask: bool = True, reserved: int = 0
    ) -> None:
        """Send a frame, whether it is allowed or not."""
        self.writer.write(frame(opcode, data, fin=fin, mask=mask, reserved=reserved))

    async def receive(self) -> tuple[int, bytes]:
        """Return the opcode and the content of a frame."""
        async with asyncio.timeout(PATIENCE):
            first, length = await self.reader.readexactly(2)
            if length > 125:
                size = {126: 2, 127: 8}[length]
                length = int.from_bytes(await self.reader.readexactly(size), "big")
            return first & 0x0F, await self.reader.readexactly(length)

    async def closed(self) -> int:
        """Return the code that the server closes with, and see that it closes the connection."""
        opcode, data = await self.receive()
        assert opcode == Opcode.CLOSE
        code = Close.parse(data).code
        if code in {1000, 1001}:
            self.send(Opcode.CLOSE, data)
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionResetError):
                assert await self.reader.read() == b""
        return code


@contextlib.asynccontextmanager
async def raw(server: Serving) -> AsyncIterator[Raw]:
    async with server.connection() as (reader, writer):
        writer.write(HANDSHAKE)
        async with asyncio.timeout(PATIENCE):
            head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
        yield Raw((reader, writer))


# Messages in both directions.


@pytest.mark.parametrize("compression", ["deflate", None])
@pytest.mark.parametrize("offered", [True, False])
async def test_messages_are_echoed_unchanged(
    serve: Serve, echo: Echo, compression: str | None, *, offered: bool
) -> None:
    server = await serve(echo, ws_per_message_deflate=offered)
    async with server.web_socket("/", compression=compression) as socket:
        agreed = [type(one).__name__ for one in socket.protocol.extensions]
        assert bool(agreed) is (offered and compression is not None)
        for message in (
            "",
            b"",
            "é ☃ 😀",
            "x" * 125,
            b"x" * 126,
            b"\0" * 65535,
            b"\xff" * 65536,
            os.urandom(300_000),
        ):
            await socket.send(message)
            assert await socket.recv() == message


async def test_a_message_of_the_maximum_size_is_accepted(serve: Serve, echo: Echo) -> None:
    server = await serve(echo)
    message = bytes(MEGABYTES_16)
    async with server.web_socket("/", max_size=None) as socket:
        await socket.send(message)
        assert await socket.recv() == message


async def test_a_message_that_is_too_long_is_closed_with_1009(serve: Serve, echo: Echo) -> None:
    server = await serve(echo, ws_max_size=1000)
    async with server.web_socket("/", compression=None) as socket:
        await socket.send(bytes(1000))
        assert await socket.recv() == bytes(1000)
        await socket.send(bytes(1001))
        await asyncio.wait_for(socket.wait_closed(), PATIENCE)
        assert socket.close_code == 1009
    assert (await echo.end())[0] in {1006, 1009}


async def test_a_compressed_message_that_is_too_long_is_closed_with_1009(
    serve: Serve, echo: Echo
) -> None:
    server = await serve(echo, ws_max_size=1000)
    async with server.web_socket("/") as socket:
        assert socket.protocol.extensions
        await socket.send(bytes(100_000))
        await asyncio.wait_for(socket.wait_closed(), PATIENCE)
        assert socket.close_code == 1009


async def test_fragments_are_received_as_one_message(serve: Serve, echo: Echo) -> None:
    server = await serve(echo)
    snowman = "☃".encode()
    async with raw(server) as client:
        client.send(Opcode.TEXT, b"a" + snowman[:1], fin=False)
        client.send(Opcode.PING, b"in between")
        client.send(Opcode.CONT, snowman[1:], fin=False)
        client.send(Opcode.CONT, b"", fin=True)
        assert await client.receive() == (Opcode.PONG, b"in between")
        assert await client.receive() == (Opcode.TEXT, b"a" + snowman)


async def test_a_message_that_arrives_byte_by_byte_is_received_whole(
    serve: Serve, echo: Echo
) -> None:
    server = await serve(echo)
    async with raw(server) as client:
        for byte in frame(Opcode.BINARY, bytes(200)):
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert await client.receive() == (Opcode.BINARY, bytes(200))


async def test_pings_are_answered_and_pongs_are_ignored(serve: Serve, echo: Echo) -> None:
    server = await serve(echo)
    async with raw(server) as client:
        client.send(Opcode.PONG, b"unasked")
        for data in (b"", b"x" * 125):
            client.send(Opcode.PING, data)
            assert await client.receive() == (Opcode.PONG, data)
        client.send(Opcode.TEXT, b"still here")
        assert await client.receive() == (Opcode.TEXT, b"still here")


async def test_a_client_that_answers_no_ping_is_disconnected(serve: Serve, echo: Echo) -> None:
    server = await serve(echo, ws_ping_interval=0.05)
    async with raw(server) as client:
        opcode, _ = await client.receive()
        assert opcode == Opcode.PING
        if not hasattr(server.service, "ws_ping_timeout"):  # uvicorn's is longer
            assert (await echo.end())[0] == 1006


# Clients that break the rules.


@pytest.mark.parametrize(
    ("code", "sent"),
    [
        pytest.param(1007, frame(Opcode.TEXT, b"\xc3\x28"), id="no UTF-8"),
        pytest.param(1007, frame(Opcode.TEXT, "☃".encode()[:2]), id="half a character"),
        pytest.param(1002, frame(Opcode.TEXT, b"x", reserved=4), id="compressed, not agreed"),
        pytest.param(1002, frame(Opcode.TEXT, b"x", reserved=2), id="reserved bit 2"),
        pytest.param(1002, frame(Opcode.TEXT, b"x", reserved=1), id="reserved bit 3"),
        pytest.param(1002, frame(3, b"x"), id="reserved opcode"),
        pytest.param(1002, frame(Opcode.CONT, b"x"), id="continues nothing"),
        pytest.param(1002, frame(Opcode.PING, b"x" * 126), id="long ping"),
        pytest.param(1002, frame(Opcode.PING, b"", fin=False), id="ping in fragments"),
        pytest.param(1002, frame(Opcode.CLOSE, b"\x03"), id="half a code"),
        pytest.param(1002, frame(Opcode.CLOSE, b"\x03\xec"), id="1004"),
        pytest.param(1002, frame(Opcode.CLOSE, b"\x03\xed"), id="1005"),
        pytest.param(1002, frame(Opcode.CLOSE, b"\x03\xee"), id="1006"),
    ],
)
async def test_an_invalid_frame_closes_the_web_socket(
    serve: Serve, echo: Echo, logged: Logged, code: int, sent: bytes
) -> None:
    server = await serve(echo)
    async with raw(server) as client:
        client.writer.write(sent)
        assert await client.closed() == code
    assert (await echo.end())[0] in {1005, 1006, code}
    assert all("uvicorn.error" in error for error in logged())  # it logs data that is not UTF-8


# The end.


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (3000, "done"), (4001, "été")])
async def test_the_application_receives_the_reason_of_its_client(
    serve: Serve, echo: Echo, code: int, reason: str
) -> None:
    server = await serve(echo)
    async with server.web_socket("/") as socket:
        await socket.close(code, reason)
        assert socket.close_code == code  # by which it was answered
    assert await echo.end() == (code, reason)


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (3000, "done"), (4001, "été")])
async def test_the_client_receives_the_reason_of_the_application(
    serve: Serve, code: int, reason: str
) -> None:
    app = FastAPI()

    @app.websocket("/")
    async def leave(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close(code, reason or None)

    server = await serve(app)
    async with server.web_socket("/") as socket:
        await asyncio.wait_for(socket.wait_closed(), PATIENCE)
        assert (socket.close_code, socket.close_reason) == (code, reason)


@only_asgi  # uvicorn breaks the connection
async def test_an_application_that_returns_closes_with_1000(serve: Serve) -> None:
    app = FastAPI()

    @app.websocket("/")
    async def leave(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("bye")

    server = await serve(app)
    async with server.web_socket("/") as socket:
        assert await socket.recv() == "bye"
        await asyncio.wait_for(socket.wait_closed(), PATIENCE)
        assert socket.close_code == 1000


async def test_a_close_without_a_code_is_received_as_1005(serve: Serve, echo: Echo) -> None:
    server = await serve(echo)
    async with raw(server) as client:
        client.send(Opcode.CLOSE, b"")
        opcode, _ = await client.receive()
        assert opcode == Opcode.CLOSE
    assert await echo.end() == (1005, "")


@only_asgi  # for uvicorn it is 1005
@pytest.mark.parametrize("how", ["closed", "reset"])
async def test_a_lost_connection_is_received_as_1006(serve: Serve, echo: Echo, how: str) -> None:
    server = await serve(echo)
    async with raw(server) as client:
        client.send(Opcode.TEXT, b"x")
        await client.receive()
        if how == "reset":
            client.writer.transport.abort()
    assert (await echo.end())[0] == 1006


@only_asgi  # uvicorn answers nothing after a close
async def test_messages_before_a_close_are_received_first(serve: Serve, echo: Echo) -> None:
    server = await serve(echo)
    async with raw(server) as client:
        for number in range(20):
            client.send(Opcode.TEXT, b"%d" % number)
        client.send(Opcode.CLOSE, b"\x03\xe8")
        for number in range(20):
            assert await client.receive() == (Opcode.TEXT, b"%d" % number)
        assert (await client.receive())[0] == Opcode.CLOSE
    assert (await echo.end())[0] == 1000


# The beginning.


async def test_a_web_socket_can_be_refused(serve: Serve) -> None:
    app = FastAPI()

    @app.websocket("/")
    async def refuse(websocket: WebSocket) -> None:
        await websocket.close(1008)

    server = await serve(app)
    with pytest.raises(InvalidStatus) as caught:
        await server.web_socket("/")
    assert caught.value.response.status_code == 403
    async with server.client() as client:
        assert (await client.get("/nowhere")).status_code == 404


async def test_the_application_may_choose_an_offered_subprotocol(serve: Serve) -> None:
    app = FastAPI()

    @app.websocket("/")
    async def choose(websocket: WebSocket) -> None:
        offered = websocket.scope["subprotocols"]
        await websocket.accept(subprotocol=offered[1])
        await websocket.send_json(offered)

    server = await serve(app)
    names = [Subprotocol(name) for name in ("soap", "graphql-ws", "wamp")]
    async with server.web_socket("/", subprotocols=names) as socket:
        assert socket.subprotocol == "graphql-ws"
        assert await socket.recv() == '["soap","graphql-ws","wamp"]'


async def test_the_application_need_not_choose_a_subprotocol(serve: Serve, echo: Echo) -> None:
    server = await serve(echo)
    async with server.web_socket("/", subprotocols=[Subprotocol("soap")]) as socket:
        assert socket.subprotocol is None
        await socket.send("x")
        assert await socket.recv() == "x"


async def test_a_failure_before_the_accept_is_answered_by_500_and_logged_once(
    serve: Serve, logged: Logged
) -> None:
    app = FastAPI()

    @app.websocket("/")
    async def fail(websocket: WebSocket) -> None:
        raise ZeroDivisionError("of the endpoint")

    server = await serve(app)
    with pytest.raises(InvalidStatus) as caught:
        await server.web_socket("/")
    assert caught.value.response.status_code == 500
    await server.stop()
    errors = "\n".join(logged())
    assert errors.count("ZeroDivisionError: of the endpoint") == 1


@only_asgi  # uvicorn breaks the connection
async def test_a_failure_after_the_accept_closes_with_1011_and_is_logged_once(
    serve: Serve, logged: Logged
) -> None:
    app = FastAPI()

    @app.websocket("/")
    async def fail(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()
        raise ZeroDivisionError("of the endpoint")

    server = await serve(app)
    async with server.web_socket("/") as socket:
        await socket.send("go")
        await asyncio.wait_for(socket.wait_closed(), PATIENCE)
        assert socket.close_code == 1011
    await server.stop()
    errors = "\n".join(logged())
    assert errors.count("ZeroDivisionError: of the endpoint") == 1


@only_asgi  # uvicorn logs the error that Starlette raises
async def test_an_endpoint_need_not_handle_a_disconnected_client(serve: Serve) -> None:
    app = FastAPI()
    ended = asyncio.Event()

    @app.websocket("/")
    async def careless(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                await websocket.send_text(await websocket.receive_text())
        finally:
            ended.set()

    server = await serve(app)
    async with server.web_socket("/") as socket:
        await socket.send("x")
        assert await socket.recv() == "x"
    await asyncio.wait_for(ended.wait(), PATIENCE)


async def test_an_endpoint_that_only_sends_learns_that_its_client_disconnected(
    serve: Serve,
) -> None:
    app = FastAPI()
    ended = asyncio.Event()

    @app.websocket("/")
    async def pour(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                await websocket.send_bytes(bytes(1000))
                await asyncio.sleep(0)
        except WebSocketDisconnect:
            ended.set()

    server = await serve(app)
    async with server.web_socket("/", close_timeout=PATIENCE) as socket:
        assert await socket.recv() == bytes(1000)
        closing = asyncio.create_task(socket.close(4000))
        with contextlib.suppress(ConnectionClosed):
            while True:
                assert await socket.recv() == bytes(1000)
        await closing
        assert socket.close_code == 4000  # it was answered
    await asyncio.wait_for(ended.wait(), PATIENCE)


@only_asgi  # uvicorn stops reading when there is something that is not received
async def test_pings_are_answered_while_the_application_does_not_receive(serve: Serve) -> None:
    app = FastAPI()
    answered = asyncio.Event()
    messages = [f"{number}" for number in range(10)]

    @app.websocket("/")
    async def think(websocket: WebSocket) -> None:
        await websocket.accept()
        await answered.wait()
        await websocket.send_json([await websocket.receive_text() for _ in messages])

    server = await serve(app)
    async with server.web_socket("/") as socket:
        for message in messages[:5]:
            await socket.send(message)
        for _ in range(2):
            await asyncio.wait_for(await socket.ping(), PATIENCE)
        for message in messages[5:]:
            await socket.send(message)
        answered.set()
        # Nothing was lost, nor did it change its place.
        assert await socket.recv() == json.dumps(messages, separators=(",", ":"))


async def test_messages_that_the_application_does_not_receive_are_not_buffered_without_limit(
    serve: Serve,
) -> None:
    app = FastAPI()
    may_receive = asyncio.Event()
    total = 0

    @app.websocket("/")
    async def sleep(websocket: WebSocket) -> None:
        nonlocal total
        await websocket.accept()
        await may_receive.wait()
        while total < 300 * 65536:
            total += len(await websocket.receive_bytes())
        await websocket.close()

    server = await serve(app)
    async with server.web_socket("/", compression=None) as socket:
        await asyncio.wait_for(await socket.ping(), PATIENCE)
        sent = 0

        async def pour() -> None:
            nonlocal sent
            for _ in range(300):
                await socket.send(bytes(65536))
                sent += 1

        pouring = asyncio.create_task(pour())
        previous = -1
        while previous != sent:
            previous = sent
            await asyncio.sleep(0.05)
        assert sent < 290
        may_receive.set()
        await asyncio.wait_for(pouring, PATIENCE)
        await asyncio.wait_for(socket.wait_closed(), PATIENCE)
        assert socket.close_code == 1000
    assert total == 300 * 65536


async def test_an_endpoint_waits_for_a_client_that_does_not_read(serve: Serve) -> None:
    app = FastAPI()
    count = 0

    @app.websocket("/")
    async def pour(websocket: WebSocket) -> None:
        nonlocal count
        await websocket.accept()
        for _ in range(400):
            await websocket.send_bytes(bytes(65536))
            count += 1
        await websocket.close()

    server = await serve(app, ws_ping_interval=None)
    async with raw(server) as client:
        previous = -1
        while previous != count:
            previous = count
            await asyncio.sleep(0.05)
        assert count < 390
        total = 0
        while (frame := await client.receive())[0] == Opcode.BINARY:
            total += len(frame[1])
        assert total == 400 * 65536


async def test_many_web_sockets_work_concurrently(serve: Serve, echo: Echo) -> None:
    server = await serve(echo)

    async def talk(number: int, socket: ClientConnection) -> None:
        for step in range(10):
            await socket.send(f"{number}.{step}")
            assert await socket.recv() == f"{number}.{step}"

    async with contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(server.web_socket("/")) for _ in range(30)]
        await asyncio.gather(*(talk(*one) for one in enumerate(sockets)))
    assert {(await echo.end())[0] for _ in sockets} == {1000}


async def test_web_sockets_work_over_tls(serve: Serve, echo: Echo) -> None:
    server = await serve(echo, tls=True)
    async with server.web_socket("/", compression=None) as socket:
        for message in ("hello", bytes(1 << 20)):
            await socket.send(message)
            assert await socket.recv() == message
        await server.stop()
        with pytest.raises(ConnectionClosed):
            await socket.recv()
