"""Laws of HTTPS: accepted clients, and the log lines about others (C28)."""

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

pytest.importorskip("aiohttp")

from aiohttp import web as aioweb

from svcrun.service.aiohttp import AIOHTTPSSLService
from tests.conftest import Certificates
from tests.service.streams import running
from tests.service.webs import (
    Web,
    application,
    client,
    complaints,
    raw_client,
    read_answer,
    request,
)
from tests.support import eventually

Make = Callable[..., Any]


async def name_of_client(request: aioweb.Request) -> aioweb.Response:
    """Answer the version of TLS, and the name in the client's certificate if it shows one."""
    assert request.transport is not None
    assert request.secure
    version = request.transport.get_extra_info("ssl_object").version()
    certificate = request.transport.get_extra_info("peercert")
    name = certificate["subjectAltName"][0][1] if certificate else "anonymous"
    return aioweb.Response(text=f"{version} {name}")


@pytest.fixture
def secure(https: Web) -> Make:
    """Make services with the test certificates."""
    return lambda **parameters: https.service(name_of_client, **parameters)


@pytest.fixture
def context(certificates: Certificates) -> ssl.SSLContext:
    """Make a client trust the server."""
    return ssl.create_default_context(cafile=certificates.ca)


async def ask(service: Any, context: ssl.SSLContext) -> str:
    """Return the answer, or raise the error of the handshake, which TLS 1.3 reports later."""
    async with client(service, context=context) as (reader, writer):
        writer.write(request())
        await writer.drain()
        return (await read_answer(reader)).body.decode()


async def is_refused(service: Any, context: ssl.SSLContext) -> None:
    """Fail if there is an answer. With TLS 1.3 the client sees the refusal only when it reads."""
    with pytest.raises((OSError, EOFError)):
        await ask(service, context)


async def failed_handshake(
    service: Any, caplog: pytest.LogCaptureFixture, level: int = logging.WARNING
) -> str:
    """Wait for the one line about a failed handshake, which is no traceback, and return it."""

    def found() -> list[logging.LogRecord]:
        return [r for r in complaints(caplog, level) if "Listening" not in r.msg]

    server = service.runner.server
    await eventually(lambda: found() and not server.handshakes.tasks and not server.connections)
    (record,) = found()
    assert not record.exc_info
    message = record.getMessage()
    assert "\n" not in message
    assert "127.0.0.1:" in message
    return message


async def test_tls_1_3_is_spoken(secure: Make, context: ssl.SSLContext) -> None:
    async with running(secure()) as service:
        assert await ask(service, context) == "TLSv1.3 anonymous"


