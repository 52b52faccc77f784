"""The code of the document that svcrun was asked for runs as written, and serves real clients.

Of each block the name of the package is replaced, ``loop=self.loop`` is dropped, which asyncio does
not accept any more, and imports that the document leaves out are added. Its ports become free ones.
"""

import re
import socket
import ssl
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
from svcrun import entrypoint
from svcrun.service import TCPServer, TLSServer, UDPServer
"""

# Reports, before the program begins, when everything has started.
ANNOUNCE = """\
async def _announce(**_):
    print("-- started", flush=True)
entrypoint.POST_START.connect(_announce)
"""

Start = Callable[..., Program]


def read_block(title: str) -> str:
    """Return the first block of Python under a title of the document, made to run with svcrun."""
    text = DOCUMENT.read_text(encoding="utf-8")
    sections = re.split(r"^(.+)\n[=+]{4,}$", text, flags=re.MULTILINE)
    section = sections[sections.index(title) + 1]
    blocks = find_blocks(DOCUMENT, section)
    source = next(block.text for block in blocks if block.language == "python")
    return source.replace("aiomisc", "svcrun").replace(", loop=self.loop", "")


@pytest.fixture
def start(run_program: Start, tmp_path: Path) -> Start:
    """Start a block in a process of its own, and wait until its services have started."""

    def run(source: str) -> Program:
        program = run_program(
            IMPORTS + ANNOUNCE + source, cwd=tmp_path, env={"SVCRUN_LOG_FORMAT": "stream"}
        )
        program.wait_for_line("-- started")
        return program

    return run


def on_free_port(source: str, port: int) -> tuple[str, int]:
    """Replace a port in a block by a free one."""
    assert f"port={port}" in source
    (free,) = free_ports(1)
    return source.replace(f"port={port}", f"port={free}"), free


def stop(program: Program) -> Outcome:
    """End a program by a signal, in order and without a word of complaint."""
    program.terminate()
    outcome = program.wait()
    assert outcome.returncode == 0, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "Warning" not in outcome.stderr
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


def test_the_tcp_servers_endless_handler_ends_with_its_client(start: Start) -> None:
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


def test_the_configured_services_have_their_keywords(start: Start) -> None:
    program = start(read_block("Configuration"))
    program.wait_for_line("Hello from service #1")
    outcome = stop(program)
    assert {"Hello from service #1", "Hello from service #2"} <= set(outcome.stdout.splitlines())


def test_the_required_keyword_is_asked_for(run_program: Start) -> None:
    source = read_block("Configuration").replace("name='#1'", "")
    outcome = run_program(IMPORTS + source).wait()
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines()[-1].endswith(
        "MissingParameters: LoggingService needs name= among its keyword arguments"
    )


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
    assert Plain().name is None
