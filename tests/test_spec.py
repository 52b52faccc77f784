"""The code of the document that svcrun was asked for runs as written, and serves real clients.

Of each block the name of the package is replaced, ``loop=self.loop`` is dropped, which asyncio does
not accept any more, and imports that the document leaves out are added. Its ports become free ones.
"""

import http.client
import json
import re
import socket
import ssl
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svcrun import Service
from svcrun.service import TCPServer, TLSServer, UDPServer
from tests.conftest import Certificates
from tests.documents import find_blocks, free_ports, has_ipv6
from tests.support import PATIENCE, ROOT, Outcome, Program

DOCUMENT = ROOT.parent / "shared" / "spec" / "services.rst"

pytestmark = [
    pytest.mark.skipif(not DOCUMENT.is_file(), reason="the document is not here"),
    pytest.mark.skipif(not has_ipv6(), reason="its servers listen on ::1"),
]

IMPORTS = """\
import asyncio
import logging
from svcrun import entrypoint
from svcrun.service import PeriodicService, TCPServer, TLSServer, UDPServer
log = logging.getLogger("document")
"""

# Reports, before the program begins, when everything has started.
ANNOUNCE = """\
async def _announce(**_):
    print("-- started", flush=True)
entrypoint.POST_START.connect(_announce)
"""

Start = Callable[..., Program]


def read_block(title: str, number: int = 0) -> str:
    """Return a block of Python under a title of the document, made to run with svcrun.

    :param number: which of them, the first by default.
    """
    text = DOCUMENT.read_text(encoding="utf-8")
    sections = re.split(r"^(.+)\n[=+]{4,}$", text, flags=re.MULTILINE)
    section = sections[sections.index(title) + 1]
    blocks = [block for block in find_blocks(DOCUMENT, section) if block.language == "python"]
    source = blocks[number].text
    return source.replace("aiomisc", "svcrun").replace(", loop=self.loop", "")


@pytest.fixture
def start(run_program: Start, tmp_path: Path) -> Start:
    """Start a block in a process of its own, and wait until its services have started."""

    def run(source: str, *arguments: str) -> Program:
        program = run_program(
            IMPORTS + ANNOUNCE + source,
            *arguments,
            cwd=tmp_path,
            env={"SVCRUN_LOG_FORMAT": "stream"},
        )
        program.wait_for_line("-- started")
        return program

    return run


def on_free_port(source: str, port: int) -> tuple[str, int]:
    """Replace a port in a block by a free one."""
    assert f"port={port}" in source
    (free,) = free_ports(1)
    return source.replace(f"port={port}", f"port={free}"), free


def end(program: Program) -> Outcome:
    """End a program by a signal, in order."""
    program.terminate()
    outcome = program.wait()
    assert outcome.returncode == 0, outcome.stderr
    assert "Warning" not in outcome.stderr
    return outcome


def stop(program: Program) -> Outcome:
    """End a program by a signal, in order and without a word of complaint."""
    outcome = end(program)
    assert "Traceback" not in outcome.stderr
    return outcome


def test_the_service_is_stopped_before_its_start_is_cancelled(start: Start) -> None:
    watched = """\
class MyService(MyService):
    async def start(self):
        try:
            await super().start()
        except asyncio.CancelledError:
            print("start() is cancelled", flush=True)
            raise

    async def stop(self, exception=None):
        print("stop() begins", flush=True)
        await asyncio.sleep(0.1)
        print("stop() ends", flush=True)


"""
    source = read_block("Services").replace("with entrypoint(", f"{watched}with entrypoint(")
    outcome = stop(start(source))
    assert outcome.stdout.splitlines() == [
        "-- started",
        "stop() begins",
        "stop() ends",
        "start() is cancelled",
    ]


def test_the_service_runs_as_written(start: Start) -> None:
    program = start(read_block("Services"))
    assert program.is_running()
    stop(program)


