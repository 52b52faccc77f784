"""Laws of the stop of the uvicorn service."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

uvicorn = pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")
websockets = pytest.importorskip("websockets")

from websockets.asyncio.client import connect as connect_web_socket  # noqa: E402

from svcrun.errors import ApplicationStopFailed  # noqa: E402 - not without uvicorn
from tests.conftest import Certificates  # noqa: E402
from tests.service.uvicorns import (  # noqa: E402
    Application,
    Receive,
    Send,
    Work,
    answer,
    begin,
    begin_start,
    client,
    connect,
    get,
    hang_up,
    make,
    raw_client,
    request,
    running,
    use_network,
)
from tests.support import PATIENCE, Program, eventually, nothing_left  # noqa: E402

# Seconds that nothing here may need: the default shutdown_timeout is half of it.
LONG = 10.0


async def test_a_request_in_flight_is_answered_while_connections_are_refused() -> None:
    """C33."""
    work = Work()
    async with (
        running(make(work, shutdown_timeout=PATIENCE)) as service,
        client(service, timeout=PATIENCE) as one,
        one.stream("GET", "/") as response,
    ):
        await asyncio.wait_for(work.began.wait(), PATIENCE)
        stop = asyncio.create_task(service.stop())
        await eventually(lambda: not service.server or service.server._listener is None)
        with pytest.raises(ConnectionRefusedError), raw_client(service):
            pass
        assert not stop.done()
        work.go_on.set()
        assert await response.aread() == b"first last"
        await stop
    assert work.ends == ["complete"]


@pytest.mark.parametrize("limit", ["shutdown_timeout", "timeout_graceful_shutdown"])
async def test_a_request_that_takes_too_long_is_cancelled(
    limit: str, caplog: pytest.LogCaptureFixture
) -> None:
    """C33."""
    work = Work()
    parameters = {"shutdown_timeout": PATIENCE, limit: 0.05}
    async with (
        running(make(work, name="srv", **parameters)) as service,
        client(service, timeout=PATIENCE) as one,
        one.stream("GET", "/") as response,
    ):
        await asyncio.wait_for(work.began.wait(), PATIENCE)
        await service.stop()
        with pytest.raises(httpx.RemoteProtocolError):
            await response.aread()
    assert work.ends == ["cancelled"]
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "'srv'" in lines[0].getMessage()
    assert "self.go_on.wait()" in lines[0].getMessage()
    assert len(lines) == 2  # and uvicorn's line about the request


async def test_with_a_timeout_of_0_requests_are_cancelled_at_once() -> None:
    work = Work()
    async with running(make(work, shutdown_timeout=0)) as service:
        _, writer = await connect(service)
        writer.write(request())
        await asyncio.wait_for(work.began.wait(), PATIENCE)
        await service.stop()
        await hang_up(writer)
    assert work.ends == ["cancelled"]


async def test_an_endless_stream_does_not_delay_the_stop() -> None:
    async def stream(scope: Any, receive: Receive, send: Send) -> None:
        await begin(send)
        while True:
            await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
            await asyncio.sleep(0.01)

    async with running(make(stream, shutdown_timeout=0.1)) as service:
        reader, writer = await connect(service)
        writer.write(request())
        await reader.readuntil(b"data: x\n\n")
        async with asyncio.timeout(PATIENCE):
            await service.stop()
        await hang_up(writer)


async def test_a_stream_to_a_disconnected_client_does_not_block_the_loop() -> None:
    """uvicorn drops messages to a disconnected client, and its send() does not suspend then."""
    ends: list[bool] = []
    served = asyncio.Event()

    async def handle(scope: Any, receive: Receive, send: Send) -> None:
        if scope["path"] == "/other":
            await answer(send)
            served.set()
            return
        await begin(send)
        piece = {"type": "http.response.body", "body": bytes(1 << 16), "more_body": True}
        for _ in range(300_000):
            if served.is_set():
                break
            await send(piece)
        ends.append(served.is_set())

    async with running(make(handle)) as service:
        with raw_client(service) as sock:
            sock.sendall(request())
            await asyncio.to_thread(sock.recv, 1)
        assert (await get(service, "/other")).status_code == 200
        await eventually(lambda: ends)
    assert ends == [True]


async def test_a_client_that_never_reads_does_not_delay_the_stop() -> None:
    """C25."""
    sending = asyncio.Event()

    async def stream(scope: Any, receive: Receive, send: Send) -> None:
        await begin(send)
        sending.set()
        while True:
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})

    await use_network()
    with nothing_left():
        async with running(make(stream, shutdown_timeout=0.1)) as service:
            with raw_client(service, receive_buffer=4096) as sock:
                sock.sendall(request())
                await asyncio.wait_for(sending.wait(), PATIENCE)
                async with asyncio.timeout(PATIENCE):
                    await service.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_output_that_is_not_received_does_not_delay_the_stop() -> None:
    """C25."""
    sent = asyncio.Event()

    async def send_much(scope: Any, receive: Receive, send: Send) -> None:
        await answer(send, bytes(1 << 25))
        sent.set()

    await use_network()
    with nothing_left():
        async with running(make(send_much, shutdown_timeout=0.1)) as service:
            with raw_client(service, receive_buffer=4096) as sock:
                sock.sendall(request())
                await asyncio.wait_for(sent.wait(), PATIENCE)
                async with asyncio.timeout(PATIENCE):
                    await service.stop()


async def test_a_slow_client_receives_the_whole_response() -> None:
    sent = asyncio.Event()

    async def send_much(scope: Any, receive: Receive, send: Send) -> None:
        await answer(send, bytes(1 << 22))
        sent.set()

    async with running(make(send_much, shutdown_timeout=PATIENCE)) as service:
        reader, writer = await asyncio.open_connection(
            str(service.address), service.port, limit=4096
        )
        writer.write(request())
        await asyncio.wait_for(sent.wait(), PATIENCE)
        stop = asyncio.create_task(service.stop())
        assert (await reader.read()).count(b"\0") == 1 << 22
        await stop
        await hang_up(writer)


def receive_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


async def test_requests_sent_before_the_stop_are_answered() -> None:
    """By clients of an idle connection, and of a new one."""
    async with running(make()) as service:
        with raw_client(service) as idle, raw_client(service) as new:
            idle.sendall(request("/first"))
            assert b"200" in await asyncio.to_thread(idle.recv, 4096)
            await eventually(
                lambda: service.server and len(service.server.server_state.connections) == 2
            )
            # From here to the stop, the loop does not turn.
            for number, sock in enumerate((idle, new)):
                sock.sendall(request(f"/request{number}"))
            await service.stop()
            for number, sock in enumerate((idle, new)):
                assert f"hello /request{number}".encode() in receive_all(sock)


async def test_a_connection_in_the_backlog_is_answered() -> None:
    async with running(make()) as service:
        with raw_client(service) as waiting:
            waiting.sendall(request("/waiting"))
            await service.stop()
            assert b"hello /waiting" in receive_all(waiting)


async def test_a_cancelled_request_may_send_the_rest_of_its_response() -> None:
    began = asyncio.Event()

    async def be_polite(scope: Any, receive: Receive, send: Send) -> None:
        await begin(send)
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            await send({"type": "http.response.body", "body": b"goodbye"})

    async with running(make(be_polite, shutdown_timeout=0)) as service:
        with raw_client(service) as sock:
            sock.sendall(request())
            await asyncio.wait_for(began.wait(), PATIENCE)
            await service.stop()
            assert b"goodbye\r\n0\r\n" in receive_all(sock)


async def test_the_file_of_a_unix_socket_is_removed_with_the_listener(tmp_path: Path) -> None:
    """Another server may take its place meanwhile."""
    path = tmp_path / "sock"
    work = Work()
    async with (
        running(make(work, path=path, shutdown_timeout=PATIENCE)) as service,
        client(service, timeout=PATIENCE) as one,
        one.stream("GET", "/") as response,
    ):
        await asyncio.wait_for(work.began.wait(), PATIENCE)
        stop = asyncio.create_task(service.stop())
        await eventually(lambda: not service.server or service.server._listener is None)
        assert not path.exists()
        work.go_on.set()
        assert await response.aread() == b"first last"
        await stop


async def test_idle_connections_do_not_delay_the_stop() -> None:
    service = make(shutdown_timeout=PATIENCE, timeout_keep_alive=60)
    async with running(service), client(service) as one:
        await one.get("/")
        with raw_client(service):
            async with asyncio.timeout(LONG):
                await service.stop()


async def test_tls_connections_do_not_delay_the_stop(certificates: Certificates) -> None:
    """Neither an idle one whose client sends no close_notify, nor a stalled handshake."""
    tls = {"ssl_certfile": certificates.server_cert, "ssl_keyfile": certificates.server_key}
    trusting = ssl.create_default_context(cafile=certificates.ca)
    await use_network()
    with nothing_left():
        service = make(shutdown_timeout=PATIENCE, timeout_keep_alive=60, **tls)
        async with running(service), client(service, verify=trusting) as one:
            assert (await one.get("/")).text == "hello /"
            with raw_client(service):
                await eventually(lambda: service.server and service.server.handshakes.tasks)
                async with asyncio.timeout(LONG):
                    await service.stop()
        await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})


@pytest.mark.parametrize("size", [50_000, 1 << 22])
async def test_a_response_by_tls_arrives_whole(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Also when all that is left of it is in the transport below TLS, as with the smaller one."""
    monkeypatch.setattr("svcrun._web.graceful.LINGER", 0.01)
    sent = asyncio.Event()

    async def send_much(scope: Any, receive: Receive, send: Send) -> None:
        await answer(send, bytes(size))
        sent.set()

    tls = {"ssl_certfile": certificates.server_cert, "ssl_keyfile": certificates.server_key}
    trusting = ssl.create_default_context(cafile=certificates.ca)

    def ask() -> ssl.SSLSocket:
        with contextlib.ExitStack() as stack:
            plain = stack.enter_context(raw_client(service, receive_buffer=4096))
            secure = trusting.wrap_socket(plain, server_hostname="localhost")
            secure.sendall(request())
            stack.pop_all()
            return secure

    # So that the system takes little of it.
    options = [(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)]
    service = make(send_much, options=options, shutdown_timeout=PATIENCE, **tls)
    async with running(service):
        secure = await asyncio.to_thread(ask)
        with secure:
            await asyncio.wait_for(sent.wait(), PATIENCE)
            stop = asyncio.create_task(service.stop())
            await asyncio.sleep(0.1)  # longer than a farewell is waited for
            assert (await asyncio.to_thread(receive_all, secure)).count(b"\0") == size
            await stop