async def test_an_older_version_of_tls_is_refused_and_the_log_names_the_parameter(
    secure: Make, context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with running(secure()) as service:
        await is_refused(service, context)
        assert "minimum_version=TLSv1_3" in await failed_handshake(service, caplog)


async def test_an_older_version_of_tls_can_be_allowed(
    secure: Make, context: ssl.SSLContext
) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with running(secure(minimum_version=ssl.TLSVersion.TLSv1_2)) as service:
        assert await ask(service, context) == "TLSv1.2 anonymous"


class TestClientCertificates:
    """The meaning of `ca`, `verify` and `require_client_cert`."""

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
    async def test_a_required_client_certificate_must_be_issued_by_the_authority(
        self,
        secure: Make,
        certificates: Certificates,
        contexts: dict[str, ssl.SSLContext],
        caplog: pytest.LogCaptureFixture,
        *,
        verify: bool,
    ) -> None:
        service = secure(ca=certificates.ca, require_client_cert=True, verify=verify)
        async with running(service):
            assert await ask(service, contexts["client"]) == "TLSv1.3 client@example.com"
            await eventually(lambda: not service.runner.server.connections)
            await is_refused(service, contexts["none"])
            assert "require_client_cert" in await failed_handshake(service, caplog)
            caplog.clear()
            await is_refused(service, contexts["stranger"])
            assert "certificate is not accepted" in await failed_handshake(service, caplog)
            # No request was begun for any of them.
            assert service.runner.server.requests_count == 1

    async def test_an_optional_client_certificate_is_verified(
        self,
        secure: Make,
        certificates: Certificates,
        contexts: dict[str, ssl.SSLContext],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        async with running(secure(ca=certificates.ca)) as service:
            assert await ask(service, contexts["none"]) == "TLSv1.3 anonymous"
            assert await ask(service, contexts["client"]) == "TLSv1.3 client@example.com"
            await is_refused(service, contexts["stranger"])
            assert "certificate is not accepted" in await failed_handshake(service, caplog)

    @pytest.mark.parametrize("parameters", [{"verify": False}, {"ca": None}])
    async def test_without_verify_or_ca_no_client_certificate_is_requested(
        self,
        secure: Make,
        certificates: Certificates,
        contexts: dict[str, ssl.SSLContext],
        parameters: dict[str, Any],
    ) -> None:
        async with running(secure(**{"ca": certificates.ca, **parameters})) as service:
            for name in ("none", "client", "stranger"):
                assert await ask(service, contexts[name]) == "TLSv1.3 anonymous"


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 100, b"SSH-2.0-OpenSSH_9.6\r\n"]
)
async def test_a_client_that_speaks_no_tls_is_logged_in_one_line(
    secure: Make, context: ssl.SSLContext, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    async with running(secure()) as service:
        with raw_client(service) as sock:
            sock.sendall(data)
            with contextlib.suppress(ConnectionResetError):
                while await asyncio.to_thread(sock.recv, 100):
                    pass
        assert "does not speak TLS" in await failed_handshake(service, caplog)
        assert await ask(service, context) == "TLSv1.3 anonymous"


@pytest.mark.parametrize("how", ["closed", "reset"])
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_client_that_disconnects_during_the_handshake_is_logged_in_one_line(
    secure: Make, caplog: pytest.LogCaptureFixture, how: str, sent: bytes
) -> None:
    caplog.set_level(logging.INFO)
    async with running(secure()) as service:
        with raw_client(service) as sock:
            sock.sendall(sent)
            await eventually(lambda: service.runner.server.handshakes.tasks)
            if how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await failed_handshake(service, caplog, logging.INFO)


async def test_a_handshake_past_its_time_limit_is_closed(
    secure: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(secure(ssl_handshake_timeout=0.1)) as service:
        with raw_client(service) as sock:
            assert await asyncio.to_thread(sock.recv, 1) == b""
            assert "0.1" in await failed_handshake(service, caplog)


async def test_a_request_that_comes_with_the_handshake_is_answered(
    secure: Make, context: ssl.SSLContext
) -> None:
    def talk(sock: socket.socket) -> bytes:
        received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(received, to_send, server_hostname="localhost")
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(to_send.read())
                received.write(sock.recv(10_000))
        tls.write(request() * 4 + request("/", "Connection: close"))
        sock.sendall(to_send.read())  # with the last message of the handshake
        answer = b""
        while True:
            try:
                if not (part := tls.read(10_000)):
                    return answer
                answer += part
            except ssl.SSLWantReadError:
                if not (got := sock.recv(10_000)):
                    return answer
                received.write(got)

    async with running(secure()) as service:
        with raw_client(service) as sock:
            answer = await asyncio.to_thread(talk, sock)
        assert answer.count(b"TLSv1.3 anonymous") == 5


class TestReload:
    """The effects of `reload_certificates()`."""

    @pytest.fixture
    def files(self, certificates: Certificates, tmp_path: Path) -> dict[str, Path]:
        found = {name: tmp_path / f"{name}.pem" for name in ("cert", "key", "ca")}
        shutil.copy(certificates.server_cert, found["cert"])
        shutil.copy(certificates.server_key, found["key"])
        shutil.copy(certificates.ca, found["ca"])
        return found

    async def test_reloaded_files_are_used_for_new_handshakes(
        self,
        secure: Make,
        certificates: Certificates,
        context: ssl.SSLContext,
        files: dict[str, Path],
    ) -> None:
        other = ssl.create_default_context(cafile=certificates.other_ca)
        service = secure(cert=files["cert"], key=files["key"])
        async with running(service), client(service, context=context) as (reader, writer):
            writer.write(request())
            assert (await read_answer(reader)).status == 200
            shutil.copy(certificates.stranger_cert, files["cert"])
            shutil.copy(certificates.stranger_key, files["key"])
            service.reload_certificates()
            assert await ask(service, other) == "TLSv1.3 anonymous"
            with pytest.raises(ssl.SSLCertVerificationError):
                await ask(service, context)
            writer.write(request())
            assert (await read_answer(reader)).status == 200

    @pytest.mark.parametrize("name", ["cert", "key"])
    async def test_a_reload_of_unusable_files_changes_nothing(
        self, secure: Make, context: ssl.SSLContext, files: dict[str, Path], name: str
    ) -> None:
        async with running(secure(cert=files["cert"], key=files["key"])) as service:
            files[name].write_text("garbage")
            with pytest.raises(ValueError, match=name):
                service.reload_certificates()
            assert await ask(service, context) == "TLSv1.3 anonymous"

    async def test_a_tls_session_from_before_a_reload_does_not_bypass_the_new_authority(
        self, secure: Make, certificates: Certificates, files: dict[str, Path]
    ) -> None:
        def talk(session: Any) -> tuple[bytes, Any]:
            with raw_client(service) as sock:
                tls = context.wrap_socket(sock, server_hostname="localhost", session=session)
                with tls:
                    tls.sendall(request("/", "Connection: close"))
                    answer = b""
                    while got := tls.recv(10_000):
                        answer += got
                    return answer, tls.session

        context = ssl.create_default_context(cafile=certificates.ca)
        context.load_cert_chain(certificates.client_cert, certificates.client_key)
        async with running(secure(**files, require_client_cert=True)) as service:
            answer, session = await asyncio.to_thread(talk, None)
            assert b"client@example.com" in answer
            answer, session = await asyncio.to_thread(talk, session)
            assert b"client@example.com" in answer
            shutil.copy(certificates.other_ca, files["ca"])
            service.reload_certificates()
            with contextlib.suppress(OSError):
                answer, _ = await asyncio.to_thread(talk, session)
                assert answer == b""

    async def test_a_reload_of_a_stopped_service_is_an_error(self, secure: Make) -> None:
        with pytest.raises(
            RuntimeError, match=r"reload_certificates\(\) of <AIOHTTPSSLService NEW>"
        ):
            secure().reload_certificates()

    async def test_a_second_start_of_a_running_service_does_not_reload(
        self, secure: Make, context: ssl.SSLContext, files: dict[str, Path]
    ) -> None:
        async with running(secure(cert=files["cert"], key=files["key"])) as service:
            before = service.ssl_context
            with pytest.raises(RuntimeError, match="running already"):
                await service.start()
            assert service.ssl_context is before


class TestParameters:
    """C7."""

    async def test_an_absent_file_is_named_when_the_service_is_created(self, secure: Make) -> None:
        for name in ("cert", "key", "ca"):
            with pytest.raises(FileNotFoundError, match=f"{name}.*/no/such.pem"):
                secure(**{name: "/no/such.pem"})

    async def test_certificate_and_key_are_required(self) -> None:
        make: Any = AIOHTTPSSLService
        with pytest.raises(AttributeError, match="cert=, key="):
            make(address="::1", port=0)

    async def test_a_file_with_wrong_contents_fails_the_start_and_leaves_nothing_behind(
        self, secure: Make, certificates: Certificates
    ) -> None:
        service = secure(key=certificates.client_key)
        with pytest.raises(ValueError, match=r"key must be .*client\.key"):
            await service.start()
        assert service.socket is None
        await service.stop()

    async def test_tls_parameters_can_be_given_by_position_in_the_order_of_aiomisc(
        self, certificates: Certificates, context: ssl.SSLContext
    ) -> None:
        service = AIOHTTPSSLService(
            certificates.server_cert,
            certificates.server_key,
            None,
            "127.0.0.1",
            0,
            True,
            app=lambda: application(name_of_client),
        )
        async with running(service):
            assert await ask(service, context) == "TLSv1.3 anonymous"

    async def test_tls_parameters_can_be_class_attributes(
        self, certificates: Certificates, context: ssl.SSLContext
    ) -> None:
        class Mine(AIOHTTPSSLService):
            address = "127.0.0.1"
            port = 0
            cert = certificates.server_cert
            key = certificates.server_key

            async def create_application(self) -> aioweb.Application:
                return application(name_of_client)

        made: Any = Mine
        async with running(made()) as service:
            assert await ask(service, context) == "TLSv1.3 anonymous"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")
async def test_the_openssl_client_gets_a_response(secure: Make, certificates: Certificates) -> None:
    async with running(secure(ca=certificates.ca, require_client_cert=True)) as service:
        process = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-quiet", "-verify_return_error", "-no_ign_eof"),
            *("-connect", f"127.0.0.1:{service.port}", "-CAfile", str(certificates.ca)),
            *("-cert", str(certificates.client_cert), "-key", str(certificates.client_key)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(request())
        assert (await read_answer(process.stdout)).body == b"TLSv1.3 client@example.com"
        process.stdin.close()
        await process.wait()
