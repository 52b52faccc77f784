"""Laws of sockets that systemd, or another parent, passes to a program (C41)."""

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svcrun.errors import PassedSocketError
from svcrun.service import TCPServer, UDPServer
from tests.conftest import Certificates
from tests.service.activation import PRELUDE, activated, ask, bound_datagram, listening
from tests.support import PATIENCE, Program, has

Run = Callable[..., Program]

LOOPS = ["0", "1"] if has("uvloop") else ["0"]

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is missing"
)


@pytest.fixture(params=LOOPS, ids=lambda value: "uvloop" if value == "1" else "asyncio")
def env(request: pytest.FixtureRequest) -> dict[str, str]:
    """Select one of the event loops."""
    return {"SVCRUN_USE_UVLOOP": request.param}


def end(program: Program) -> str:
    """Terminate a program, which has to end in order, and return its log."""
    program.terminate()
    outcome = program.wait()
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stderr


def start_fails(
    run_program: Run, source: str, *passed: Any, names: str | None = None, pid: str = "$$"
) -> str:
    """Run a program, which has to end with an error, and return the line of the error."""
    program = activated(run_program, PRELUDE + source, *passed, names=names, pid=pid)
    outcome = program.wait()
    assert outcome.returncode == 1, outcome.stderr
    return outcome.stderr.splitlines()[-1]


def test_each_server_takes_the_socket_of_its_name_in_whatever_order(
    run_program: Run, env: dict[str, str]
) -> None:
    source = 'serve(Echo(name="one", sock="fd:a"), Echo(name="two", sock="fd:b"))'
    with listening() as b, listening() as a:
        program = activated(run_program, PRELUDE + source, b, a, names="b:a", env=env)
        program.wait_for_line("started")
        assert ask(a.getsockname()) == b"one hello\n"
        assert ask(b.getsockname()) == b"two hello\n"
        end(program)


def test_a_socket_without_a_name_is_taken_by_its_number(
    run_program: Run, env: dict[str, str]
) -> None:
    source = 'serve(Echo(name="one", sock="fd:1"), Echo(name="zero", sock="fd:0"))'
    with listening() as first, listening(socket.AF_INET6) as second:
        program = activated(run_program, PRELUDE + source, first, second, env=env)
        program.wait_for_line("started")
        assert ask(first.getsockname()) == b"zero hello\n"
        assert ask(second.getsockname()) == b"one hello\n"
        end(program)


def test_address_and_port_are_those_of_the_passed_socket(run_program: Run) -> None:
    source = """
echo = Echo(name="web", sock="fd:web", address="127.0.0.1", port=1)
with entrypoint(echo):
    print(echo.address, echo.port)
print(echo.address, echo.port)
"""
    with listening() as sock:
        program = activated(run_program, PRELUDE + source, sock, names="web")
        outcome = program.wait()
        assert outcome.stdout.splitlines() == [f"127.0.0.1 {sock.getsockname()[1]}", "127.0.0.1 1"]


def test_a_udp_server_takes_the_datagram_socket_among_those_of_one_name(
    run_program: Run, env: dict[str, str]
) -> None:
    source = 'serve(Echo(name="stream", sock="fd:dns"), Datagrams(sock="fd:dns"))'
    with bound_datagram() as datagram, listening() as stream:
        program = activated(
            run_program, PRELUDE + source, datagram, stream, names="dns:dns", env=env
        )
        program.wait_for_line("started")
        assert ask(stream.getsockname()) == b"stream hello\n"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.sendto(b"hello", datagram.getsockname())
            assert client.recv(100) == b"datagram hello"
        end(program)


def test_servers_of_one_name_take_its_sockets_one_each(run_program: Run) -> None:
    """A unit with two ListenStream= lines passes both sockets under one name."""
    source = 'serve(Echo(name="one", sock="fd:web"), Echo(name="two", sock="fd:web"))'
    with listening() as four, listening(socket.AF_INET6) as six:
        program = activated(run_program, PRELUDE + source, four, six, names="web:web")
        program.wait_for_line("started")
        assert {ask(four.getsockname()), ask(six.getsockname())} == {b"one hello\n", b"two hello\n"}
        assert "passed descriptor" not in end(program)


