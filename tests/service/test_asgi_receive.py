"""Laws of receive(), which is a queue, also when the client vanishes (C34)."""

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("aiohttp_asgi")

from svcrun.errors import ClientDisconnected
from tests.service.asgi import Application, Message, Receive, Send, answer, get, serving
from tests.support import PATIENCE

HANDSHAKE = get(
    "/",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
).replace(b"Connection: close\r\n", b"")

TEXT, CLOSE, PING = 1, 8, 9

# The close code of uvicorn and others for a broken connection.
GONE = {"type": "websocket.disconnect", "code": 1006, "reason": ""}


def frame(opcode: int, data: bytes = b"") -> bytes:
    """Make a frame of a client."""
    return bytes((0x80 | opcode, 0x80 | len(data))) + bytes(4) + data


class Client:
    """A socket that reads only on request."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def read_until(self, end: bytes) -> bytes:
        """Read up to `end`, or all that there is."""
        data = b""
        while end not in data:
            part = await asyncio.get_running_loop().sock_recv(self._sock, 1 << 16)
            if not part:
                break
            data += part
        return data

    async def fill(self, data: bytes) -> None:
        """Send it again and again, until the server takes no more."""
        while True:
            try:
                async with asyncio.timeout(0.3):
                    await self.send(data)
            except TimeoutError:
                return

    def close(self) -> None:
        """Close the connection in the ordinary way."""
        self._sock.close()

    def reset(self) -> None:
        """Vanish."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()


@asynccontextmanager
async def client(
    app: Application, request: bytes = HANDSHAKE, **parameters: Any
) -> AsyncIterator[Client]:
    """Serve an application, and connect a client that has sent `request`, for the block."""
    async with serving(app, **parameters) as service:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (str(service.address), service.port))
            client = Client(sock)
            await client.send(request)
            yield client


class Recorder:
    """An application that receives as `script` says, and keeps the messages and its error."""

    def __init__(self, script: Callable[["Recorder", Receive, Send], Any]) -> None:
        self.received: list[Message] = []
        self.error: BaseException | None = None
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ended = asyncio.Event()
        self._script = script

    async def __call__(self, _: Message, receive: Receive, send: Send) -> None:
        try:
            await self._script(self, receive, send)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.ended.set()

    async def end(self) -> None:
        """Wait for the end of the call."""
        await asyncio.wait_for(self.ended.wait(), PATIENCE)

    def texts(self) -> list[str | None]:
        """Return the texts that were received, None for each other message."""
        return [message.get("text") for message in self.received]


async def accept(receive: Receive, send: Send) -> None:
    """Accept a web socket."""
    assert await receive() == {"type": "websocket.connect"}
    await send({"type": "websocket.accept"})


async def test_receive_may_wait_before_the_web_socket_is_accepted() -> None:
    async def script(app: Recorder, receive: Receive, send: Send) -> None:
        await receive()
        listening = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        await send({"type": "websocket.accept"})
        app.received.append(await listening)

    app = Recorder(script)
    async with client(app) as peer:
        await peer.read_until(b"\r\n\r\n")
        await peer.send(frame(TEXT, b"hello"))
        await app.end()
    assert app.received == [{"type": "websocket.receive", "text": "hello"}]


async def test_waiting_receive_calls_get_one_message_each_in_order() -> None:
    async def script(app: Recorder, receive: Receive, send: Send) -> None:
        await receive()
        early = [asyncio.ensure_future(receive()) for _ in range(2)]
        await asyncio.sleep(0)
        await send({"type": "websocket.accept"})
        calls = early + [asyncio.ensure_future(receive()) for _ in range(4)]
        app.received += [await call for call in calls]

    app = Recorder(script)
    async with client(app) as peer:
        await peer.read_until(b"\r\n\r\n")
        await peer.send(frame(TEXT, b"1") + frame(TEXT, b"2"))
        await peer.send(frame(TEXT, b"3") + frame(CLOSE, struct.pack("!H", 4001)))
        await app.end()
    assert app.texts() == ["1", "2", "3", None, None, None]
    assert [message["code"] for message in app.received[3:]] == [4001] * 3


