"""More laws of passed sockets (C41): defaults of web services, copies, children, no descriptors."""

import asyncio
import contextlib
import copy
import errno
import os
import pickle
import re
import resource
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp_asgi")
pytest.importorskip("uvicorn")

from aiohttp import web

from svcrun import Service, entrypoint
from svcrun.service import TCPServer, UDPServer
from svcrun.service.aiohttp import AIOHTTPService
from svcrun.service.asgi import ASGIHTTPService
from svcrun.service.uvicorn import UvicornService
from tests.service.activation import PRELUDE, activated, ask, listening
from tests.service.passing import Manager, managed
from tests.service.streams import Streams, echo
from tests.service.uvicorns import Application
from tests.service.webs import read_answer, request
from tests.support import PATIENCE, ROOT, Program, eventually, nothing_left


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """A service manager that passes sockets to this process."""
    with managed(monkeypatch) as made:
        yield made


class Echo(TCPServer):
    """Send each line back."""

    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await echo(reader, writer)


class UDPEcho(UDPServer):
    """Send each datagram back."""

    async def handle_datagram(self, data: bytes, addr: Any) -> None:
        self.sendto(data, addr)


async def hello(_: web.Request) -> web.Response:
    """Answer a request."""
    return web.Response(text="hello")


def make_aiohttp_application() -> web.Application:
    """Return an application that answers everything."""
    app = web.Application()
    app.router.add_get("/{path:.*}", hello)
    return app


WEB: dict[str, Callable[..., Any]] = {
    "aiohttp": lambda **kw: AIOHTTPService(app=make_aiohttp_application, **kw),
    "asgi": lambda **kw: ASGIHTTPService(app=Application, **kw),
    "uvicorn": lambda **kw: UvicornService(app=Application, factory=True, **kw),
}
STREAMS = {"tcp": Echo, **WEB}


async def connect(sock: socket.socket) -> Streams:
    """Connect to the address of a socket of the manager."""
    host, port = sock.getsockname()
    return await asyncio.open_connection(host, port)


async def finish(client: Streams, kind: str) -> bytes:
    """Send a request on a connection, and return the answer."""
    reader, writer = client
    writer.write(b"hello\n" if kind == "tcp" else b"GET /it HTTP/1.0\r\n\r\n")
    async with asyncio.timeout(PATIENCE):
        answer = await (reader.readline() if kind == "tcp" else reader.read())
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return answer


@contextlib.asynccontextmanager
async def running(*services: Service) -> AsyncIterator[Any]:
    """Run services in an entrypoint for the block."""
    async with entrypoint(*services, log_config=False) as entered:
        yield entered


class TestARestart:
    """The socket of the manager stays open, so no client notices."""

    @pytest.mark.parametrize("kind", STREAMS)
    async def test_serves_the_clients_that_connected_meanwhile(
        self, kind: str, manager: Manager
    ) -> None:
        sock = manager.open()
        manager.pass_on(("web", sock))
        service = STREAMS[kind](sock="fd:web")
        async with running(service) as entered:
            for _ in range(3):
                assert b"hello" in await finish(await connect(sock), kind)
                await entered.stop_services(service)
                waiting = [await connect(sock) for _ in range(5)]
                await entered.start_services(service)
                for client in waiting:
                    assert b"hello" in await finish(client, kind)

    @pytest.mark.parametrize("kind", STREAMS)
    async def test_leaves_nothing_behind(self, kind: str, manager: Manager) -> None:
        manager.pass_on(("web", manager.open()))
        service = STREAMS[kind](sock="fd:web")
        async with running(service) as entered:
            await entered.stop_services(service)
            with nothing_left():
                for _ in range(200 if kind == "tcp" else 20):
                    await entered.start_services(service)
                    await entered.stop_services(service)

    async def test_of_a_udp_server_handles_the_datagrams_that_arrived_meanwhile(
        self, manager: Manager
    ) -> None:
        sock = manager.open(socket.SOCK_DGRAM)
        manager.pass_on(("dns", sock))
        server = UDPEcho(sock="fd:dns")
        async with running(server):
            pass
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(sock.getsockname())
            client.setblocking(False)
            client.send(b"between")
            async with running(server):
                answer = asyncio.get_running_loop().sock_recv(client, 100)
                assert await asyncio.wait_for(answer, PATIENCE) == b"between"


