"""Laws of web services behind proxies (C40)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("aiohttp")

import aiohttp
from aiohttp import web as aioweb

from svcrun._util.terminating import is_terminating
from tests.proxies import HEADERS, LOCAL, relay, v1, v2
from tests.service.streams import running
from tests.service.webs import (
    Answer,
    Web,
    complaints,
    raw_client,
    read_answer,
    request,
)
from tests.support import PATIENCE, eventually, nothing_left

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator
    from pathlib import Path

    from svcrun.service.aiohttp import AIOHTTPService

CLIENT = ("192.0.2.1", 56324)


async def tell(request: aioweb.Request) -> aioweb.Response:
    """Answer with the addresses that the request has."""
    found = request.get_extra_info
    transport = request.transport
    assert transport is not None
    return aioweb.json_response(
        {
            "remote": request.remote,
            "peername": found("peername"),
            "proxy": found("proxy"),
            "transport": [transport.get_extra_info(name) for name in ("peername", "proxy")],
            "socket": found("socket").getpeername(),
            "secure": request.secure,
        }
    )


@contextlib.asynccontextmanager
async def behind(
    web: Web, service: AIOHTTPService, header: bytes
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect through a proxy that sends this header."""
    if service.port is None:
        reader, writer = await asyncio.open_unix_connection(str(service.address))
    else:
        reader, writer = await asyncio.open_connection(str(service.address), service.port)
    writer.write(header)
    if (context := web.client_context()) is not None:
        await writer.start_tls(context, server_hostname="localhost")
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(
    web: Web, service: AIOHTTPService, header: bytes, path: str = "/"
) -> tuple[Answer, Any]:
    async with behind(web, service, header) as (reader, writer):
        writer.write(request(path))
        return await read_answer(reader), writer.get_extra_info("sockname")


def listed(address: Any) -> Any:
    return list(address) if isinstance(address, tuple) else address


@pytest.mark.parametrize("name", [name for name in HEADERS if "abstract" not in name])
async def test_the_peer_of_a_request_is_the_client(web: Web, name: str) -> None:
    header, client = HEADERS[name]
    async with running(web.service(tell, proxy_protocol="any")) as service:
        answer, own = await ask(web, service, header)
    told = json.loads(answer.body)
    peer, proxy = (listed(client), listed(own)) if client is not None else (listed(own), None)
    assert told == {
        "remote": peer[0] if isinstance(peer, list) else peer,
        "peername": peer,
        "proxy": proxy,
        "transport": [peer, proxy],
        "socket": peer,
        "secure": web.is_tls,
    }


async def test_the_access_log_has_the_client(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="aiohttp.access")
    async with running(web.service(tell, proxy_protocol="any")) as service:
        await ask(web, service, v1(CLIENT))
        await eventually(lambda: "GET / HTTP/1.1" in caplog.text)
    (record,) = [one for one in caplog.records if one.name == "aiohttp.access"]
    assert record.getMessage().startswith("192.0.2.1 [")


async def test_a_request_may_arrive_in_the_segment_of_the_header(http: Web) -> None:
    async with running(http.service(tell, proxy_protocol="any")) as service:
        with raw_client(service) as client:
            client.sendall(v2(CLIENT) + request() + request())
            received = b""
            while received.count(b'"remote": "192.0.2.1"') < 2:
                received += await asyncio.to_thread(client.recv, 10_000)


async def test_files_are_sent_behind_a_proxy(web: Web, tmp_path: Path) -> None:
    """aiohttp calls loop.sendfile() with the transport of the request."""
    file = tmp_path / "file"
    file.write_bytes(b"0123456789" * 50_000)

    async def send(request: aioweb.Request) -> aioweb.StreamResponse:
        return aioweb.FileResponse(file)

    async with running(web.service(send, proxy_protocol="any")) as service:
        for header in (v1(CLIENT), v2(CLIENT), LOCAL):
            answer, _ = await ask(web, service, header)
            assert answer.body == file.read_bytes()


async def test_web_sockets_work_behind_a_proxy(web: Web) -> None:
    async def echo(request: aioweb.Request) -> aioweb.StreamResponse:
        socket = aioweb.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str(str(socket.get_extra_info("peername")))
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    async with (
        running(web.service(echo, proxy_protocol="any")) as service,
        relay(service, v2(CLIENT)) as port,
        aiohttp.ClientSession() as session,
    ):
        url = f"{'https' if web.is_tls else 'http'}://localhost:{port}/"
        async with session.ws_connect(url, ssl=web.client_context() or False) as client:
            assert await client.receive_str() == str(CLIENT)
            await client.send_str("hello")
            assert await client.receive_str() == "hello"


async def test_requests_on_a_kept_connection_have_the_client(web: Web) -> None:
    async with (
        running(web.service(tell, proxy_protocol="any")) as service,
        behind(web, service, v1(CLIENT)) as (reader, writer),
    ):
        for _ in range(3):
            writer.write(request(method="POST", body=b"x" * 1000))
            assert b'"remote": "192.0.2.1"' in (await read_answer(reader)).body