def test_more_servers_than_sockets_of_one_name_are_refused(run_program: Run) -> None:
    source = 'serve(Echo(name="one", sock="fd:web"), Echo(name="two", sock="fd:web"))'
    with listening() as sock:
        assert start_fails(run_program, source, sock, names="web") == (
            "svcrun.errors.PassedSocketError: Echo 'two': sock must be the name of a passed socket "
            "that no other server uses, not 'fd:web' (in use by Echo 'one')"
        )


def test_the_address_is_bound_if_no_socket_was_passed(run_program: Run) -> None:
    source = """
echo = Echo(name="web", sock="fd:web", address="127.0.0.1", port=0)
with entrypoint(echo) as loop:
    print("port", echo.port, flush=True)
    loop.run_forever()
"""
    program = run_program(PRELUDE + source)
    port = int(program.wait_for_line(r"port (\d+)")[1])
    assert ask(("127.0.0.1", port)) == b"web hello\n"
    end(program)


@pytest.mark.parametrize(
    ("names", "pid", "passed"),
    [
        ("api:admin", "$$", "passed were 'api', 'admin'"),
        (None, "$$", "passed were 'unknown'"),
        (
            "web:admin",
            "1",
            "none was passed: LISTEN_PID=1 is another process; start the program by exec",
        ),
    ],
)
def test_without_an_address_the_error_names_the_sockets_that_were_passed(
    run_program: Run, names: str | None, pid: str, passed: str
) -> None:
    with listening() as first, listening() as second:
        found = start_fails(
            run_program, 'Echo(name="x", sock="fd:web")', first, second, names=names, pid=pid
        )
    assert found == (
        "svcrun.errors.PassedSocketError: Echo: sock must be 'fd:' and the name of a passed "
        f"socket ({passed}), not 'fd:web' (and without address= and port=)"
    )


@pytest.mark.parametrize("sock", ["fd:", "web", "fd", "FD:web"])
def test_other_text_than_a_name_is_refused(sock: str) -> None:
    with pytest.raises(TypeError, match=re.escape(f"or 'fd:NAME', not {sock!r}")):
        Server("127.0.0.1", 0, sock=sock)


class Server(TCPServer):
    """A server that is never started."""

    async def handle_client(self, reader: Any, writer: Any) -> None:
        """Do nothing."""


