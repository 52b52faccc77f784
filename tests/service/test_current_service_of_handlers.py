"""Each of two servers of a kind is the current service of its handlers and of their records."""

import asyncio
import contextlib
import logging
import re
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from svcrun import Service, entrypoint
from svcrun._util.current_service import current_name
from svcrun.service import TCPServer, TLSServer, UDPServer
from tests.conftest import Certificates
from tests.service.streams import Transport
from tests.support import PATIENCE, LoopFactory, eventually

log = logging.getLogger(__name__)

Tell = Callable[[], str]
"""Return the response of a server. It may raise."""


class Kind:
    """A kind of server: how to create one, and how to send it requests.

    :param parameters: those of every server.
    """

    def __init__(self, certificates: Certificates) -> None:
        self.certificates = certificates
        self.parameters: dict[str, Any] = {"address": "127.0.0.1", "port": 0}

    def make(self, name: str, tell: Tell) -> Any:
        """Return a server of this name."""
        raise NotImplementedError

    async def ask(self, server: Any) -> list[str]:
        """Return one answer, or several of one connection."""
        raise NotImplementedError


class TCP(Kind):
    """The server waits once before it answers."""

    @property
    def transport(self) -> Transport:
        return Transport(None)

    def make(self, name: str, tell: Tell) -> TCPServer | TLSServer:
        async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0)
            writer.write(tell().encode())

        return self.transport.server(handle, name=name)

    async def ask(self, server: Any) -> list[str]:
        async with self.transport.client(server) as (reader, _):
            return [(await reader.read()).decode()]


class TLS(TCP):
    @property
    def transport(self) -> Transport:
        return Transport(self.certificates)


class UDP(Kind):
    def make(self, name: str, tell: Tell) -> UDPServer:
        class Server(UDPServer):
            async def handle_datagram(self, data: bytes, addr: Any) -> None:
                told = ""
                try:
                    told = tell()
                finally:
                    self.sendto(told.encode(), addr)

        return Server(name=name, **self.parameters)

    async def ask(self, server: Any) -> list[str]:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect((server.address, server.port))
            await loop.sock_sendall(sock, b"?")
            return [(await loop.sock_recv(sock, 100)).decode()]


class HTTP(Kind):
    """Two requests on one connection."""

    async def ask(self, server: Any) -> list[str]:
        told: list[str] = []
        async with Transport(None).client(server) as (reader, writer):
            for _ in range(2):
                writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                if length is None:  # an error
                    return told
                told.append((await reader.readexactly(int(length[1]))).decode())
        return told


class AIOHTTP(HTTP):
    def make(self, name: str, tell: Tell) -> Service:
        pytest.importorskip("aiohttp")
        from aiohttp import web

        from svcrun.service.aiohttp import AIOHTTPService

        async def answer(_: web.Request) -> web.Response:
            return web.Response(text=tell())

        application = web.Application()
        application.router.add_get("/", answer)
        return AIOHTTPService(app=application, name=name, **self.parameters)


class ASGI(HTTP):
    def make(self, name: str, tell: Tell) -> Service:
        pytest.importorskip("aiohttp_asgi")
        from svcrun.service.asgi import ASGIHTTPService

        return ASGIHTTPService(app=Application(tell), name=name, **self.parameters)


class Uvicorn(HTTP):
    def make(self, name: str, tell: Tell) -> Service:
        pytest.importorskip("uvicorn")
        from svcrun.service.uvicorn import UvicornService

        return UvicornService(app=Application(tell), name=name, **self.parameters)


class Application:
    """An ASGI application that also logs the current service in its startup and shutdown."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while scope["type"] == "lifespan":
            kind = (await receive())["type"]
            log.info("life of %s", current_name())
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
        told = self.tell().encode()
        headers = [(b"content-length", b"%d" % len(told))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": told})


@pytest.fixture(params=[TCP, TLS, UDP, AIOHTTP, ASGI, Uvicorn])
def kind(request: pytest.FixtureRequest, certificates: Certificates) -> Kind:
    """Each kind of server in turn."""
    made: Kind = request.param(certificates)
    return made


class Records(logging.Handler):
    """A handler that keeps the records."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.all.append(record)

    def count(self, what: str) -> Counter[str | None]:
        """Count records by their service: those that have this in their logger or message."""
        found = (r for r in self.all if what in r.name or what in r.getMessage())
        return Counter(vars(record)["serviceName"] for record in found)


@pytest.mark.parametrize("buffered", [True, False])
def test_each_server_is_the_current_service_in_its_handlers(
    loop_factory: LoopFactory, kind: Kind, buffered: bool
) -> None:
    def tell() -> str:
        log.info("telling")
        return str(current_name())

    async def main() -> int:
        answers = 0
        for server in (*servers, *servers):
            told = await kind.ask(server)
            assert set(told) == {server.name}
            answers += len(told)
        return answers // 2

    records = Records()
    servers = [kind.make(name, tell) for name in ("first", "second")]
    options: Any = {"log_handlers": [records], "log_format": "disabled", "log_buffering": buffered}
    with entrypoint(*servers, loop_factory=loop_factory, **options) as loop:
        answers = loop.run_until_complete(asyncio.wait_for(main(), PATIENCE))

    each = {"first": answers, "second": answers}
    assert records.count("telling") == each
    assert records.count(".access") in ({}, each)
    assert records.count("life of first") in ({}, {"first": 2})
    assert set(records.count("")) <= {"first", "second"}


def test_a_server_is_the_current_service_when_its_handler_fails(
    loop_factory: LoopFactory, kind: Kind
) -> None:
    def tell() -> str:
        raise LookupError("lost")

    async def main() -> None:
        for server in servers:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await kind.ask(server)
        await eventually(lambda: len(failures()) == len(servers))

    def failures() -> set[str | None]:
        return {vars(r)["serviceName"] for r in records.all if r.levelno >= logging.ERROR}

    records = Records()
    servers = [kind.make(name, tell) for name in ("first", "second")]
    options: Any = {"log_handlers": [records], "log_format": "disabled"}
    with entrypoint(*servers, loop_factory=loop_factory, **options) as loop:
        loop.run_until_complete(asyncio.wait_for(main(), PATIENCE))
    assert failures() == {"first", "second"}
