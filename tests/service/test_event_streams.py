"""Laws of event streams during the stop of their server (C33), and of receive and send."""

import asyncio
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("aiohttp_asgi")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

import uvicorn

from svcrun._web.event_streams import ended_event_streams
from svcrun.service.asgi import ASGIHTTPService
from svcrun.service.uvicorn import UvicornService
from tests.service import streams, uvicorns
from tests.support import PATIENCE

Service = ASGIHTTPService | UvicornService
Running = Callable[..., AbstractAsyncContextManager[Service]]

REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


def asgi(app: Any, **parameters: Any) -> AbstractAsyncContextManager[Service]:
    return streams.running(ASGIHTTPService("127.0.0.1", 0, app=app, **parameters))


def on_uvicorn(app: Any, **parameters: Any) -> AbstractAsyncContextManager[Service]:
    return uvicorns.running(uvicorns.make(app=app, **parameters))


@pytest.fixture(params=[asgi, on_uvicorn])
def running(request: pytest.FixtureRequest) -> Running:
    """Start a service for a block."""
    found: Running = request.param
    return found


async def open_stream(service: Service) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for a stream, and read its first part."""
    reader, writer = await asyncio.open_connection(str(service.address), service.port)
    writer.write(REQUEST)
    await reader.readuntil(b"first")
    return reader, writer


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings and errors."""
    records = (record for record in caplog.records if record.name != "asyncio")
    return [record.getMessage() for record in records if record.levelno >= logging.WARNING]


class Stream:
    """An application whose response has no end; it returns when :attr:`end` is set."""

    def __init__(self, content_type: bytes) -> None:
        self.end = asyncio.Event()
        self._headers = [(b"content-type", content_type)]

    async def __call__(self, scope: Any, _: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        await self.begin(send)
        await self.end.wait()

    async def begin(self, send: Any) -> None:
        """Send the first part."""
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})


@pytest.mark.parametrize(
    ("content_type", "is_whole"),
    [(b"text/event-stream", True), (b"text/event-stream; charset=utf-8", True), (b"a/b", False)],
)
async def test_an_event_stream_that_ends_in_the_middle_during_the_stop_is_completed(
    running: Running, caplog: pytest.LogCaptureFixture, content_type: bytes, *, is_whole: bool
) -> None:
    app = Stream(content_type)
    async with running(app) as service:
        reader, writer = await open_stream(service)
        stop = asyncio.create_task(service.stop())
        await asyncio.sleep(0)
        app.end.set()
        rest = await asyncio.wait_for(reader.read(), PATIENCE)
        await stop
        writer.close()
    assert rest.endswith(b"0\r\n\r\n") is is_whole
    assert bool(complaints(caplog)) is not is_whole