class TestWrongKinds:
    """A descriptor that a server can't use is refused by an error that says what it is."""

    def refusal(self, run_program: Run, *passed: Any, kind: str = "Echo") -> str:
        found = start_fails(run_program, f'{kind}(name="x", sock="fd:web")', *passed, names="web")
        assert f"{kind}: sock must be the name of a bound " in found
        return found.partition("not 'fd:web' ")[2]

    def test_datagram_socket_of_a_stream_server(self, run_program: Run) -> None:
        with bound_datagram() as sock:
            port = sock.getsockname()[1]
            assert self.refusal(run_program, sock) == (
                f"(descriptor 3, a datagram socket at udp://127.0.0.1:{port})"
            )

    def test_stream_socket_of_a_udp_server(self, run_program: Run) -> None:
        with listening() as sock:
            port = sock.getsockname()[1]
            assert self.refusal(run_program, sock, kind="Datagrams") == (
                f"(descriptor 3, a stream socket at tcp://127.0.0.1:{port})"
            )

    def test_fifo(self, run_program: Run, tmp_path: Path) -> None:
        path = tmp_path / "fifo"
        os.mkfifo(path)
        number = os.open(path, os.O_RDWR)
        try:
            assert self.refusal(run_program, number) == "(descriptor 3, a fifo)"
        finally:
            os.close(number)

    def test_file(self, run_program: Run, tmp_path: Path) -> None:
        with (tmp_path / "file").open("w") as file:
            assert self.refusal(run_program, file) == "(descriptor 3, a file)"

    def test_connection(self, run_program: Run) -> None:
        with (
            listening() as sock,
            socket.create_connection(sock.getsockname()),
            sock.accept()[0] as c,
        ):
            assert self.refusal(run_program, c) == (
                "(descriptor 3, a stream socket with a connection (a unit with Accept=yes passes "
                "those))"
            )

    def test_unbound_socket(self, run_program: Run) -> None:
        with socket.socket() as sock:
            assert self.refusal(run_program, sock) == (
                "(descriptor 3, a stream socket that is not bound)"
            )

    def test_socket_of_another_family(self, run_program: Run) -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM) as sock:
            found = self.refusal(run_program, sock, kind="Datagrams")
            assert found.startswith("(descriptor 3, a datagram socket of the family ")

    def test_sequential_packets(self, run_program: Run) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.bind("")
            assert "a sequential-packet socket at unix://@" in self.refusal(run_program, sock)

    def test_closed_descriptor(self, run_program: Run) -> None:
        source = 'import os\nos.close(3)\nEcho(name="x", sock="fd:web")'
        with listening() as sock:
            assert start_fails(run_program, source, sock, names="web").endswith(
                "not 'fd:web' (descriptor 3, a closed descriptor)"
            )

    def test_descriptor_that_the_program_closed_and_reused(self, run_program: Run) -> None:
        source = """
import socket
with entrypoint():
    os.close(3)
    with socket.socket() as other:
        assert other.fileno() == 3
        Echo(name="x", sock="fd:web")
"""
        with listening() as sock:
            assert start_fails(run_program, source, sock, names="web").endswith(
                "not 'fd:web' (descriptor 3, a closed descriptor)"
            )


@pytest.mark.parametrize("text", ["", "x", "-1", "99999999999999999999", "1.5", "٣"])
def test_a_number_of_descriptors_that_is_none_is_ignored_with_a_warning(
    run_program: Run, text: str
) -> None:
    source = 'import os; os.environ["LISTEN_PID"] = str(os.getpid())\n' + PRELUDE + "serve()"
    program = run_program(source, env={"LISTEN_FDS": text})
    program.wait_for_line("started")
    assert f"LISTEN_FDS={text!r} is not a number of descriptors" in end(program)


def test_a_socket_that_is_bound_but_does_not_listen_is_accepted(run_program: Run) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        program = activated(
            run_program, PRELUDE + 'serve(Echo(name="web", sock="fd:web"))', sock, names="web"
        )
        program.wait_for_line("started")
        assert ask(sock.getsockname()) == b"web hello\n"
        end(program)


def test_a_descriptor_that_no_service_takes_is_warned_of_once(run_program: Run) -> None:
    source = """
with entrypoint(Echo(name="web", sock="fd:web")):
    pass
serve()
"""
    with listening() as web, listening() as other:
        program = activated(run_program, PRELUDE + source, web, other, names="web:admin")
        program.wait_for_line("started")
        found = re.findall("WARNING.*", end(program).replace("[", " ["))
    assert len(found) == 1
    assert "no service uses the passed descriptor 4, 'admin' (a socket)" in found[0]


def test_a_descriptor_that_a_service_takes_by_its_number_is_not_warned_of(run_program: Run) -> None:
    source = "import socket\n" + 'serve(Echo(name="web", sock=socket.socket(fileno=3)))'
    with listening() as web:
        program = activated(run_program, PRELUDE + source, web)
        program.wait_for_line("started")
        assert "no service uses" not in end(program)


