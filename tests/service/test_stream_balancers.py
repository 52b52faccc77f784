"""Servers behind HAProxy and nginx, and clients that send a PROXY header themselves (C40)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from tests.balancers import find_program, haproxy, nginx
from tests.documents import free_ports
from tests.proxies import relay, v1, v2
from tests.service.streams import Transport, running
from tests.support import PATIENCE, eventually

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

HAPROXY = """
defaults
    mode {mode}
    timeout connect 10s
    timeout client 10s
    timeout server 10s

frontend front
    bind 127.0.0.1:{front} {tls}
    default_backend back

backend back
    server one 127.0.0.1:{back} {options}
"""

NGINX = """
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
pid nginx.pid;
error_log stderr;

events {{}}

stream {{
    server {{
        listen 127.0.0.1:{front};
        proxy_pass 127.0.0.1:{back};
        proxy_protocol on;
    }}
}}
"""


async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send the addresses of the client and of the proxy after its first line."""
    await reader.readline()
    peer, proxy = (writer.get_extra_info(name) for name in ("peername", "proxy"))
    writer.write(f"{peer!r} {proxy is not None}\n".encode())


async def ask(port: int, context: ssl.SSLContext | None) -> tuple[str, tuple[str, int]]:
    """Return what the server behind a port says of a client, and the client's own address."""
    name = None if context is None else "localhost"
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=name
    )
    try:
        writer.write(b"hello\n")
        return (await reader.readline()).decode(), writer.get_extra_info("sockname")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.mark.parametrize(("option", "version"), [("send-proxy", "v1"), ("send-proxy-v2", "v2")])
async def test_haproxy_forwards_bytes_and_names_the_client(
    transport: Transport, option: str, version: str, tmp_path: Path
) -> None:
    """TLS passes through HAProxy."""
    (front,) = free_ports(1)
    async with running(transport.server(tell, proxy_protocol=version)) as server:
        config = HAPROXY.format(mode="tcp", front=front, tls="", back=server.port, options=option)
        with haproxy(tmp_path, config, front):
            for _ in range(3):
                told, own = await ask(front, transport.client_context())
                assert told == f"{own!r} True\n"


async def test_haproxy_sends_more_about_tls_that_it_terminates(
    certificates: Any, tmp_path: Path
) -> None:
    pem = tmp_path / "site.pem"
    pem.write_bytes(certificates.server_cert.read_bytes() + certificates.server_key.read_bytes())
    (front,) = free_ports(1)
    async with running(Transport(None).server(tell, proxy_protocol="v2")) as server:
        config = HAPROXY.format(
            mode="tcp",
            front=front,
            tls=f"ssl crt {pem}",
            back=server.port,
            options="send-proxy-v2-ssl-cn proxy-v2-options crc32c,authority,unique-id",
        )
        with haproxy(tmp_path, config, front):
            told, own = await ask(front, Transport(certificates).client_context())
            assert told == f"{own!r} True\n"