async def test_a_peer_of_a_unix_socket_is_trusted(web: Web, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    service = web.service(
        tell, address=None, port=None, path=path, proxy_protocol="any", proxy_trusted=()
    )
    async with running(service):
        answer, _ = await ask(web, service, v1(CLIENT))
        assert b'"remote": "192.0.2.1"' in answer.body
        assert b'"proxy": ""' in answer.body


async def test_messages_about_a_malformed_request_name_the_client(
    http: Web, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        running(http.service(tell, proxy_protocol="any")) as service,
        behind(http, service, v1(CLIENT)) as (reader, writer),
    ):
        writer.write(b"nonsense\r\n\r\n")
        assert (await read_answer(reader)).status == 400
    assert "192.0.2.1:56324 sent a malformed request" in caplog.text


async def test_a_failed_handshake_names_the_client(
    https: Web, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(https.service(tell, proxy_protocol="any")) as service:
        with raw_client(service) as client:
            client.sendall(v1(CLIENT) + request())
            await end_of(client)
        await eventually(lambda: service.open_connections == 0)
        assert service.refused == 1
    assert "TLS handshake with 192.0.2.1:56324 failed" in caplog.text


async def end_of(sock: socket.socket) -> bytes:
    """Return the data until the server closes the connection."""

    def receive() -> bytes:
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while data := sock.recv(1000):
                received += data
        return received

    return await asyncio.to_thread(receive)


@pytest.mark.parametrize(
    ("parameters", "sent", "reason"),
    [
        ({}, request(), "it sent b'GET / HTTP/1.1\\r\\n' instead of a PROXY header (v1 or v2)"),
        ({}, b"PROXY TCP4 x\r\n", "it sent a malformed PROXY header (v1)"),
        ({"proxy_trusted": ["10.0.0.0/8"]}, v1(CLIENT) + request(), "it is not in proxy_trusted"),
        ({"proxy_timeout": 0.1}, b"", "it sent no PROXY header within proxy_timeout=0.1 s"),
    ],
)
async def test_a_connection_is_refused_with_one_line(
    web: Web,
    parameters: dict[str, Any],
    sent: bytes,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(web.service(tell, proxy_protocol="any", **parameters)) as service:
        with raw_client(service) as client:
            with contextlib.suppress(OSError):
                client.sendall(sent)
            assert await end_of(client) == b""
        await eventually(lambda: service.open_connections == 0)
        assert (service.accepted, service.refused) == (1, 1)
        (record,) = complaints(caplog)
        assert reason in record.getMessage()
        assert repr(service) in record.getMessage()


async def test_a_stop_closes_connections_without_a_header_at_once(web: Web) -> None:
    service = web.service(tell, proxy_protocol="any", proxy_timeout=1000, shutdown_timeout=1000)
    await service.start()
    with raw_client(service) as silent, raw_client(service) as half:
        half.sendall(b"PROXY ")
        await eventually(lambda: service.open_connections == 2)
        async with asyncio.timeout(PATIENCE):
            await service.stop()
        assert await end_of(silent) == await end_of(half) == b""
        assert (service.open_connections, service.refused) == (0, 2)


async def test_a_stop_serves_the_clients_that_wait_to_be_accepted(http: Web) -> None:
    """The proxy has sent the header and the request, which are not read yet."""
    service = http.service(tell, proxy_protocol="any", shutdown_timeout=1000)
    await service.start()
    with raw_client(service) as client:
        client.sendall(v2(CLIENT) + request())
        await service.stop()
        assert b'"remote": "192.0.2.1"' in await end_of(client)


async def test_after_sigterm_a_header_may_arrive_as_late_as_a_request(web: Web) -> None:
    is_terminating.set(True)
    service = web.service(tell, proxy_protocol="any", shutdown_timeout=1000, idle_grace=1000)
    await service.start()
    async with behind(Web(None), service, b"PROXY ") as (reader, writer):
        await eventually(lambda: service.open_connections == 1)
        stop = asyncio.create_task(service.stop())
        await asyncio.sleep(0.2)
        writer.write(v1(CLIENT)[6:])
        if (context := web.client_context()) is not None:
            await writer.start_tls(context, server_hostname="localhost")
        writer.write(request())
        answer = await read_answer(reader)
        assert (answer.status, answer.closes) == (200, True)
    await stop


async def test_after_sigterm_a_connection_without_a_header_is_closed_after_idle_grace(
    web: Web,
) -> None:
    is_terminating.set(True)
    service = web.service(tell, proxy_protocol="any", shutdown_timeout=1000, idle_grace=0.1)
    await service.start()
    with raw_client(service) as client:
        await eventually(lambda: service.open_connections == 1)
        async with asyncio.timeout(PATIENCE):
            await service.stop()
        assert await end_of(client) == b""


async def test_100_starts_and_stops_with_headers_leave_nothing(http: Web) -> None:
    async def once() -> None:
        async with running(http.service(tell, proxy_protocol="any")) as service:
            async with behind(http, service, b"nonsense") as (reader, _):
                assert await reader.read() == b""
            async with behind(http, service, b""):
                answer, _ = await ask(http, service, v2(CLIENT))
                assert answer.status == 200

    await once()
    logging.getLogger("svcrun").setLevel(logging.ERROR)
    try:
        with nothing_left():
            for _ in range(100):
                await once()
            for _ in range(3):
                await asyncio.sleep(0)
    finally:
        logging.getLogger("svcrun").setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    "parameters", [{"proxy_protocol": "v3"}, {"proxy_trusted": ["x"]}, {"proxy_timeout": 0}]
)
def test_a_wrong_parameter_is_refused_by_its_name(web: Web, parameters: dict[str, Any]) -> None:
    (name,) = parameters
    with pytest.raises(ValueError, match=f"^AIOHTTP\\w*: {name} must be"):
        web.service(tell, **parameters)
