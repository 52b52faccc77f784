"""The stop of AIOHTTPService (C17, C18, C22, C33)."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("aiohttp")

import aiohttp
from aiohttp import web as aioweb

from svcrun import entrypoint
from svcrun._util import drain
from svcrun._util.terminating import is_terminating
from svcrun.errors import AlreadyRunning
from svcrun.service import aiohttp as module
from svcrun.service.aiohttp import AIOHTTPService
from svcrun.sockets import bind_socket
from tests.service.streams import running
from tests.service.webs import (
    Truncated,
    Web,
    complaints,
    connect,
    get,
    raw_client,
    read_answer,
    read_head,
    request,
    warm_up,
)
from tests.support import PATIENCE, eventually, nothing_left

# A tenth of the time that requests get here: a stop in this time has waited for none.
SOON = PATIENCE

OPEN_WEB_SOCKET = request(
    "/",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


@pytest.fixture(autouse=True)
def _long_shutdown_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AIOHTTPService, "shutdown_timeout", 10 * PATIENCE)


async def hello(_: aioweb.Request) -> aioweb.Response:
    return aioweb.Response(text="hello")


async def stop_within(service: AIOHTTPService, seconds: float = SOON) -> float:
    """Stop a service; return the seconds that took, or fail."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with asyncio.timeout(seconds):
        await service.stop()
    return loop.time() - begun


async def is_stopping(service: AIOHTTPService) -> asyncio.Task[float]:
    """Begin a stop, and return when the listener is closed and idle connections are."""
    assert service.runner is not None
    server: Any = service.runner.server
    stop = asyncio.create_task(stop_within(service))
    await eventually(lambda: server.stopping)
    await asyncio.sleep(0.05)  # several iterations of the loop
    return stop


class Gate:
    """A handler that signals its call, and waits for permission to continue."""

    def __init__(self) -> None:
        self.called = asyncio.Event()
        self.go = asyncio.Event()
        self.ends: list[str] = []

    async def __call__(self, _: aioweb.Request) -> aioweb.Response:
        self.called.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise
        self.ends.append("done")
        return aioweb.Response(text="done")


async def test_new_connections_are_refused_at_once(web: Web) -> None:
    gate = Gate()
    service = web.service(gate.__call__)
    await service.start()
    port = service.port
    async with web.client(service) as (reader, writer):
        writer.write(request())
        await gate.called.wait()
        stop = asyncio.create_task(stop_within(service))
        await asyncio.sleep(0)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        gate.go.set()
        assert (await read_answer(reader)).body == b"done"
        await stop


async def test_the_response_to_a_request_in_flight_closes_its_connection(
    http: Web,
) -> None:
    service = http.service(hello)
    await service.start()
    assert service.runner is not None
    server: Any = service.runner.server
    make = server.request_factory

    def make_just_before_the_stop(*arguments: Any) -> Any:
        made = make(*arguments)
        server.pre_shutdown()
        return made

    server.request_factory = make_just_before_the_stop
    async with http.client(service) as (reader, writer):
        writer.write(request())
        assert (await read_answer(reader)).closes
        await stop_within(service)


async def test_a_connection_in_the_backlog_is_served(web: Web) -> None:
    """For the clients, the connections are established already."""
    is_terminating.set(True)
    service = web.service(hello)
    await service.start()
    async with contextlib.AsyncExitStack() as stack:
        # While the loop is blocked here, no connection is accepted.
        socks = [stack.enter_context(raw_client(service)) for _ in range(20)]
        stop = asyncio.create_task(stop_within(service))
        context = web.client_context()
        name = None if context is None else "localhost"

        async def ask(sock: socket.socket) -> None:
            sock.setblocking(False)
            reader, writer = await asyncio.open_connection(
                sock=sock, ssl=context, server_hostname=name
            )
            writer.write(request())
            answer = await read_answer(reader)
            assert (answer.status, answer.body, answer.closes) == (200, b"hello", True)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        # All at once: handshakes have half a second in common.
        await asyncio.gather(*map(ask, socks))
        await stop


