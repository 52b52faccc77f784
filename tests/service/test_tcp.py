"""Laws of the endpoint (C23, C24) and the parameters (C3, C6, C7) of a TCP server."""

import asyncio
import errno
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from svcrun.errors import AlreadyRunning
from svcrun.service.tcp import TCPServer
from tests.service.streams import Transport, echo, raw_client, running
from tests.support import eventually, has, refuses

needs_ipv6 = pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")


class Echo(TCPServer):
    """At the top level of a module, so that it can be pickled."""

    greeting: bytes = b"hello "

    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async for line in reader:
            writer.write(self.greeting + line)


async def ask(server: TCPServer, *, host: str | None = None) -> bytes:
    """Send a line to the server's address, or its port on `host`, and return the answer."""
    if server.port is None:
        # Connected by itself, as uvloop does not know abstract names.
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(server.address))
        reader, writer = await asyncio.open_unix_connection(sock=sock)
    else:
        reader, writer = await asyncio.open_connection(host or str(server.address), server.port)
    writer.write(b"you\n")
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_port_0_binds_a_free_port_that_the_service_shows() -> None:
    server = Echo("127.0.0.1", 0)
    async with running(server):
        assert server.address == "127.0.0.1"
        assert server.port
        assert server.socket is not None
        assert server.socket.getsockname() == (server.address, server.port)
        assert server.server is not None
        assert await ask(server) == b"hello you\n"
    assert (server.address, server.port) == ("127.0.0.1", 0)
    assert getattr(server, "socket", "absent") is None


@needs_ipv6
async def test_all_addresses_of_ipv6_include_those_of_ipv4() -> None:
    async with running(Echo("::", 0)) as server:
        assert await ask(server, host="127.0.0.1") == b"hello you\n"
        assert await ask(server, host="::1") == b"hello you\n"


@needs_ipv6
async def test_an_address_of_ipv6_does_not_include_ipv4() -> None:
    async with running(Echo("::1", 0)) as server:
        assert await ask(server) == b"hello you\n"
        with pytest.raises(ConnectionRefusedError):
            await ask(server, host="127.0.0.1")


async def test_a_host_name_is_resolved() -> None:
    async with running(Echo("localhost", 0)) as server:
        assert server.address in {"127.0.0.1", "::1"}
        assert await ask(server, host="localhost") == b"hello you\n"


async def test_a_host_name_that_does_not_exist_is_named() -> None:
    server = Echo("no-such-host.invalid", 8080, name="srv")
    with pytest.raises(socket.gaierror, match=r"'srv'.*no-such-host\.invalid:8080") as caught:
        await server.start()
    assert caught.value.errno in {socket.EAI_NONAME, socket.EAI_AGAIN, socket.EAI_NODATA}
    await server.stop()