CHILDREN = """
import multiprocessing, socket
NAMES = [name for name in os.environ if name.startswith("LISTEN_")]
SHOW = '''
import os
found = []
for number in os.listdir("/proc/self/fd"):
    try:
        found.append(os.readlink("/proc/self/fd/" + number))
    except OSError:
        pass
print(sorted(n for n in os.environ if n.startswith("LISTEN_")),
      [one for one in found if one.startswith("socket:")], flush=True)
'''

class Parent(Service):
    async def start(self):
        code = await asyncio.create_subprocess_exec(sys.executable, "-c", SHOW, close_fds=False)
        await code.wait()
        os.system(sys.executable + " -c '" + SHOW.replace("'", '"') + "'")
"""


@pytest.mark.parametrize(
    "services",
    ['Parent(), Echo(name="web", sock="fd:web", depends_on=(Parent,))', "Parent()"],
    ids=["a service takes the socket", "no service takes it"],
)
def test_children_get_neither_variables_nor_descriptors(run_program: Run, services: str) -> None:
    source = PRELUDE + CHILDREN + f"print(len(NAMES), flush=True)\nserve({services})"
    with listening() as sock:
        program = activated(
            run_program, source, sock, names="web", env={"LISTEN_PIDFDID": "7"}, options=()
        )
        program.wait_for_line("started")
        end(program)
    assert program.stdout.splitlines() == ["4", "[] []", "[] []", "started"]


def test_a_forked_child_has_no_passed_sockets(run_program: Run) -> None:
    source = """
import traceback
with entrypoint(Echo(name="web", sock="fd:web")):
    pid = os.fork()
    if not pid:
        try:
            Echo(name="child", sock="fd:web")
        except ValueError as error:
            print(error, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""
    with listening() as sock:
        program = activated(
            run_program, PRELUDE + source, sock, names="web", options=(), measured=False
        )
        outcome = program.wait()
    assert "(none was passed), not 'fd:web'" in outcome.stdout, outcome.stderr


def test_a_restarted_server_answers_the_clients_that_waited_meanwhile(
    run_program: Run, env: dict[str, str]
) -> None:
    source = """
import signal
from svcrun import Restart

class Crashing(Echo):
    on_crash = Restart(delay=0.5, jitter=0)
    starts = 0

    async def start(self):
        await super().start()
        self.starts += 1
        self.start_event.set()
        if self.starts == 1:
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, crash.set)
            await crash.wait()
            raise LookupError("a crash")

    async def stop(self, exception=None):
        await super().stop(exception)
        print("stopped", flush=True)

crash = asyncio.Event()
with entrypoint(Crashing(name="web", sock="fd:web")) as loop:
    loop.call_soon(print, "running")  # uvloop loses a signal before that
    loop.run_forever()
"""
    with listening() as sock:
        program = activated(run_program, PRELUDE + source, sock, names="web", env=env)
        program.wait_for_line("running")
        assert ask(sock.getsockname()) == b"web hello\n"
        program.send_signal(signal.SIGUSR1)
        program.wait_for_line("stopped")
        assert ask(sock.getsockname()) == b"web hello\n"
        program.terminate()
        program.wait()


def test_two_hundred_runs_serve_on_the_same_socket_without_growth(
    run_program: Run, env: dict[str, str]
) -> None:
    source = """
