"""Laws of ASGI services behind proxies (C40)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("aiohttp_asgi")

import aiohttp

from svcrun.service.asgi import ASGIHTTPService, ASGIHTTPSSLService
from tests.proxies import HEADERS, relay, v2
from tests.service.streams import running

if TYPE_CHECKING:
    from tests.service.asgi import Receive, Send
    from tests.service.webs import Web

CLIENT = ("192.0.2.1", 56324)


async def tell(scope: Any, receive: Receive, send: Send) -> None:
    """Answer with the addresses of the scope."""
    told = json.dumps([scope["client"], scope["server"], scope["scheme"]])
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": told})
        await send({"type": "websocket.close"})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": told.encode()})


def make(web: Web, **parameters: Any) -> ASGIHTTPService:
    """Return a service on a free port."""
    parameters = {"address": "127.0.0.1", "port": 0, "lifespan": "off", "app": tell, **parameters}
    if web.certificates is None:
        return ASGIHTTPService(**parameters)
    parameters["cert"] = web.certificates.server_cert
    parameters["key"] = web.certificates.server_key
    service: ASGIHTTPSSLService = ASGIHTTPSSLService(**parameters)
    return service


@pytest.mark.parametrize("name", ["v1-ipv4", "v2-ipv6", "v2-unix", "v2-local"])
async def test_the_scope_has_the_client(web: Web, name: str) -> None:
    header, client = HEADERS[name]
    secure = "s" if web.is_tls else ""
    async with (
        running(make(web, proxy_protocol="any")) as service,
        relay(service, header) as port,
        aiohttp.ClientSession() as session,
    ):
        url = f"http{secure}://localhost:{port}/"
        options: Any = {"ssl": web.client_context() or False}
        async with session.get(url, **options) as response:
            of_request = json.loads(await response.read())
        async with session.ws_connect(url, **options) as web_socket:
            of_web_socket = json.loads(await web_socket.receive_str())
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


async def test_a_connection_without_a_header_is_refused(
    http: Web, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(make(http, proxy_protocol="v2")) as service:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"http://localhost:{service.port}/")
        assert "instead of a PROXY header (v2)" in caplog.text
        assert service.refused == service.accepted


async def test_a_header_of_a_client_behind_the_proxy_changes_nothing(http: Web) -> None:
    """A client that sends a second header can't pretend another address."""
    async with (
        running(make(http, proxy_protocol="any")) as service,
        relay(service, v2(CLIENT) + v2(("198.51.100.1", 1))) as port,
        aiohttp.ClientSession() as session,
        session.get(f"http://localhost:{port}/") as response,
    ):
        assert response.status == 400