async def test_health_checks_of_haproxy_are_no_clients(
    tcp: Transport, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They send a header that names no client, and disconnect."""
    handled: list[Any] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handled.append(writer.get_extra_info("proxy"))
        await reader.read()

    (front,) = free_ports(1)
    async with running(tcp.server(handler, proxy_protocol="v2")) as server:
        config = HAPROXY.format(
            mode="tcp",
            front=front,
            tls="",
            back=server.port,
            options="send-proxy-v2 check inter 50",
        )
        with haproxy(tmp_path, config, front):
            await eventually(lambda: len(handled) >= 3)
    assert set(handled) == {None}
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


async def test_nginx_forwards_bytes_and_names_the_client(
    transport: Transport, tmp_path: Path
) -> None:
    (front,) = free_ports(1)
    async with running(transport.server(tell, proxy_protocol="v1")) as server:
        with nginx(tmp_path, NGINX.format(front=front, back=server.port), front):
            for _ in range(3):
                told, own = await ask(front, transport.client_context())
                assert told == f"{own!r} True\n"


async def output_of(*command: str, stdin: bytes = b"") -> str:
    """Run a client, and return its output."""
    process = await asyncio.create_subprocess_exec(
        find_program(command[0]),
        *command[1:],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(PATIENCE):
        output, _ = await process.communicate(stdin)
    return output.decode()


async def test_openssl_begins_tls_after_the_header(certificates: Any) -> None:
    async with (
        running(Transport(certificates).server(tell, proxy_protocol="any")) as server,
        relay(server, v2(("192.0.2.1", 56324))) as port,
    ):
        command = f"openssl s_client -quiet -CAfile {certificates.ca} -connect localhost:{port}"
        output = await output_of(*command.split(), stdin=b"hello\n")
    assert "('192.0.2.1', 56324) True\n" in output


async def test_socat_sends_a_header_as_data(tcp: Transport) -> None:
    async with running(tcp.server(tell, proxy_protocol="any")) as server:
        target = f"TCP:127.0.0.1:{server.port}"
        header = v1(("192.0.2.1", 56324))
        output = await output_of("socat", "-t", "30", "-", target, stdin=header + b"hello\n")
    assert output == "('192.0.2.1', 56324) True\n"


# Web services.


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the address of the client."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["client"][0].encode()})


def make_web(kind: str, **parameters: Any) -> Any:
    """Return a web service on a free port of one kind, or skip the test."""
    parameters = {"address": "127.0.0.1", "port": 0, **parameters}
    if kind == "uvicorn":
        pytest.importorskip("uvicorn")
        from svcrun.service.uvicorn import UvicornService

        return UvicornService(app=app, lifespan="off", **parameters)
    if kind == "asgi":
        pytest.importorskip("aiohttp_asgi")
        from svcrun.service.asgi import ASGIHTTPService

        return ASGIHTTPService(app=app, lifespan="off", **parameters)
    pytest.importorskip("aiohttp")
    from aiohttp import web

    from svcrun.service.aiohttp import AIOHTTPService

    async def handle(request: web.Request) -> web.Response:
        return web.Response(text=request.remote)

    def create() -> web.Application:
        made = web.Application()
        made.router.add_get("/", handle)
        return made

    return AIOHTTPService(app=create, **parameters)


@contextlib.asynccontextmanager
async def serving(service: Any) -> Any:
    """Start a web service for the block; that of uvicorn runs on in start()."""
    service.start_event.clear()
    task = asyncio.create_task(service.start())
    started = asyncio.create_task(service.start_event.wait())
    await asyncio.wait((task, started), timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    started.cancel()
    try:
        yield service
    finally:
        await service.stop()
        await task


@pytest.mark.parametrize("kind", ["aiohttp", "asgi", "uvicorn"])
async def test_curl_sends_its_own_header(kind: str) -> None:
    async with serving(
        make_web(kind, proxy_protocol="any", proxy_trusted=["127.0.0.1"])
    ) as service:
        url = f"http://127.0.0.1:{service.port}/"
        assert await output_of("curl", "-sS", "--haproxy-protocol", url) == "127.0.0.1"
        refused = await output_of("curl", "-sS", url)
        assert "curl: (5" in refused  # 52 or 56: empty reply, connection reset


@pytest.mark.parametrize("kind", ["aiohttp", "asgi", "uvicorn"])
async def test_haproxy_terminates_tls_before_a_web_service(
    kind: str, certificates: Any, tmp_path: Path
) -> None:
    pem = tmp_path / "site.pem"
    pem.write_bytes(certificates.server_cert.read_bytes() + certificates.server_key.read_bytes())
    (front,) = free_ports(1)
    async with serving(make_web(kind, proxy_protocol="v2")) as service:
        config = HAPROXY.format(
            mode="http",
            front=front,
            tls=f"ssl crt {pem} alpn h2,http/1.1",
            back=service.port,
            options="send-proxy-v2 check inter 100",
        )
        with haproxy(tmp_path, config, front):
            url = f"https://localhost:{front}/"
            command = f"curl -sS4 --interface 127.0.0.2 --cacert {certificates.ca} {url} {url}"
            output = await output_of(*command.split())
    assert output == "127.0.0.2" * 2
