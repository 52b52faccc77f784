"""Laws of memory: no client makes a server buffer without bound (C27)."""

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from svcrun._net.connection import MAX_UNSENT
from tests.service.streams import Transport, careless_echo, raw_client, running
from tests.support import eventually

# The maximum that the transports buffer in addition, and the size of one chunk.
SLACK = 1_500_000


async def test_a_line_longer_than_the_limit_is_an_error_and_the_next_one_is_read(
    transport: Transport,
) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                line = await reader.readline()
            except ValueError as error:
                writer.write(f"{error}\n".encode())
            else:
                writer.write(line)

    async with (
        running(transport.server(handler, limit=1000)) as server,
        transport.client(server) as (reader, writer),
    ):
        writer.write(b"x" * 1000 + b"\n")
        assert await reader.readline() == b"x" * 1000 + b"\n"
        writer.write(b"x" * 1001 + b"\n")
        assert b"longer than limit" in await reader.readline()
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"


async def test_limit_overrun_leaves_the_data_to_be_read(transport: Transport) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with pytest.raises(asyncio.LimitOverrunError) as caught:
            await reader.readuntil(b"end")
        writer.write(await reader.readexactly(caught.value.consumed))

    async with (
        running(transport.server(handler, limit=1000)) as server,
        transport.client(server) as (reader, writer),
    ):
        writer.write(b"x" * 3000)
        data = await reader.read()
        assert len(data) >= 998
        assert data.strip(b"x") == b""


async def test_the_transport_stops_reading_while_the_handler_does_not_read(
    transport: Transport,
) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stop.wait()

    stop = asyncio.Event()
    async with (
        running(transport.server(handler, limit=10_000)) as server,
        transport.client(server) as (_, writer),
    ):
        writer.write(b"x" * 20_000_000)
        await eventually(lambda: server.connections)
        (connection,) = server.connections
        await eventually(lambda: connection.reader._is_paused)
        for _ in range(20):
            await asyncio.sleep(0.005)
            assert len(connection.reader._unread) < SLACK
        stop.set()


async def test_readexactly_accepts_much_more_than_the_limit(transport: Transport) -> None:
    size = 1_000_000

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)  # so that reading is paused meanwhile
        data = await reader.readexactly(size)
        writer.write(data[-5:])
        assert await reader.read() == b"y" * size

    async with (
        running(transport.server(handler, limit=100)) as server,
        transport.client(server) as (reader, writer),
    ):
        writer.write(b"x" * (size - 5) + b"12345")
        assert await reader.readexactly(5) == b"12345"
        if writer.can_write_eof():
            writer.write(b"y" * size)
            writer.write_eof()
            assert await reader.read() == b""


async def test_a_handler_that_never_drains_waits_for_a_client_that_never_reads(
    transport: Transport,
) -> None:
    """The documentation's echo server would fill the memory with asyncio.start_server()."""
    line = b"x" * 60_000 + b"\n"
    async with running(transport.server(careless_echo)) as server:
        async with transport.client(server) as (reader, writer):

            async def flood() -> None:
                while True:
                    writer.write(line)
                    await writer.drain()

            # The client reads nothing until here.
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            task = asyncio.create_task(flood())
            await eventually(lambda: server.connections)
            (connection,) = server.connections
            await eventually(lambda: connection.reader.waiting and connection.paused)
            for _ in range(20):
                await asyncio.sleep(0.005)
                assert connection.transport.get_write_buffer_size() < MAX_UNSENT + SLACK
                assert len(connection.reader._unread) < SLACK
            # It continues when the client reads again.
            reader._transport.resume_reading()  # type: ignore[attr-defined]
            for _ in range(100):
                assert await reader.readline() == line
            task.cancel()
            await asyncio.wait((task,))
            writer.transport.abort()  # its unsent data will never be read
        await eventually(lambda: not server.connections)


async def test_drain_waits_for_the_client(transport: Transport) -> None:
    drained: list[int] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(100):
            writer.write(b"x" * 1_000_000)
            await writer.drain()
            drained.append(number)

    async with (
        running(transport.server(handler)) as server,
        transport.client(server) as (reader, _),
    ):
        await reader.readexactly(1_000_000)
        await eventually(lambda: [c for c in server.connections if c.paused])
        before = len(drained)
        assert before < 90
        await reader.readexactly(99_000_000)
        assert len(drained) == 100
        assert await reader.read() == b""


async def test_drain_raises_when_the_client_disconnects_meanwhile(tcp: Transport) -> None:
    errors: list[BaseException] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(b"x" * 1_000_000)
                await writer.drain()
        except OSError as error:
            errors.append(error)
            raise

    async with running(tcp.server(handler)) as server:
        with raw_client(server, receive_buffer=4096) as sock:
            assert await asyncio.to_thread(sock.recv, 1) == b"x"
            await eventually(lambda: [c for c in server.connections if c.paused])
        await eventually(lambda: not server.connections)
    assert isinstance(errors[0], ConnectionError)


async def test_a_slow_reader_gets_everything(transport: Transport) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.writelines([b"x" * 100_000] * 50)

    async with running(transport.server(handler)) as server, transport.client(server) as streams:
        reader, _ = streams
        total = 0
        while data := await reader.read(50_000):
            total += len(data)
            await asyncio.sleep(0)
        assert total == 5_000_000


async def test_a_write_detects_the_end_of_a_half_open_peer(tcp: Transport) -> None:
    sent: list[Any] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"x" * 1000)
                sent.append(1000)
                await writer.drain()
                await asyncio.sleep(0)

    async with running(tcp.server(handler)) as server:
        with raw_client(server) as sock:
            sock.shutdown(socket.SHUT_WR)
            await eventually(lambda: sent)
        await eventually(lambda: not server.connections)
