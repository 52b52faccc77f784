"""Laws of a web service with faulty clients and handlers (C25 to C27)."""

import asyncio
import contextlib
import gc
import io
import logging
import shutil
import socket
import struct
import weakref
from typing import Any

import pytest

pytest.importorskip("aiohttp")

import aiohttp
from aiohttp import web as aioweb

from svcrun.service.aiohttp import AIOHTTPService
from tests.service.streams import running
from tests.service.webs import (
    Web,
    client,
    complaints,
    get,
    raw_client,
    read_answer,
    read_head,
    request,
)
from tests.support import eventually

LARGE = 3_000_000


async def serve(request: aioweb.Request) -> aioweb.StreamResponse:
    """Answer in the way that the path asks for."""
    match request.path:
        case "/body":
            return aioweb.Response(text=str(len(await request.read())))
        case "/large":
            return aioweb.Response(body=b"x" * LARGE)
        case "/slow":
            await asyncio.sleep(600)
    return aioweb.Response(text="hello")


@pytest.fixture
def service(http: Web) -> AIOHTTPService:
    return http.service(serve)


def server_of(service: AIOHTTPService) -> Any:
    assert service.runner is not None
    return service.runner.server


async def alone(service: AIOHTTPService) -> None:
    """Wait until nothing is left of any client."""
    server = server_of(service)
    await eventually(lambda: not server.connections and not server.transports())
    assert not server._tasks


def only_line(caplog: pytest.LogCaptureFixture) -> str:
    """Return the one line that was logged, which has no traceback."""
    (record,) = complaints(caplog)
    assert not record.exc_info
    message = record.getMessage()
    assert "\n" not in message
    return message


