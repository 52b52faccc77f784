"""Laws of max_connections, keepalive and the counters of stream servers, on each kind of loop."""

import asyncio
import contextlib
import copy
import logging
import pickle
import resource
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svcrun._net.listener import Listener
from svcrun.service import TCPServer
from svcrun.service._stream import StreamServer
from tests.service.streams import Transport, echo, raw_client, running
from tests.support import eventually, refuses

WAITING = "further clients wait to be accepted"


class Echo(TCPServer):
    """A server that can be pickled."""

    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await echo(reader, writer)


async def ask(transport: Transport, server: StreamServer) -> bytes:
    """Return the answer to a new client."""
    async with transport.client(server) as (reader, writer):
        writer.write(b"hello\n")
        return await reader.readline()


async def let_wait() -> None:
    """Run the loop for as many iterations as a server takes to accept a client that waits."""
    for _ in range(20):
        await asyncio.sleep(0.001)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Make each attempt of this process to open a descriptor fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as lowest:
        limit = lowest.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class TestMaxConnections:
    async def test_a_client_beyond_the_maximum_waits_until_a_connection_ends(
        self, transport: Transport
    ) -> None:
        async with running(transport.server(echo, max_connections=2)) as server:
            async with transport.client(server), transport.client(server) as (reader, writer):
                late = asyncio.create_task(ask(transport, server))
                await let_wait()
                assert server.open_connections == len(server.connections) == 2
                assert not late.done()
                writer.write(b"still served\n")
                assert await reader.readline() == b"still served\n"
                assert not late.done()
            assert await late == b"hello\n"
            await eventually(lambda: server.open_connections == 0)
            assert server.accepted == 3

    async def test_no_more_than_the_maximum_are_open_while_all_clients_are_served(
        self, transport: Transport
    ) -> None:
        most = 0

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal most
            most = max(most, server.open_connections)
            await echo(reader, writer)

        server = transport.server(handler, max_connections=3)
        async with running(server):
            async with asyncio.timeout(30):
                answers = await asyncio.gather(*(ask(transport, server) for _ in range(40)))
            assert answers == [b"hello\n"] * 40
            assert most == 3
            assert server.accepted == 40

    async def test_one_warning_tells_that_clients_wait(
        self, tcp: Transport, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with running(tcp.server(echo, max_connections=1)) as server:
            for _ in range(5):
                with raw_client(server):
                    await eventually(lambda: server.open_connections == 1)
                    assert WAITING not in caplog.text or server.accepted > 1
                    with raw_client(server):
                        await let_wait()
                await eventually(lambda: server.open_connections == 0)
        warnings = [record for record in caplog.records if WAITING in record.getMessage()]
        assert len(warnings) == 1
        assert "Server" in warnings[0].getMessage()
        assert "max_connections=1 is reached" in warnings[0].getMessage()

    async def test_a_server_that_is_full_while_no_client_waits_logs_nothing(
        self, tcp: Transport, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with running(tcp.server(echo, max_connections=1)) as server:
            for _ in range(3):
                assert await ask(tcp, server) == b"hello\n"
                await eventually(lambda: server.open_connections == 0)
        assert WAITING not in caplog.text

    async def test_a_handler_that_works_on_after_its_client_has_gone_counts(
        self, tcp: Transport
    ) -> None:
        work = asyncio.Event()

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if server.accepted == 1:
                await work.wait()
            await echo(reader, writer)

        async with running(tcp.server(handler, max_connections=1)) as server:
            with raw_client(server) as first:
                await eventually(lambda: server.open_connections == 1)
                reset(first)
            late = asyncio.create_task(ask(tcp, server))
            await let_wait()
            assert server.accepted == 1
            work.set()
            assert await late == b"hello\n"

    async def test_a_client_in_its_handshake_counts(self, certificates: Any) -> None:
        tls = Transport(certificates)
        async with running(tls.server(echo, max_connections=1)) as server:
            with raw_client(server) as silent:
                await eventually(lambda: server.open_connections == 1)
                late = asyncio.create_task(ask(tls, server))
                await let_wait()
                assert server.accepted == 1
                silent.send(b"no handshake\r\n\r\n")
                assert await late == b"hello\n"
            assert server.refused == 1

    async def test_a_handler_at_the_maximum_can_stop_the_server(self, tcp: Transport) -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.stop()
            writer.write(b"stopped\n")

        server = tcp.server(handler, max_connections=1)
        await server.start()
        with raw_client(server), raw_client(server):
            async with asyncio.timeout(5):
                await eventually(lambda: not server.open_connections)
        await server.stop()
        async with running(server), asyncio.timeout(5), tcp.client(server) as (reader, _):
            assert await reader.read() == b"stopped\n"

    async def test_a_stop_does_not_wait_for_clients_that_wait(self, transport: Transport) -> None:
        server = transport.server(echo, max_connections=1)
        await server.start()
        with raw_client(server), raw_client(server) as late:
            await eventually(lambda: server.open_connections == 1)
            await let_wait()
            late.setblocking(False)
            async with asyncio.timeout(5):
                await server.stop()
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.get_running_loop().sock_recv(late, 1) == b""
        assert server.accepted == 1
        assert server.open_connections == 0

    async def test_a_server_stopped_at_the_maximum_accepts_after_its_next_start(
        self, transport: Transport
    ) -> None:
        server = transport.server(echo, max_connections=1)
        for _ in range(3):
            async with running(server):
                with raw_client(server), raw_client(server):
                    await eventually(lambda: server.open_connections == 1)
                    await let_wait()
            async with running(server):
                assert await ask(transport, server) == b"hello\n"

    async def test_a_handler_that_restarts_its_server_keeps_its_place(self, tcp: Transport) -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if server.accepted == 1:
                await server.stop()
                await server.start()
            await echo(reader, writer)

        server = tcp.server(handler, max_connections=1)
        await server.start()
        with raw_client(server) as first:
            await eventually(lambda: server.accepted == 1 and server.server is not None)
            late = asyncio.create_task(ask(tcp, server))
            await let_wait()
            assert server.accepted == 1
            reset(first)
            assert await late == b"hello\n"
        await server.stop()

    async def test_running_out_of_descriptors_while_clients_wait_is_no_event(
        self, tcp: Transport, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with running(tcp.server(echo, max_connections=1)) as server:
            with raw_client(server) as first, raw_client(server) as second:
                await eventually(lambda: WAITING in caplog.text)
                with no_descriptors():
                    await let_wait()
                    first.close()
                    # Its descriptor serves for the second client.
                    await eventually(lambda: server.accepted == 2)
                second.send(b"hello\n")
                assert await asyncio.to_thread(second.recv, 100) == b"hello\n"
        assert "could not accept" not in caplog.text

    async def test_accepting_resumes_after_both_the_maximum_and_a_lack_of_descriptors(
        self, tcp: Transport, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("svcrun._net.listener.RETRY_DELAY", 0.01)
        async with running(tcp.server(echo, max_connections=1)) as server:
            with raw_client(server) as first, raw_client(server) as second:
                await eventually(lambda: WAITING in caplog.text)
                first.close()
                with no_descriptors(), contextlib.ExitStack() as stack:
                    with contextlib.suppress(OSError):  # take the descriptors that become free
                        await eventually(lambda: not server.open_connections)
                        while True:
                            stack.enter_context(socket.socket())
                    await eventually(lambda: "could not accept" in caplog.text)
                second.send(b"hello\n")
                assert await asyncio.to_thread(second.recv, 100) == b"hello\n"

    async def test_it_holds_for_a_unix_socket_and_for_a_passed_one(
        self, tcp: Transport, tmp_path: Path
    ) -> None:
        passed = socket.create_server(("127.0.0.1", 0))
        for place in ({"address": tmp_path / "sock", "port": None}, {"sock": passed}):
            server = tcp.server(echo, max_connections=1, keepalive=30, **place)
            async with running(server):
                with server_client(server) as first, server_client(server) as second:
                    await let_wait()
                    assert server.open_connections == server.accepted == 1
                    first.close()
                    second.send(b"hello\n")
                    assert await asyncio.to_thread(second.recv, 100) == b"hello\n"

    async def test_a_loop_that_creates_fast_servers_does_so_without_a_maximum(
        self, tcp: Transport
    ) -> None:
        is_own = isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop)
        async with running(tcp.server(echo)) as server:
            assert isinstance(server.server, Listener) == is_own
        async with running(tcp.server(echo, max_connections=10)) as server:
            assert isinstance(server.server, Listener)

    async def test_clients_that_reset_while_they_wait_take_no_place(
        self, tcp: Transport, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with running(tcp.server(echo, max_connections=2)) as server:
            with raw_client(server), raw_client(server):
                await eventually(lambda: server.open_connections == 2)
                for _ in range(20):
                    with raw_client(server) as sock:
                        reset(sock)
                await let_wait()
            async with asyncio.timeout(10):
                for _ in range(5):
                    assert await ask(tcp, server) == b"hello\n"
            await eventually(lambda: server.open_connections == 0)
        assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


@contextlib.contextmanager
def server_client(server: StreamServer) -> Iterator[socket.socket]:
    """Connect a socket to the bound socket of a server, whatever its family."""
    assert server.socket is not None
    with socket.socket(server.socket.family) as sock:
        sock.settimeout(30)
        sock.connect(server.socket.getsockname())
        yield sock


class TestCounters:
    async def test_they_count_from_the_first_start_on(self, transport: Transport) -> None:
        server = transport.server(echo)
        assert (server.accepted, server.refused, server.open_connections) == (0, 0, 0)
        for number in (1, 2, 3):
            async with running(server):
                assert await ask(transport, server) == b"hello\n"
                await eventually(lambda: server.open_connections == 0)
            assert (server.accepted, server.refused) == (number, 0)

    async def test_a_failed_handshake_is_refused(self, certificates: Any) -> None:
        tls = Transport(certificates)
        async with running(tls.server(echo)) as server:
            with raw_client(server) as sock:
                sock.send(b"GET / HTTP/1.1\r\n\r\n")
                await eventually(lambda: server.refused == 1)
            with raw_client(server):
                await eventually(lambda: server.open_connections == 1)
            await eventually(lambda: server.refused == 2)
            assert await ask(tls, server) == b"hello\n"
        assert (server.accepted, server.refused) == (3, 2)

    async def test_a_handshake_that_a_stop_ends_is_refused(self, certificates: Any) -> None:
        tls = Transport(certificates)
        server = tls.server(echo)
        await server.start()
        with raw_client(server):
            await eventually(lambda: server.open_connections == 1)
            await server.stop()
        assert (server.accepted, server.refused, server.open_connections) == (1, 1, 0)

    async def test_a_handler_that_fails_has_run(self, transport: Transport) -> None:
        async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            raise RuntimeError

        async with (
            running(transport.server(fail)) as server,
            transport.client(server) as (reader, _),
        ):
            assert await reader.read() == b""
        assert (server.accepted, server.refused) == (1, 0)

    async def test_a_copy_counts_for_itself(self, tcp: Transport) -> None:
        server = Echo("127.0.0.1", 0, max_connections=5, idle_timeout=3, keepalive=7)
        async with running(server):
            assert await ask(tcp, server) == b"hello\n"
            unpickled = pickle.loads(pickle.dumps(server))  # noqa: S301 - it is our own
            for clone in (unpickled, copy.copy(server)):
                assert (clone.accepted, clone.refused, clone.open_connections) == (0, 0, 0)
                assert (clone.max_connections, clone.idle_timeout, clone.keepalive) == (5, 3, 7)
        assert repr(server) == "<Echo NEW>"

    async def test_a_subclass_may_use_their_names_for_its_own(self, tcp: Transport) -> None:
        def method(_: Any) -> None:
            raise AssertionError

        names: dict[str, Any] = {"accepted": "all of them", "refused": None}
        names |= dict.fromkeys(("keepalive", "max_connections", "idle_timeout"), method)
        Own: Any = type("Own", (Echo,), names)  # noqa: N806 - a class
        async with running(Own("127.0.0.1", 0)) as server:
            server.open_connections = "mine"
            assert await ask(tcp, server) == b"hello\n"
        assert (server.accepted, server.open_connections) == ("all of them", "mine")


class TestKeepalive:
    async def options(self, server: StreamServer) -> tuple[int, ...]:
        """Return the options of an accepted connection: on, idle, interval, count."""
        async with running(server):
            with server_client(server):
                await eventually(lambda: server.open_connections == 1)
                (connection,) = server.connections
                sock = connection.socket_transport.get_extra_info("socket")
                return (
                    sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                    sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                    sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
                    sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
                )

    @pytest.mark.parametrize("maximum", [None, 10])
    async def test_accepted_connections_are_checked_after_that_time(
        self, transport: Transport, maximum: int | None
    ) -> None:
        server = transport.server(echo, keepalive=42, max_connections=maximum)
        assert await self.options(server) == (1, 42, 7, 6)

    async def test_it_holds_for_a_passed_socket(self, tcp: Transport) -> None:
        passed = socket.create_server(("127.0.0.1", 0))
        assert await self.options(tcp.server(echo, sock=passed, keepalive=42)) == (1, 42, 7, 6)

    async def test_it_holds_for_a_client_that_has_connected_to_a_passed_socket_before(
        self, transport: Transport
    ) -> None:
        passed = socket.create_server(("127.0.0.1", 0))
        with socket.create_connection(passed.getsockname()):
            server = transport.server(echo, sock=passed, keepalive=42)
            async with running(server):
                await eventually(lambda: server.open_connections == 1)
                (connection,) = server.connections
                sock = connection.socket_transport.get_extra_info("socket")
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 42

    async def test_it_is_off_by_default(self, tcp: Transport) -> None:
        assert (await self.options(tcp.server(echo)))[0] == 0

    async def test_socket_options_of_the_user_come_after_it(self, tcp: Transport) -> None:
        options = [(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 99)]
        server = tcp.server(echo, keepalive=42, options=options)
        assert await self.options(server) == (1, 99, 7, 6)

    async def test_it_is_ignored_for_a_unix_socket(self, tcp: Transport, tmp_path: Path) -> None:
        server = tcp.server(echo, address=tmp_path / "sock", port=None, keepalive=42)
        async with running(server):
            with server_client(server):
                await eventually(lambda: server.open_connections == 1)


@pytest.mark.parametrize(
    ("parameter", "value", "accepted"),
    [
        ("max_connections", 0, "at least 1, or None for no limit"),
        ("max_connections", 1.5, "a whole number of connections, or None for no limit"),
        ("max_connections", True, "a whole number of connections, or None for no limit"),
        ("idle_timeout", 0, "greater than 0, or None for no limit"),
        ("idle_timeout", "5s", "a number of seconds, or None for no limit"),
        ("keepalive", 0, "greater than 0, or None for no checks"),
        ("keepalive", 40000, "at most 32767, or None for no checks"),
        ("keepalive", float("inf"), "at most 32767, or None for no checks"),
    ],
)
def test_a_wrong_value_is_refused_at_construction(
    tcp: Transport, parameter: str, value: Any, accepted: str
) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        tcp.server(echo, **{parameter: value})
    assert refuses(caught.value, f"{parameter}={value!r}")
    assert accepted in str(caught.value)
