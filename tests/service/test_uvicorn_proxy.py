"""Laws of the uvicorn service behind proxies (C40)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("httpx")
pytest.importorskip("websockets")

import httpx
from websockets.asyncio.client import connect

from svcrun._util.terminating import is_terminating
from tests.proxies import HEADERS, relay, v1, v2
from tests.service.uvicorns import Receive, Send, answer, make, running
from tests.support import PATIENCE, eventually, nothing_left

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svcrun.service.uvicorn import UvicornService
    from tests.conftest import Certificates

CLIENT = ("192.0.2.1", 56324)
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


async def tell(scope: Any, receive: Receive, send: Send) -> None:
    """Answer with the addresses of the scope."""
    told = json.dumps([scope["client"], scope["server"], scope["scheme"]])
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": told})
        await send({"type": "websocket.close"})
    else:
        await answer(send, told.encode())


@pytest.fixture(params=["http", "https"])
def tls(request: pytest.FixtureRequest, certificates: Certificates) -> dict[str, Any]:
    """The parameters of a service without TLS and with it."""
    if request.param == "http":
        return {}
    return {"ssl_certfile": certificates.server_cert, "ssl_keyfile": certificates.server_key}


@pytest.fixture
def context(tls: dict[str, Any], certificates: Certificates) -> ssl.SSLContext | None:
    """The context of a client."""
    return ssl.create_default_context(cafile=certificates.ca) if tls else None


@contextlib.contextmanager
def raw_client(service: UvicornService) -> Iterator[socket.socket]:
    with socket.create_connection((str(service.address), service.port or 0), PATIENCE) as sock:
        yield sock


def receive_all(sock: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(10_000):
            received += data
    return received


@pytest.mark.parametrize("name", ["v1-ipv4", "v2-ipv6", "v2-unix", "v2-local"])
async def test_the_scope_has_the_client(
    tls: dict[str, Any], context: ssl.SSLContext | None, name: str
) -> None:
    header, client = HEADERS[name]
    secure = "s" if tls else ""
    async with (
        running(make(tell, proxy_protocol="any", **tls)) as service,
        relay(service, header) as port,
    ):
        async with httpx.AsyncClient(verify=context or False, timeout=PATIENCE) as session:
            of_request = (await session.get(f"http{secure}://localhost:{port}/")).json()
        async with connect(f"ws{secure}://localhost:{port}/", ssl=context) as web_socket:
            of_web_socket = json.loads(await web_socket.recv())
        here = ["127.0.0.1", service.port]
    assert of_request[1:] == [here, f"http{secure}"]
    assert of_web_socket[1:] == [here, f"ws{secure}"]
    for found, _, _ in (of_request, of_web_socket):
        if isinstance(client, tuple):
            assert found == list(client[:2])
        elif client is None:
            assert found[0] == "127.0.0.1"  # the relay
        else:
            assert found is None  # a path


async def test_a_forwarded_header_is_trusted_if_the_client_is(caplog: Any) -> None:
    """X-Forwarded-For is judged by the address of the client, not by that of the proxy."""
    request = REQUEST.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n")
    service = make(tell, proxy_protocol="any", forwarded_allow_ips=["192.0.2.1"])
    async with running(service):
        for client, expected in ((CLIENT, b"203.0.113.9"), (("192.0.2.2", 1), b"192.0.2.2")):
            with raw_client(service) as sock:
                sock.sendall(v1(client) + request)
                assert expected in await asyncio.to_thread(receive_all, sock)


async def test_the_access_log_has_the_client(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with running(make(tell, proxy_protocol="v2")) as service:
        with raw_client(service) as sock:
            sock.sendall(v2(CLIENT) + REQUEST)
            await asyncio.to_thread(receive_all, sock)
    assert '192.0.2.1:56324 - "GET / HTTP/1.1" 200' in caplog.text


@pytest.mark.parametrize(
    ("parameters", "sent", "reason"),
    [
        ({}, REQUEST, "it sent b'GET / HTTP/1.1\\r\\n' instead of a PROXY header (v1 or v2)"),
        ({"proxy_trusted": ["10.0.0.0/8"]}, v1(CLIENT) + REQUEST, "it is not in proxy_trusted"),
        ({"proxy_timeout": 0.1}, b"PROXY", "it sent only a part of its PROXY header within"),
    ],
)
async def test_a_connection_is_refused_with_one_line(
    tls: dict[str, Any],
    parameters: dict[str, Any],
    sent: bytes,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(make(tell, proxy_protocol="any", **parameters, **tls)) as service:
        with raw_client(service) as sock:
            with contextlib.suppress(OSError):
                sock.sendall(sent)
            assert await asyncio.to_thread(receive_all, sock) == b""
        await eventually(lambda: service.open_connections == 0)
        assert (service.accepted, service.refused) == (1, 1)
    (record,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert reason in record.getMessage()


async def test_a_stop_closes_connections_without_a_header_at_once(tls: dict[str, Any]) -> None:
    service = make(tell, proxy_protocol="any", proxy_timeout=1000, shutdown_timeout=1000, **tls)
    async with running(service):
        with raw_client(service) as silent, raw_client(service) as half:
            half.sendall(b"PROXY ")
            await eventually(lambda: service.open_connections == 2)
            async with asyncio.timeout(PATIENCE):
                await service.stop()
            assert receive_all(silent) == receive_all(half) == b""


async def test_a_stop_serves_the_clients_that_wait_to_be_accepted() -> None:
    service = make(tell, proxy_protocol="any", shutdown_timeout=1000)
    async with running(service):
        with raw_client(service) as sock:
            sock.sendall(v2(CLIENT) + REQUEST)
            await service.stop()
            assert b"192.0.2.1" in await asyncio.to_thread(receive_all, sock)


async def test_after_sigterm_a_header_may_arrive_as_late_as_a_request() -> None:
    is_terminating.set(True)
    service = make(tell, proxy_protocol="any", shutdown_timeout=1000, idle_grace=1000)
    async with running(service):
        with raw_client(service) as sock:
            await eventually(lambda: service.open_connections == 1)
            stop = asyncio.create_task(service.stop())
            await asyncio.sleep(0.2)
            sock.sendall(v2(CLIENT) + REQUEST)
            assert b"192.0.2.1" in await asyncio.to_thread(receive_all, sock)
            await stop


async def test_50_starts_and_stops_with_headers_leave_nothing() -> None:
    async def once() -> None:
        async with running(make(tell, proxy_protocol="any")) as service:
            with raw_client(service) as good, raw_client(service) as bad, raw_client(service):
                bad.sendall(b"nonsense")
                good.sendall(v1(CLIENT) + REQUEST)
                await eventually(lambda: service.refused and service.open_connections == 1)
                assert b"192.0.2.1" in receive_all(good)

    await once()
    with nothing_left():
        for _ in range(50):
            await once()
        for _ in range(3):
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    "parameters", [{"proxy_protocol": "v3"}, {"proxy_trusted": ["x"]}, {"proxy_timeout": 0}]
)
def test_a_wrong_parameter_is_refused_by_its_name(parameters: dict[str, Any]) -> None:
    (name,) = parameters
    with pytest.raises(ValueError, match=f"^UvicornService: {name} must be"):
        make(tell, **parameters)