class TestHandlers:
    """Failures of handlers."""

    async def test_a_handler_that_raises_is_logged_with_its_traceback(
        self, http: Web, caplog: pytest.LogCaptureFixture
    ) -> None:
        """C26."""

        async def fail(request: aioweb.Request) -> aioweb.Response:
            if request.path == "/":
                raise LookupError("where")
            return aioweb.Response(text="fine")

        async with running(http.service(fail)) as service:
            async with client(service) as (reader, writer):
                writer.write(request())
                answer = await read_answer(reader)
                assert (answer.status, answer.closes) == (500, True)
                assert b"LookupError" not in answer.body
                assert await reader.read() == b""
            assert (await get(service, "/fine")).body == b"fine"
            await alone(service)
        (record,) = complaints(caplog)
        assert record.exc_info
        assert "127.0.0.1" in record.getMessage()

    async def test_a_handler_that_times_out_is_logged_with_its_traceback(
        self, http: Web, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def fail(_: aioweb.Request) -> aioweb.Response:
            async with asyncio.timeout(0):
                await asyncio.sleep(600)
            raise AssertionError

        async with running(http.service(fail)) as service:
            assert (await get(service)).status == 504
        (record,) = complaints(caplog)
        assert record.exc_info
        assert record.exc_info[0] is TimeoutError

    @pytest.mark.parametrize("made", [None, "text", 5])
    async def test_a_handler_without_a_response_is_logged(
        self, http: Web, caplog: pytest.LogCaptureFixture, made: Any
    ) -> None:
        async def fail(_: aioweb.Request) -> Any:
            return made

        async with running(http.service(fail)) as service:
            assert (await get(service)).status == 500
        assert len(complaints(caplog)) == 1

    async def test_a_handler_that_fails_after_the_response_has_begun_ends_the_connection(
        self, http: Web, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def fail(request: aioweb.Request) -> aioweb.Response:
            response = aioweb.StreamResponse()
            await response.prepare(request)
            await response.write(b"half")
            raise LookupError

        async with running(http.service(fail)) as service, client(service) as (reader, writer):
            writer.write(request())
            await read_head(reader)
            assert await reader.read() == b"4\r\nhalf\r\n"  # without the end
            await alone(service)
        (record,) = complaints(caplog)
        assert record.exc_info

    async def test_a_handler_whose_client_disconnects_is_cancelled(
        self, service: AIOHTTPService, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with running(service):
            with raw_client(service) as sock:
                sock.sendall(request("/slow"))
                await eventually(lambda: server_of(service).requests_count)
            await alone(service)
        assert not complaints(caplog)

    @pytest.mark.parametrize("way", ["answer", "stream", "read"])
    async def test_a_handler_that_continues_after_its_client_disconnected_is_no_error(
        self, http: Web, caplog: pytest.LogCaptureFixture, way: str
    ) -> None:
        caplog.set_level(logging.INFO)
        go, ended = asyncio.Event(), asyncio.Event()

        async def late(request: aioweb.Request) -> aioweb.StreamResponse:
            try:
                if way == "read":
                    await request.read()
                await go.wait()
                if way == "stream":
                    response = aioweb.StreamResponse()
                    await response.prepare(request)
                    for _ in range(100):
                        await response.write(b"x" * 1000)
                    return response
                return aioweb.Response(text="late")
            finally:
                ended.set()

        service = http.service(late, handler_cancellation=False)
        async with running(service):
            with raw_client(service) as sock:
                peer = "{}:{}".format(*sock.getsockname())
                sock.sendall(request("/", "Content-Length: 10", method="POST"))
                await eventually(lambda: server_of(service).requests_count)
            await eventually(lambda: not server_of(service).transports())
            go.set()
            await ended.wait()
            await alone(service)
        assert not complaints(caplog)
        if way != "answer":
            assert [r for r in caplog.records if peer in r.getMessage() and not r.exc_info]


@pytest.mark.parametrize("how", ["closes", "resets"])
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /bo",
        b"GET / HTTP/1.1\r\nHos",
        b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf",
        b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal",
        b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n",
    ],
    ids=["nothing", "line", "headers", "body", "chunk", "response", "pipeline"],
)
async def test_clients_may_disconnect_at_any_point(
    service: AIOHTTPService, caplog: pytest.LogCaptureFixture, sent: bytes, how: str
) -> None:
    async with running(service):
        with raw_client(service, receive_buffer=4096) as sock:
            sock.sendall(sent)
            await eventually(lambda: server_of(service).connections)
            if b"/large" in sent:
                assert await asyncio.to_thread(sock.recv, 1) == b"H"
            if how == "resets":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await alone(service)
        assert (await get(service)).body == b"hello"
    assert not complaints(caplog)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"garbage\r\n\r\n", ""),
        (b"GET\r\n\r\n", ""),
        (b"GET / HTTP/9.x\r\n\r\n", ""),
        (b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n", "method"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", "header"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA\x00B: c\r\n\r\n", "header"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n", "Content-Length"),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", ""),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", "8190 bytes"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nLong: " + b"x" * 9000 + b"\r\n\r\n", "8190 bytes"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n", ""),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", ""),
        (b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", ""),
        (b"\x00\x01\x02\xff\xfe\r\n\r\n", ""),
    ],
)
async def test_a_malformed_request_is_answered_by_400_and_logged_in_one_line(
    service: AIOHTTPService, caplog: pytest.LogCaptureFixture, sent: bytes, reason: str
) -> None:
    async with running(service):
        async with client(service) as (reader, writer):
            peer = "{}:{}".format(*writer.get_extra_info("sockname"))
            writer.write(sent)
            answer = await read_answer(reader)
            assert answer.status == 400
            assert await reader.read() == b""
        await alone(service)
        assert (await get(service)).body == b"hello"
    line = only_line(caplog)
    assert peer in line
    assert reason.lower() in line.lower()
    assert not line.endswith((":", "message"))


