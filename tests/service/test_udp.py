"""The UDP server, with real sockets, on every loop."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import socket
from typing import TYPE_CHECKING, Any

import pytest

from svcrun import entrypoint
from svcrun.service import UDPServer
from tests.service.datagrams import Echo, ask, client, running
from tests.support import PATIENCE, eventually, refuses

if TYPE_CHECKING:
    from pathlib import Path

variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_a_datagram_is_handled_and_an_answer_sent(address: str) -> None:
    async with running(Echo(address, 0)) as server:
        assert server.port
        with client(server) as sock:
            assert await ask(sock, b"hello") == b"hello"


async def test_all_addresses_include_those_of_ipv4() -> None:
    """C23."""
    async with running(Echo("::", 0)) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            assert server.port is not None
            sock.connect(("127.0.0.1", server.port))
            assert await ask(sock, b"four") == b"four"


async def test_an_empty_datagram_is_delivered() -> None:
    got: list[bytes] = []

    class Server(UDPServer):
        async def handle_datagram(self, data: bytes, addr: Any) -> None:
            got.append(data)

    async with running(Server("127.0.0.1", 0)) as server:
        with client(server) as sock:
            sock.send(b"")
            await eventually(lambda: got == [b""])


async def test_a_unix_socket_serves_and_its_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    mine = tmp_path / "client.sock"
    async with running(Echo(path=path)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.bind(str(mine))
            sock.connect(str(path))
            assert await ask(sock, b"hello") == b"hello"
    assert not path.exists()


async def test_a_socket_passed_as_sock_is_used_and_closed() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    async with running(Echo(sock=sock)) as server:
        assert server.port == port
        with client(server) as peer:
            assert await ask(peer, b"hello") == b"hello"
    assert sock.fileno() == -1


async def test_an_exception_of_a_handler_is_logged_with_its_peer_and_the_server_continues(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """C26."""

    class Server(Echo):
        async def handle_datagram(self, data: bytes, addr: Any) -> None:
            if data == b"bad":
                raise LookupError("no such thing")
            await super().handle_datagram(data, addr)

    async with running(Server("127.0.0.1", 0, name="srv")) as server:
        with client(server) as sock:
            sock.send(b"bad")
            assert await ask(sock, b"good") == b"good"
            port = sock.getsockname()[1]
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert f"127.0.0.1:{port}" in record.getMessage()
    assert "srv" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


async def test_handlers_have_a_task_time_limits_and_a_context_of_their_own() -> None:
    seen: list[Any] = []

    class Server(UDPServer):
        async def handle_datagram(self, data: bytes, addr: Any) -> None:
            task = asyncio.current_task()
            before = variable.get()
            variable.set(1)
            expired = False
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.Event().wait()
            except TimeoutError:
                expired = True
            seen.append((task is asyncio.current_task(), before, expired))

    def reached(number: int) -> bool:
        return len(seen) == number

    async with running(Server("127.0.0.1", 0)) as server:
        with client(server) as sock:
            for number in range(1, 4):
                sock.send(b"x")
                await eventually(functools.partial(reached, number))
    assert seen == [(True, 0, True)] * 3
    assert variable.get() == 0


async def test_a_context_that_a_handler_changed_without_waiting_is_not_used_again() -> None:
    seen: list[int] = []

    class Server(UDPServer):
        async def handle_datagram(self, data: bytes, addr: Any) -> None:
            seen.append(variable.get())
            variable.set(7)

    async with running(Server("127.0.0.1", 0)) as server:
        with client(server) as sock:
            for _ in range(3):
                sock.send(b"x")
            await eventually(lambda: len(seen) == 3)
    assert seen == [0, 0, 0]


async def test_every_datagram_is_handled_once_or_counted_as_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """C27."""
    go_on = asyncio.Event()
    handled: list[bytes] = []

    class Server(UDPServer):
        max_tasks = 4

        async def handle_datagram(self, data: bytes, addr: Any) -> None:
            handled.append(data)
            await go_on.wait()

    options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)]
    async with running(Server("127.0.0.1", 0, options)) as server:
        assert isinstance(server, Server)
        with client(server) as sock:
            for number in range(100):
                sock.send(str(number).encode())
            await eventually(lambda: len(handled) + server.dropped == 100)
        assert len(handled) == 4
        go_on.set()
    warnings = [record for record in caplog.records if "max_tasks=4" in record.getMessage()]
    assert 1 <= len(warnings) < 10


async def test_other_tasks_run_during_a_flood_of_datagrams() -> None:
    class Server(UDPServer):
        async def handle_datagram(self, data: bytes, addr: Any) -> None:
            self.sendto(data, (self.address, self.port))  # it never ends

    turns = 0
    async with running(Server("127.0.0.1", 0)) as server:
        server.sendto(b"x", (server.address, server.port))
        for _ in range(100):
            await asyncio.sleep(0)
            turns += 1
    assert turns == 100


async def test_handlers_in_flight_may_finish_when_the_server_stops() -> None:
    """C25."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    finished: list[bytes] = []

    class Server(UDPServer):
        async def handle_datagram(self, data: bytes, addr: Any) -> None:
            begun.set()
            await go_on.wait()
            finished.append(data)

    server = Server("127.0.0.1", 0, drain_timeout=PATIENCE)
    await server.start()
    with client(server) as sock:
        sock.send(b"x")
        await asyncio.wait_for(begun.wait(), PATIENCE)
    stop = asyncio.create_task(server.stop())
    await asyncio.sleep(0)
    assert not stop.done()
    go_on.set()
    await asyncio.wait_for(stop, PATIENCE)
    assert finished == [b"x"]


