"""Laws of TCP clients: connect, handle, reconnect, stop (C43)."""

import asyncio
import contextlib
import logging
import math
import pickle
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from svcrun import Restart, ServiceState, entrypoint, threaded
from svcrun.service.tcp import RobustTCPClient, TCPClient
from tests.support import LoopFactory, Program, eventually, refuses

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Server:
    """A server of asyncio's in the running loop, which records its clients."""

    def __init__(self) -> None:
        self.clients: list[Streams] = []
        self.serve: Callable[[Streams], Awaitable[object]] | None = None

    async def listen(self, port: int = 0, path: str | None = None) -> int:
        """Listen, and return the port."""
        if path is not None:
            self._server = await asyncio.start_unix_server(self._accept, path)
            return 0
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients.append((reader, writer))
        if self.serve is not None:
            await self.serve((reader, writer))

    async def close(self) -> None:
        """Close the listener and all connections."""
        self._server.close()
        for _, writer in self.clients:
            writer.close()
        await asyncio.sleep(0)


@pytest.fixture
def run(loop_factory: LoopFactory, no_leaks: None) -> Callable[[Any], Any]:
    """Run a coroutine on each kind of loop, and check that nothing is left."""

    def run_main(main: Any) -> Any:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(main)

    return run_main


@pytest.fixture
def closed_port() -> int:
    """A port at which no server listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that does not accept: the queue of its listener is full."""
    with socket.socket() as sock, contextlib.ExitStack() as stack:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        address = sock.getsockname()
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        yield address[1]


class Plain(TCPClient):
    """A client whose handler calls `use`."""

    use: Any = None

    async def handle_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self.use is not None:
            await self.use(reader, writer)


class Robust(RobustTCPClient):
    """A robust client whose handler calls `use`, or reads all lines."""

    use: Any = None

    async def handle_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self.use is not None:
            await self.use(reader, writer)
        else:
            await reader.read()


async def hang(*_: object) -> None:
    """Handle a connection without end."""
    await asyncio.Event().wait()


# Connect


def test_a_client_has_started_with_its_connection_and_runs_on(run: Callable[..., Any]) -> None:
    async def main() -> None:
        server = Server()
        client = Plain("127.0.0.1", await server.listen(), use=hang)
        async with entrypoint(client):
            assert client.state is ServiceState.RUNNING
            await eventually(lambda: server.clients)
        assert client.state is ServiceState.STOPPED
        assert await server.clients[0][0].read() == b""
        await server.close()

    run(main())


def test_a_start_fails_with_the_errno_naming_client_endpoint_and_attempts(
    run: Callable[..., Any], closed_port: int
) -> None:
    client = Plain("127.0.0.1", closed_port, connect_attempts=3, connect_retry_timeout=0)

    async def main() -> None:
        with pytest.raises(ConnectionRefusedError) as caught:
            async with entrypoint(client):
                pass
        assert caught.value.errno == 111
        for part in ("Plain", f"tcp://127.0.0.1:{closed_port}", "3 attempts", "refused"):
            assert part in str(caught.value)

    run(main())


@pytest.mark.parametrize("kind", [Plain, Robust])
def test_a_server_that_comes_up_later_is_reached(
    run: Callable[..., Any], closed_port: int, kind: Any
) -> None:
    async def main() -> None:
        client = kind("127.0.0.1", closed_port, use=hang, connect_retry_timeout=0.05)
        start = asyncio.create_task(client.start())
        await asyncio.sleep(0.02)
        assert not client.start_event.is_set()
        server = Server()
        await server.listen(closed_port)
        await client.start_event.wait()
        await client.stop()
        await start
        await server.close()

    run(main())


