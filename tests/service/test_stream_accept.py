"""Laws of accepting connections, with asyncio's own loops and others."""

import asyncio
import contextlib
import errno
import logging
import re
import resource
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from svcrun._net import listener as _accept
from svcrun._net.listener import Listener, listen
from tests.service.streams import Transport, echo, raw_client, running
from tests.support import eventually
from tests.support_counts import counted_calls


class ScriptedSocket:
    """A listening socket whose next calls of accept() raise the given errors."""

    def __init__(self, sock: socket.socket, errors: list[OSError]) -> None:
        self.sock = sock
        self.errors = errors
        self.calls = 0

    def accept(self) -> Any:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.sock.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


@contextlib.contextmanager
def few_descriptors() -> Iterator[None]:
    """Limit the descriptors of this process to a few more than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as lowest:
        limit = lowest.fileno() + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_asyncio_has_the_method_that_creates_a_transport_without_a_task() -> None:
    """If this fails on a new version, listen() falls back: look for the successor."""
    with contextlib.closing(asyncio.SelectorEventLoop()) as loop:
        assert callable(loop._make_socket_transport)  # type: ignore[attr-defined]


def test_the_size_of_a_receive_can_be_set_on_a_transport_of_asyncio(tcp: Transport) -> None:
    async def main() -> None:
        async with running(tcp.server(echo)) as server, tcp.client(server) as (reader, writer):
            writer.write(b"x\n")
            await reader.readline()
            (connection,) = server.connections
            assert type(connection.transport).max_size > _accept.RECEIVE_SIZE
            assert connection.transport.max_size == _accept.RECEIVE_SIZE

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())


@pytest.mark.parametrize("unix", [False, True])
def test_a_loop_without_the_private_method_creates_the_server_itself(
    tcp: Transport, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, *, unix: bool
) -> None:
    class OtherLoop(asyncio.SelectorEventLoop):
        _make_socket_transport = None

        async def create_server(self, *args: Any, **kwargs: Any) -> Any:
            asked.append("create_server")
            monkeypatch.setattr(OtherLoop, "_make_socket_transport", original)
            return await super().create_server(*args, **kwargs)

    original = asyncio.SelectorEventLoop._make_socket_transport  # type: ignore[attr-defined]
    asked: list[str] = []
    place: dict[str, Any] = {"address": tmp_path / "sock", "port": None} if unix else {}

    async def main() -> None:
        async with running(tcp.server(echo, **place)) as server:
            if unix:
                reader, writer = await asyncio.open_unix_connection(str(server.address))
            else:
                reader, writer = await asyncio.open_connection(str(server.address), server.port)
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
            writer.close()
            await writer.wait_closed()

    with asyncio.Runner(loop_factory=OtherLoop) as runner:
        runner.run(main())
    assert asked == ["create_server"]


async def test_more_than_five_hundred_clients_at_once_wait_for_no_retry(tcp: Transport) -> None:
    """With a backlog of 100, the kernel drops the rest, which retry after a second."""
    async with running(tcp.server(echo)) as server:
        with contextlib.ExitStack() as stack:
            for _ in range(512):
                sock = stack.enter_context(socket.socket())
                sock.settimeout(0.9)  # the first retry of the kernel would come after 1 s
                # The loop does not turn meanwhile: nothing is accepted.
                sock.connect((server.address, server.port))
            await eventually(lambda: len(server.connections) == 512)


async def test_the_backlog_can_be_chosen(tcp: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    backlogs: list[int] = []

    class Socket(socket.socket):
        def listen(self, backlog: int = -1) -> None:
            backlogs.append(backlog)
            super().listen(backlog)

    monkeypatch.setattr(socket, "socket", Socket)
    async with running(tcp.server(echo, backlog=7)):
        assert backlogs
        assert set(backlogs) == {7}


async def test_accepting_resumes_when_descriptors_are_available_again(
    tcp: Transport, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_accept, "RETRY_DELAY", 0.05)
    server = tcp.server(echo)
    async with running(server):
        with few_descriptors(), contextlib.ExitStack() as stack:
            clients = []
            with contextlib.suppress(OSError):
                while True:
                    clients.append(stack.enter_context(socket.socket()))
            for client in clients[:4]:
                client.setblocking(False)
                client.connect_ex((server.address, server.port))
            with counted_calls() as calls:
                await asyncio.sleep(0.3)
            assert calls.count < 10_000  # a loop of vain accepts would make far more
        # With their end there is room again.
        await eventually(lambda: not server.connections)
        async with tcp.client(server) as (reader, writer):
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
    messages = [r.getMessage() for r in caplog.records if "could not accept connections" in r.msg]
    assert len(messages) <= 1


class TestListener:
    """Laws of the listener for asyncio's own loops."""

    @pytest.fixture
    def accepted(self) -> list[asyncio.Protocol]:
        return []

    @contextlib.asynccontextmanager
    async def listening(self, errors: list[OSError], protocols: list[Any]) -> Any:
        loop = asyncio.get_running_loop()
        if not hasattr(loop, "_make_socket_transport"):
            pytest.skip("this loop has a way of its own")

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                protocols.append(self)
                transport.close()

        with socket.create_server(("127.0.0.1", 0)) as sock:
            sock.setblocking(False)
            scripted: Any = ScriptedSocket(sock, errors)
            server = await listen(loop, scripted, Protocol, 100)
            assert isinstance(server, Listener)
            try:
                yield server, scripted
            finally:
                server.close()
                await server.wait_closed()
                await asyncio.sleep(0)

    async def test_a_connection_that_was_lost_before_accept_is_skipped(self) -> None:
        accepted: list[Any] = []
        errors = [ConnectionAbortedError(errno.ECONNABORTED, "aborted"), OSError(errno.EPROTO, "")]
        async with self.listening(errors, accepted) as (server, sock):
            with socket.create_connection(server.sockets[0].getsockname()):
                await eventually(lambda: accepted)

    async def test_without_descriptors_accepting_is_retried_and_logged_once(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_accept, "RETRY_DELAY", 0.02)
        accepted: list[Any] = []
        errors = [OSError(errno.EMFILE, "Too many open files")] * 3
        async with self.listening(errors, accepted) as (server, sock):
            with socket.create_connection(server.sockets[0].getsockname()):
                await eventually(lambda: accepted)
            assert sock.calls <= 6
        lines = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len(lines) == 1
        assert re.search(r" on 127\.0\.0\.1:\d+: .*Too many open files", lines[0].getMessage())

    async def test_a_listener_can_be_closed_while_it_waits_for_descriptors(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        accepted: list[Any] = []
        async with self.listening([OSError(errno.ENFILE, "")], accepted) as (server, sock):
            with socket.create_connection(server.sockets[0].getsockname()):
                await eventually(lambda: sock.calls)
                server.close()
        assert not accepted

    async def test_a_burst_is_accepted_in_few_iterations_of_the_loop(self) -> None:
        accepted: list[Any] = []
        async with self.listening([], accepted) as (server, sock):
            place = server.sockets[0].getsockname()
            with contextlib.ExitStack() as stack:
                for _ in range(60):
                    stack.enter_context(socket.create_connection(place))
                turns = 0
                while len(accepted) < 60:
                    turns += 1
                    await asyncio.sleep(0)
                assert turns <= 15

    async def test_a_failure_to_create_a_transport_closes_only_that_connection(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        accepted: list[Any] = []
        async with self.listening([], accepted) as (server, _):
            make, server._make_transport = server._make_transport, lambda: None
            place = server.sockets[0].getsockname()
            with socket.create_connection(place) as client:
                client.setblocking(False)
                await eventually(lambda: caplog.records)
                assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
            server._make_transport = make
            with socket.create_connection(place):
                await eventually(lambda: accepted)
        assert "could not set up the connection" in caplog.text

    async def test_the_listener_has_the_interface_of_a_server_of_asyncio(self) -> None:
        async with self.listening([], []) as (server, sock):
            assert server.is_serving()
            assert server.get_loop() is asyncio.get_running_loop()
            await server.start_serving()
            task = asyncio.create_task(server.serve_forever())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait((task,))
            assert not server.is_serving()
            assert server.sockets == ()
            server.close()


async def test_clients_that_reset_before_accept_leave_nothing_behind(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """Their addresses are unknown by then: on uvloop, the transport raises if asked."""
    caplog.set_level(logging.INFO)
    async with running(transport.server(echo)) as server:
        for _ in range(20):
            # The loop does not turn meanwhile.
            with raw_client(server) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        async with transport.client(server) as (reader, writer):
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
        await eventually(lambda: not server.connections)
    assert {record.levelno for record in caplog.records} == {logging.INFO}
    assert len(caplog.records) == 1 + 20


async def test_clients_that_connect_and_disconnect_leave_nothing_behind(
    transport: Transport,
) -> None:
    async with running(transport.server(echo)) as server:
        for _ in range(50):
            with raw_client(server):
                pass
        async with transport.client(server) as (reader, writer):
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
        await eventually(lambda: not server.connections)
