"""Laws of a handler: its streams, its end, its errors."""

import asyncio
import contextlib
import contextvars
import logging
import re
import socket
import struct
from typing import Any

import pytest

from tests.service.streams import Transport, careless_echo, echo, raw_client, running
from tests.support import eventually


async def test_a_handler_gets_streams_of_asyncio(transport: Transport) -> None:
    seen: list[Any] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.extend([reader, writer, writer.get_extra_info("peername")])
        writer.write(await reader.readline())

    async with running(transport.server(handler)) as server, transport.client(server) as streams:
        reader, writer = streams
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        assert isinstance(seen[0], asyncio.StreamReader)
        assert isinstance(seen[1], asyncio.StreamWriter)
        assert seen[2] == writer.get_extra_info("sockname")


async def test_the_writer_is_closed_when_the_handler_returns(transport: Transport) -> None:
    """C26."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")

    async with running(transport.server(handler)) as server:
        async with transport.client(server) as (reader, _):
            assert await reader.read() == b"bye"
        await eventually(lambda: not server.connections)


class OtherError(BaseException):
    """Some libraries derive exceptions from it, so that no code catches them by mistake."""


@pytest.mark.parametrize("error", [LookupError, OtherError])
async def test_an_exception_of_a_handler_is_logged_once_with_peer_and_traceback(
    transport: Transport, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    """C26."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        if line == b"fail\n":
            raise error("no such thing")
        writer.write(line)

    async with running(transport.server(handler)) as server:
        async with transport.client(server) as (reader, writer):
            peer = "{}:{}".format(*writer.get_extra_info("sockname"))
            writer.write(b"fail\n")
            assert await reader.read() == b""
        async with transport.client(server) as (reader, writer):
            writer.write(b"work\n")
            assert await reader.read() == b"work\n"

    failures = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(failures) == 1
    assert peer in failures[0].getMessage()
    assert failures[0].exc_info
    assert isinstance(failures[0].exc_info[1], error)