async def test_garbage_after_a_request_does_not_affect_its_response(
    service: AIOHTTPService, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(service):
        async with client(service) as (reader, writer):
            writer.write(request())
            assert (await read_answer(reader)).body == b"hello"
            writer.write(request("/body", method="POST", body=b"x" * 1000) + b"gar bage\r\n\r\n")
            assert (await read_answer(reader)).status in {200, 400}
            await reader.read()
        await alone(service)
    assert "malformed request" in only_line(caplog)


async def test_pipelined_requests_are_answered_in_order(service: AIOHTTPService) -> None:
    async with running(service), client(service) as (reader, writer):
        bodies = [b"x" * size for size in (1, 20, 300)]
        for body in bodies:
            writer.write(request("/body", method="POST", body=body))
        for body in bodies:
            assert (await read_answer(reader)).body == str(len(body)).encode()


async def test_thousands_of_pipelined_requests_are_read_as_they_are_handled(
    service: AIOHTTPService,
) -> None:
    """C27: memory stays bounded."""
    count = 1000
    async with running(service), client(service) as (reader, writer):
        writer.write(request() * count)
        for _ in range(count):
            assert (await read_answer(reader)).status == 200
            (connection,) = server_of(service).connections
            assert len(connection._messages) <= 64


async def test_a_body_that_comes_byte_by_byte_is_read(service: AIOHTTPService) -> None:
    async with running(service), client(service) as (reader, writer):
        for byte in request("/body", method="POST", body=b"slowly"):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        assert (await read_answer(reader)).body == b"6"


async def test_a_body_above_the_limit_of_the_application_is_refused(http: Web) -> None:
    def make() -> aioweb.Application:
        app = aioweb.Application(client_max_size=1000)
        app.router.add_post("/", serve_body)
        return app

    async def serve_body(request: aioweb.Request) -> aioweb.Response:
        return aioweb.Response(body=await request.read())

    async with running(http.service(app=make)) as service, client(service) as (reader, writer):
        writer.write(request(method="POST", body=b"x" * 2000))
        assert (await read_answer(reader)).status == 413


async def test_the_last_request_of_a_lost_connection_is_freed_at_once(
    service: AIOHTTPService,
) -> None:
    async with running(service):
        server = server_of(service)
        async with client(service) as (reader, writer):
            writer.write(request())
            await read_answer(reader)
            (last,) = (weakref.ref(connection.request) for connection in server.connections)
        gc.disable()
        try:
            await eventually(lambda: last() is None)
        finally:
            gc.enable()


async def test_an_idle_connection_is_closed_after_keepalive_timeout(http: Web) -> None:
    service = http.service(serve, runner_kwargs={"keepalive_timeout": 0.1})
    async with running(service):
        async with client(service) as (reader, writer):
            assert await reader.read() == b""
        async with client(service) as (reader, writer):
            writer.write(request())
            assert (await read_answer(reader)).status == 200
            assert await reader.read() == b""


async def test_a_client_of_a_unix_socket_without_a_name_is_logged(
    http: Web, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    service = http.service(serve, address=tmp_path / "sock", port=None)
    async with running(service), client(service) as (reader, writer):
        writer.write(b"gar bage\r\n\r\n")
        assert (await read_answer(reader)).status == 400
    assert "an unnamed peer sent a malformed request" in only_line(caplog)


async def test_hundreds_of_concurrent_clients_leave_nothing_behind(web: Web) -> None:
    service = web.service(serve)
    url = f"{'https' if web.is_tls else 'http'}://localhost"
    async with running(service):
        context = web.client_context()
        connector = aiohttp.TCPConnector(ssl=context or True, limit=50)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def ask(number: int) -> None:
                path = f"{url}:{service.port}/body"
                async with session.post(path, data=b"x" * number) as answer:
                    assert await answer.text() == str(number)

            await asyncio.gather(*map(ask, range(200)))
        await alone(service)


async def test_a_client_session_of_aiohttp_gets_responses(web: Web) -> None:
    service = web.service(serve)
    scheme = "https" if web.is_tls else "http"
    async with running(service), aiohttp.ClientSession() as session:
        url = f"{scheme}://localhost:{service.port}"
        context = web.client_context() or True
        async with session.get(f"{url}/large", ssl=context) as answer:
            assert len(await answer.read()) == LARGE
        async with session.post(
            f"{url}/body", ssl=context, data=io.BytesIO(b"x" * LARGE)
        ) as answer:
            # More than an application takes by default.
            assert answer.status == 413


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_curl_gets_a_response(web: Web) -> None:
    service = web.service(serve)
    authority = [] if web.certificates is None else ["--cacert", str(web.certificates.ca)]
    url = f"{'https' if web.is_tls else 'http'}://localhost"
    async with running(service):
        process = await asyncio.create_subprocess_exec(
            *("curl", "--silent", "--show-error", "--ipv4", "--noproxy", "*", *authority),
            *("--data", "x" * 1000, f"{url}:{service.port}/body"),
            *("--next", "--silent", *authority, f"{url}:{service.port}/large"),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        assert out == b"1000" + b"x" * LARGE


async def test_the_websockets_library_can_connect(http: Web) -> None:
    websockets = pytest.importorskip("websockets")

    async def echo(request: aioweb.Request) -> aioweb.WebSocketResponse:
        answer = aioweb.WebSocketResponse(protocols=("chat",))
        await answer.prepare(request)
        async for message in answer:
            if message.type is aiohttp.WSMsgType.TEXT:
                await answer.send_str(message.data)
            else:
                await answer.send_bytes(message.data)
        return answer

    async with running(http.service(echo)) as service:
        url = f"ws://127.0.0.1:{service.port}/"
        async with websockets.connect(url, subprotocols=["chat"]) as web_socket:
            assert web_socket.subprotocol == "chat"
            for message in ("text", b"bytes", "x" * 100_000):
                await web_socket.send(message)
                assert await web_socket.recv() == message
        with contextlib.suppress(websockets.ConnectionClosed):
            async with websockets.connect(url) as web_socket:
                web_socket.transport.abort()
        await alone(service)
