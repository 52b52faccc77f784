"""The stop of a stream server (C25)."""

import asyncio
import contextlib
import logging
import socket
from typing import Any

import pytest

from svcrun._util import drain
from svcrun.service._stream import StreamServer
from tests.service.streams import Handler, Transport, careless_echo, echo, raw_client, running
from tests.support import PATIENCE, eventually, nothing_left

# A tenth of the time that working handlers get here: a stop in this time has waited for none.
SOON = PATIENCE


@pytest.fixture(autouse=True)
def _long_drain_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StreamServer, "drain_timeout", 10 * PATIENCE)


async def stop_within(server: StreamServer, seconds: float) -> float:
    """Stop a server; return the seconds that took, or fail."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with asyncio.timeout(seconds):
        await server.stop()
    return loop.time() - begun


async def test_a_stop_cancels_a_handler_that_waits_for_its_client_at_once(
    transport: Transport,
) -> None:
    cleaned: list[str] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await echo(reader, writer)
        except asyncio.CancelledError:
            cleaned.append("cancelled")
            raise
        finally:
            cleaned.append("finally")

    server = transport.server(handler)
    await server.start()
    async with transport.client(server) as (reader, writer):
        writer.write(b"x\n")
        assert await reader.readline() == b"x\n"
        await stop_within(server, SOON)
        assert cleaned == ["cancelled", "finally"]
        assert await reader.read() == b""


@pytest.mark.parametrize("read", ["read", "readexactly", "readuntil", "wait_for", "anext"])
async def test_a_stop_cancels_every_kind_of_wait_for_a_client_at_once(
    tcp: Transport, read: str
) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"ready")
        match read:
            case "read":
                await reader.read()
            case "readexactly":
                await reader.readexactly(10)
            case "readuntil":
                await reader.readuntil(b"xyz")
            case "wait_for":
                await asyncio.wait_for(reader.readline(), 60)
            case "anext":
                await anext(reader)

    server = tcp.server(handler)
    await server.start()
    async with tcp.client(server) as (reader, writer):
        writer.write(b"half")
        assert await reader.readexactly(5) == b"ready"
        await eventually(lambda: [c for c in server.connections if c.reader.waiting])
        await stop_within(server, SOON)


async def test_a_handler_at_work_may_finish_during_a_stop(transport: Transport) -> None:
    go = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"working\n")
        await go.wait()
        writer.write(b"done\n")

    server = transport.server(handler)
    await server.start()
    async with transport.client(server) as (reader, writer):
        writer.write(b"work\n")
        assert await reader.readline() == b"working\n"
        stop = asyncio.create_task(stop_within(server, SOON))
        await asyncio.sleep(0.05)
        assert not stop.done()
        go.set()
        assert await reader.read() == b"done\n"
        await stop


async def test_during_a_stop_a_handler_reads_the_buffer_and_is_cancelled_when_it_would_wait(
    transport: Transport,
) -> None:
    go = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            writer.write(line)
            await go.wait()

    server = transport.server(handler)
    await server.start()
    async with transport.client(server) as (reader, writer):
        writer.write(b"1\n2\n3\n4")
        assert await reader.readline() == b"1\n"
        stop = asyncio.create_task(stop_within(server, SOON))
        await asyncio.sleep(0.05)
        go.set()
        assert await reader.read() == b"2\n3\n"
        await stop


async def test_after_drain_timeout_a_handler_is_cancelled_with_one_warning(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    ends: list[str] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"ready")
        try:
            await asyncio.sleep(60)
        finally:
            ends.append("cleaned up")

    server = transport.server(handler, drain_timeout=0.1)
    await server.start()
    async with transport.client(server) as (reader, writer):
        peer = "{}:{}".format(*writer.get_extra_info("sockname"))
        assert await reader.readexactly(5) == b"ready"
        assert await stop_within(server, SOON) >= 0.09
        assert await reader.read() == b""
    assert ends == ["cleaned up"]
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert peer in lines[0]


async def test_a_drain_timeout_of_0_cancels_handlers_at_once(tcp: Transport) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    server = tcp.server(handler, drain_timeout=0)
    await server.start()
    async with tcp.client(server) as (reader, _):
        await eventually(lambda: server.connections)
        await stop_within(server, SOON)
        assert await reader.read() == b""


async def test_a_handler_that_ignores_its_cancellation_is_named_and_abandoned(
    transport: Transport, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "GRACE_PERIOD", 0.1)
    release = asyncio.Event()
    tasks: list[asyncio.Task[Any] | None] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        writer.write(b"ready")
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    server = transport.server(handler, drain_timeout=0.1)
    await server.start()
    async with transport.client(server) as (reader, writer):
        peer = "{}:{}".format(*writer.get_extra_info("sockname"))
        assert await reader.readexactly(5) == b"ready"
        await stop_within(server, SOON)
        # Its connection is closed all the same.
        with contextlib.suppress(OSError):
            assert await reader.read() == b""
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 1
    assert peer in errors[0]
    assert "release.wait()" in errors[0]
    release.set()
    assert tasks[0] is not None
    await tasks[0]


async def test_a_client_that_reads_gets_all_of_the_output_during_a_stop(
    transport: Transport,
) -> None:
    size = 3_000_000

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * size)
        await reader.readline()

    server = transport.server(handler)
    await server.start()
    async with transport.client(server) as (reader, _):
        assert await reader.readexactly(1) == b"x"
        stop = asyncio.create_task(server.stop())
        assert len(await reader.read()) == size - 1
        await stop


async def test_a_client_that_does_not_read_can_not_delay_the_stop(tcp: Transport) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 50_000_000)
        await reader.readline()

    server = tcp.server(handler, drain_timeout=0.2)
    await server.start()
    with raw_client(server, receive_buffer=4096) as sock:
        assert await asyncio.to_thread(sock.recv, 1) == b"x"
        await stop_within(server, SOON)
        assert not server.connections


async def test_a_handler_that_waits_in_drain_can_not_delay_the_stop(tcp: Transport) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"x" * 1_000_000)
            await writer.drain()

    server = tcp.server(handler, drain_timeout=0.2)
    await server.start()
    with raw_client(server, receive_buffer=4096) as sock:
        assert await asyncio.to_thread(sock.recv, 1) == b"x"
        await stop_within(server, SOON)


async def close_itself(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def close_and_wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("handler", [echo, close_itself, close_and_wait])
async def test_a_client_that_does_not_confirm_the_end_of_tls_can_not_delay_the_stop(
    certificates: Any, handler: Handler, caplog: pytest.LogCaptureFixture
) -> None:
    transport = Transport(certificates)
    server = transport.server(handler)
    await server.start()

    def shake_hands(sock: socket.socket) -> Any:
        context = transport.client_context()
        assert context is not None
        return context.wrap_socket(sock, server_hostname="localhost")

    with raw_client(server) as sock, await asyncio.to_thread(shake_hands, sock) as secure:
        await eventually(lambda: [c for c in server.connections if c.over_tls])
        await stop_within(server, SOON)
        assert await asyncio.to_thread(secure.recv, 10) == b""
    assert not caplog.records


async def test_a_stop_cancels_an_unfinished_handshake_at_once(certificates: Any) -> None:
    server = Transport(certificates).server(echo, drain_timeout=10 * PATIENCE)
    await server.start()
    with raw_client(server) as sock:
        await eventually(lambda: server.connections)
        await stop_within(server, SOON)
        with contextlib.suppress(OSError):
            assert await asyncio.to_thread(sock.recv, 10) == b""


async def test_a_stop_cancels_an_unfinished_starttls_at_once(
    tcp: Transport, certificates: Any
) -> None:
    secure = Transport(certificates).server(echo)
    context = secure._svcrun_make_options().create_context()  # type: ignore[union-attr]

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writer.start_tls(context)

    server = tcp.server(handler, drain_timeout=10 * PATIENCE)
    await server.start()
    with raw_client(server) as sock:
        await eventually(lambda: server.connections)
        await stop_within(server, SOON)
        with contextlib.suppress(OSError):
            assert await asyncio.to_thread(sock.recv, 10) == b""


async def test_connections_that_were_not_accepted_yet_are_closed_by_a_stop(
    transport: Transport,
) -> None:
    server = transport.server(echo)
    await server.start()
    with contextlib.ExitStack() as stack:
        # The loop does not turn meanwhile, so that they stay in the backlog.
        clients = [stack.enter_context(raw_client(server)) for _ in range(20)]
        await server.stop()
        for client in clients:
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.to_thread(client.recv, 1) == b""
    assert not server.connections


async def test_a_stop_refuses_new_connections_at_once(tcp: Transport) -> None:
    go = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"ready")
        await go.wait()

    server = tcp.server(handler)
    await server.start()
    place = (str(server.address), server.port or 0)
    async with tcp.client(server) as (reader, _):
        await reader.readexactly(5)
        stop = asyncio.create_task(server.stop())
        await asyncio.sleep(0.01)
        assert not stop.done()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(place)
        go.set()
        await stop


async def test_stop_may_come_at_any_time_and_again(transport: Transport) -> None:
    server = transport.server(echo)
    await server.stop()
    await server.start()
    async with transport.client(server):
        await asyncio.gather(server.stop(), server.stop(), server.stop())
        await server.stop()
    assert server.server is None
    assert server.socket is None


async def test_a_handler_may_stop_its_server(transport: Transport) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            if line == b"stop\n":
                await server.stop()
                writer.write(b"stopped\n")
                return

    server = transport.server(handler)
    await server.start()
    async with transport.client(server), transport.client(server) as (reader, writer):
        async with asyncio.timeout(SOON):
            writer.write(b"stop\n")
            assert await reader.read() == b"stopped\n"
    await eventually(lambda: not server.connections)


async def test_a_handler_may_stop_its_server_while_another_stop_waits_for_it(
    tcp: Transport,
) -> None:
    go = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"ready")
        await go.wait()
        await server.stop()

    server = tcp.server(handler)
    await server.start()
    async with tcp.client(server) as (reader, _):
        await reader.readexactly(5)
        stop = asyncio.create_task(stop_within(server, SOON))
        await asyncio.sleep(0.01)
        go.set()
        await stop
    await eventually(lambda: not server.connections)


async def test_a_cancelled_stop_aborts_everything_at_once(transport: Transport) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"ready")
        await asyncio.sleep(60)

    server = transport.server(handler, drain_timeout=10 * PATIENCE)
    await server.start()
    async with transport.client(server) as (reader, _):
        await reader.readexactly(5)
        stop = asyncio.create_task(server.stop())
        await asyncio.sleep(0.01)
        stop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stop
        with contextlib.suppress(OSError):
            assert await asyncio.wait_for(reader.read(), SOON) == b""
        await eventually(lambda: not server.connections)


async def test_tasks_of_the_service_end_with_it(tcp: Transport) -> None:
    server = tcp.server(echo)
    async with running(server):
        task = server.create_task(asyncio.sleep(60))
    assert task.cancelled()


async def test_a_stopped_server_can_be_started_again(transport: Transport) -> None:
    """C8."""
    server = transport.server(echo)
    for _ in range(3):
        async with running(server), transport.client(server) as (reader, writer):
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"


@pytest.mark.parametrize("handler", [echo, careless_echo])
def test_two_hundred_runs_leave_nothing_behind(
    transport: Transport, loop_factory: Any, handler: Any
) -> None:
    """C22."""

    async def live() -> None:
        async with running(server), transport.client(server) as (reader, writer):
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"

    async def main() -> None:
        for _ in range(200 if not transport.is_tls else 30):
            await live()
        assert len(asyncio.all_tasks()) == 1

    server = transport.server(handler)
    with nothing_left(), asyncio.Runner(loop_factory=loop_factory, debug=True) as runner:
        runner.run(main())


async def test_a_thousand_idle_clients_end_together(tcp: Transport) -> None:
    server = tcp.server(careless_echo)
    await server.start()
    with contextlib.ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(raw_client(server))
        await eventually(lambda: len(server.connections) == 400)
        await stop_within(server, SOON)