async def ask(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"hello\\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer

async def main():
    counts = set()
    for _ in range(200):
        await ep.start_services(echo)
        assert await ask(echo.port) == b"web hello\\n"
        waiting = asyncio.create_task(ask(echo.port))
        port = echo.port
        await ep.stop_services(echo)
        await asyncio.sleep(0)
        counts.add(len(os.listdir("/proc/self/fd")) - (not waiting.done()))
        await ep.start_services(echo)
        await waiting
        await ep.stop_services(echo)
    print("open", max(counts) - min(counts) <= 2)

echo = Echo(name="web", sock="fd:web")
ep = entrypoint()
with ep as loop:
    loop.run_until_complete(main())
"""
    with listening() as sock:
        program = activated(run_program, PRELUDE + source, sock, names="web", env=env)
        outcome = program.wait(within=90)
        assert (outcome.returncode, outcome.stdout) == (0, "open True\n"), outcome.stderr


def test_the_next_process_answers_the_clients_that_came_after_the_stop(
    run_program: Run, env: dict[str, str]
) -> None:
    source = PRELUDE + 'serve(Echo(name="web", sock="fd:web"))'
    with listening() as sock, socket.socket() as client:
        program = activated(run_program, source, sock, names="web", env=env)
        program.wait_for_line("started")
        end(program)
        client.settimeout(PATIENCE)
        client.connect(sock.getsockname())
        client.sendall(b"early\n")
        program = activated(run_program, source, sock, names="web", env=env)
        with client.makefile("rb") as answer:
            assert answer.read() == b"web early\n"
        end(program)


@pytest.mark.parametrize("kind", ["Echo", "Datagrams"])
def test_the_file_of_a_passed_unix_socket_is_left(
    run_program: Run, tmp_path: Path, kind: str
) -> None:
    path = str(tmp_path / "web.sock")
    family = socket.SOCK_STREAM if kind == "Echo" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_UNIX, family) as sock:
        sock.bind(path)
        program = activated(
            run_program, PRELUDE + f'serve({kind}(name="web", sock="fd:web"))', sock, names="web"
        )
        program.wait_for_line("started")
        if kind == "Echo":
            assert ask(path) == b"web hello\n"
        end(program)
        assert Path(path).exists()


def test_a_tls_server_takes_a_passed_socket(
    run_program: Run, env: dict[str, str], certificates: Certificates
) -> None:
    source = f"""
class Secure(TLSServer):
    async def handle_client(self, reader, writer):
        writer.write(b"secure " + await reader.readline())

serve(Secure(sock="fd:tls", cert={str(certificates.server_cert)!r},
             key={str(certificates.server_key)!r}))
"""
    with listening() as sock:
        program = activated(run_program, PRELUDE + source, sock, names="tls", env=env)
        program.wait_for_line("started")
        found = subprocess.run(
            [
                *("openssl", "s_client", "-quiet", "-CAfile", certificates.ca, "-connect"),
                f"127.0.0.1:{sock.getsockname()[1]}",
            ],
            input=b"hello\n",
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert found.stdout == b"secure hello\n", found.stderr
        end(program)


WEB = {
    "aiohttp": """
from aiohttp import web
from svcrun.service import AIOHTTPService as Base, AIOHTTPSSLService as Secure

class App:
    async def create_application(self):
        async def answer(request):
            return web.Response(text="answered")
        app = web.Application()
        app.router.add_get("/", answer)
        return app
""",
    "asgi": """
from svcrun.service import ASGIHTTPService as Base, ASGIHTTPSSLService as Secure
""",
    "uvicorn": """
from svcrun.service import UvicornService as Base
class Secure(Base):
    pass
""",
}

ASGI = """
async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        raise RuntimeError("no lifespan")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"answered"})

class App:
    async def create_application(self):
        return application
"""

needs = {"aiohttp": ("aiohttp",), "asgi": ("aiohttp", "aiohttp_asgi"), "uvicorn": ("uvicorn",)}


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", WEB)
def test_a_web_service_serves_on_a_passed_socket_after_a_restart_too(
    run_program: Run,
    env: dict[str, str],
    certificates: Certificates,
    kind: str,
    secure: bool,
) -> None:
    if not has(*needs[kind]):
        pytest.skip(f"{kind} is not installed")
    source = PRELUDE + WEB[kind] + ("" if kind == "aiohttp" else ASGI)
    names = ("ssl_certfile", "ssl_keyfile") if kind == "uvicorn" else ("cert", "key")
    files = (str(certificates.server_cert), str(certificates.server_key))
    keywords = "".join(f", {n}={f!r}" for n, f in zip(names, files, strict=True)) if secure else ""
    source += f"""
class Web({"App, " if kind != "asgi" else ""}{"Secure" if secure else "Base"}):
    {"app = staticmethod(lambda: application)" if kind == "asgi" else "pass"}