@pytest.mark.parametrize("yields", [1, 2, 3])
async def test_a_cancelled_receive_loses_no_message(yields: int) -> None:
    async def script(app: Recorder, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        while not app.received or app.received[-1]["type"] != "websocket.disconnect":
            call = asyncio.ensure_future(receive())
            for _ in range(yields):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait((call,))
            if not call.cancelled():
                app.received.append(call.result())
            elif len(app.received) % 3 == 0:
                app.received.append(await receive())

    app = Recorder(script)
    async with client(app) as peer:
        await peer.read_until(b"\r\n\r\n")
        for number in range(50):
            await peer.send(frame(TEXT, str(number).encode()))
            await asyncio.sleep(0)
        await peer.send(frame(CLOSE, struct.pack("!H", 4001)))
        await app.end()
    assert app.texts() == [*map(str, range(50)), None]
    assert app.received[-1]["code"] == 4001


POST = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n"


async def test_waiting_receive_calls_get_the_parts_of_a_body_in_order() -> None:
    async def script(app: Recorder, receive: Receive, send: Send) -> None:
        calls = [asyncio.ensure_future(receive()) for _ in range(3)]
        for _ in range(5):
            cancelled = asyncio.ensure_future(receive())
            await asyncio.sleep(0)
            cancelled.cancel()
            await asyncio.wait((cancelled,))
        app.reached.set()
        for call in calls[:2]:
            app.received.append(await call)
        await answer(send)
        app.received.append(await calls[2])
        app.received.append(await receive())

    app = Recorder(script)
    async with client(app, POST + b"01234") as peer:
        await app.reached.wait()
        await peer.send(b"56789")
        await app.end()
    assert app.received == [
        {"type": "http.request", "body": b"01234", "more_body": True},
        {"type": "http.request", "body": b"56789", "more_body": False},
        {"type": "http.disconnect"},
        {"type": "http.disconnect"},
    ]


async def test_a_receive_that_waits_for_more_of_a_body_returns_at_the_end_of_the_response(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The connection serves another request: nothing else reads from it.
    async def script(app: Recorder, receive: Receive, send: Send) -> None:
        message = await receive()
        if message["more_body"]:
            listening = asyncio.ensure_future(receive())
            await asyncio.sleep(0)
            await answer(send, b"early", headers=[(b"content-length", b"5")])
            app.received.append(await listening)
        else:
            await answer(send, b"late", headers=[(b"content-length", b"4")])

    app = Recorder(script)
    async with client(app, POST + b"01234") as peer:
        await peer.read_until(b"early")
        await app.end()
        await peer.send(b"56789" + POST + b"0123456789")
        assert (await peer.read_until(b"late")).startswith(b"HTTP/1.1 200")
    assert app.received == [{"type": "http.disconnect"}]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def is_quiet(caplog: pytest.LogCaptureFixture) -> bool:
    """Return whether neither an error nor a traceback was logged."""
    return not any(record.levelno > logging.INFO or record.exc_info for record in caplog.records)


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_pings_without_reading_and_vanishes_is_code_1006(
    how: str, caplog: pytest.LogCaptureFixture, *, busy: bool
) -> None:
    async def script(app: Recorder, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        if busy:
            await app.go_on.wait()
        app.received += [await receive(), await receive()]

    app = Recorder(script)
    async with client(app) as peer:
        await peer.fill(frame(PING, b"?" * 125) * 200)
        getattr(peer, how)()
        app.go_on.set()
        await app.end()
    assert app.received == [GONE, GONE]
    assert app.error is None
    assert is_quiet(caplog)


async def test_data_sent_before_the_client_disconnected_is_received() -> None:
    # The ping in the middle can't be answered any more.
    async def script(app: Recorder, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await app.go_on.wait()
        with pytest.raises(OSError):
            await send_for_ever(send, {"type": "websocket.send", "text": "hello"})
        app.received += [await receive() for _ in range(4)]

    app = Recorder(script)
    async with client(app) as peer:
        await peer.read_until(b"\r\n\r\n")
        await peer.send(frame(TEXT, b"1") + frame(PING) + frame(TEXT, b"2"))
        await peer.send(frame(CLOSE, struct.pack("!H", 4001)))
        peer.close()
        app.go_on.set()
        await app.end()
    assert app.texts() == ["1", "2", None, None]
    assert [message["code"] for message in app.received[2:]] == [4001] * 2


@pytest.mark.parametrize("waits", ["receive", "send"])
async def test_a_client_that_reads_nothing_and_answers_no_ping_is_aborted(waits: str) -> None:
    # Its socket is open, so that no output ever leaves and no error ever comes.
    async def script(app: Recorder, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        app.reached.set()
        if waits == "receive":
            app.received.append(await receive())
        while True:
            await send({"type": "websocket.send", "text": "x" * 100_000})

    app = Recorder(script)
    async with client(app, ws_ping_interval=0.2) as peer:
        await app.reached.wait()
        if waits == "receive":
            # The server may reset the connection before the client notices that it takes no more.
            with contextlib.suppress(ConnectionError):
                await peer.fill(frame(PING, b"?" * 125) * 200)
        await app.end()
    assert app.received == [GONE] * (waits == "receive")
    assert isinstance(app.error, ClientDisconnected)


async def send_for_ever(send: Send, message: Message) -> None:
    """Send until that fails."""
    while True:
        await send(message)
        await asyncio.sleep(0)


async def say(receive: Receive, send: Send) -> None:
    """Accept, and send messages."""
    await accept(receive, send)
    await send_for_ever(send, {"type": "websocket.send", "text": "x" * 10_000})


async def deny(receive: Receive, send: Send) -> None:
    """Deny the web socket with a long body."""
    await receive()
    await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
    body = {"type": "websocket.http.response.body", "body": bytes(10_000), "more_body": True}
    await send_for_ever(send, body)


async def stream(_: Receive, send: Send) -> None:
    """Send a response that has no end."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    body = {"type": "http.response.body", "body": bytes(10_000), "more_body": True}
    await send_for_ever(send, body)


@pytest.mark.parametrize("act", [say, deny, stream])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_sending_to_a_vanished_client_is_an_os_error_that_is_not_logged(
    how: str, act: Callable[[Receive, Send], Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def script(app: Recorder, receive: Receive, send: Send) -> None:
        app.reached.set()
        await act(receive, send)

    app = Recorder(script)
    request = get() if act is stream else HANDSHAKE
    async with client(app, request) as peer:
        await app.reached.wait()
        await peer.read_until(b"\r\n\r\n")
        getattr(peer, how)()
        await app.end()
    assert isinstance(app.error, OSError)
    assert is_quiet(caplog)


async def test_accepting_a_vanished_client_is_an_os_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def script(app: Recorder, receive: Receive, send: Send) -> None:
        await receive()
        app.reached.set()
        app.received.append(await receive())  # before the web socket is accepted
        await send({"type": "websocket.accept"})

    app = Recorder(script)
    async with client(app) as peer:
        await app.reached.wait()
        peer.reset()
        await app.end()
    assert app.received == [GONE]
    assert isinstance(app.error, OSError)
    assert is_quiet(caplog)


async def test_closing_the_web_socket_of_a_vanished_client_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def script(app: Recorder, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await app.go_on.wait()
        await send({"type": "websocket.close", "code": 4000})
        app.received.append(await receive())

    app = Recorder(script)
    async with client(app) as peer:
        await peer.read_until(b"\r\n\r\n")
        peer.reset()
        app.go_on.set()
        await app.end()
    assert app.error is None
    assert [message["type"] for message in app.received] == ["websocket.disconnect"]
    assert is_quiet(caplog)


async def test_quart_gets_the_messages_of_a_web_socket() -> None:
    quart = pytest.importorskip("quart")
    app = quart.Quart(__name__)

    async def echo() -> None:
        while True:
            await quart.websocket.send(await quart.websocket.receive())

    app.websocket("/")(echo)
    async with client(app) as peer:
        await peer.read_until(b"\r\n\r\n")
        await peer.send(frame(TEXT, b"hello"))
        assert (await peer.read_until(b"hello")).endswith(b"hello")