async def test_a_disconnected_client_is_logged_in_one_line_without_traceback(
    tcp: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ended = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await echo(reader, writer)
        finally:
            ended.set()

    async with running(tcp.server(handler)) as server:
        with raw_client(server) as sock:
            peer = "{}:{}".format(*sock.getsockname())
            await eventually(lambda: server.connections)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await asyncio.wait_for(ended.wait(), 30)

    lines = [record for record in caplog.records if peer in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].levelno == logging.INFO
    assert not lines[0].exc_info


async def test_a_connection_error_of_another_connection_is_a_failure_of_the_handler(
    tcp: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise ConnectionRefusedError("the data base")

    async with running(tcp.server(handler)) as server, tcp.client(server) as (reader, _):
        assert await reader.read() == b""
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_a_handler_that_cancels_itself_logs_nothing(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise asyncio.CancelledError

    async with running(transport.server(handler)) as server, transport.client(server) as streams:
        assert await streams[0].read() == b""
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_handler_cancelled_from_outside_closes_its_connection(
    transport: Transport,
) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        writer.write(b"ready")
        await asyncio.get_running_loop().create_future()

    async with running(transport.server(handler)) as server, transport.client(server) as streams:
        assert await streams[0].readexactly(5) == b"ready"
        tasks[0].cancel()
        assert await streams[0].read() == b""
        await eventually(lambda: not server.connections)


async def test_each_handler_has_a_context_of_its_own(tcp: Transport) -> None:
    variable = contextvars.ContextVar("variable", default="nothing")

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(f"{variable.get()}\n".encode())
            variable.set(line.decode().strip())

    async with (
        running(tcp.server(handler)) as server,
        tcp.client(server) as (one, to_one),
        tcp.client(server) as (two, to_two),
    ):
        for reader, writer, name in ((one, to_one, b"1\n"), (two, to_two, b"2\n")):
            writer.write(name)
            assert await reader.readline() == b"nothing\n"
        for reader, writer, name in ((one, to_one, b"1\n"), (two, to_two, b"2\n")):
            writer.write(name)
            assert await reader.readline() == name


async def test_a_handler_runs_in_a_task_that_time_limits_work_in(tcp: Transport) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        assert task.get_name() == "Server.handle_client"
        for limit in (asyncio.timeout(0.01), asyncio.timeout_at(0)):
            try:
                async with limit:
                    await reader.readline()
            except TimeoutError:
                writer.write(b"late\n")
        try:
            await asyncio.wait_for(reader.readline(), 0.01)
        except TimeoutError:
            writer.write(b"late\n")
        # Nothing that came meanwhile may be lost.
        writer.write(await reader.readline())

    async with running(tcp.server(handler)) as server, tcp.client(server) as (reader, writer):
        assert [await reader.readline() for _ in range(3)] == [b"late\n"] * 3
        writer.write(b"in time\n")
        assert await reader.readline() == b"in time\n"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("when", ["at once", "later"])
def test_an_exit_of_a_handler_is_raised_by_the_loop(
    transport: Transport, loop_factory: Any, error: BaseException, when: str
) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if when == "later":
            await reader.readline()
        raise error

    async def main() -> None:
        async with running(transport.server(handler)) as server, transport.client(server) as peer:
            peer[1].write(b"now\n")
            await asyncio.sleep(30)

    with pytest.raises(type(error)), asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


async def test_a_handler_that_ignores_the_end_of_the_stream_is_cancelled(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """The documentation's echo server would block the loop of asyncio.start_server() for ever."""
    async with running(transport.server(careless_echo)) as server:
        async with transport.client(server) as (reader, writer):
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
        await eventually(lambda: not server.connections)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_handler_may_read_the_end_of_the_stream_several_times(tcp: Transport) -> None:
    ends: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(5):
            ends.append(await reader.read(10))
            ends.append(await reader.readline())
        assert reader.at_eof()
        with pytest.raises(asyncio.IncompleteReadError):
            await reader.readexactly(1)
        writer.write(b"done")

    async with running(tcp.server(handler)) as server, tcp.client(server) as (reader, writer):
        writer.write_eof()
        assert await reader.read() == b"done"
    assert ends == [b""] * 10


async def test_reads_at_the_end_of_the_stream_do_not_block_the_loop_even_if_cancellation_is_ignored(
    tcp: Transport,
) -> None:
    turns = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while turns < 50:
            with contextlib.suppress(asyncio.CancelledError):
                await reader.readline()

    async with running(tcp.server(handler)) as server, tcp.client(server) as (reader, writer):
        writer.write_eof()
        while server.connections:
            turns += 1
            await asyncio.sleep(0)
    assert turns >= 50


async def test_a_client_that_closes_its_writing_half_still_gets_the_answer(tcp: Transport) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reader.read()
        await asyncio.sleep(0.01)
        writer.write(question[::-1])

    async with running(tcp.server(handler)) as server, tcp.client(server) as (reader, writer):
        writer.write(b"abc")
        writer.write_eof()
        assert await reader.read() == b"cba"


async def test_reads_of_a_lost_connection_raise_its_error(tcp: Transport) -> None:
    errors: list[type[BaseException]] = []
    ended = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for step in (reader.readline, reader.read, writer.drain, writer.wait_closed):
            try:
                await step()
            except OSError as error:
                errors.append(type(error))
        ended.set()

    async with running(tcp.server(handler)) as server:
        with raw_client(server) as sock:
            await eventually(lambda: server.connections)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await asyncio.wait_for(ended.wait(), 30)
    assert errors == [ConnectionResetError] * 4


async def test_a_loop_of_write_and_drain_ends_with_the_connection(transport: Transport) -> None:
    ended = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(b"tick" * 20_000)
                await writer.drain()
        except OSError:
            ended.set()
            raise

    async with running(transport.server(handler)) as server:
        async with transport.client(server) as (reader, _):
            assert await reader.readexactly(4) == b"tick"
        await asyncio.wait_for(ended.wait(), 30)


async def test_data_sent_in_clear_text_before_starttls_is_dropped(
    tcp: Transport, certificates: Any, caplog: pytest.LogCaptureFixture
) -> None:
    secure = Transport(certificates)
    context = secure.server(echo)._svcrun_make_options().create_context()  # type: ignore[union-attr]
    lines: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append(await reader.readline())
        writer.write(b"go\n")
        await writer.start_tls(context)
        lines.append(await reader.readline())
        writer.write(b"done\n")

    async with running(tcp.server(handler)) as server, tcp.client(server) as (reader, writer):
        writer.write(b"STARTTLS\nsmuggled\n")
        assert await reader.readline() == b"go\n"
        client_context = secure.client_context()
        assert client_context is not None
        await writer.start_tls(client_context, server_hostname="localhost")
        writer.write(b"encrypted\n")
        assert await reader.readline() == b"done\n"
    assert lines == [b"STARTTLS\n", b"encrypted\n"]
    assert "9 bytes that 127.0.0.1" in caplog.text


@pytest.mark.parametrize("how", ["garbage", "closed", "reset", "silent"])
async def test_a_failed_starttls_is_logged_in_one_line_and_leaves_nothing_behind(
    tcp: Transport, certificates: Any, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    caplog.set_level(logging.INFO)
    secure = Transport(certificates).server(echo)
    context = secure._svcrun_make_options().create_context()  # type: ignore[union-attr]

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.start_tls(context, ssl_handshake_timeout=0.2 if how == "silent" else 30)

    async with running(tcp.server(handler)) as server:
        with raw_client(server) as sock:
            sock.sendall(b"STARTTLS\n")
            assert await asyncio.to_thread(sock.recv, 3) == b"go\n"
            if how == "garbage":
                sock.sendall(b"garbage, no handshake at all\n")
            elif how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if how in {"garbage", "silent"}:
                await eventually(lambda: not server.connections)
        await eventually(lambda: not server.connections)
    assert len(caplog.records) == 2  # the first is that it listens
    assert re.search(r" lost: \S", caplog.messages[1])
    assert not caplog.records[1].exc_info


async def test_writes_to_a_lost_connection_are_ignored(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that writes to many clients must not fail because one disconnected."""
    caplog.set_level(logging.INFO)
    begun, done = asyncio.Event(), asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.set()
        with contextlib.suppress(OSError):
            await reader.read()
        for _ in range(10):
            await asyncio.sleep(0)  # uvloop takes some turns to close a socket
            writer.write(b"news")
            writer.writelines([b"more", b"news"])
        if writer.can_write_eof():
            writer.write_eof()
        writer.close()
        done.set()

    async with running(transport.server(handler)) as server:
        async with transport.client(server) as (_, writer):
            await asyncio.wait_for(begun.wait(), 30)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        await asyncio.wait_for(done.wait(), 30)
        await eventually(lambda: not server.connections)
    assert [record.getMessage()[:9] for record in caplog.records] == ["Listening"]


async def test_a_connection_can_be_upgraded_to_tls(tcp: Transport, certificates: Any) -> None:
    """STARTTLS, as with asyncio's own streams."""
    secure = Transport(certificates)
    server_context = secure.server(echo)._svcrun_make_options().create_context()  # type: ignore[union-attr]

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.start_tls(server_context)
        assert writer.get_extra_info("ssl_object") is not None
        await echo(reader, writer)

    async with running(tcp.server(handler)) as server, tcp.client(server) as (reader, writer):
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"go\n"
        context = secure.client_context()
        assert context is not None
        await writer.start_tls(context, server_hostname="localhost")
        for size in (10, 1000, 60000):
            writer.write(b"x" * size + b"\n")
            assert await reader.readline() == b"x" * size + b"\n"