def test_a_name_that_appears_later_is_found(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = socket.getaddrinfo, []

    def look_up(host: str, *args: Any, **kwargs: Any) -> Any:
        if host != "later.test":
            return real(host, *args, **kwargs)
        calls.append(threading.current_thread().daemon)
        if len(calls) < 3:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real("127.0.0.1", *args, **kwargs)

    async def main() -> None:
        server = Server()
        port = await server.listen()
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        client = Plain("later.test", port, connect_retry_timeout=0.01, use=hang)
        async with entrypoint(client):
            assert calls == [True, True, True]
        await server.close()

    run(main())


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("does-not-exist.invalid", socket.gaierror),
        ("a" * 70 + ".invalid", socket.gaierror),
        ("/nonexistent/socket", FileNotFoundError),
    ],
)
def test_every_os_error_counts_as_an_attempt(
    run: Callable[..., Any], address: str, error: type[OSError], caplog: pytest.LogCaptureFixture
) -> None:
    port = None if address.startswith("/") else 9
    client = Plain(address, port, connect_attempts=2, connect_retry_timeout=0)

    async def main() -> None:
        with pytest.raises(error, match="2 attempts"):
            await client.start()

    run(main())
    assert "retrying in" in caplog.text


def test_an_attempt_is_limited_by_connect_timeout(run: Callable[..., Any], silent: int) -> None:
    client = Plain(
        "127.0.0.1", silent, connect_timeout=0.05, connect_attempts=2, connect_retry_timeout=0
    )

    async def main() -> None:
        with pytest.raises(TimeoutError, match=r"2 attempts.*connect_timeout=0\.05 s"):
            await client.start()

    run(main())


def test_start_timeout_limits_the_first_connection_of_a_robust_client(
    run: Callable[..., Any], closed_port: int
) -> None:
    client = Robust("127.0.0.1", closed_port, start_timeout=0.1, connect_retry_timeout=0.01)

    async def main() -> None:
        with pytest.raises(TimeoutError, match="Robust"):
            async with entrypoint(client):
                pass

    run(main())


def test_all_addresses_of_a_name_are_tried(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        server = Server()
        port = await server.listen()
        first = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0))
        second = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [first, second])
        async with entrypoint(Plain("two.test", port, use=hang, connect_attempts=1)):
            pass
        await server.close()

    run(main())


def test_a_client_connects_to_a_unix_socket(run: Callable[..., Any], tmp_path: Path) -> None:
    path = str(tmp_path / "socket")

    async def main() -> None:
        server = Server()
        await server.listen(path=path)
        client = Plain(f"unix:{path}", use=hang)
        async with entrypoint(client):
            await eventually(lambda: server.clients)
        await server.close()

    run(main())


def test_connect_can_be_overridden_and_called(run: Callable[..., Any]) -> None:
    async def main() -> None:
        server = Server()
        port = await server.listen()

        class Greeting(Plain):
            async def connect(self) -> Streams:
                reader, writer = await super().connect()
                writer.write(b"hello\n")
                return reader, writer

        async with entrypoint(Greeting("127.0.0.1", port)):
            await eventually(lambda: server.clients)
            assert await server.clients[0][0].readline() == b"hello\n"
        reader, writer = await Plain("127.0.0.1", port).connect()
        assert not reader.at_eof()
        writer.close()
        await writer.wait_closed()
        await server.close()

    run(main())


def test_sockets_have_the_options_and_keepalive(run: Callable[..., Any]) -> None:
    found = []

    async def look(_: object, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        found.append(
            (
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) > 0,
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE),
            )
        )

    async def main() -> None:
        server = Server()
        port = await server.listen()
        inline = ((socket.SOL_SOCKET, socket.SO_OOBINLINE, 1),)
        async with entrypoint(Plain("127.0.0.1", port, use=look, options=iter(inline))):
            pass
        async with entrypoint(Plain("127.0.0.1", port, use=look, keepalive=None)):
            pass
        await server.close()

    run(main())
    assert found[0] == (1, 60, 120_000, True, 1)
    assert found[1][0] == 0
    assert found[1][2] == 0


# Handle