async def test_an_event_stream_that_ends_in_the_middle_at_another_time_is_an_error(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    app = Stream(b"text/event-stream")
    async with running(app) as service:
        reader, writer = await open_stream(service)
        app.end.set()
        assert not (await reader.read()).endswith(b"0\r\n\r\n")
        writer.close()
    assert len(complaints(caplog)) == 1


async def test_handle_exit_of_uvicorn_is_called_when_the_stop_begins(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Libraries replace it to be notified of the shutdown.
    app = Stream(b"text/event-stream")
    original = uvicorn.Server.handle_exit

    def handle_exit(*args: Any) -> None:
        app.end.set()
        original(*args)

    monkeypatch.setattr(uvicorn.Server, "handle_exit", handle_exit)
    async with on_uvicorn(app, shutdown_timeout=600) as service:
        reader, writer = await open_stream(service)
        async with asyncio.timeout(PATIENCE):
            await service.stop()
        assert (await reader.read()).endswith(b"0\r\n\r\n")
        writer.close()
    assert not complaints(caplog)


async def test_a_hook_that_fails_does_not_fail_the_stop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def handle_exit(*_: Any) -> None:
        raise LookupError("hook")

    monkeypatch.setattr(uvicorn.Server, "handle_exit", handle_exit)
    async with on_uvicorn(uvicorns.Application()):
        pass
    (message,) = complaints(caplog)
    assert "handle_exit" in message


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Put the flag of sse-starlette where it would be."""
    status = SimpleNamespace(should_exit=False, enable_automatic_graceful_drain=True)
    module = SimpleNamespace(AppStatus=status)
    monkeypatch.setitem(sys.modules, "sse_starlette.sse", module)
    yield status
    assert status.should_exit is False


def test_the_flag_of_sse_starlette_is_set_until_the_last_stop_is_over(
    status: SimpleNamespace,
) -> None:
    first, second = ended_event_streams(), ended_event_streams()
    with first:
        second.__enter__()
    assert status.should_exit
    second.__exit__(None, None, None)
    assert not status.should_exit


def test_the_flag_of_sse_starlette_is_left_alone_if_the_application_says_so(
    status: SimpleNamespace,
) -> None:
    status.enable_automatic_graceful_drain = False
    with ended_event_streams():
        assert not status.should_exit


async def test_the_event_that_older_sse_starlette_waits_for_is_set_at_each_stop(
    running: Running, caplog: pytest.LogCaptureFixture, status: SimpleNamespace
) -> None:
    status.should_exit_event = None

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await Stream(b"text/event-stream").begin(send)
        if status.should_exit_event is None:
            status.should_exit_event = asyncio.Event()
        await status.should_exit_event.wait()

    for _ in range(2):
        async with running(app, shutdown_timeout=600, lifespan="off") as service:
            reader, writer = await open_stream(service)
            assert status.should_exit_event is not None
            assert not status.should_exit_event.is_set()
            async with asyncio.timeout(PATIENCE):
                await service.stop()
            assert (await reader.read()).endswith(b"0\r\n\r\n")
            writer.close()
        assert status.should_exit_event is None
    assert not complaints(caplog)


async def test_the_flag_of_sse_starlette_is_set_during_a_stop(
    running: Running, status: SimpleNamespace
) -> None:
    seen: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await uvicorns.begin(send)
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        while not status.should_exit:  # noqa: ASYNC110 - as sse-starlette does
            await asyncio.sleep(0.01)
        seen.append(status.should_exit)
        await send({"type": "http.response.body", "body": b"last"})

    async with running(app) as service:
        reader, writer = await open_stream(service)
        stop = asyncio.create_task(service.stop())
        assert b"last" in await asyncio.wait_for(reader.read(), PATIENCE)
        await stop
        writer.close()
    assert seen == [True]


@pytest.mark.parametrize("is_idle", [False, True])
async def test_a_stream_of_sse_starlette_ends_at_the_stop_and_again_after_a_new_start(
    running: Running, caplog: pytest.LogCaptureFixture, *, is_idle: bool
) -> None:
    sse = pytest.importorskip("sse_starlette.sse")

    async def events() -> Any:
        yield {"data": "first"}
        while True:
            await asyncio.sleep(600 if is_idle else 0.01)
            yield {"data": "next"}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await sse.EventSourceResponse(events())(scope, receive, send)

    for _ in range(2):
        async with running(app, shutdown_timeout=600, lifespan="off") as service:
            reader, writer = await open_stream(service)
            async with asyncio.timeout(PATIENCE):
                await service.stop()
            assert (await reader.read()).endswith(b"0\r\n\r\n")
            writer.close()
    assert not complaints(caplog)


async def test_receive_and_send_are_coroutine_functions(running: Running) -> None:
    # asgiref warns of others, and frameworks run them in threads.
    given: dict[str, list[Callable[..., Awaitable[Any]]]] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        given[scope["type"]] = [receive, send]
        if scope["type"] == "http":
            await uvicorns.answer(send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})
        else:
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})

    upgrade = (
        b"GET / HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    async with running(app) as service:
        for request in (REQUEST, upgrade):
            reader, writer = await asyncio.open_connection(str(service.address), service.port)
            writer.write(request)
            await reader.readuntil(b"\r\n\r\n")
            writer.close()
    assert given.keys() == {"http", "websocket", "lifespan"}
    for functions in given.values():
        assert all(map(inspect.iscoroutinefunction, functions))
