"""Datagrams that a server sends: at once, from its queue, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from typing import TYPE_CHECKING, Any

import pytest

from svcrun.service import UDPServer
from tests.service.datagrams import Echo, ask, client, running
from tests.support import eventually, refuses
from tests.support_counts import counted_calls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MEBIBYTE = 1 << 20


class Silent(UDPServer):
    async def handle_datagram(self, data: bytes, addr: Any) -> None:
        pass


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[socket.socket]:
    """A peer that has not read yet; the system accepts few datagrams for it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(str(tmp_path / "slow.sock"))
        yield sock


def read_all(sock: socket.socket, into: list[bytes]) -> int:
    with contextlib.suppress(BlockingIOError):
        while True:
            into.append(sock.recv(65_536))
    return len(into)


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


async def test_the_longest_datagram_is_received_and_sent_whole() -> None:
    data = bytes(range(256)) * 256
    data = data[:65_507]
    async with running(Echo("127.0.0.1", 0)) as server:
        with client(server) as sock:
            assert await ask(sock, data) == data


async def test_a_datagram_that_is_too_long_is_an_error_that_names_the_server() -> None:
    async with running(Echo("127.0.0.1", 0, name="srv")) as server:
        with pytest.raises(OSError, match=r"'srv'.* 65508 bytes to 127\.0\.0\.1:9") as caught:
            server.sendto(bytes(65_508), ("127.0.0.1", 9))
        assert caught.value.errno == errno.EMSGSIZE
        assert server.unsent == 0


@pytest.mark.parametrize(
    ("data", "addr", "error", "named"),
    [
        ("text", ("127.0.0.1", 9), TypeError, "data='text'"),
        (b"x", None, TypeError, "addr=None"),
        (b"x", "127.0.0.1:9", TypeError, "addr='127.0.0.1:9'"),
        (b"x", ("127.0.0.1",), TypeError, "addr="),
        (b"x", ("127.0.0.1", "9"), TypeError, "addr="),
        (b"x", ("127.0.0.1", 70_000), ValueError, "70000"),
        (b"x", ("localhost", 9), ValueError, "resolve a host name"),
        (b"x", ("::1", 9), ValueError, "IPv4"),
    ],
)
async def test_wrong_data_or_a_wrong_address_is_an_error_that_names_it(
    data: Any, addr: Any, error: type[Exception], named: str
) -> None:
    async with running(Echo("127.0.0.1", 0)) as server:
        for _ in range(2):
            with pytest.raises(error) as caught:
                server.sendto(data, addr)
            assert refuses(caught.value, named)
        assert server.unsent == 0


async def test_an_ipv4_address_of_an_ipv6_server_is_refused_with_the_remedy() -> None:
    async with running(Echo("::", 0)) as server:
        with pytest.raises(ValueError, match=r"::ffff:"):
            server.sendto(b"x", ("127.0.0.1", 9))


async def test_datagrams_that_the_system_refuses_to_send_are_counted_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The sender can forge its address: it is no error of the handler."""
    async with running(Echo("127.0.0.1", 0)) as server:
        for _ in range(1000):
            server.sendto(b"x", ("127.0.0.1", 0))
        assert server.unsent == 1000
        with client(server) as sock:
            assert await ask(sock, b"hello") == b"hello"
    lines = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 2  # the first, and the rest at the stop
    assert "127.0.0.1:0" in lines[0].getMessage()
    assert "1000 in all" in lines[1].getMessage()


async def test_datagrams_that_the_socket_does_not_accept_are_queued(
    slow: socket.socket, tmp_path: Path
) -> None:
    got: list[bytes] = []
    async with running(Silent(path=tmp_path / "server.sock")) as server:
        for data in numbers(2000):
            server.sendto(data, slow.getsockname())
        await eventually(lambda: read_all(slow, got) == 2000)
        assert server.unsent == 0
    assert got == numbers(2000)


async def test_a_datagram_does_not_overtake_queued_ones(
    slow: socket.socket, tmp_path: Path
) -> None:
    got: list[bytes] = []
    async with running(Silent(path=tmp_path / "server.sock")) as server:
        for data in numbers(200):
            server.sendto(data, slow.getsockname())
        read_all(slow, got)
        server.sendto(b"200", slow.getsockname())  # there would be room for it now
        await eventually(lambda: read_all(slow, got) == 201)
    assert got == numbers(201)


async def test_waiting_for_a_peer_takes_little_processor_time(
    slow: socket.socket, tmp_path: Path
) -> None:
    """The system reports this socket as writable, whichever peer is full."""
    async with running(Silent(path=tmp_path / "server.sock", drain_timeout=0)) as server:
        for data in numbers(200):
            server.sendto(data, slow.getsockname())
        with counted_calls() as calls:
            await asyncio.sleep(0.3)
        assert calls.count < 10_000  # one for each iteration of the loop would be far more


async def test_a_peer_that_does_not_read_does_not_delay_another(
    slow: socket.socket, tmp_path: Path
) -> None:
    got: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as quick:
        quick.setblocking(False)
        quick.bind(str(tmp_path / "quick.sock"))
        async with running(Silent(path=tmp_path / "server.sock", drain_timeout=0)) as server:
            for data in numbers(1000):
                server.sendto(data, slow.getsockname())
                server.sendto(data, quick.getsockname())
            await eventually(lambda: read_all(quick, got) == 1000)
    assert got == numbers(1000)


async def test_the_queue_holds_a_mebibyte_and_counts_the_rest_as_unsent(
    slow: socket.socket, tmp_path: Path
) -> None:
    got: list[bytes] = []
    async with running(Silent(path=tmp_path / "server.sock")) as server:
        for _ in range(3000):
            server.sendto(bytes(1000), slow.getsockname())
        assert 3000 - 2 * MEBIBYTE // 1000 < server.unsent < 3000 - MEBIBYTE // 2000
        await eventually(lambda: read_all(slow, got) + server.unsent == 3000)


async def test_the_queue_is_sent_before_the_stop_completes(
    slow: socket.socket, tmp_path: Path
) -> None:
    got: list[bytes] = []
    server = Silent(path=tmp_path / "server.sock", drain_timeout=60)
    async with running(server):
        for data in numbers(200):
            server.sendto(data, slow.getsockname())
        stop = asyncio.create_task(server.stop())
        await eventually(lambda: read_all(slow, got) == 200)
        await stop
    assert got == numbers(200)
    assert server.unsent == 0


async def test_datagrams_that_are_unsent_at_the_end_of_the_stop_are_counted(
    slow: socket.socket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[bytes] = []
    server = Silent(path=tmp_path / "server.sock", drain_timeout=0.05)
    async with running(server):
        for data in numbers(200):
            server.sendto(data, slow.getsockname())
    assert read_all(slow, got) + server.unsent == 200
    assert server.unsent > 0
    assert "the server stopped before" in caplog.text


async def test_a_refusal_by_the_peer_is_no_error_of_a_read() -> None:
    """A connected socket reports a closed port; asyncio's transports do not raise that, either."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        address = peer.getsockname()
        mine = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        mine.bind(("127.0.0.1", 0))
        mine.connect(address)
    got: list[bytes] = []

    class Server(UDPServer):
        async def handle_datagram(self, data: bytes, addr: Any) -> None:
            got.append(data)

    async with running(Server(sock=mine)) as server:
        for _ in range(20):
            server.sendto(b"x", address)
            await asyncio.sleep(0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(address)
            peer.sendto(b"hello", (str(server.address), server.port or 0))
            await eventually(lambda: got)
    assert got == [b"hello"]
