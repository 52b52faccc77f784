"""Laws of idle_timeout of stream servers, on each kind of loop."""

import asyncio
import contextlib
import logging
import math
import socket
import time
from typing import Any

import pytest

from svcrun._util import drain
from tests.service.streams import Transport, echo, raw_client, running
from tests.support import eventually

SOON = 10


class Recorder:
    """A handler that reads lines, and records how it ended."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.ends: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        try:
            async for line in reader:
                self.lines.append(line)
            self.ends.append("end of stream")
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            writer.write(b"goodbye\n")
            raise


async def test_a_client_that_sends_nothing_is_disconnected_after_the_rest_of_the_output(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    handler = Recorder()
    async with running(transport.server(handler, idle_timeout=0.2)) as server:
        loop = asyncio.get_running_loop()
        async with transport.client(server) as (reader, writer), asyncio.timeout(SOON):
            began = loop.time()
            writer.write(b"hello\n")
            assert await reader.read() == b"goodbye\n"
            assert loop.time() - began >= 0.2
        await eventually(lambda: not server.connections)
    assert handler.lines == [b"hello\n"]
    assert handler.ends == ["cancelled"]
    (line,) = [one for one in caplog.messages if "idle_timeout=0.2" in one]
    assert "127.0.0.1" in line
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


async def test_each_byte_gives_the_client_the_whole_time_again(transport: Transport) -> None:
    handler = Recorder()
    loop = asyncio.get_running_loop()
    async with (
        running(transport.server(handler, idle_timeout=2)) as server,
        transport.client(server) as (_, writer),
        asyncio.timeout(2 * SOON),
    ):
        began = loop.time()
        while loop.time() - began < 3:
            writer.write(b"x")  # a part of a line, so that the handler stays in the same wait
            await asyncio.sleep(0.1)
        assert handler.ends == []
        assert len(server.connections) == 1


async def test_data_that_came_while_the_loop_was_blocked_counts(tcp: Transport) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline() == b"block\n":
            time.sleep(1)  # noqa: ASYNC251 - it blocks the loop in the callback that received
        else:
            writer.write(b"in time\n")

    def send_meanwhile(client: socket.socket) -> bytes:
        time.sleep(0.2)
        client.send(b"hello\n")
        return client.recv(100)

    async with running(tcp.server(handler, idle_timeout=0.5)) as server:
        with raw_client(server) as client, raw_client(server) as other:
            await eventually(lambda: server.open_connections == 2)
            await asyncio.sleep(0.15)
            answer = asyncio.create_task(asyncio.to_thread(send_meanwhile, client))
            await asyncio.sleep(0)
            other.send(b"block\n")
            assert await answer == b"in time\n"


async def test_a_handler_at_work_is_not_idle(transport: Transport) -> None:
    work = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await work.wait()
        writer.write(await reader.readline())

    async with (
        running(transport.server(handler, idle_timeout=0.05)) as server,
        transport.client(server) as (reader, writer),
        asyncio.timeout(SOON),
    ):
        writer.write(b"begin\n")
        assert await reader.readline() == b"begin\n"
        await asyncio.sleep(0.3)
        assert len(server.connections) == 1
        work.set()
        writer.write(b"go on\n")
        assert await reader.readline() == b"go on\n"


async def test_a_handler_whose_client_does_not_read_is_not_idle(transport: Transport) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        sent.set()
        writer.write(b"x" * 20_000_000)
        await writer.drain()
        await reader.readline()

    sent = asyncio.Event()
    async with (
        running(transport.server(handler, idle_timeout=0.05)) as server,
        transport.client(server, limit=1000) as (reader, writer),
        asyncio.timeout(SOON),
    ):
        writer.write(b"begin\n")
        await sent.wait()
        await asyncio.sleep(0.3)
        assert len(server.connections) == 1
        assert len(await reader.readexactly(20_000_000)) == 20_000_000
        assert await reader.read() == b""  # now it waits for the client, and is idle


async def test_a_handler_that_reads_on_while_its_output_is_unsent_is_not_idle(
    tcp: Transport,
) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 20_000_000)
        await reader.readline()

    async with running(tcp.server(handler, idle_timeout=0.05)) as server:
        with raw_client(server, receive_buffer=4096):
            await eventually(lambda: server.open_connections == 1)
            await asyncio.sleep(0.3)
            assert server.open_connections == 1


async def test_a_handler_that_never_ends_is_cancelled_again_and_abandoned(
    transport: Transport, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "GRACE_PERIOD", 0.1)
    release = asyncio.Event()
    cancellations = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal cancellations
        with contextlib.suppress(asyncio.CancelledError):
            await reader.read()
        while not release.is_set():
            cancellations += 1
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    server = transport.server(handler, idle_timeout=0.05, drain_timeout=0.2)
    async with running(server):
        async with transport.client(server) as (reader, _), asyncio.timeout(SOON):
            with contextlib.suppress(OSError):
                assert await reader.read() == b""
            assert cancellations == 2
        assert "1 task is still running after drain_timeout=0.2 s" in caplog.text
        assert "ignored cancellation; abandoning it" in caplog.text
        assert len(server.connections) == 1  # the handler is still there
        release.set()
        await eventually(lambda: not server.connections)


async def test_a_client_that_does_not_take_the_rest_of_the_output_is_aborted(
    tcp: Transport,
) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=100_000_000)  # drain() does not wait
        writer.write(b"x" * 20_000_000)
        await reader.readline()

    server = tcp.server(handler, idle_timeout=0.05, drain_timeout=0.2)
    async with running(server):
        with raw_client(server, receive_buffer=4096):
            await eventually(lambda: server.accepted)
            await eventually(lambda: not server.connections)


async def test_a_handshake_has_a_time_limit_of_its_own(certificates: Any) -> None:
    tls = Transport(certificates)
    async with running(tls.server(echo, idle_timeout=0.05)) as server:
        with raw_client(server):
            await eventually(lambda: server.open_connections == 1)
            await asyncio.sleep(0.3)
            assert server.open_connections == 1
            assert server.refused == 0


async def test_the_other_half_of_a_half_closed_connection_is_no_wait_for_the_client(
    tcp: Transport,
) -> None:
    work = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b"hello"
        await work.wait()
        assert await reader.read() == b""
        writer.write(b"complete")

    async with running(tcp.server(handler, idle_timeout=0.05)) as server:
        with raw_client(server) as sock:
            sock.send(b"hello")
            sock.shutdown(socket.SHUT_WR)
            await eventually(lambda: server.accepted)
            await asyncio.sleep(0.3)
            work.set()
            assert await asyncio.to_thread(sock.recv, 100) == b"complete"


async def test_many_idle_clients_are_one_line_and_others_are_served_meanwhile(
    tcp: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = tcp.server(echo, idle_timeout=0.5)
    async with running(server), tcp.client(server) as (reader, writer):
        with contextlib.ExitStack() as stack:
            for _ in range(50):
                stack.enter_context(raw_client(server))
            await eventually(lambda: server.open_connections == 51)
            async with asyncio.timeout(SOON):
                while server.open_connections > 1:
                    writer.write(b"hello\n")
                    assert await reader.readline() == b"hello\n"
                    await asyncio.sleep(0.01)
    lines = [one for one in caplog.messages if "idle_timeout" in one]
    assert len(lines) <= 8


async def test_a_stop_during_the_end_of_an_idle_handler_ends_both(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    idle = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            idle.set()
            await asyncio.sleep(3600)

    server = transport.server(handler, idle_timeout=0.05, drain_timeout=0.2)
    await server.start()
    async with transport.client(server), asyncio.timeout(SOON):
        await idle.wait()
        await server.stop()
    assert not server.connections
    assert caplog.text.count("still running after") == 1
    assert len(asyncio.all_tasks()) == 1


async def test_a_handler_that_is_ended_as_idle_may_stop_the_server(tcp: Transport) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            await server.stop()
            stopped.set()

    stopped = asyncio.Event()
    server = tcp.server(handler, idle_timeout=0.05)
    await server.start()
    with raw_client(server):
        async with asyncio.timeout(SOON):
            await stopped.wait()
    await server.stop()
    assert not server.connections


async def test_a_place_that_an_idle_client_held_is_free_again(transport: Transport) -> None:
    server = transport.server(echo, idle_timeout=0.1, max_connections=1)
    async with (
        running(server),
        asyncio.timeout(SOON),
        transport.client(server),
        transport.client(server) as (reader, writer),
    ):
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"


async def test_no_time_limit_ends_nothing_and_needs_no_timer(tcp: Transport) -> None:
    async with (
        running(tcp.server(echo, idle_timeout=math.inf)) as server,
        tcp.client(server) as (
            reader,
            writer,
        ),
    ):
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"


async def test_the_timer_ends_with_the_server(tcp: Transport) -> None:
    server = tcp.server(echo, idle_timeout=0.02)
    for _ in range(3):
        async with running(server), tcp.client(server) as (reader, writer):
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
    loop: Any = asyncio.get_running_loop()
    timers = getattr(loop, "_scheduled", ())
    assert not [one for one in timers if not one.cancelled() and "IdleTimeout" in repr(one)]