def test_the_tcp_server_echoes(start: Start) -> None:
    source, port = on_free_port(read_block("TCPServer"), 8901)
    program = start(source)
    with (
        socket.create_connection(("::1", port), PATIENCE) as first,
        socket.create_connection(("::1", port), PATIENCE) as second,
    ):
        second.sendall(b"second\n")
        first.sendall(b"first\n")
        assert first.recv(100) == b"first\n"
        assert second.recv(100) == b"second\n"
        first.sendall(b"again\n")
        assert first.recv(100) == b"again\n"
    stop(program)


def test_the_endless_handler_of_the_tcp_server_ends_when_its_client_disconnects(
    start: Start,
) -> None:
    # The document's handler reads on at the end of the stream, where readline() returns at once.
    source, port = on_free_port(read_block("TCPServer"), 8901)
    program = start(source)
    for _ in range(3):
        with socket.create_connection(("::1", port), PATIENCE) as client:
            client.sendall(b"hello\n")
            assert client.recv(100) == b"hello\n"
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b""
    stop(program)


def test_the_udp_server_prints(start: Start) -> None:
    source, port = on_free_port(read_block("UDPServer"), 3000)
    program = start(source)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.sendto(b"hello", ("::1", port))
        client.sendto(b"", ("::1", port))
    program.wait_for_line(r"\('::1', \d+.*\) -> b'hello'")
    program.wait_for_line(r"\('::1', \d+.*\) -> b''")
    stop(program)


