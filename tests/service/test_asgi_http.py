"""Laws of HTTP requests to an ASGI application (C34); several name a defect of aiohttp-asgi."""

import asyncio
import gzip
import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp_asgi")

from aiohttp import web

from svcrun.errors import ClientDisconnected
from svcrun.service.asgi import ASGIHTTPService
from tests.service.asgi import (
    Message,
    Receive,
    Send,
    answer,
    ask,
    connected,
    get,
    read_body,
    read_head,
    serving,
)
from tests.service.streams import running
from tests.support import PATIENCE, eventually, nothing_left


async def say_hello(scope: Message, receive: Receive, send: Send) -> None:
    await answer(send, b"hello")


class Recorder:
    """An application that keeps the scope of its last request."""

    scope: Message

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.scope = scope
        await answer(send)


# The scope of a request


async def test_the_scope_has_the_versions_of_the_protocol() -> None:
    app = Recorder()
    async with serving(app) as service:
        await ask(service, get())
    assert app.scope["asgi"] == {"version": "3.0", "spec_version": "2.4"}  # aiohttp-asgi: missing
    assert app.scope["type"] == "http"


@pytest.mark.parametrize("connection", ["close", "keep-alive, x", "upgrade"])
async def test_the_version_of_http_is_that_of_the_request_line(connection: str) -> None:
    # aiohttp-asgi guesses it from the Connection header.
    app = Recorder()
    async with serving(app) as service:
        async with connected(service) as (reader, writer):
            writer.write(f"GET / HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\n\r\n".encode())
            await read_head(reader)
        assert app.scope["http_version"] == "1.1"
        await ask(service, get(version="1.0"))
        assert app.scope["http_version"] == "1.0"


async def test_client_and_server_are_the_two_ends_of_the_connection() -> None:
    app = Recorder()
    async with serving(app) as service, connected(service) as (reader, writer):
        writer.write(get())
        await read_head(reader)
        # aiohttp-asgi: port 0
        assert tuple(app.scope["client"]) == writer.get_extra_info("sockname")
        assert tuple(app.scope["server"]) == writer.get_extra_info("peername")
        assert app.scope["scheme"] == "http"


async def test_a_client_of_a_unix_socket_has_no_address(tmp_path: Path) -> None:
    app = Recorder()
    path = tmp_path / "socket"
    async with serving(app, address=None, port=None, path=path):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(get())
        assert (await read_head(reader)).status == 200
        writer.close()
        await writer.wait_closed()
    assert app.scope["client"] is None
    assert app.scope["server"] == (str(path), None)


@pytest.mark.parametrize(
    ("target", "path", "raw_path", "query"),
    [
        ("/", "/", b"/", b""),
        ("/a/b?x=1&y=%20", "/a/b", b"/a/b", b"x=1&y=%20"),
        ("/a?", "/a", b"/a", b""),
        ("/a?b?c", "/a", b"/a", b"b?c"),
        ("/sp%20ace%2Fslash", "/sp ace/slash", b"/sp%20ace%2Fslash", b""),
        ("/caf%C3%A9", "/café", b"/caf%C3%A9", b""),
        ("/bad%FF", "/bad\ufffd", b"/bad%FF", b""),
        ("//double", "//double", b"//double", b""),
        ("http://other:1/x?y", "/x", b"/x", b"y"),
        ("http://other/?/y", "/", b"/", b"/y"),
        ("http://other", "/", b"/", b""),
        ("http://other?y", "/", b"/", b"y"),
    ],
)
async def test_path_raw_path_and_query_are_those_of_the_target(
    target: str, path: str, raw_path: bytes, query: bytes
) -> None:
    app = Recorder()
    async with serving(app) as service:
        assert (await ask(service, get(target))).status == 200
    assert app.scope["path"] == path
    assert app.scope["raw_path"] == raw_path  # aiohttp-asgi: with the query
    assert app.scope["query_string"] == query
    assert app.scope["root_path"] == ""