class TestAFailedStart:
    """The socket stays open for the next start, or for another server."""

    async def test_because_of_a_socket_option(self, manager: Manager) -> None:
        sock = manager.open()
        manager.pass_on(("web", sock))
        with pytest.raises(OSError, match="could not listen on fd:web"):
            async with running(Echo(sock="fd:web", options=[(socket.SOL_SOCKET, 99_999, 1)])):
                pass
        async with running(Echo(sock="fd:web")):
            assert await finish(await connect(sock), "tcp") == b"hello\n"

    async def test_without_a_free_descriptor(self, manager: Manager) -> None:
        sock = manager.open()
        manager.pass_on(("web", sock))
        server = Echo(sock="fd:web")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(OSError, match="could not listen on fd:web") as caught:
                await server.start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.value.errno == errno.EMFILE
        async with running(server):
            assert await finish(await connect(sock), "tcp") == b"hello\n"


class TestTheAddressBesideAName:
    """It is for a process that was passed no such socket."""

    @pytest.mark.parametrize("kind", STREAMS)
    async def test_is_bound_if_no_socket_was_passed(self, kind: str) -> None:
        service = STREAMS[kind](sock="fd:web", address="127.0.0.1", port=0)
        async with running(service):
            assert service.address == "127.0.0.1"
            assert service.port

    @pytest.mark.parametrize("kind", STREAMS)
    async def test_is_not_resolved_if_a_socket_was_passed(
        self, kind: str, manager: Manager
    ) -> None:
        sock = manager.open()
        manager.pass_on(("web", sock))
        service = STREAMS[kind](sock="fd:web", address="no-such-host.invalid", port=1)
        async with running(service):
            assert (service.address, service.port) == sock.getsockname()
        assert (service.address, service.port) == ("no-such-host.invalid", 1)

    @pytest.mark.parametrize("kind", WEB)
    def test_is_not_the_default_of_the_library(self, kind: str) -> None:
        """A misspelt name must not make a server listen on another address."""
        with pytest.raises(ValueError, match="none was passed"):
            WEB[kind](sock="fd:web")

    @pytest.mark.parametrize("kind", WEB)
    async def test_has_the_default_host_if_there_is_a_port(self, kind: str) -> None:
        service = WEB[kind](sock="fd:web", port=0)
        async with running(service):
            assert service.address in {"127.0.0.1", "::1"}

    @pytest.mark.parametrize("base", [AIOHTTPService, UvicornService])
    async def test_may_be_declared_by_a_subclass(self, base: Any) -> None:
        declared = {"address": "127.0.0.1", "port": 0}
        if base is UvicornService:
            declared |= {"app": staticmethod(Application), "factory": True}
        service = type("Declared", (base,), declared)(sock="fd:web")
        async with running(service):
            assert service.port

    @pytest.mark.parametrize("kind", STREAMS)
    async def test_may_be_a_path(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "web.sock"
        async with running(STREAMS[kind](sock="fd:web", path=path)):
            assert path.is_socket()
        assert not path.exists()


@pytest.mark.parametrize("duplicate", [copy.copy, lambda one: pickle.loads(pickle.dumps(one))])  # noqa: S301
async def test_a_copy_of_a_service_serves_on_the_socket(
    duplicate: Callable[[Echo], Echo], manager: Manager
) -> None:
    sock = manager.open()
    manager.pass_on(("web", sock))
    server = Echo(sock="fd:web")
    async with running(server):
        copied = duplicate(server)
        assert copied.sock == "fd:web"
    async with running(copied):
        assert await finish(await connect(sock), "tcp") == b"hello\n"


async def test_a_name_of_digits_comes_before_the_number(manager: Manager) -> None:
    first, second = manager.open(), manager.open()
    manager.pass_on(("1", first), ("0", second))
    server = Echo(sock="fd:0")
    async with running(server, Echo(sock="fd:1")):
        assert server.port == second.getsockname()[1]


async def test_a_duplicate_of_a_passed_socket_counts_as_used(
    manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    """A program may open the descriptors itself, such as by ``socket.fromfd()``."""
    descriptors = manager.pass_on(("a", manager.open()), ("b", manager.open()))
    uvicorn = WEB["uvicorn"](fd=os.dup(descriptors[0]))
    sock = socket.fromfd(descriptors[1], socket.AF_INET, socket.SOCK_STREAM)
    async with running(uvicorn, Echo(sock=sock)):
        assert "no service uses" not in caplog.text


@pytest.mark.parametrize(("names", "count"), [("web", 1), ("web:api:x", 3)])
async def test_too_few_or_too_many_names_are_warned_of(
    names: str, count: int, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    manager.pass_on(("web", manager.open()), ("api", manager.open()))
    os.environ["LISTEN_FDNAMES"] = names
    async with running(Echo(sock="fd:0"), Echo(sock="fd:1")):
        assert f"LISTEN_FDNAMES has {count} names for 2 descriptors" in caplog.text


def test_a_spawned_child_may_create_the_services_of_its_parent(
    run_program: Callable[..., Program], tmp_path: Path
) -> None:
    """The main module is imported there once more, and the child was passed no socket."""
    path = tmp_path / "program.py"
    path.write_text(
        PRELUDE
        + """
from multiprocessing import get_context

server = Echo(sock="fd:web")

def child():
    print("child", [n for n in os.environ if n.startswith("LISTEN_")], flush=True)

if __name__ == "__main__":
    with entrypoint(server):
        process = get_context("spawn").Process(target=child)
        process.start()
        process.join()
        print("exit code", process.exitcode, flush=True)
"""
    )
    with listening() as sock:
        outcome = activated(run_program, path, sock, names="web", options=()).wait()
    assert outcome.stdout == "child []\nexit code 0\n", outcome.stderr


def test_restarts_under_load_refuse_no_connection(run_program: Callable[..., Program]) -> None:
    """A stop ends the handlers that wait for their clients, but there is always a listener."""
    answers: list[bytes] = []
    refused: list[ConnectionRefusedError] = []
    over = threading.Event()

    def load() -> None:
        while not over.is_set() and not refused:
            try:
                answers.append(ask(sock.getsockname()))
            except ConnectionRefusedError as error:
                refused.append(error)
            except ConnectionError:
                pass  # the connection was accepted, and the server has stopped since then

    source = PRELUDE + 'serve(Echo(name="web", sock="fd:web"))'
    with listening() as sock:
        thread = threading.Thread(target=load)
        thread.start()
        try:
            for _ in range(3):
                program = activated(run_program, source, sock, names="web")
                program.wait_for_line("started")
                before = len(answers)
                while len(answers) < before + 50 and not refused:
                    over.wait(0.01)
                program.terminate()
                assert program.wait().returncode == 0
            activated(run_program, source, sock, names="web").wait_for_line("started")
        finally:
            over.set()
            thread.join(PATIENCE)
    assert not refused


@pytest.mark.parametrize("kind", WEB)
async def test_restarts_of_a_web_service_under_load_lose_no_request(
    kind: str, run_program: Callable[..., Program]
) -> None:
    """Neither of clients that connect for each request, nor of those that keep the connection."""
    source = f"""
import sys

sys.path.insert(0, {str(ROOT)!r})
from svcrun import entrypoint
from tests.service.test_passed_sockets import WEB

with entrypoint(WEB[{kind!r}](sock="fd:web"), log_level="warning") as loop:
    print("started", flush=True)
    loop.run_forever()
"""
    answered = 0
    is_over = False

    async def load(*headers: str) -> None:
        nonlocal answered
        while not is_over:
            reader, writer = await connect(sock)
            is_last = False
            while not is_last:
                is_last = is_over
                writer.write(request("/it", *headers))
                async with asyncio.timeout(PATIENCE):
                    answer = await read_answer(reader)
                assert answer.status == 200
                answered += 1
                is_last |= answer.closes
            writer.close()

    with listening() as sock:
        async with asyncio.TaskGroup() as clients:
            for _ in range(8):
                clients.create_task(load())
                clients.create_task(load("Connection: close"))
            for _ in range(2):
                program = await asyncio.to_thread(activated, run_program, source, sock, names="web")
                await asyncio.to_thread(program.wait_for_line, "started")
                before = answered
                await eventually(lambda before=before: answered > before + 50)  # type: ignore[misc]
                program.terminate()
                assert (await asyncio.to_thread(program.wait)).returncode == 0
            is_over = True
            program = await asyncio.to_thread(activated, run_program, source, sock, names="web")
    assert answered > 100


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_units_of_the_manual_are_accepted_by_systemd(tmp_path: Path) -> None:
    manual = (ROOT / "docs/howto/socket-activation.rst").read_text()
    units = []
    for name, block in re.findall(
        r"   :caption: /etc/systemd/system/(\S+)\n\n((?:    .*\n|\n)+)", manual
    ):
        text = textwrap.dedent(block).replace("/opt/shop/.venv/bin/python", sys.executable)
        (tmp_path / name).write_text(text)
        units.append(str(tmp_path / name))
    assert [Path(unit).name for unit in units] == ["shop.socket", "shop.service"]
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    complaints = [line for line in found.stderr.splitlines() if "shop" in line]
    assert (found.returncode, complaints) == (0, [])