async def test_web_sockets_are_closed_by_code_1012() -> None:
    received: list[Any] = []

    async def echo(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        received.append(message)

    async with running(make(echo)) as service:
        url = f"ws://127.0.0.1:{service.port}/"
        async with connect_web_socket(url, proxy=None) as web_socket:
            await web_socket.send("hello")
            assert await web_socket.recv() == "hello"
            await service.stop()
            with pytest.raises(websockets.ConnectionClosed):
                await web_socket.recv()
            assert web_socket.close_code == 1012
    assert [message["code"] for message in received] == [1012]


async def test_a_web_socket_application_that_ignores_the_close_is_cancelled() -> None:
    ends: list[str] = []

    async def ignore(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")

    async with running(make(ignore, shutdown_timeout=0.1)) as service:
        url = f"ws://127.0.0.1:{service.port}/"
        async with connect_web_socket(url, proxy=None):
            async with asyncio.timeout(PATIENCE):
                await service.stop()
    assert ends == ["cancelled"]


async def test_a_request_that_ignores_its_cancellation_does_not_delay_the_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def stubborn(scope: Any, receive: Receive, send: Send) -> None:
        began.set()
        while not go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go_on.wait()

    async with running(make(stubborn, name="srv", shutdown_timeout=0)) as service:
        with raw_client(service) as sock:
            sock.sendall(request())
            await asyncio.wait_for(began.wait(), PATIENCE)
            async with asyncio.timeout(PATIENCE):
                await service.stop()
            assert sock.recv(1) == b""
    assert "ignored cancellation" in caplog.text
    assert "await go_on.wait()" in caplog.text
    go_on.set()
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})