def test_the_tls_server_echoes(start: Start, tmp_path: Path, certificates: Certificates) -> None:
    for name, path in (
        ("ca.pem", certificates.ca),
        ("cert.pem", certificates.server_cert),
        ("key.pem", certificates.server_key),
    ):
        (tmp_path / name).write_bytes(path.read_bytes())
    source, port = on_free_port(read_block("TLSServer"), 8900)
    program = start(source)
    context = ssl.create_default_context(cafile=certificates.ca)
    with (
        socket.create_connection(("::1", port), PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(b"hello\n")
        assert client.recv(100) == b"hello\n"
    stop(program)


def test_the_periodic_callback_is_called_at_once(start: Start) -> None:
    program = start(read_block("PeriodicService"))
    program.wait_for_line("Running periodic callback", stream="stderr")
    outcome = stop(program)
    assert outcome.stderr.count("Running periodic callback") == 1


def test_the_periodic_callback_under_way_comes_to_its_end_at_the_stop(start: Start) -> None:
    source = read_block("PeriodicService")
    work = """\
        print("begins", flush=True)
        await asyncio.sleep(0.3)
        print("is done", flush=True)
"""
    assert "        # ...\n" in source
    program = start(source.replace("        # ...\n", work))
    program.wait_for_line("begins")
    assert "is done" in stop(program).stdout.splitlines()


@pytest.mark.parametrize("number", [0, 1], ids=["a function", "a method"])
def test_the_cron_service_runs_as_written_and_knows_the_next_hour(
    start: Start, number: int
) -> None:
    pytest.importorskip("croniter")
    source = read_block("CronService", number)
    report = """
async def _report(**_):
    print("next:", *service.upcoming(1), flush=True)
entrypoint.POST_START.connect(_report)
with entrypoint("""
    program = start(source.replace("\nwith entrypoint(", report))
    program.wait_for_line(r"next: \S+:00:00\+00:00 .*callback at 0 \* \* \* \*")
    stop(program)


@pytest.mark.parametrize("number", [0, 1], ids=["a function", "a method"])
def test_the_cron_callback_is_called_and_comes_to_its_end_at_the_stop(
    start: Start, number: int
) -> None:
    pytest.importorskip("croniter")
    source = read_block("CronService", number)
    work = """\
print("begins", flush=True)
{0}await asyncio.sleep(0.3)
{0}print("is done", flush=True)"""
    source = re.sub(
        r"^( +)# \.\.\.$", lambda m: m[1] + work.format(m[1]), source, flags=re.MULTILINE
    )
    # The sixth field is for seconds, so that the test need not wait for an hour.
    source = source.replace("0 * * * *", "* * * * * *")
    program = start(source)
    program.wait_for_line("begins")
    outcome = stop(program)
    assert "Running cron callback" in outcome.stderr
    assert outcome.stdout.count("begins") == outcome.stdout.count("is done") >= 1


def test_the_services_of_many_kinds_run_side_by_side(start: Start) -> None:
    source, tcp_port = on_free_port(read_block("Multiple services"), 8901)
    source, udp_port = on_free_port(source, 3000)
    program = start(source)
    # The class misspells its `callback`: it does nothing, and the others continue.
    program.wait_for_line(r"LoggingService has no callback\(\)", stream="stderr")
    with (
        socket.create_connection(("::1", tcp_port), PATIENCE) as stream,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagrams,
    ):
        for _ in range(2):
            stream.sendall(b"hello\n")
            assert stream.recv(100) == b"hello\n"
            datagrams.sendto(b"hello", ("::1", udp_port))
            program.wait_for_line(r"\('::1', \d+.*\) -> b'hello'")
        outcome = end(program)
        assert stream.recv(100) == b""
    assert "Hello from service" not in outcome.stdout
    assert outcome.returncode == 0
    assert outcome.stderr.count("ERROR") == 1
    assert outcome.stderr.count("WARN") == 1
    assert "LoggingService.callabck() is never called; did you mean callback()?" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_the_swan_flies_and_no_duckling_is_waited_for(run_program: Start) -> None:
    # The last two lines await something outside of a function, as asyncio's own console can do.
    classes, service, calls = read_block("GracefulService").partition("service = ")
    main = textwrap.indent(service + calls, "    ")
    source = f"{classes}async def main():\n{main}\n"
    begin = time.monotonic()
    outcome = run_program(f"{IMPORTS}{source}asyncio.run(main())\n").wait()
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert outcome.stdout == "Flew to a lake\n"
    assert time.monotonic() - begin >= 1


def test_the_swan_flies_before_an_entrypoint_is_left(run_program: Start) -> None:
    source = read_block("GracefulService").replace(
        "await service.start()", "with entrypoint(service):"
    )
    source = source.replace("await service.stop()", "    print('left at once')")
    # The flight takes a second, and a shutdown of that length is reported.
    outcome = run_program(IMPORTS + source, env={"SVCRUN_LOG_LEVEL": "error"}).wait()
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert outcome.stdout == "left at once\nFlew to a lake\n"


def test_the_configured_services_have_their_keywords(start: Start) -> None:
    program = start(read_block("Configuration"))
    program.wait_for_line("Hello from service #1")
    outcome = stop(program)
    assert {"Hello from service #1", "Hello from service #2"} <= set(outcome.stdout.splitlines())


def test_a_missing_required_keyword_is_an_error(run_program: Start) -> None:
    source = read_block("Configuration").replace("name='#1'", "")
    outcome = run_program(IMPORTS + source).wait()
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines()[-1].endswith(
        "MissingParameters: LoggingService needs name= among its keyword arguments"
    )


def get(
    client: http.client.HTTPConnection, target: str, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """Ask a web server for something; the connection stays open if the server lets it."""
    client.request("GET", target, headers=headers or {})
    answer = client.getresponse()
    return answer.status, answer.read().decode()


def test_the_aiohttp_service_greets_by_name(start: Start) -> None:
    pytest.importorskip("aiohttp")
    (port,) = free_ports(1)
    program = start(read_block("aiohttp service"), "-l", "::", "-p", str(port))
    for host in ("::1", "127.0.0.1"):
        client = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        assert get(client, "/") == (200, "Hello, Anonymous")
        assert get(client, "/Eve") == (200, "Hello, Eve")
        assert get(client, "/Eve/Adam")[0] == 404
        client.close()
    assert '"GET /Eve HTTP/1.1" 200' in stop(program).stderr


def test_the_aiohttp_service_ends_while_a_client_keeps_its_connection(start: Start) -> None:
    pytest.importorskip("aiohttp")
    (port,) = free_ports(1)
    program = start(read_block("aiohttp service"), "--port", str(port))
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    assert get(client, "/") == (200, "Hello, Anonymous")
    assert client.sock is not None
    stop(program)
    assert client.sock.recv(100) == b""
    client.close()


def test_the_aiohttp_service_lets_a_request_under_way_come_to_its_end(start: Start) -> None:
    pytest.importorskip("aiohttp")
    (port,) = free_ports(1)
    source = read_block("aiohttp service")
    work = """\
async def handle(request):
    print("begins", flush=True)
    await entrypoint.get_current().closing()
    await asyncio.sleep(0.1)
"""
    assert "async def handle(request):\n" in source
    program = start(source.replace("async def handle(request):\n", work), "-p", str(port))
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    client.request("GET", "/Eve")
    program.wait_for_line("begins")
    program.terminate()
    answer = client.getresponse()
    assert (answer.status, answer.read()) == (200, b"Hello, Eve")
    assert answer.headers["Connection"] == "close"
    outcome = program.wait()
    assert outcome.returncode == 0
    assert "Traceback" not in outcome.stderr


def test_the_asgi_service_runs_the_application_of_fastapi(start: Start) -> None:
    pytest.importorskip("aiohttp_asgi")
    pytest.importorskip("fastapi")
    (port,) = free_ports(1)
    program = start(read_block("asgi service"), "-l", "::", "-p", str(port))
    for host in ("::1", "127.0.0.1"):
        client = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        assert get(client, "/") == (200, '{"message":"Hello World"}')
        assert get(client, "/nowhere") == (404, '{"detail":"Not Found"}')
        assert json.loads(get(client, "/openapi.json")[1])["paths"].keys() == {"/"}
        client.close()
    assert '"GET / HTTP/1.1" 200' in stop(program).stderr


@pytest.mark.parametrize(
    ("title", "base", "library"),
    [
        ("aiohttp service", "AIOHTTPService", "aiohttp"),
        ("asgi service", "ASGIHTTPService", "aiohttp_asgi"),
    ],
)
def test_the_ssl_service_of_each_kind_is_similar_but_speaks_https(
    start: Start, certificates: Certificates, title: str, base: str, library: str
) -> None:
    pytest.importorskip(library)
    if title == "asgi service":
        pytest.importorskip("fastapi")
    (port,) = free_ports(1)
    files = f"cert={str(certificates.server_cert)!r}, key={str(certificates.server_key)!r}"
    source = read_block(title)
    source = source.replace(base, base.replace("Service", "SSLService"))
    source = source.replace("service = REST(", f"service = REST({files}, ")
    program = start(source, "-p", str(port))
    context = ssl.create_default_context(cafile=certificates.ca)
    client = http.client.HTTPSConnection("localhost", port, timeout=PATIENCE, context=context)
    status, text = get(client, "/")
    assert status == 200
    assert "Hello" in text
    client.close()
    stop(program)


class Plain(Service):
    async def start(self) -> None: ...


class Stream(TCPServer):
    async def handle_client(self, reader: Any, writer: Any) -> None: ...


class Secure(TLSServer):
    async def handle_client(self, reader: Any, writer: Any) -> None: ...


class Datagrams(UDPServer):
    async def handle_datagram(self, data: bytes, addr: Any) -> None: ...


def test_every_service_has_a_name_as_an_ordinary_keyword(certificates: Certificates) -> None:
    cert, key = certificates.server_cert, certificates.server_key
    for service in (
        Plain(name="#1"),
        Stream("::1", 0, name="#1"),
        Secure(address="::1", port=0, cert=cert, key=key, name="#1"),
        Datagrams("::1", 0, name="#1"),
    ):
        assert service.name == "#1"
        assert repr(service) == f"<{type(service).__name__} name='#1' NEW>"
    assert not hasattr(Plain(), "name")