async def test_idle_connections_are_closed_promptly(web: Web) -> None:
    service = web.service(hello)
    await service.start()
    async with web.client(service) as (reader, writer):
        writer.write(request())
        assert not (await read_answer(reader)).closes
        async with web.client(service) as (silent, _):
            await stop_within(service)
            assert await silent.read() == b""
        assert await reader.read() == b""


async def test_a_request_in_flight_is_answered_and_its_connection_closed(web: Web) -> None:
    gate = Gate()
    service = web.service(gate.__call__)
    await service.start()
    async with web.client(service) as (reader, writer):
        writer.write(request())
        await gate.called.wait()
        stop = await is_stopping(service)
        assert not stop.done()
        gate.go.set()
        answer = await read_answer(reader)
        assert (answer.status, answer.body, answer.closes) == (200, b"done", True)
        assert await reader.read() == b""
        await stop


async def test_a_request_that_was_sent_before_the_stop_is_answered(web: Web) -> None:
    service = web.service(hello)
    await service.start()
    async with web.client(service) as (reader, writer):
        writer.write(request())
        await read_answer(reader)
        writer.write(request())
        await service.stop()  # has not read it yet
        answer = await read_answer(reader)
        assert (answer.status, answer.closes) == (200, True)


async def test_a_request_that_came_while_the_loop_was_blocked_is_answered(
    http: Web,
) -> None:
    """Its connection has been idle for long then, if one goes by the clock."""
    service = http.service(hello)
    await service.start()
    async with http.client(service) as (reader, writer):
        writer.write(request())
        await read_answer(reader)
        stop = asyncio.create_task(service.stop())
        await asyncio.sleep(0)
        # At once, while uvloop's transport would wait for the end of this turn.
        assert os.write(writer.get_extra_info("socket").fileno(), request()) == len(request())
        await stop
        assert (await read_answer(reader)).status == 200


async def test_a_request_that_was_read_but_not_begun_is_answered(http: Web) -> None:
    """Between the two there is a turn of the loop, which may be the one of the stop."""
    service = http.service(hello)
    async with running(service), http.client(service) as (reader, writer):
        writer.write(request())
        await read_answer(reader)
        server: Any = service.runner and service.runner.server
        (connection,) = server.connections
        connection.data_received(request())
        connection.end()
        assert (await read_answer(reader)).body == b"hello"
        assert await reader.read() == b""


async def test_an_upload_continues_during_the_stop(web: Web) -> None:
    async def upload(request: aioweb.Request) -> aioweb.Response:
        return aioweb.Response(text=str(len(await request.read())))

    service = web.service(upload)
    await service.start()
    async with web.client(service) as (reader, writer):
        writer.write(request("/", "Content-Length: 200000", method="POST") + b"x" * 100_000)
        await writer.drain()
        stop = await is_stopping(service)
        for _ in range(10):
            writer.write(b"x" * 10_000)
            await writer.drain()
        answer = await read_answer(reader)
        assert (answer.status, answer.body, answer.closes) == (200, b"200000", True)
        await stop


async def test_an_unread_request_body_does_not_affect_the_response(http: Web) -> None:
    """To close a socket with something unread in it would reset the connection."""
    service = http.service(hello)
    await service.start()
    async with http.client(service) as (reader, writer):
        writer.write(request("/", "Content-Length: 100000", method="POST"))
        answer = await read_answer(reader)
        stop = await is_stopping(service)
        for _ in range(10):
            writer.write(b"x" * 10_000)
            await writer.drain()
        assert answer.body == b"hello"
        assert await reader.read() == b""
        await stop


async def test_a_long_response_is_sent_to_its_end(web: Web) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def stream(request: aioweb.Request) -> aioweb.StreamResponse:
        response = aioweb.StreamResponse()
        await response.prepare(request)
        await response.write(b"begun")
        begun.set()
        await go.wait()
        for _ in range(50):
            await response.write(b"x" * 10_000)
        return response

    service = web.service(stream)
    await service.start()
    async with web.client(service) as (reader, writer):
        writer.write(request())
        await begun.wait()
        stop = await is_stopping(service)
        go.set()
        answer = await read_answer(reader)
        assert len(answer.body) == 500_005
        assert await reader.read() == b""
        await stop


