"""Laws of TLS: which clients are accepted, and how the others are logged (C28)."""

import asyncio
import contextlib
import logging
import shutil
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svcrun.service.tls import SSLOptions, TLSServer
from tests.conftest import Certificates
from tests.service.streams import Transport, echo, raw_client, running
from tests.support import eventually

Connect = Callable[..., Any]


class Secure(TLSServer):
    """A server that echoes lines, after the name in the client's certificate if there is one."""

    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        certificate = writer.get_extra_info("peercert")
        if certificate:
            writer.write(certificate["subjectAltName"][0][1].encode() + b" ")
        await echo(reader, writer)


@pytest.fixture
def secure(certificates: Certificates) -> Callable[..., Secure]:
    """Return a function that creates servers with the test certificates."""

    def make(**parameters: Any) -> Secure:
        defaults: dict[str, Any] = {
            "address": "127.0.0.1",
            "port": 0,
            "cert": certificates.server_cert,
            "key": certificates.server_key,
        }
        return Secure(**{**defaults, **parameters})

    return make


@pytest.fixture
def context(certificates: Certificates) -> ssl.SSLContext:
    """Return the context of a client that trusts the server."""
    return ssl.create_default_context(cafile=certificates.ca)


async def ask(server: TLSServer, context: ssl.SSLContext) -> bytes:
    """Return the answer to a line, or raise the error of the handshake, which may come later."""
    reader, writer = await asyncio.open_connection(
        str(server.address), server.port, ssl=context, server_hostname="localhost"
    )
    try:
        writer.write(b"hello\n")
        await writer.drain()
        return await reader.readline()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def complaints(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the log messages about connections."""
    return [record for record in caplog.records if not record.msg.startswith("Listening")]


async def failed_handshake(
    server: TLSServer, caplog: pytest.LogCaptureFixture, peer: str | None = None
) -> str:
    """Wait for the one line about a failed handshake, which is no traceback, and return it."""
    await eventually(lambda: complaints(caplog) and not server.connections)
    (record,) = complaints(caplog)
    assert not record.exc_info
    message = record.getMessage()
    assert "\n" not in message
    assert "127.0.0.1:" in message
    if peer is not None:
        assert peer in message
    return message


async def test_tls_1_3_is_spoken(secure: Any, context: ssl.SSLContext) -> None:
    async with running(secure()) as server:
        reader, writer = await asyncio.open_connection(
            server.address, server.port, ssl=context, server_hostname="localhost"
        )
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        writer.close()
        await writer.wait_closed()


async def test_a_client_with_an_older_version_is_refused_and_the_log_names_the_parameter(
    secure: Any, context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with running(secure()) as server:
        with pytest.raises(OSError):
            await ask(server, context)
        assert "minimum_version=TLSv1_3" in await failed_handshake(server, caplog)


async def test_minimum_version_allows_older_clients(secure: Any, context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with running(secure(minimum_version=ssl.TLSVersion.TLSv1_2)) as server:
        assert await ask(server, context) == b"hello\n"


async def test_maximum_version_excludes_newer_versions(
    secure: Any, context: ssl.SSLContext
) -> None:
    versions = {
        "minimum_version": ssl.TLSVersion.TLSv1_2,
        "maximum_version": ssl.TLSVersion.TLSv1_2,
    }
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    async with running(secure(**versions)) as server:
        with pytest.raises(OSError):
            await ask(server, context)


class TestClientCertificates:
    """The effects of `ca`, `verify` and `require_client_cert` on a server."""

    @pytest.fixture
    def contexts(self, certificates: Certificates) -> dict[str, ssl.SSLContext]:
        made = {
            name: ssl.create_default_context(cafile=certificates.ca)
            for name in ("none", "client", "stranger")
        }
        made["client"].load_cert_chain(certificates.client_cert, certificates.client_key)
        made["stranger"].load_cert_chain(certificates.stranger_cert, certificates.stranger_key)
        return made

    @pytest.mark.parametrize("verify", [True, False])
    async def test_a_required_certificate_must_be_issued_by_the_authority(
        self,
        secure: Any,
        certificates: Certificates,
        contexts: dict[str, ssl.SSLContext],
        caplog: pytest.LogCaptureFixture,
        *,
        verify: bool,
    ) -> None:
        server = secure(ca=certificates.ca, require_client_cert=True, verify=verify)
        async with running(server):
            assert await ask(server, contexts["client"]) == b"client@example.com hello\n"
            # With TLS 1.3 the client sees its refusal only when it reads.
            with contextlib.suppress(OSError):
                assert await ask(server, contexts["none"]) == b""
            assert "require_client_cert" in await failed_handshake(server, caplog)
            caplog.clear()
            with contextlib.suppress(OSError):
                assert await ask(server, contexts["stranger"]) == b""
            assert "certificate is not accepted" in await failed_handshake(server, caplog)

    async def test_a_certificate_that_a_client_sends_is_verified(
        self,
        secure: Any,
        certificates: Certificates,
        contexts: dict[str, ssl.SSLContext],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        async with running(secure(ca=certificates.ca)) as server:
            assert await ask(server, contexts["none"]) == b"hello\n"
            assert await ask(server, contexts["client"]) == b"client@example.com hello\n"
            with contextlib.suppress(OSError):
                assert await ask(server, contexts["stranger"]) == b""
            assert "certificate is not accepted" in await failed_handshake(server, caplog)

    @pytest.mark.parametrize("parameters", [{"verify": False}, {"ca": None}])
    async def test_without_verify_or_ca_no_client_is_asked_for_a_certificate(
        self,
        secure: Any,
        certificates: Certificates,
        contexts: dict[str, ssl.SSLContext],
        parameters: dict[str, Any],
    ) -> None:
        async with running(secure(**{"ca": certificates.ca, **parameters})) as server:
            for name in ("none", "client", "stranger"):
                assert await ask(server, contexts[name]) == b"hello\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "does not speak TLS"),
        (b"\x00" * 100, "does not speak TLS"),
        (b"\x16\x03\x01\x00\x05hello", ""),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak TLS"),
    ],
)
async def test_garbage_is_logged_in_one_line(
    secure: Any,
    context: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
    data: bytes,
    reason: str,
) -> None:
    async with running(secure()) as server:
        with raw_client(server) as sock:
            sock.sendall(data)
            peer = "{}:{}".format(*sock.getsockname())
            with contextlib.suppress(ConnectionResetError):
                while await asyncio.to_thread(sock.recv, 100):
                    pass
        assert reason in await failed_handshake(server, caplog, peer)
        assert await ask(server, context) == b"hello\n"


@pytest.mark.parametrize("how", ["closed", "reset"])
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_client_that_disconnects_during_the_handshake_is_logged_in_one_line(
    secure: Any,
    context: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
    how: str,
    sent: bytes,
) -> None:
    caplog.set_level(logging.INFO)
    async with running(secure()) as server:
        with raw_client(server) as sock:
            peer = "{}:{}".format(*sock.getsockname())
            sock.sendall(sent)
            await eventually(lambda: server.connections)
            if how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await failed_handshake(server, caplog, peer)
        assert await ask(server, context) == b"hello\n"


async def test_a_handshake_without_end_is_cancelled_at_its_time_limit(
    secure: Any, context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(secure(ssl_handshake_timeout=0.1)) as server:
        with raw_client(server) as sock:
            assert await asyncio.to_thread(sock.recv, 1) == b""
            assert "0.1" in await failed_handshake(server, caplog)
        assert await ask(server, context) == b"hello\n"


async def test_a_client_that_does_not_trust_the_server_is_logged_in_one_line(
    secure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(sock: socket.socket) -> None:
        with pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(sock, server_hostname="localhost")

    async with running(secure()) as server:
        with raw_client(server) as sock:
            await asyncio.to_thread(refuse, sock)
        assert "UNKNOWN_CA" in await failed_handshake(server, caplog)


async def test_a_client_that_closes_the_socket_without_a_farewell_logs_nothing(
    secure: Any, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    """Many clients never send the end of TLS."""
    context = ssl.create_default_context(cafile=certificates.ca)

    def talk(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_hostname="localhost") as tls:
            tls.sendall(b"hello\n")
            assert tls.recv(100) == b"hello\n"

    async with running(secure()) as server:
        for _ in range(3):
            with raw_client(server) as sock:
                await asyncio.to_thread(talk, sock)
        await eventually(lambda: not server.connections)
    assert complaints(caplog) == []


async def test_data_that_arrives_with_the_handshake_is_not_lost(
    secure: Any, context: ssl.SSLContext
) -> None:
    line = b"x" * 30_000 + b"\n"

    def talk(sock: socket.socket) -> bytes:
        got = b""
        with context.wrap_socket(sock, server_hostname="localhost") as tls:
            tls.sendall(line * 20)
            while len(got) < 20 * len(line):
                got += tls.recv(100_000)
        return got

    async with running(secure(limit=40_000)) as server:
        with raw_client(server) as sock:
            assert await asyncio.to_thread(talk, sock) == line * 20


class TestReload:
    """The effects of `reload_certificates()`."""

    @pytest.fixture
    def files(self, certificates: Certificates, tmp_path: Path) -> dict[str, Path]:
        found = {"cert": tmp_path / "cert.pem", "key": tmp_path / "key.pem"}
        shutil.copy(certificates.server_cert, found["cert"])
        shutil.copy(certificates.server_key, found["key"])
        return found

    async def test_reloaded_files_are_used_for_new_connections(
        self,
        secure: Any,
        certificates: Certificates,
        context: ssl.SSLContext,
        files: dict[str, Path],
    ) -> None:
        other = ssl.create_default_context(cafile=certificates.other_ca)
        async with running(secure(**files)) as server:
            reader, writer = await asyncio.open_connection(
                server.address, server.port, ssl=context, server_hostname="localhost"
            )
            writer.write(b"before\n")
            assert await reader.readline() == b"before\n"

            shutil.copy(certificates.stranger_cert, files["cert"])
            shutil.copy(certificates.stranger_key, files["key"])
            server.reload_certificates()
            assert await ask(server, other) == b"hello\n"
            with pytest.raises(ssl.SSLCertVerificationError):
                await ask(server, context)

            writer.write(b"after\n")
            assert await reader.readline() == b"after\n"
            writer.close()
            await writer.wait_closed()

    @pytest.mark.parametrize("name", ["cert", "key"])
    @pytest.mark.parametrize("damage", ["garbage", "absent", "of another pair"])
    async def test_unusable_files_change_nothing(
        self,
        secure: Any,
        certificates: Certificates,
        context: ssl.SSLContext,
        files: dict[str, Path],
        name: str,
        damage: str,
    ) -> None:
        async with running(secure(**files)) as server:
            if damage == "garbage":
                files[name].write_text("garbage")
            elif damage == "absent":
                files[name].unlink()
            else:
                shutil.copy(getattr(certificates, f"stranger_{name}"), files[name])
            with pytest.raises((ValueError, FileNotFoundError), match=r"key|cert"):
                server.reload_certificates()
            assert await ask(server, context) == b"hello\n"

    async def test_a_server_that_is_not_running_can_not_reload(self, secure: Any) -> None:
        with pytest.raises(RuntimeError, match=r"reload_certificates\(\) of <Secure NEW>"):
            secure().reload_certificates()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")
async def test_openssl_can_connect(secure: Any, certificates: Certificates) -> None:
    async with running(secure(ca=certificates.ca, require_client_cert=True)) as server:
        process = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-quiet", "-verify_return_error", "-no_ign_eof"),
            *("-connect", f"127.0.0.1:{server.port}", "-CAfile", str(certificates.ca)),
            *("-cert", str(certificates.client_cert), "-key", str(certificates.client_key)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"hello\n")
        assert await process.stdout.readline() == b"client@example.com hello\n"
        process.stdin.close()
        await process.wait()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_curl_can_connect(certificates: Certificates) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\nConnection: close\r\n\r\n")
        writer.write(b"x" * 300_000)

    async with running(Transport(certificates).server(handler)) as server:
        process = await asyncio.create_subprocess_exec(
            *("curl", "--silent", "--show-error", "--cacert", str(certificates.ca)),
            f"https://localhost:{server.port}/",
            stdout=asyncio.subprocess.PIPE,
        )
        body, _ = await process.communicate()
        assert (process.returncode, body) == (0, b"x" * 300_000)


class TestParameters:
    """C7."""

    async def test_a_file_that_does_not_exist_is_named_when_the_service_is_created(
        self, secure: Any
    ) -> None:
        for name in ("cert", "key", "ca"):
            with pytest.raises(FileNotFoundError, match=f"{name}.*/no/such.pem"):
                secure(**{name: "/no/such.pem"})

    def test_certificate_and_key_are_required(self) -> None:
        with pytest.raises(AttributeError, match="cert=, key="):
            Secure(address="::1", port=0)  # type: ignore[call-arg]

    async def test_a_file_with_wrong_contents_is_named_at_the_start_which_leaves_nothing_behind(
        self, secure: Any, certificates: Certificates, no_leaks: None
    ) -> None:
        server = secure(key=certificates.client_key)
        with pytest.raises(ValueError, match=r"key must be .*client\.key"):
            await server.start()
        await server.stop()

    @pytest.mark.parametrize(
        ("parameters", "error"),
        [
            ({"ssl_handshake_timeout": 0}, ValueError),
            ({"ssl_handshake_timeout": None}, TypeError),
            ({"minimum_version": "TLSv1.3"}, TypeError),
            ({"verify": "no"}, TypeError),
            ({"require_client_cert": True}, ValueError),
            ({"limit": 0}, ValueError),
        ],
    )
    def test_wrong_values_are_named(
        self, secure: Any, parameters: dict[str, Any], error: type[Exception]
    ) -> None:
        with pytest.raises(error) as caught:
            secure(**parameters)
        assert "Secure" in str(caught.value)

    def test_the_module_exports_ssl_options(self) -> None:
        assert SSLOptions.__module__ == "svcrun._net.tls_options"

    async def test_ssl_options_create_a_context_as_documented(
        self, certificates: Certificates
    ) -> None:
        """The example of the documentation gives `ca` and `verify=False`."""
        service = Secure(
            address="::1" if socket.has_ipv6 else "127.0.0.1",
            port=0,
            ca=str(certificates.ca),
            cert=str(certificates.server_cert),
            key=str(certificates.server_key),
            verify=False,
        )
        async with running(service):
            context = ssl.create_default_context(cafile=certificates.ca)
            assert await ask(service, context) == b"hello\n"