web_service = Web(sock="fd:web"{keywords})
ep = entrypoint()

async def main():
    for _ in range(2):
        await ep.start_services(web_service)
        print("started", web_service.port, flush=True)
        await wait.wait()
        wait.clear()
        await ep.stop_services(web_service)
        print("stopped", flush=True)
        await wait.wait()
        wait.clear()

import signal
wait = asyncio.Event()
with ep as loop:
    loop.add_signal_handler(signal.SIGUSR1, wait.set)
    loop.run_until_complete(main())
"""
    with listening() as sock:
        program = activated(run_program, source, sock, names="web", env=env)
        port = sock.getsockname()[1]
        url = f"{'https' if secure else 'http'}://127.0.0.1:{port}/"
        for run in range(2):
            program.wait_for_line(f"started {port}")
            assert curl(url, certificates) == "answered"
            program.send_signal(signal.SIGUSR1)
            program.wait_for_line("stopped")
            waiting = subprocess.Popen(
                curl_command(url, certificates), stdout=subprocess.PIPE, encoding="utf-8"
            )
            program.send_signal(signal.SIGUSR1)
            if not run:
                assert waiting.communicate(timeout=PATIENCE)[0] == "answered"
        waiting.kill()
        waiting.communicate()
        assert program.wait().returncode == 0, program.stderr


def curl_command(url: str, certificates: Certificates) -> list[str]:
    return ["curl", "-sS", "--max-time", "20", "--cacert", str(certificates.ca), url]


def curl(url: str, certificates: Certificates) -> str:
    return subprocess.check_output(curl_command(url, certificates), encoding="utf-8")


@needs_systemd
class TestSystemd:
    """systemd-socket-activate passes its sockets at the first connection."""

    def free_port(self, kind: int = socket.SOCK_STREAM) -> int:
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.bind(("127.0.0.1", 0))
            port: int = sock.getsockname()[1]
            return port

    def test_the_connection_that_started_the_program_is_answered(
        self, run_program: Run, env: dict[str, str]
    ) -> None:
        port = self.free_port()
        program = run_program(
            PRELUDE + 'serve(Echo(name="web", sock="fd:web"))',
            prefix=["systemd-socket-activate", f"--listen=127.0.0.1:{port}", "--fdname=web"],
            env=env,
        )
        program.wait_for_line("Listening on", stream="stderr")
        assert ask(("127.0.0.1", port)) == b"web hello\n"
        end(program)

    def test_the_datagram_that_started_the_program_is_answered(
        self, run_program: Run, env: dict[str, str]
    ) -> None:
        port = self.free_port(socket.SOCK_DGRAM)
        program = run_program(
            PRELUDE + 'serve(Datagrams(sock="fd:web"))',
            prefix=[
                "systemd-socket-activate", "--datagram",
                f"--listen=127.0.0.1:{port}", "--fdname=web",
            ],
            env=env,
        )  # fmt: skip
        program.wait_for_line("Listening on", stream="stderr")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.sendto(b"hello", ("127.0.0.1", port))
            assert client.recv(100) == b"datagram hello"
        end(program)


def test_a_service_with_a_name_can_be_pickled(run_program: Run) -> None:
    source = """
import pickle
echo = pickle.loads(pickle.dumps(Echo(name="web", sock="fd:web")))
serve(echo)
"""
    with listening() as sock:
        program = activated(run_program, PRELUDE + source, sock, names="web")
        program.wait_for_line("started")
        assert ask(sock.getsockname()) == b"web hello\n"
        end(program)


def test_a_missing_socket_is_an_error_of_the_package() -> None:
    with pytest.raises(PassedSocketError):
        Server(sock="fd:web")
    with pytest.raises(ValueError, match="fd:web"):
        Datagrams(sock="fd:web")


class Datagrams(UDPServer):
    """A server that is never started."""

    async def handle_datagram(self, data: bytes, addr: Any) -> None:
        """Do nothing."""