# The application


async def test_the_application_is_shut_down_after_its_requests() -> None:
    """C34."""
    app = Application(work := Work())
    async with running(make(app=app, shutdown_timeout=PATIENCE)) as service:
        _, writer = await connect(service)
        writer.write(request())
        await asyncio.wait_for(work.began.wait(), PATIENCE)
        stop = asyncio.create_task(service.stop())
        await eventually(lambda: not service.server or service.server._listener is None)
        assert app.life == ["lifespan.startup"]
        work.go_on.set()
        await stop
        await hang_up(writer)
    assert app.life == ["lifespan.startup", "lifespan.shutdown"]


def lifespan_that(end: Callable[[Send], Any]) -> Any:
    """Return an application that starts, and does `end` at its end."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await end(send)

    return app


async def hang(send: Send) -> None:
    await asyncio.Event().wait()


async def fail(send: Send) -> None:
    await send({"type": "lifespan.shutdown.failed", "message": "the reason"})


async def fall(send: Send) -> None:
    raise LookupError("the reason")


@pytest.mark.parametrize(
    ("end", "reason"), [(hang, "Event.*wait"), (fail, "the reason"), (fall, "the reason")]
)
async def test_a_failed_shutdown_of_the_application_fails_the_stop_and_leaves_nothing_behind(
    end: Any, reason: str
) -> None:
    """C18."""
    await use_network()
    with nothing_left():
        service = make(app=lifespan_that(end), name="srv", shutdown_timeout=0.1)
        task = await begin_start(service)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(ApplicationStopFailed, match=f"(?s)'srv'.*{reason}"):
                await service.stop()
            await task
        assert service.socket is None
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await service.stop()


async def test_an_application_that_waits_for_an_event_after_the_shutdown_is_cancelled() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})

    async with running(make(app=app)) as service:
        async with asyncio.timeout(PATIENCE):
            await service.stop()
        await eventually(lambda: len(asyncio.all_tasks()) == 1)


# stop() itself


async def test_concurrent_stops_wait_for_the_first_one() -> None:
    work = Work()
    app = Application(work)
    async with running(make(app=app, shutdown_timeout=PATIENCE)) as service:
        await service.start_event.wait()
        _, writer = await connect(service)
        writer.write(request())
        await asyncio.wait_for(work.began.wait(), PATIENCE)
        stops = [asyncio.create_task(service.stop()) for _ in range(3)]
        await eventually(lambda: not service.server or service.server._listener is None)
        assert not any(stop.done() for stop in stops)
        work.go_on.set()
        await asyncio.gather(*stops)
        await service.stop()
        await hang_up(writer)
    assert app.life == ["lifespan.startup", "lifespan.shutdown"]


async def test_a_service_that_was_not_started_can_be_stopped() -> None:
    await make().stop()


async def test_a_cancelled_stop_closes_all_connections_at_once() -> None:
    """C19."""
    work = Work()
    await use_network()
    with nothing_left():
        service = make(work, shutdown_timeout=PATIENCE)
        task = await begin_start(service)
        reader, writer = await connect(service)
        writer.write(request())
        await asyncio.wait_for(work.began.wait(), PATIENCE)
        stop = asyncio.create_task(service.stop())
        await eventually(lambda: not service.server or service.server._listener is None)
        stop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stop
        with contextlib.suppress(ConnectionError):
            await reader.read()
        await hang_up(writer)
        await asyncio.wait_for(task, PATIENCE)
        await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    assert work.ends == ["cancelled"]
    assert service.socket is None


async def test_the_start_returns_after_the_stop() -> None:
    service = make()
    task = await begin_start(service)
    assert not task.done()
    await service.stop()
    for _ in range(10):  # turns of the loop, and so no waiting for the next second
        await asyncio.sleep(0)
    assert task.done()
    await task
    assert service.server is None


PROGRAM = """
import asyncio, sys
from svcrun import entrypoint
from svcrun.service.uvicorn import UvicornService

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                print(kind)
                return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(int(scope["path"][1:])):
        await send({"type": "http.response.body", "body": b"tick", "more_body": True})
        await asyncio.sleep(0.1)
    await send({"type": "http.response.body", "body": b"end"})

service = UvicornService(app=app, port=0, shutdown_timeout=float(sys.argv[1]))
with entrypoint(service) as loop:
    print("port", service.port)
    loop.run_forever()
print("left in order")
"""


@pytest.mark.parametrize(
    ("ticks", "timeout", "is_whole"), [(5, "30", True), (100000, "0.2", False)]
)
def test_a_signal_ends_a_program_with_an_open_stream_in_order(
    run_program: Callable[..., Program], ticks: int, timeout: str, *, is_whole: bool
) -> None:
    """C21."""
    program = run_program(PROGRAM, timeout)
    port = int(program.wait_for_line(r"port (\d+)")[1])
    received = ""
    ended = False
    with httpx.stream("GET", f"http://127.0.0.1:{port}/{ticks}", timeout=PATIENCE) as response:
        try:
            for text in response.iter_text():
                if not received:
                    program.terminate()
                received += text
            ended = True
        except httpx.RemoteProtocolError:
            pass
    outcome = program.wait()
    assert outcome.returncode == 0, outcome.stderr
    assert "lifespan.shutdown\nleft in order" in outcome.stdout
    assert ended is is_whole
    assert received.endswith("end") is is_whole
    assert outcome.stderr.count("Traceback") <= (0 if is_whole else 1)