@pytest.mark.parametrize("how", ["address", "path", "unix:", "pathlib", "relative"])
async def test_a_path_binds_a_unix_socket_whose_file_is_removed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "echo.sock"
    server = {
        "address": lambda: Echo(str(path)),
        "path": lambda: Echo(path=str(path)),
        "unix:": lambda: Echo(f"unix:{path}", 0),
        "pathlib": lambda: Echo(path),
        "relative": lambda: Echo("./echo.sock"),
    }[how]()
    for _ in range(2):
        async with running(server):
            assert server.address == str(path)
            assert server.port is None
            assert path.is_socket()
            assert await ask(server) == b"hello you\n"
            os.chdir("/")  # the file is found all the same
        assert not path.exists()
        monkeypatch.chdir(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
async def test_an_abstract_name_creates_no_file() -> None:
    async with running(Echo(f"\0svcrun-test-{os.getpid()}-{os.urandom(4).hex()}")) as server:
        assert str(server.address).startswith("\0")
        assert await ask(server) == b"hello you\n"


@pytest.mark.parametrize("blocking", [True, False])
async def test_a_server_accepts_a_bound_socket(*, blocking: bool) -> None:
    with socket.socket() as sock:
        sock.setblocking(blocking)
        sock.bind(("127.0.0.1", 0))
        place = sock.getsockname()
        server = Echo(sock=sock)
        async with running(server):
            assert (server.address, server.port) == place
            assert not sock.getblocking()
            assert await ask(server) == b"hello you\n"
        assert sock.fileno() == -1
        # Started again, it binds another socket to the same address.
        async with running(server):
            assert (server.address, server.port) == place
            assert await ask(server) == b"hello you\n"


async def test_a_socket_belongs_to_one_server_only() -> None:
    """Otherwise, the second server would get clients of the first."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        async with running(Echo(sock=sock)) as server:
            with pytest.raises(ValueError, match=r"sock must be .*that no other server uses"):
                await Echo(sock=sock).start()
            assert await ask(server) == b"hello you\n"


async def test_the_file_of_a_unix_socket_passed_as_sock_is_not_removed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "sock"))
        async with running(Echo(sock=sock)) as server:
            assert await ask(server) == b"hello you\n"
    assert (tmp_path / "sock").is_socket()


async def test_a_server_accepts_an_inherited_socket() -> None:
    program = """
import asyncio, socket, sys
from svcrun.service.tcp import TCPServer

class Echo(TCPServer):
    async def handle_client(self, reader, writer):
        writer.write(await reader.readline())
        done.set()

async def main():
    global done
    done = asyncio.Event()
    server = Echo(sock=socket.socket(fileno=int(sys.argv[1])))
    await server.start()
    await done.wait()
    await server.stop()

asyncio.run(main())
"""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        place = sock.getsockname()
        arguments = [sys.executable, "-X", "dev", "-W", "error", "-c", program, str(sock.fileno())]
        process = await asyncio.create_subprocess_exec(
            *arguments, pass_fds=[sock.fileno()], stderr=subprocess.PIPE
        )
    reader, writer = await asyncio.open_connection(*place)
    writer.write(b"inherited\n")
    assert await reader.read() == b"inherited\n"
    writer.close()
    await writer.wait_closed()
    _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")


# The same to the interpreter, and nothing to a type checker.
UNCHECKED: Any = Echo


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (UNCHECKED, RuntimeError, "address= and port="),
        (UNCHECKED, ValueError, "path="),
        (lambda: UNCHECKED("127.0.0.1"), ValueError, "port"),
        (lambda: UNCHECKED(port=80), ValueError, "address="),
        (lambda: UNCHECKED("", 80), ValueError, "address=''"),
        (lambda: UNCHECKED("1.2.3", 80.0), TypeError, "port=80.0"),
        (lambda: UNCHECKED("127.0.0.1", 70000), ValueError, "port=70000"),
        (lambda: UNCHECKED("127.0.0.1", -1), ValueError, "port=-1"),
        (lambda: UNCHECKED("127.0.0.1", True), TypeError, "port=True"),
        (lambda: UNCHECKED("127.0.0.1", "80"), TypeError, "port='80'"),
        (lambda: UNCHECKED("127.0.0.1:80", 80), ValueError, "address='127.0.0.1:80'"),
        (lambda: UNCHECKED(127, 80), TypeError, "address=127"),
        (lambda: UNCHECKED("/x", path="/y"), ValueError, "path='/y'"),
        (lambda: UNCHECKED(sock="a socket"), ValueError, "sock='a socket'"),
        (lambda: UNCHECKED(sock="a socket"), TypeError, "sock='a socket'"),
        (lambda: UNCHECKED("::1", 0, options=[(1, 2)]), ValueError, "options="),
        (lambda: UNCHECKED("::1", 0, backlog=0), ValueError, "backlog=0"),
        (lambda: UNCHECKED("::1", 0, limit=-5), ValueError, "limit=-5"),
        (lambda: UNCHECKED("::1", 0, limit="64k"), TypeError, "limit='64k'"),
        (lambda: UNCHECKED("::1", 0, drain_timeout=-1), ValueError, "drain_timeout=-1"),
        (lambda: UNCHECKED("::1", 0, drain_timeout=float("nan")), ValueError, "drain_timeout=nan"),
        (lambda: UNCHECKED("::1", 0, drain_timeout=None), TypeError, "drain_timeout=None"),
    ],
)
def test_a_wrong_parameter_is_refused_when_the_service_is_created(
    make: Any, error: type[Exception], named: str
) -> None:
    """C7."""
    with pytest.raises(error) as caught:
        make()
    assert refuses(caught.value, named)
    assert "Echo" in str(caught.value)


async def test_a_socket_that_can_not_be_listened_on_is_refused() -> None:
    """C7."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock, pytest.raises(ValueError, match="stream"):
        Echo(sock=sock)
    with socket.socket() as sock:
        with pytest.raises(ValueError, match="bound"):
            await Echo(sock=sock).start()
        sock.close()
        with pytest.raises(ValueError, match="open"):
            Echo(sock=sock)
    one, two = socket.socketpair()
    with one, two, pytest.raises(ValueError, match="sock must be"):
        await Echo(sock=one).start()


def test_a_server_without_a_handler_can_not_be_created() -> None:
    with pytest.raises(TypeError, match="handle_client"):
        TCPServer("127.0.0.1", 0)  # type: ignore[abstract]


async def test_an_address_in_use_is_named_with_port_and_service() -> None:
    """C24."""
    async with running(Echo("127.0.0.1", 0)) as first:
        second = Echo("127.0.0.1", first.port, name="second")
        with pytest.raises(OSError, match=r"127\.0\.0\.1") as caught:
            await second.start()
        assert caught.value.errno == errno.EADDRINUSE
        assert str(first.port) in str(caught.value)
        assert "second" in str(caught.value)
        await second.stop()
        assert await ask(first) == b"hello you\n"


async def test_a_foreign_address_keeps_its_errno() -> None:
    """C24."""
    with pytest.raises(OSError, match=r"203\.0\.113\.7:8080") as caught:
        await Echo("203.0.113.7", 8080).start()
    assert caught.value.errno == errno.EADDRNOTAVAIL


async def test_an_address_is_shared_only_with_reuse_port() -> None:
    """C24."""
    async with running(Echo("127.0.0.1", 0, reuse_port=True)) as first:
        with pytest.raises(OSError, match="in use"):
            await Echo("127.0.0.1", first.port).start()
        async with running(Echo("127.0.0.1", first.port, reuse_port=True)) as second:
            assert second.port == first.port


async def test_a_port_can_be_bound_again_at_once() -> None:
    server = Echo("127.0.0.1", 0)
    async with running(server):
        port = server.port
        with raw_client(server):
            await eventually(lambda: server.connections)
            # The server ends the connection, and so is the one in TIME_WAIT.
    async with running(Echo("127.0.0.1", port)) as again:
        assert await ask(again) == b"hello you\n"


async def test_options_are_set_before_the_socket_is_bound() -> None:
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    async with running(Echo("127.0.0.1", 0, options)) as server:
        assert server.socket is not None
        assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_live_unix_socket_is_in_use_and_a_stale_one_replaced(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    assert path.is_socket()  # as a killed process leaves it
    async with running(Echo(path)) as server:
        with pytest.raises(OSError, match="sock") as caught:
            await Echo(path).start()
        assert caught.value.errno == errno.EADDRINUSE
        assert await ask(server) == b"hello you\n"
    assert not path.exists()


async def test_a_file_of_another_kind_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("precious")
    with pytest.raises(OSError, match="data") as caught:
        await Echo(path).start()
    assert caught.value.errno == errno.EADDRINUSE
    assert path.read_text() == "precious"


async def test_the_file_of_a_later_server_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    first, second = Echo(path), Echo(path)
    await first.start()
    path.unlink()
    await second.start()
    await first.stop()
    assert await ask(second) == b"hello you\n"
    await second.stop()
    assert not path.exists()


async def test_class_attributes_are_defaults() -> None:
    """C3."""

    class Polite(Echo):
        address = "127.0.0.1"
        port = 0
        greeting = b"good day "
        limit = 100

    async with running(Polite(limit=200)) as server:
        assert await ask(server) == b"good day you\n"
        assert server.limit == 200
        assert server.port != 0


async def test_address_and_port_can_be_changed_before_the_start() -> None:
    server = Echo("203.0.113.7", 1)
    server.address, server.port = "127.0.0.1", 0
    async with running(server):
        assert await ask(server) == b"hello you\n"


async def test_a_service_can_be_pickled_before_it_runs() -> None:
    """C6."""
    server = pickle.loads(pickle.dumps(Echo("127.0.0.1", 0, name="copy", greeting=b"hi ")))  # noqa: S301
    async with running(server):
        assert server.name == "copy"
        assert await ask(server) == b"hi you\n"


async def test_a_running_server_is_not_started_again() -> None:
    async with running(Echo("127.0.0.1", 0)) as server:
        with pytest.raises(AlreadyRunning):
            await server.start()
        assert await ask(server) == b"hello you\n"


async def test_a_failed_start_leaves_nothing_behind(
    tcp: Transport, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_leaks: None
) -> None:
    """C12."""

    async def fail(*args: Any) -> None:
        raise error

    error: BaseException
    server = tcp.server(echo, address=tmp_path / "sock", port=None)
    for error in (LookupError("no loop"), asyncio.CancelledError()):
        with monkeypatch.context() as patch:
            patch.setattr("svcrun.service._stream.listen", fail)
            with pytest.raises(type(error)):
                await server.start()
        assert not (tmp_path / "sock").exists()
        await server.stop()
    async with running(server):
        assert (tmp_path / "sock").is_socket()


@pytest.mark.skipif(not has("uvloop"), reason="without uvloop every loop is asyncio's")
def test_a_server_can_run_in_several_loops_one_after_the_other() -> None:
    import uvloop

    async def main() -> None:
        server.set_loop(asyncio.get_running_loop())
        async with running(server):
            assert await ask(server) == b"hello you\n"

    server = Echo("127.0.0.1", 0)
    for factory in (asyncio.SelectorEventLoop, uvloop.new_event_loop) * 2:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