async def test_with_a_drain_timeout_of_0_handlers_are_cancelled_at_once() -> None:
    begun = asyncio.Event()
    cancelled: list[bytes] = []

    class Server(UDPServer):
        drain_timeout = 0

        async def handle_datagram(self, data: bytes, addr: Any) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(data)

    async with running(Server("127.0.0.1", 0)) as server:
        with client(server) as sock:
            sock.send(b"x")
            await asyncio.wait_for(begun.wait(), PATIENCE)
    assert cancelled == [b"x"]


async def test_a_handler_can_stop_its_own_server() -> None:
    stopped = asyncio.Event()

    class Server(UDPServer):
        async def handle_datagram(self, data: bytes, addr: Any) -> None:
            await self.stop()
            stopped.set()

    server = Server("127.0.0.1", 0)
    await server.start()
    with client(server) as sock:
        sock.send(b"x")
        await asyncio.wait_for(stopped.wait(), PATIENCE)
    assert server.socket is None or server.socket.fileno() == -1


async def test_a_stopped_server_can_be_stopped_again_and_started_again() -> None:
    server = Echo("127.0.0.1", 0)
    await server.stop()
    for _ in range(2):
        async with running(server):
            with client(server) as sock:
                assert await ask(sock, b"hello") == b"hello"
        await server.stop()


async def test_sendto_of_a_server_that_is_not_running_is_an_error_that_names_it() -> None:
    server = Echo("127.0.0.1", 0, name="srv")
    with pytest.raises(RuntimeError, match="srv"):
        server.sendto(b"x", ("127.0.0.1", 9))


async def test_a_datagram_to_a_closed_port_is_no_error_of_the_server() -> None:
    async with running(Echo("127.0.0.1", 0)) as server:
        with client(server) as gone:
            gone_to = gone.getsockname()
        for _ in range(3):
            server.sendto(b"x", gone_to)
            await asyncio.sleep(0)
        with client(server) as sock:
            assert await ask(sock, b"hello") == b"hello"


async def test_an_address_in_use_is_named_with_port_and_service() -> None:
    """C24."""
    async with running(Echo("127.0.0.1", 0)) as first:
        second = Echo("127.0.0.1", first.port, name="second")
        with pytest.raises(OSError, match=r"127\.0\.0\.1") as caught:
            await second.start()
        assert str(first.port) in str(caught.value)
        assert "second" in str(caught.value)


UNCHECKED: Any = Echo


@pytest.mark.parametrize(
    ("parameters", "error", "named"),
    [
        ({}, RuntimeError, "address="),
        ({"address": "127.0.0.1", "port": 70_000}, ValueError, "port=70000"),
        ({"address": "", "port": 1}, ValueError, "address=''"),
        ({"address": "::1", "port": 0, "max_tasks": 0}, ValueError, "max_tasks=0"),
        ({"address": "::1", "port": 0, "max_tasks": "9"}, TypeError, "max_tasks='9'"),
        ({"address": "::1", "port": 0, "drain_timeout": -1}, ValueError, "drain_timeout=-1"),
    ],
)
def test_a_wrong_parameter_is_refused_when_the_service_is_created(
    parameters: dict[str, Any], error: type[Exception], named: str
) -> None:
    """C7."""
    with pytest.raises(error) as caught:
        UNCHECKED(**parameters)
    assert refuses(caught.value, named)


async def test_a_datagram_server_runs_in_an_entrypoint() -> None:
    server = Echo("127.0.0.1", 0)
    async with entrypoint(server, log_config=False, catch_signals=()):
        with client(server) as sock:
            assert await ask(sock, b"hello") == b"hello"
