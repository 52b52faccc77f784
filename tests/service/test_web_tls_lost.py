"""Laws of HTTPS whose clients are lost, and whose transports are closed twice."""

import asyncio
import logging
import socket
import ssl
import struct
import threading
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from aiohttp import web as aioweb

from svcrun.service.aiohttp import AIOHTTPService
from tests.conftest import Certificates
from tests.service.streams import running
from tests.service.webs import Web, complaints
from tests.support import PATIENCE

REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture
def context(certificates: Certificates) -> ssl.SSLContext:
    """Make a client trust the server."""
    return ssl.create_default_context(cafile=certificates.ca)


def connect(service: AIOHTTPService, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Connect and ask; to be called in a thread."""
    plain = socket.create_connection((str(service.address), service.port), timeout=PATIENCE)
    sock = context.wrap_socket(plain, server_hostname="localhost")
    sock.sendall(REQUEST)
    return sock


async def test_data_for_a_client_that_has_reset_floods_no_log(
    https: Web, context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    is_blocked, is_reset = threading.Event(), threading.Event()
    heard, ended = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def stream(request: aioweb.Request) -> aioweb.StreamResponse:
        response = aioweb.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await heard.wait()
        is_blocked.set()
        assert is_reset.wait(PATIENCE)  # and so the loop does not turn
        try:
            for _ in range(1000):
                await response.write(b"news")
        finally:
            ended.set()
        return response

    def ask_and_vanish(service: AIOHTTPService) -> None:
        sock = connect(service, context)
        assert sock.recv(1)
        loop.call_soon_threadsafe(heard.set)
        assert is_blocked.wait(PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        is_reset.set()

    async with running(https.service(stream)) as service:
        await asyncio.to_thread(ask_and_vanish, service)
        await asyncio.wait_for(ended.wait(), PATIENCE)
    assert complaints(caplog) == []
    assert [
        r for r in caplog.records if r.levelno > logging.INFO and "send" in r.getMessage()
    ] == []


async def test_a_transport_that_was_closed_twice_does_not_fail_the_stop(
    https: Web, context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    closed = asyncio.Event()
    transports: list[Any] = []

    async def close_twice(request: aioweb.Request) -> aioweb.Response:
        transport = request.transport
        assert transport is not None
        transport.close()
        transport.close()
        transports.append(transport)
        closed.set()
        return aioweb.Response()

    async with running(https.service(close_twice, shutdown_timeout=1)) as service:
        # It never confirms the end of TLS, and so the connection is there until it is aborted.
        sock = await asyncio.to_thread(connect, service, context)
        await asyncio.wait_for(closed.wait(), PATIENCE)
        async with asyncio.timeout(PATIENCE):
            await service.stop()
        (transport,) = transports
        assert transport.is_closing()
        assert transport.get_write_buffer_size() == 0
        sock.close()
    assert complaints(caplog) == []