async def test_a_request_past_the_time_limit_is_cancelled_with_one_warning(
    web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    """An endless stream of events, say."""
    ends: list[str] = []

    async def events(request: aioweb.Request) -> aioweb.StreamResponse:
        response = aioweb.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            while True:
                await response.write(b"data: tick\n\n")
                await asyncio.sleep(0.02)
        finally:
            ends.append("cleaned up")

    service = web.service(events, shutdown_timeout=0.3)
    await service.start()
    async with web.client(service) as (reader, writer):
        writer.write(request())
        await read_head(reader)
        assert await stop_within(service) >= 0.29
        assert ends == ["cleaned up"]
        (record,) = complaints(caplog)
        assert "1 task is still running" in record.getMessage()
        assert "shutdown_timeout=0.3" in record.getMessage()
        assert "in test_a_request_past_the_time_limit" in record.getMessage()
        with contextlib.suppress(OSError):
            await reader.read()


async def test_a_shutdown_timeout_of_0_cancels_requests_at_once(
    web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    service = web.service(gate.__call__, shutdown_timeout=0)
    await service.start()
    async with web.client(service) as (reader, writer), web.client(service):
        writer.write(request())
        await gate.called.wait()
        await stop_within(service)
        assert gate.ends == ["cancelled"]
        with contextlib.suppress(OSError):
            assert await reader.read() == b""
    (record,) = complaints(caplog)
    assert "1 task is" in record.getMessage()  # the idle connection is not among them


async def test_a_handler_that_ignores_cancellation_is_logged_and_abandoned(
    http: Web, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "GRACE_PERIOD", 0.1)
    go, called = asyncio.Event(), asyncio.Event()

    async def stubborn(_: aioweb.Request) -> aioweb.Response:
        called.set()
        while not go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go.wait()
        return aioweb.Response()

    service = http.service(stubborn, shutdown_timeout=0.1)
    await service.start()
    try:
        async with http.client(service) as (_, writer):
            writer.write(request())
            await called.wait()
            await stop_within(service)
        (error,) = complaints(caplog, logging.ERROR)
        assert "ignored cancellation" in error.getMessage()
        assert "in test_a_handler_that_ignores_cancellation" in error.getMessage()
    finally:
        go.set()  # or the end of the event loop would wait for the handler without a time limit
    await eventually(lambda: len(asyncio.all_tasks()) == 1)


async def test_a_client_that_never_reads_is_aborted_at_the_deadline(
    web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    async def large(_: aioweb.Request) -> aioweb.Response:
        return aioweb.Response(body=b"x" * 50_000_000)

    service = web.service(large, shutdown_timeout=0.2)
    await service.start()
    context = web.client_context()
    with raw_client(service, receive_buffer=4096) as sock:

        def ask(raw: socket.socket) -> Any:
            client = raw
            if context is not None:
                client = context.wrap_socket(raw, server_hostname="localhost")
            client.sendall(request())
            return client

        client = await asyncio.to_thread(ask, sock)
        assert await asyncio.to_thread(client.recv, 1) == b"H"
        await stop_within(service)
        client.close()


async def test_a_client_without_a_tls_close_does_not_delay_the_stop(
    https: Web,
) -> None:
    service = https.service(hello)
    await service.start()
    context = https.client_context()
    assert context is not None

    def talk(raw: socket.socket) -> Any:
        client = context.wrap_socket(raw, server_hostname="localhost")
        client.sendall(request())
        assert client.recv(1) == b"H"
        return client

    with raw_client(service) as sock:
        client = await asyncio.to_thread(talk, sock)
        await stop_within(service)
        client.close()


async def test_an_unfinished_handshake_does_not_delay_the_stop(
    https: Web, caplog: pytest.LogCaptureFixture
) -> None:
    service = https.service(hello)
    await service.start()
    with raw_client(service) as sock:
        server: Any = service.runner and service.runner.server
        await eventually(lambda: server.handshakes.tasks)
        await stop_within(service)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.to_thread(sock.recv, 1) == b""
    assert not complaints(caplog)


class TestWebSockets:
    """They are closed with a code that states the reason."""

    @pytest.fixture
    def closed(self) -> list[Any]:
        """The close codes that handlers of :meth:`service` received."""
        return []

    @pytest.fixture
    def service(self, http: Web, closed: list[Any]) -> AIOHTTPService:
        async def echo(request: aioweb.Request) -> aioweb.WebSocketResponse:
            socket = aioweb.WebSocketResponse()
            await socket.prepare(request)
            async for message in socket:
                await socket.send_str(message.data)
            closed.append(socket.close_code)
            return socket

        return http.service(echo)

    async def test_the_client_sees_1001_and_the_handler_a_closed_web_socket(
        self, service: AIOHTTPService, closed: list[Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        await service.start()
        url = f"http://127.0.0.1:{service.port}/"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as client:
            await client.send_str("hello")
            assert await client.receive_str() == "hello"
            stop = asyncio.create_task(stop_within(service))
            message = await client.receive()
            assert message.type is aiohttp.WSMsgType.CLOSE
            assert message.data == aiohttp.WSCloseCode.GOING_AWAY
            await stop
        assert len(closed) == 1
        assert not complaints(caplog)

    async def test_a_client_that_sends_all_the_time_sees_1001(
        self, service: AIOHTTPService, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Unread data of the client must not reset the connection."""
        websockets = pytest.importorskip("websockets")
        await service.start()
        async with websockets.connect(f"ws://127.0.0.1:{service.port}/") as client:

            async def flood() -> None:
                with contextlib.suppress(websockets.ConnectionClosed):
                    while True:
                        await client.send("x" * 1000)
                        await asyncio.sleep(0)

            flooding = asyncio.create_task(flood())
            assert await client.recv() == "x" * 1000
            stop = asyncio.create_task(stop_within(service))
            async for _ in client:
                pass
            await flooding
            await stop
        assert client.close_code == aiohttp.WSCloseCode.GOING_AWAY
        assert not complaints(caplog)

    async def test_a_client_that_never_answers_does_not_delay_the_stop(
        self, service: AIOHTTPService, closed: list[Any]
    ) -> None:
        await service.start()
        reader, writer = await connect(service)
        writer.write(OPEN_WEB_SOCKET)
        assert (await read_head(reader))[0] == 101
        await stop_within(service)
        assert await reader.readexactly(4) == b"\x88\x18\x03\xe9"  # a close frame, 1001
        assert len(closed) == 1
        writer.close()
        await writer.wait_closed()

    async def test_a_web_socket_handler_in_flight_may_use_the_timeout(
        self, http: Web, caplog: pytest.LogCaptureFixture
    ) -> None:
        go, busy = asyncio.Event(), asyncio.Event()
        seen: list[Any] = []

        async def work(request: aioweb.Request) -> aioweb.WebSocketResponse:
            socket = aioweb.WebSocketResponse()
            await socket.prepare(request)
            busy.set()
            await go.wait()
            seen.append((await socket.receive()).type)
            return socket

        service = http.service(work)
        await service.start()
        url = f"http://127.0.0.1:{service.port}/"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as client:
            await busy.wait()
            stop = await is_stopping(service)
            assert not stop.done()
            message = await client.receive()
            assert message.data == aiohttp.WSCloseCode.GOING_AWAY
            go.set()
            await stop
        assert seen in ([aiohttp.WSMsgType.CLOSED], [aiohttp.WSMsgType.CLOSING])
        assert not complaints(caplog)


class TestConcurrentStops:
    """Stops by handlers and other callers, at any time."""

    async def test_a_stop_before_the_start_does_nothing(self, http: Web) -> None:
        service = http.service(hello)
        await service.stop()
        async with running(service):
            assert (await http.get(service)).status == 200

    async def test_a_second_stop_does_nothing(self, http: Web) -> None:
        service = http.service(hello)
        await service.start()
        await service.stop()
        await service.stop()

    async def test_two_concurrent_stops_return_when_the_service_is_stopped(self, http: Web) -> None:
        gate = Gate()
        service = http.service(gate.__call__)
        await service.start()
        async with http.client(service) as (reader, writer):
            writer.write(request())
            await gate.called.wait()
            stops = [asyncio.create_task(stop_within(service)) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(AlreadyRunning):
                await service.start()
            gate.go.set()
            assert (await read_answer(reader)).body == b"done"
            await asyncio.gather(*stops)
        assert service.socket is None

    async def test_a_stop_during_the_start_ends_the_start(self, http: Web) -> None:
        waiting, go = asyncio.Event(), asyncio.Event()
        seen: list[str] = []

        async def context(_: aioweb.Application) -> Any:
            seen.append("up")
            waiting.set()
            await go.wait()
            yield
            seen.append("down")

        def make() -> aioweb.Application:
            app = aioweb.Application()
            app.cleanup_ctx.append(context)
            return app

        service = http.service(app=make)
        await warm_up()
        with nothing_left():
            start = asyncio.create_task(service.start())
            await waiting.wait()
            port = service.port
            await service.stop()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            go.set()
            with pytest.raises(RuntimeError, match="was stopped before it had started"):
                await start
        assert seen == ["up", "down"]
        async with running(service):
            assert (await http.get(service)).status == 404

    async def test_a_handler_may_stop_its_service_and_is_not_waited_for(self, http: Web) -> None:
        stopped = asyncio.Event()

        async def stop(_: aioweb.Request) -> aioweb.Response:
            await stop_within(service)
            stopped.set()
            return aioweb.Response(text="bye")

        service = http.service(stop)
        await service.start()
        async with http.client(service) as (reader, writer):
            writer.write(request())
            await stopped.wait()
            answer = await read_answer(reader)
            assert (answer.body, answer.closes) == (b"bye", True)
            assert await reader.read() == b""

    async def test_a_handler_of_a_web_socket_may_stop_its_service(self, http: Web) -> None:
        stopped = asyncio.Event()

        async def stop(request: aioweb.Request) -> aioweb.WebSocketResponse:
            socket = aioweb.WebSocketResponse(timeout=600)
            await socket.prepare(request)
            try:
                await stop_within(service)
            finally:
                stopped.set()
            await socket.send_str("bye")
            return socket

        service = http.service(stop)
        await service.start()
        reader, writer = await connect(service)
        writer.write(OPEN_WEB_SOCKET)
        assert (await read_head(reader))[0] == 101
        await stopped.wait()
        assert await reader.readexactly(5) == b"\x81\x03bye"
        writer.close()
        await writer.wait_closed()
        await eventually(lambda: len(asyncio.all_tasks()) == 1)

    async def test_a_handler_may_stop_its_service_during_another_stop(self, http: Web) -> None:
        gate = Gate()

        async def stop(request: aioweb.Request) -> aioweb.Response:
            await gate(request)
            await stop_within(service)
            return aioweb.Response(text="bye")

        service = http.service(stop)
        await service.start()
        async with http.client(service) as (reader, writer):
            writer.write(request())
            await gate.called.wait()
            stopping = await is_stopping(service)
            gate.go.set()
            await stopping
            assert (await read_answer(reader)).body == b"bye"

    async def test_a_handler_may_stop_the_entrypoint(self, http: Web) -> None:
        async def stop(_: aioweb.Request) -> aioweb.Response:
            current = entrypoint.get_current()
            assert current is not None
            await current.graceful_shutdown(None)
            return aioweb.Response(text="bye")

        service = http.service(stop)
        with contextlib.suppress(asyncio.CancelledError):
            async with (
                asyncio.timeout(SOON),
                entrypoint(service, log_config=False, catch_signals=()) as running,
            ):
                reader, writer = await connect(service)
                writer.write(request())
                await running.closing()
        assert (await read_answer(reader)).body == b"bye"
        writer.close()
        await writer.wait_closed()

    async def test_a_cancelled_stop_closes_all_connections(self, web: Web) -> None:
        gate = Gate()
        service = web.service(gate.__call__, shutdown_timeout=600)
        await warm_up()
        with nothing_left():
            await service.start()
            async with web.client(service) as (reader, writer):
                writer.write(request())
                await gate.called.wait()
                stop = await is_stopping(service)
                stop.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await stop
                assert (service.socket, service.port) == (None, 0)
                with contextlib.suppress(OSError):
                    assert await reader.read() == b""
                await eventually(lambda: gate.ends == ["cancelled"])


async def test_the_stop_waits_for_a_handler_whose_client_disconnected(http: Web) -> None:
    """Else the application would be cleaned up under its hands."""
    gate = Gate()
    order: list[str] = []

    async def cleanup(_: aioweb.Application) -> None:
        order.append("cleanup")

    async def handle(request: aioweb.Request) -> aioweb.Response:
        answer = await gate(request)
        order.append("handled")
        return answer

    def make() -> aioweb.Application:
        app = aioweb.Application()
        app.router.add_get("/", handle)
        app.on_cleanup.append(cleanup)
        return app

    service = http.service(app=make, handler_cancellation=False)
    await service.start()
    server: Any = service.runner and service.runner.server
    async with http.client(service) as (_, writer):
        writer.write(request())
        await gate.called.wait()
    await eventually(lambda: not server.transports())
    stop = await is_stopping(service)
    assert not stop.done()
    gate.go.set()
    await stop
    assert order == ["handled", "cleanup"]


@pytest.mark.parametrize("steps", [["shutdown"], ["cleanup"], ["shutdown", "context", "cleanup"]])
async def test_every_step_of_the_stop_runs_and_all_errors_are_raised(
    http: Web, steps: list[str]
) -> None:
    """C18."""
    taken: list[str] = []

    def step(name: str) -> Callable[[aioweb.Application], Any]:
        async def take(_: aioweb.Application) -> None:
            taken.append(name)
            if name in steps:
                raise LookupError(name)

        return take

    async def context(app: aioweb.Application) -> Any:
        yield
        await step("context")(app)

    def make() -> aioweb.Application:
        app = aioweb.Application()
        app.on_shutdown.append(step("shutdown"))
        app.cleanup_ctx.append(context)
        app.on_cleanup.append(step("cleanup"))
        return app

    service = http.service(app=make)
    await warm_up()
    with nothing_left():
        await service.start()
        with pytest.raises((LookupError, ExceptionGroup)) as caught:
            await service.stop()
    assert taken[0] == "shutdown"
    assert "context" in taken
    if isinstance(caught.value, ExceptionGroup):
        # The cleanup of aiohttp ends with the first function that fails.
        assert [str(error) for error in caught.value.exceptions] == ["shutdown", "context"]
    else:
        assert str(caught.value) == steps[0]
    assert (service.socket, service.port) == (None, 0)


async def test_a_stopped_service_can_be_started_again(http: Web) -> None:
    for service in (http.service(hello), http.service(app=aioweb.Application())):
        for _ in range(3):
            async with running(service):
                assert (await get(service)).status in {200, 404}
            assert (service.address, service.port) == ("127.0.0.1", 0)


async def test_two_hundred_starts_and_stops_leak_nothing(http: Web) -> None:
    """C22."""
    service = http.service(hello)
    await warm_up()
    tasks = len(asyncio.all_tasks())
    with nothing_left():
        for count in range(200):
            await service.start()
            if count % 20 == 0:
                assert (await get(service)).status == 200
            await service.stop()
    assert len(asyncio.all_tasks()) == tasks


def test_the_module_exports_its_names() -> None:
    assert set(module.__all__) == {"AIOHTTPSSLService", "AIOHTTPService", "AccessLogger", "Runner"}
    assert issubclass(Truncated, Exception)


async def test_a_shared_socket_still_accepts_connections_for_a_successor() -> None:
    # As one that systemd keeps for the next start of a program.
    with bind_socket(address="127.0.0.1") as kept:
        for _ in range(2):
            service = AIOHTTPService(sock=kept.dup(), app=aioweb.Application())
            await service.start()
            host, port = kept.getsockname()
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert b" 404 " in await reader.readline()
            writer.close()
            await service.stop()