async def test_options_with_an_asterisk_reaches_the_application() -> None:
    app = Recorder()
    async with serving(app) as service:
        assert (await ask(service, get("*", method="OPTIONS"))).status == 200
    assert (app.scope["path"], app.scope["raw_path"]) == ("*", b"*")


async def test_header_names_are_in_lower_case_and_keep_order_and_number() -> None:
    app = Recorder()
    async with serving(app) as service:
        await ask(service, get("/", "X-One: 1", "x-Two: \xe9", "X-ONE: 3"))
    assert [pair for pair in app.scope["headers"] if pair[0].startswith(b"x-")] == [
        (b"x-one", b"1"),
        (b"x-two", b"\xe9"),
        (b"x-one", b"3"),
    ]


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "PATCH", "DELETE", "PROPFIND"])
async def test_every_method_reaches_the_application(method: str) -> None:
    app = Recorder()
    async with serving(app) as service:
        assert (await ask(service, get(method=method))).status == 200
    assert app.scope["method"] == method


async def test_a_surrounding_aiohttp_application_keeps_its_middlewares_and_routes() -> None:
    seen = []

    @web.middleware
    async def watch(request: web.Request, handler: Any) -> web.StreamResponse:
        seen.append(request.path)
        response: web.StreamResponse = await handler(request)
        return response

    async def ready(_: web.Request) -> web.Response:
        return web.Response(text="ready")

    class Both(ASGIHTTPService):
        async def create_application(self) -> web.Application:
            application = web.Application(middlewares=[watch])
            application.router.add_get("/ready", ready)
            inner = await super().create_application()
            for resource in inner.router.resources():
                application.router.register_resource(resource)
            return application

    async with running(Both(address="127.0.0.1", port=0, app=say_hello, lifespan="off")) as service:
        assert (await ask(service, get("/ready"))).body == b"ready"
        assert (await ask(service, get("/hello"))).body == b"hello"
    assert seen == ["/ready", "/hello"]