def test_a_handler_that_raises_is_a_crash_of_a_plain_client(run: Callable[..., Any]) -> None:
    async def fail(*_: object) -> None:
        raise LookupError("no such thing")

    async def main() -> None:
        server = Server()
        client = Plain("127.0.0.1", await server.listen(), use=fail)
        with pytest.raises(LookupError, match="no such thing"):
            async with entrypoint(client):
                await asyncio.sleep(30)
        await server.close()

    run(main())


def test_a_plain_client_is_restarted_by_its_policy(run: Callable[..., Any]) -> None:
    async def main() -> None:
        server = Server()
        calls = []

        async def fail_once(*_: object) -> None:
            calls.append(1)
            if len(calls) == 1:
                raise LookupError("first")
            await hang()

        client = Plain(
            "127.0.0.1", await server.listen(), use=fail_once, on_crash=Restart(delay=0.01)
        )
        async with entrypoint(client):
            await eventually(lambda: len(calls) == 2)
        assert len(server.clients) == 2
        await server.close()

    run(main())


def test_a_plain_client_runs_on_without_a_connection_when_its_handler_returns(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        server = Server()
        client = Plain("127.0.0.1", await server.listen())
        async with entrypoint(client, log_config=False):
            await eventually(lambda: "the connection has ended" in caplog.text)
            assert client.state is ServiceState.RUNNING
            assert await server.clients[0][0].read() == b""
            assert len(server.clients) == 1
        await server.close()

    run(main())


def test_a_robust_client_logs_a_failed_handler_and_connects_again(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        server = Server()
        calls = []

        async def fail_at_first(*_: object) -> None:
            calls.append(1)
            if len(calls) == 1:
                raise LookupError("first")
            if len(calls) == 2:
                raise asyncio.CancelledError
            if len(calls) == 3:
                raise ConnectionResetError("reset")
            await hang()

        client = Robust(
            "127.0.0.1", await server.listen(), use=fail_at_first, reconnect_timeout=0.001
        )
        async with entrypoint(client, log_config=False):
            await eventually(lambda: len(calls) == 4)
            assert client.connected.is_set()
        assert not client.connected.is_set()
        await server.close()

    run(main())
    failed, *others = (r for r in caplog.records if "failed" in r.message or "lost" in r.message)
    assert failed.exc_info is not None
    assert re.search(r"Robust RUNNING.*reconnecting in 0\.0 s", failed.message)
    assert [(record.levelname, record.exc_info) for record in others] == [("WARNING", None)]
    assert "connection lost: ConnectionResetError: reset;" in others[0].message


def test_connected_is_set_while_there_is_a_connection(run: Callable[..., Any]) -> None:
    async def main() -> None:
        server = Server()
        client = Robust("127.0.0.1", await server.listen(), reconnect_timeout=0.01)
        waits = asyncio.create_task(client.connected.wait())
        await asyncio.sleep(0)
        async with entrypoint(client):
            await waits
            seen: list[int] = []
            for count in range(3):
                await client.connected.wait()
                await eventually(lambda: len(server.clients) > len(seen))
                seen.append(count)
                server.clients[-1][1].close()
                await eventually(lambda: not client.connected.is_set())
        await server.close()

    run(main())


def test_a_handler_may_be_a_plain_function_or_run_in_a_thread(run: Callable[..., Any]) -> None:
    async def main() -> None:
        server = Server()
        port = await server.listen()

        class Function(TCPClient):
            def handle_connection(
                self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
            ) -> None:
                writer.write(b"function\n")

        class Thread(TCPClient):
            @threaded
            def handle_connection(
                self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
            ) -> None:
                written = threading.Event()
                self.loop.call_soon_threadsafe(writer.write, b"thread\n")
                self.loop.call_soon_threadsafe(written.set)
                written.wait()

        async with entrypoint(Function("127.0.0.1", port), Thread("127.0.0.1", port)):
            await eventually(lambda: len(server.clients) == 2)
            lines = {await reader.readline() for reader, _ in server.clients}
        assert lines == {b"function\n", b"thread\n"}
        await server.close()

    run(main())


def test_a_client_that_is_no_reader_gets_a_second_to_take_the_rest(run: Callable[..., Any]) -> None:
    async def flood(_: object, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * (64 << 20))

    async def main() -> None:
        server = Server()
        client = Plain("127.0.0.1", await server.listen(), use=flood)
        async with asyncio.timeout(20), entrypoint(client):
            await eventually(lambda: not client.tasks)
        await server.close()

    run(main())


# Stop


def stop_after(start: Callable[[Any], Any], client: Any) -> Callable[[], Awaitable[None]]:
    """Return a coroutine function that stops `client` in the phase that `start` waits for."""

    async def main() -> None:
        task = asyncio.create_task(client.start())
        await start(client)
        async with asyncio.timeout(5):
            await asyncio.gather(client.stop(), client.stop())
            await task
        assert not client.tasks

    return main


@pytest.mark.parametrize("kind", [Plain, Robust])
def test_a_stop_ends_an_attempt_at_once(run: Callable[..., Any], kind: Any, silent: int) -> None:
    async def connecting(_: object) -> None:
        await asyncio.sleep(0.05)

    run(stop_after(connecting, kind("127.0.0.1", silent))())


@pytest.mark.parametrize("kind", [Plain, Robust])
def test_a_stop_ends_a_delay_at_once(
    run: Callable[..., Any], kind: Any, closed_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def waiting(_: object) -> None:
        await eventually(lambda: "retrying in" in caplog.text)

    client = kind("127.0.0.1", closed_port, connect_retry_timeout=3600)
    run(stop_after(waiting, client)())


@pytest.mark.parametrize("kind", [Plain, Robust])
def test_a_stop_cancels_the_handler_and_closes_its_connection(
    run: Callable[..., Any], kind: Any
) -> None:
    async def main() -> None:
        server = Server()

        async def say_goodbye(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.read()
            finally:
                writer.write(b"goodbye")

        client = kind("127.0.0.1", await server.listen(), use=say_goodbye)

        async def handling(_: object) -> None:
            await client.start_event.wait()

        await stop_after(handling, client)()
        assert await server.clients[0][0].read() == b"goodbye"
        await server.close()

    run(main())


def test_a_stop_ends_the_delay_after_a_connection_at_once(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        server = Server()

        async def leave(streams: Streams) -> None:
            streams[1].close()

        server.serve = leave
        client = Robust("127.0.0.1", await server.listen(), reconnect_timeout=3600)

        async def waiting(_: object) -> None:
            await eventually(lambda: "reconnecting in" in caplog.text)

        await stop_after(waiting, client)()
        await server.close()

    run(main())


@pytest.mark.parametrize("kind", [Plain, Robust])
def test_a_handler_may_stop_its_client(run: Callable[..., Any], kind: Any) -> None:
    async def main() -> None:
        server = Server()

        async def stop(*_: object) -> None:
            await client.stop()

        client = kind("127.0.0.1", await server.listen(), use=stop, reconnect_timeout=0)
        async with asyncio.timeout(20):
            await client.start()
        assert len(server.clients) == 1
        await server.close()

    run(main())


def test_a_handler_may_shut_the_entrypoint_down(run: Callable[..., Any]) -> None:
    async def main() -> None:
        server = Server()
        port = await server.listen()

        async def shut_down(*_: object) -> None:
            await started.wait()
            await entrypoint.get_current().graceful_shutdown()

        client = Robust("127.0.0.1", port, use=shut_down)
        started = asyncio.Event()
        async with asyncio.timeout(20), entrypoint(client) as ep:
            started.set()
            await ep.closing()
        assert client.state is ServiceState.STOPPED
        await server.close()

    run(main())


def test_a_client_can_be_started_again(run: Callable[..., Any]) -> None:
    async def main() -> None:
        server = Server()
        client = Robust("127.0.0.1", await server.listen(), use=hang)
        for _ in range(3):
            async with entrypoint(client):
                await client.connected.wait()
            assert not client.connected.is_set()
        assert len(server.clients) == 3
        await server.close()

    run(main())
    run(main())


def test_a_name_server_that_does_not_respond_does_not_hold_the_exit(
    run_program: Callable[..., Program],
) -> None:
    program = run_program(
        """
import socket, threading
from svcrun import entrypoint
from svcrun.service.tcp import RobustTCPClient

def hang(*args, **kwargs):
    print("resolving", flush=True)
    threading.Event().wait()

socket.getaddrinfo = hang

class Client(RobustTCPClient):
    async def handle_connection(self, reader, writer): ...

with entrypoint(Client("slow.test", 1)) as loop:
    loop.run_forever()
"""
    )
    program.wait_for_line("resolving")
    program.terminate()
    outcome = program.wait(within=10)
    assert outcome.returncode == 0, outcome.stderr


def test_a_client_without_descriptors_retries_until_there_are_some(
    run_program: Callable[..., Program],
) -> None:
    program = run_program(
        """
import asyncio, os, resource
from svcrun import entrypoint
from svcrun.service.tcp import RobustTCPClient, TCPServer

class Server(TCPServer):
    async def handle_client(self, reader, writer):
        await reader.read()

class Client(RobustTCPClient):
    async def handle_connection(self, reader, writer):
        print("connected", flush=True)
        await reader.read()

async def main():
    server = Server("127.0.0.1", 0)
    async with entrypoint(server) as ep:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = []
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            pass
        client = Client("127.0.0.1", server.port, connect_retry_timeout=0.01)
        start = asyncio.create_task(ep.start_services(client))
        await asyncio.sleep(0.1)
        for descriptor in held:
            os.close(descriptor)
        await start

asyncio.run(main())
"""
    )
    program.wait_for_line("connected")
    outcome = program.wait()
    assert outcome.returncode == 0, outcome.stderr
    assert "Too many open files" in outcome.stderr


# Parameters


@pytest.mark.parametrize(
    ("parameters", "refused"),
    [
        ({"port": 0}, "port=0"),
        ({"port": 70000}, "port=70000"),
        ({"address": ""}, "address=''"),
        ({"connect_attempts": 0}, "connect_attempts=0"),
        ({"connect_retry_timeout": -1}, "connect_retry_timeout=-1"),
        ({"connect_timeout": 0}, "connect_timeout=0"),
        ({"keepalive": 0}, "keepalive=0"),
        ({"keepalive": 40_000}, "keepalive=40000"),
        ({"keepalive": math.inf}, "keepalive=inf"),
        ({"limit": 0}, "limit=0"),
        ({"reconnect_timeout": -1}, "reconnect_timeout=-1"),
        ({"options": 3}, "options=3"),
        ({"address": "/run/socket"}, "port=9"),
    ],
)
def test_a_wrong_parameter_is_refused_at_construction(
    parameters: dict[str, Any], refused: str
) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        Robust(**{"address": "localhost", "port": 9, **parameters})
    assert refuses(caught.value, refused)


@pytest.mark.parametrize("parameters", [{}, {"address": "localhost"}, {"port": 9}])
def test_a_client_without_an_endpoint_is_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Plain") as caught:
        Plain(**parameters)
    assert isinstance(caught.value, RuntimeError)  # as in aiomisc


def test_a_client_can_be_pickled() -> None:
    client = pickle.loads(  # noqa: S301 - made here
        pickle.dumps(Robust("localhost", 9, reconnect_timeout=1))
    )
    assert (client.address, client.port, client.reconnect_timeout) == ("localhost", 9, 1)


def test_a_handler_must_be_overridden_and_be_no_generator() -> None:
    class Nothing(TCPClient): ...

    with pytest.raises(TypeError, match="handle_connection"):
        Nothing("localhost", 9)  # type: ignore[abstract]
    with pytest.raises(TypeError, match=r"Wrong\.handle_connection must not be a generator"):

        class Wrong(TCPClient):
            async def handle_connection(
                self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
            ) -> Any:
                yield
