"""Laws of TLS clients: which servers they accept, and how they report the others (C28, C43)."""

import asyncio
import datetime as dt
import logging
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from svcrun import entrypoint
from svcrun.service.tls import RobustTLSClient, TLSClient
from tests.conftest import Certificates
from tests.support import LoopFactory, eventually, refuses


class Greeter(TLSClient):
    """A client that sends a line and keeps the answer."""

    answer = b""

    async def handle_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"hello\n")
        self.answer = await reader.readline()


class Subscriber(RobustTLSClient):
    """A robust client that reads until the end."""

    async def handle_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.read()


@pytest.fixture
def run(loop_factory: LoopFactory, no_leaks: None) -> Callable[[Any], Any]:
    """Run a coroutine on each kind of loop, and check that nothing is left."""

    def run_main(main: Any) -> Any:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(main)

    return run_main


@pytest.fixture
def openssl(certificates: Certificates) -> Iterator[Callable[..., int]]:
    """Start ``openssl s_server`` with further arguments, and return its port."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, cert: Path | None = None, key: Path | None = None) -> int:
        process = subprocess.Popen(
            [
                *(program, "s_server", "-accept", "127.0.0.1:0", "-rev", *arguments),
                *("-cert", str(cert or certificates.server_cert)),
                *("-key", str(key or certificates.server_key)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        processes.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(b"ACCEPT "):
                return int(line.rpartition(b":")[2])
        raise AssertionError("openssl s_server does not listen")

    yield start
    for process in processes:
        process.kill()
        process.communicate()


async def ask(client: Greeter) -> bytes:
    """Run a client until it has its answer."""
    async with asyncio.timeout(30), entrypoint(client, log_config=False):
        await eventually(lambda: client.answer)
    return client.answer


def greeter(port: int, certificates: Certificates, **parameters: Any) -> Greeter:
    """Return a client that makes one attempt."""
    defaults: dict[str, Any] = {"ca": certificates.ca, "connect_attempts": 1}
    return Greeter("127.0.0.1", port, **{**defaults, **parameters})


def test_a_server_with_a_certificate_of_ca_and_the_right_name_is_accepted(
    run: Callable[..., Any], openssl: Callable[..., int], certificates: Certificates
) -> None:
    assert run(ask(greeter(openssl(), certificates))) == b"olleh\n"


def test_a_server_of_another_authority_is_refused_in_one_line(
    run: Callable[..., Any],
    openssl: Callable[..., int],
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = greeter(
        openssl(),
        certificates,
        ca=certificates.other_ca,
        connect_attempts=2,
        connect_retry_timeout=0,
    )
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate is not accepted") as caught:
        run(ask(client))
    assert caught.value.verify_code
    assert f"tls://127.0.0.1:{client.port}" in str(caught.value)
    lines = [record for record in caplog.records if record.name == "svcrun.net"]
    assert [record.exc_info for record in lines] == [None]
    assert "retrying in" in lines[0].message


def test_the_authorities_of_the_system_do_not_know_a_private_one(
    run: Callable[..., Any], openssl: Callable[..., int], certificates: Certificates
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        run(ask(greeter(openssl(), certificates, ca=None)))


def test_a_server_with_another_name_is_refused(
    run: Callable[..., Any], openssl: Callable[..., int], certificates: Certificates
) -> None:
    client = greeter(openssl(), certificates, server_hostname="example.com")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"example\.com"):
        run(ask(client))


def test_server_hostname_replaces_the_address(
    run: Callable[..., Any],
    openssl: Callable[..., int],
    certificates: Certificates,
    tmp_path: Path,
) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = ca.issue_cert("db.example.com")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "db.pem")
    port = openssl(cert=tmp_path / "db.pem", key=tmp_path / "db.pem")
    ca_file = tmp_path / "ca.pem"
    with pytest.raises(ssl.SSLCertVerificationError):
        run(ask(greeter(port, certificates, ca=ca_file)))
    client = greeter(port, certificates, ca=ca_file, server_hostname="db.example.com")
    assert run(ask(client)) == b"olleh\n"


def test_an_expired_certificate_is_refused(
    run: Callable[..., Any],
    openssl: Callable[..., int],
    certificates: Certificates,
    tmp_path: Path,
) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    issued = ca.issue_cert("127.0.0.1", not_after=yesterday)
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "old.pem")
    port = openssl(cert=tmp_path / "old.pem", key=tmp_path / "old.pem")
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        run(ask(greeter(port, certificates, ca=tmp_path / "ca.pem")))


def test_verify_false_accepts_any_certificate(
    run: Callable[..., Any], openssl: Callable[..., int], certificates: Certificates
) -> None:
    client = greeter(openssl(), certificates, ca=certificates.other_ca, verify=False)
    assert run(ask(client)) == b"olleh\n"


def test_a_client_shows_its_certificate_to_a_server_that_requires_one(
    run: Callable[..., Any], openssl: Callable[..., int], certificates: Certificates
) -> None:
    port = openssl("-Verify", "1", "-CAfile", str(certificates.ca), "-verify_return_error")
    client = greeter(port, certificates, cert=certificates.client_cert, key=certificates.client_key)
    assert run(ask(client)) == b"olleh\n"


def test_a_server_below_minimum_version_is_refused_unless_it_is_lowered(
    run: Callable[..., Any], openssl: Callable[..., int], certificates: Certificates
) -> None:
    port = openssl("-tls1_2")
    with pytest.raises(ssl.SSLError, match="TLS handshake failed"):
        run(ask(greeter(port, certificates)))
    client = greeter(port, certificates, minimum_version=ssl.TLSVersion.TLSv1_2)
    assert run(ask(client)) == b"olleh\n"


def test_a_server_that_speaks_no_tls_is_a_failed_attempt(
    run: Callable[..., Any], certificates: Certificates
) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 welcome\r\n")
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(OSError, match="1 attempt"):
            await greeter(port, certificates).start()
        server.close()

    run(main())


@pytest.mark.parametrize("kind", [Greeter, Subscriber])
def test_a_stop_ends_a_handshake_at_once(
    run: Callable[..., Any], certificates: Certificates, kind: Any
) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            client = kind("127.0.0.1", silent.getsockname()[1], ca=certificates.ca)
            start = asyncio.create_task(client.start())
            await asyncio.sleep(0.05)
            async with asyncio.timeout(5):
                await client.stop()
                await start

    run(main())


def test_ssl_handshake_timeout_limits_a_handshake(
    run: Callable[..., Any], certificates: Certificates
) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            client = greeter(port, certificates, ssl_handshake_timeout=0.05)
            with pytest.raises(ConnectionError, match="1 attempt"):
                await client.start()

    run(main())


def test_a_robust_client_connects_again_with_certificates_that_were_read_again(
    run: Callable[..., Any],
    certificates: Certificates,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    ca = tmp_path / "ca.pem"
    shutil.copy(certificates.ca, ca)

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.append(writer)

    clients: list[asyncio.StreamWriter] = []

    async def main() -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificates.server_cert, certificates.server_key)
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        client = Subscriber("127.0.0.1", port, ca=ca, reconnect_timeout=0.01)
        with pytest.raises(RuntimeError, match="reload_certificates"):
            client.reload_certificates()
        async with entrypoint(client, log_config=False):
            ca.write_text("nothing")
            with pytest.raises(ValueError, match="ca must be"):
                client.reload_certificates()
            await eventually(lambda: len(clients) == 1)
            clients[0].close()
            await eventually(lambda: len(clients) == 2)  # by the certificates read at the start
            shutil.copy(certificates.other_ca, ca)
            client.reload_certificates()
            clients[1].close()
            await eventually(lambda: "certificate is not accepted" in caplog.text)
            shutil.copy(certificates.ca, ca)
            client.reload_certificates()
            await client.connected.wait()
        for writer in clients:
            writer.transport.abort()
        server.close()

    run(main())


def test_tls_over_a_unix_socket_needs_the_name(tmp_path: Path, certificates: Certificates) -> None:
    with pytest.raises(ValueError, match="Greeter") as caught:
        Greeter(str(tmp_path / "socket"), ca=certificates.ca)
    assert refuses(caught.value, "server_hostname=None")
    Greeter(str(tmp_path / "socket"), ca=certificates.ca, server_hostname="localhost")
    Greeter(str(tmp_path / "socket"), verify=False)


def test_an_absent_file_is_refused_at_construction(certificates: Certificates) -> None:
    with pytest.raises(FileNotFoundError, match="Greeter: ca must be"):
        Greeter("localhost", 1, ca="/nonexistent/ca.pem")
    with pytest.raises(ValueError, match="Greeter: cert must be"):
        Greeter("localhost", 1, key=certificates.client_key)