@pytest.mark.parametrize("way", ["middlewares", "on_response_prepare"])
async def test_middlewares_and_signals_of_a_surrounding_aiohttp_application_run(way: str) -> None:
    seen = []

    @web.middleware
    async def watch(request: web.Request, handler: Any) -> web.StreamResponse:
        seen.append(request.path)
        response: web.StreamResponse = await handler(request)
        return response

    async def prepare(request: web.Request, _: web.StreamResponse) -> None:
        seen.append(request.path)

    async def open_socket(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # aiohttp prepares its response itself
            await send({"type": "websocket.accept"})
        else:
            await answer(send)

    class Around(ASGIHTTPService):
        async def create_application(self) -> web.Application:
            application = await super().create_application()
            added = watch if way == "middlewares" else prepare
            getattr(application, way).append(added)
            return application

    upgrade = get(
        "/hello",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ).replace(b"Connection: close\r\n", b"")
    service = Around(address="127.0.0.1", port=0, app=open_socket, lifespan="off")
    async with running(service), connected(service) as (reader, writer):
        writer.write(upgrade)
        assert (await read_head(reader)).status == 101
    assert seen == ["/hello"]


async def test_no_two_requests_share_a_scope() -> None:
    scopes = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        scope["state"]["mine"] = scope["asgi"]["mine"] = True
        await answer(send)

    async with serving(app) as service:
        await ask(service, get())
        await ask(service, get())
    assert scopes[0]["state"] is not scopes[1]["state"]
    assert scopes[0]["asgi"] is not scopes[1]["asgi"]


# The request's body


async def test_a_request_without_a_body_has_an_empty_one() -> None:
    messages = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        messages.append(await receive())
        await answer(send)

    async with serving(app) as service:
        await ask(service, get())
    assert messages == [{"type": "http.request", "body": b"", "more_body": False}]


@pytest.mark.parametrize("size", [0, 1, 65_536, 3_000_000])
async def test_a_body_arrives_as_it_was_sent(size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answer(send, str(await read_body(receive) == body).encode())

    request = get("/", f"Content-Length: {size}", method="POST") + body
    async with serving(app) as service:
        assert (await ask(service, request)).body == b"True"


async def test_a_compressed_request_body_is_received_compressed() -> None:
    # aiohttp would decompress it and leave the headers as they are.
    app_body = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        app_body.append(await read_body(receive))
        await answer(send)

    body = gzip.compress(b"hello")
    request = get("/", "Content-Encoding: gzip", f"Content-Length: {len(body)}", method="POST")
    async with serving(app) as service:
        await ask(service, request + body)
    assert app_body == [body]


async def test_a_body_is_received_in_the_parts_that_the_client_sends() -> None:
    seen: asyncio.Queue[Message] = asyncio.Queue()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            seen.put_nowait(message)
            more = message["more_body"]
        await answer(send)

    async with serving(app) as service, connected(service) as (reader, writer):
        writer.write(get("/", "Transfer-Encoding: chunked", method="POST"))
        for part in (b"one", b"two"):
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            assert await seen.get() == {"type": "http.request", "body": part, "more_body": True}
        writer.write(b"0\r\n\r\n")
        assert await seen.get() == {"type": "http.request", "body": b"", "more_body": False}
        assert (await read_head(reader)).status == 200


async def test_a_body_is_not_read_faster_than_the_application_asks_for_it() -> None:
    go_on = asyncio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await answer(send, str(len(await read_body(receive))).encode())

    size = 32 << 20
    async with serving(app) as service, connected(service) as (reader, writer):
        writer.write(get("/", f"Content-Length: {size}", method="POST") + bytes(size))
        transport: Any = writer.transport
        left = -1
        while left != transport.get_write_buffer_size():  # until nothing more is taken
            left = transport.get_write_buffer_size()
            await asyncio.sleep(0.1)
        assert left > size / 2
        go_on.set()
        await read_head(reader)
        assert await reader.read() == str(size).encode()


async def test_100_continue_is_sent_when_the_application_reads_the_body() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answer(send, await read_body(receive))

    async with serving(app) as service, connected(service) as (reader, writer):
        writer.write(get("/", "Expect: 100-continue", "Content-Length: 5", method="POST"))
        assert (await read_head(reader)).status == 100
        writer.write(b"hello")
        assert (await read_head(reader)).status == 200
        assert await reader.read() == b"hello"


async def test_100_continue_is_not_sent_if_the_application_does_not_read_the_body() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answer(send, status=413)

    async with serving(app) as service, connected(service) as (reader, writer):
        writer.write(get("/", "Expect: 100-continue", "Content-Length: 5", method="POST"))
        assert (await read_head(reader)).status == 413


async def test_an_unknown_expectation_is_refused() -> None:
    async with serving(say_hello) as service:
        assert (await ask(service, get("/", "Expect: a miracle"))).status == 417


# The response


async def test_repeated_headers_stay_repeated_and_bytes_stay_as_they_are() -> None:
    headers = [(b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x-latin", b"caf\xe9")]

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answer(send, b"", 200, headers)

    async with serving(app) as service:
        found = await ask(service, get())
    assert found.all("set-cookie") == ["a=1", "b=2"]  # aiohttp-asgi: the last one only
    assert found.all("x-latin") == ["café"]


async def test_a_response_of_one_part_has_a_content_length() -> None:
    async with serving(say_hello) as service:
        found = await ask(service, get())
    assert found.all("content-length") == ["5"]
    assert found.body == b"hello"
    assert len(found.all("date")) == len(found.all("server")) == 1


async def test_date_and_server_headers_of_the_application_replace_the_defaults() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answer(send, b"", 200, [(b"Date", b"today"), (b"SERVER", b"mine")])

    async with serving(app) as service:
        found = await ask(service, get())
    assert (found.all("date"), found.all("server")) == (["today"], ["mine"])


async def stream(scope: Message, receive: Receive, send: Send) -> None:
    headers = [(b"transfer-encoding", b"chunked")]  # which is for the server to decide
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for part in (b"one", b"", b"two"):
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body"})


async def test_a_response_of_several_parts_is_chunked() -> None:
    async with serving(stream) as service:
        found = await ask(service, get())
    assert found.all("transfer-encoding") == ["chunked"]
    assert found.body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"


async def test_for_http_1_0_a_response_of_several_parts_ends_with_the_connection() -> None:
    async with serving(stream) as service, connected(service) as (reader, writer):
        writer.write(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        found = await read_head(reader)
        assert found.all("transfer-encoding") == found.all("connection") == []
        assert await reader.read() == b"onetwo"


async def test_each_part_of_a_response_is_sent_at_once() -> None:
    go_on = asyncio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answer(send, b"first", more=True)
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"second"})

    async with serving(app) as service, connected(service) as (reader, writer):
        writer.write(get())
        await read_head(reader)
        assert await reader.readuntil(b"first\r\n")
        go_on.set()
        assert (await reader.read()).endswith(b"second\r\n0\r\n\r\n")


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_a_response_without_a_body_sends_none(method: str, status: int) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answer(send, b"hello", status, [(b"content-length", b"5")])

    async with serving(app) as service:
        found = await ask(service, get(method=method))
    assert (found.status, found.body) == (status, b"")
    assert found.all("transfer-encoding") == []
    assert found.all("content-length") == ([] if status == 204 else ["5"])


async def test_requests_of_one_connection_are_answered_one_after_the_other() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read_body(receive)
        await answer(send, scope["raw_path"])

    request = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving(app) as service, connected(service) as (reader, writer):
        writer.write(b"".join(request % number for number in range(5)))
        for number in range(5):
            await read_head(reader)
            assert await reader.readexactly(2) == b"/%d" % number


async def test_an_application_may_close_the_connection() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answer(send, b"", 200, [(b"connection", b"close")])

    async with serving(app) as service, connected(service) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await read_head(reader)).all("connection") == ["close"]
        assert await reader.read() == b""


async def test_an_http_1_0_connection_is_kept_open_on_request() -> None:
    async with serving(say_hello) as service, connected(service) as (reader, writer):
        for _ in range(2):
            writer.write(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (await read_head(reader)).all("connection") == ["keep-alive"]
            assert await reader.readexactly(5) == b"hello"


async def test_a_response_waits_for_a_slow_client() -> None:
    sent = 0

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(512):
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
            sent += 1
        await send({"type": "http.response.body"})

    async with serving(app) as service:
        reader, writer = await asyncio.open_connection(
            str(service.address), service.port, limit=1 << 16
        )
        writer.write(get())
        await read_head(reader)
        before = -1
        while before != sent:  # until nothing more is sent
            before = sent
            await asyncio.sleep(0.1)
        assert sent < 256
        total = 0
        while data := await reader.read(1 << 20):
            total += len(data)
        assert total > 512 << 16
        writer.close()


# Disconnected clients


def connections_of(service: ASGIHTTPService) -> Any:
    assert service.runner is not None
    assert service.runner.server is not None
    return service.runner.server.connections


async def test_the_application_receives_a_disconnect_when_its_client_disconnects() -> None:
    # aiohttp-asgi never sends a disconnect: an application that polls for it spins the loop.
    told: asyncio.Queue[Message] = asyncio.Queue()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        told.put_nowait(await receive())
        told.put_nowait(await receive())  # each further call returns it again
        with pytest.raises(ClientDisconnected):
            await answer(send)
        told.put_nowait({"type": "the end"})

    async with serving(app) as service:
        async with connected(service) as (_, writer):
            writer.write(get())
            await writer.drain()
            writer.transport.abort()
        async with asyncio.timeout(PATIENCE):
            assert [(await told.get())["type"] for _ in range(3)] == [
                "http.disconnect",
                "http.disconnect",
                "the end",
            ]


async def test_an_application_is_not_cancelled_when_its_client_disconnects() -> None:
    begun, gone, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        begun.set()
        await gone.wait()
        done.set()

    async with serving(app) as service:
        async with connected(service) as (_, writer):
            writer.write(get())
            await begun.wait()
        await eventually(lambda: not connections_of(service))
        gone.set()
        async with asyncio.timeout(PATIENCE):
            await done.wait()


async def test_an_incomplete_body_is_received_as_a_disconnect() -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        for _ in range(3):
            told.put_nowait((await receive())["type"])

    async with serving(app) as service:
        async with connected(service) as (_, writer):
            writer.write(get("/", "Content-Length: 100", method="POST") + b"some")
            assert await told.get() == "http.request"
            writer.transport.abort()
        async with asyncio.timeout(PATIENCE):
            assert await told.get() == "http.disconnect"
            assert await told.get() == "http.disconnect"


async def test_receive_after_the_response_returns_a_disconnect() -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answer(send, b"hello")
        told.put_nowait((await receive())["type"])

    async with serving(app) as service, connected(service) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
        await read_head(reader)
        async with asyncio.timeout(PATIENCE):
            assert await told.get() == "http.disconnect"


async def test_a_waiting_receive_gets_a_disconnect_at_the_end_of_the_response() -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()

        async def watch() -> None:
            told.put_nowait((await receive())["type"])

        async with asyncio.TaskGroup() as group:
            group.create_task(watch())
            await asyncio.sleep(0)
            await answer(send)

    async with serving(app) as service:
        await ask(service, get())
        async with asyncio.timeout(PATIENCE):
            assert await told.get() == "http.disconnect"


async def test_work_after_the_response_does_not_delay_the_next_request() -> None:
    go_on = asyncio.Event()
    done = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answer(send, b"hello")
        await go_on.wait()
        done.append(scope["path"])

    async with serving(app) as service, connected(service) as (reader, writer):
        for path in ("/1", "/2"):
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await read_head(reader)
            assert await reader.readexactly(5) == b"hello"
        assert done == []
        go_on.set()
        await eventually(lambda: sorted(done) == ["/1", "/2"])


# Bad applications


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def has_errors(caplog: pytest.LogCaptureFixture, number: int) -> bool:
    return len(errors(caplog)) == number


async def raise_at_once(scope: Message, receive: Receive, send: Send) -> None:
    raise ZeroDivisionError("no")


async def return_at_once(scope: Message, receive: Receive, send: Send) -> None:
    pass


async def only_begin(scope: Message, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def body_first(scope: Message, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.body", "body": b"x"})


async def nonsense(scope: Message, receive: Receive, send: Send) -> None:
    await send({"type": "http.nonsense"})


async def inject(scope: Message, receive: Receive, send: Send) -> None:
    await answer(send, b"", 200, [(b"x-a", b"1\r\nx-b: 2")])


async def wrong_status(scope: Message, receive: Receive, send: Send) -> None:
    await answer(send, b"", 2000)


async def too_long(scope: Message, receive: Receive, send: Send) -> None:
    await answer(send, b"hello", 200, [(b"content-length", b"2")])


async def time_out(scope: Message, receive: Receive, send: Send) -> None:
    async with asyncio.timeout(0):
        await asyncio.sleep(1)


@pytest.mark.parametrize(
    ("app", "status"),
    [
        (raise_at_once, 500),
        (return_at_once, 500),
        (only_begin, 500),
        (body_first, 500),
        (nonsense, 500),
        (inject, 500),
        (wrong_status, 500),
        (too_long, 500),
        (time_out, 504),
    ],
)
async def test_a_failure_before_the_response_is_answered_by_500_and_logged_once(
    app: Any, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(app) as service:
        assert (await ask(service, get())).status == status
        (record,) = errors(caplog)
        assert record.exc_info is not None
        assert record.exc_info[1] is not None
        assert "127.0.0.1" in record.getMessage()
        caplog.clear()
        assert (await ask(service, get())).status == status  # the service still runs


async def break_off(scope: Message, receive: Receive, send: Send) -> None:
    await answer(send, b"some", 200, more=True)
    raise ZeroDivisionError("no")


async def break_off_quietly(scope: Message, receive: Receive, send: Send) -> None:
    await answer(send, b"some", 200, more=True)


async def too_short(scope: Message, receive: Receive, send: Send) -> None:
    await answer(send, b"some", 200, [(b"content-length", b"10")], more=True)
    await send({"type": "http.response.body", "body": b"x"})


@pytest.mark.parametrize("app", [break_off, break_off_quietly, too_short])
async def test_a_failure_within_the_response_breaks_the_connection_and_is_logged_once(
    app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(app) as service, connected(service) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        found = await read_head(reader)
        body = await reader.read()
        assert not body.endswith(b"0\r\n\r\n")
        assert found.all("content-length") in ([], ["10"])
        assert len(errors(caplog)) == 1


async def answer_twice(scope: Message, receive: Receive, send: Send) -> None:
    await answer(send, b"hello")
    await answer(send, b"again")


async def fail_late(scope: Message, receive: Receive, send: Send) -> None:
    await answer(send, b"hello")
    await asyncio.sleep(0)
    raise ZeroDivisionError("late")


@pytest.mark.parametrize("app", [answer_twice, fail_late])
async def test_a_failure_after_the_response_is_logged_once_and_leaves_the_connection_alone(
    app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(app) as service, connected(service) as (reader, writer):
        for number in (1, 2):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await read_head(reader)
            assert await reader.readexactly(5) == b"hello"
            await eventually(partial(has_errors, caplog, number))
    assert "GET / from 127.0.0.1" in errors(caplog)[0].getMessage()


async def test_a_malformed_body_is_no_error_of_the_application(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answer(send, await read_body(receive))

    request = get("/", "Transfer-Encoding: chunked", method="POST") + b"zz\r\n"
    async with serving(app) as service:
        assert (await ask(service, request)).status == 400
        assert (await ask(service, get())).status == 200
    (record,) = errors(caplog)
    assert record.exc_info is None
    assert "malformed" in record.getMessage()


async def test_many_clients_that_disconnect_in_the_middle_leak_nothing() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.sleep(0)

    async with serving(app):
        pass  # libuv opens a descriptor with the first listener, and keeps it
    with nothing_left():
        async with serving(app) as service:
            for _ in range(20):
                async with connected(service) as (reader, writer):
                    writer.write(get())
                    await reader.readuntil(b"x\r\n")
            await eventually(lambda: len(asyncio.all_tasks()) == 1)


async def test_the_access_log_contains_status_size_and_headers_of_a_response(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "aiohttp.access")

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answer(send, b"hello", 201, [(b"x-mine", b"yes")])

    kwargs = {"access_log_format": '%a "%r" %s %{X-Mine}o'}
    async with serving(app, runner_kwargs=kwargs) as service:
        await ask(service, get("/path?query"))
        await eventually(lambda: caplog.messages)
    assert caplog.messages == ['127.0.0.1 "GET /path?query HTTP/1.1" 201 yes']


async def test_a_program_with_an_entrypoint_serves_json(run_program: Any) -> None:
    source = """\
import json
from svcrun import entrypoint
from svcrun.service.asgi import ASGIHTTPService

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    body = json.dumps({"path": scope["path"]}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})

service = ASGIHTTPService("127.0.0.1", 0, app=app)
with entrypoint(service, log_format="stream") as loop:
    print("port", service.port, flush=True)
    loop.run_forever()
"""
    program = run_program(source)
    match = await asyncio.to_thread(program.wait_for_line, r"port (\d+)")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(match[1]))
    writer.write(get("/x"))
    await read_head(reader)
    assert json.loads(await reader.read()) == {"path": "/x"}
    writer.close()
    program.terminate()
    outcome = await asyncio.to_thread(program.wait)
    assert outcome.returncode == 0, outcome.stderr
    assert "GET /x" in outcome.stderr
    assert "Traceback" not in outcome.stderr
