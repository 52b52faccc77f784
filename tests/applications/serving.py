"""A running web service, and clients of several makes that know where it is."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import ModuleType

    from svcrun.service.aiohttp import AIOHTTPService
    from tests.conftest import Certificates

# For promises of one kind of service.
only_asgi = pytest.mark.parametrize("serve", ["asgi"], indirect=True)

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")

# The libraries of the services that ASGI applications are served by.
_LIBRARIES = {"asgi": "aiohttp_asgi", "uvicorn": "uvicorn"}

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def import_service(kind: str) -> ModuleType:
    """Import ``svcrun.service.asgi`` or ``uvicorn``, or skip the test where its library is not."""
    pytest.importorskip(_LIBRARIES[kind])
    return importlib.import_module(f"svcrun.service.{kind}")


class Serve(Protocol):
    """Starts a service that lasts until the end of the test.

    :param app: the application.
    :param tls: whether by HTTPS.
    :param parameters: of the service.
    """

    async def __call__(self, app: Any, *, tls: bool = False, **parameters: Any) -> Serving: ...


class Logged(Protocol):
    """Returns the errors that were logged, so that they do not fail the test."""

    def __call__(self) -> list[str]: ...


class Serving:
    """A service that has started.

    :param service: on a port of the loopback interface.
    :param certificates: that the clients trust; None for a service without TLS.
    """

    def __init__(self, service: AIOHTTPService, certificates: Certificates | None = None) -> None:
        self.service = service
        self.certificates = certificates
        if certificates is None:
            self.context = ssl.SSLContext(
                ssl.PROTOCOL_TLS_CLIENT
            )  # trusts no peer, and is not used
        else:
            self.context = ssl.create_default_context(cafile=certificates.ca)
        self._place = f"127.0.0.1:{service.port}"
        self._s = "" if certificates is None else "s"

    @property
    def url(self) -> str:
        """Of the service, without a path."""
        return f"http{self._s}://{self._place}"

    @property
    def ws_url(self) -> str:
        """Of its web sockets, without a path."""
        return f"ws{self._s}://{self._place}"

    async def stop(self) -> None:
        """Stop the service."""
        await self.service.stop()

    def client(self, **options: Any) -> httpx.AsyncClient:
        """Make a client that keeps its connections."""
        options = {"timeout": PATIENCE, "trust_env": False, "verify": self.context, **options}
        return httpx.AsyncClient(base_url=self.url, **options)

    def web_socket(self, path: str, **options: Any) -> connect:
        """Make a web socket, to be opened by ``async with`` or ``await``."""
        options = {"proxy": None, "ping_interval": None, **options}
        if self.certificates is not None:
            options["ssl"] = self.context
        return connect(self.ws_url + path, open_timeout=PATIENCE, **options)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Streams]:
        """Connect a client that does nothing by itself."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.service.port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def curl(self, path: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run curl on a path, and wait until it ends."""
        command = ["curl", "-q", "-sS", "--noproxy", "*", "--max-time", f"{PATIENCE:g}"]
        if self.certificates is not None:
            command += ["--cacert", str(self.certificates.ca)]
        command += [*arguments, self.url + path]
        return await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)


async def read_response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Read a response that has a content length, or lasts until the connection ends."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.split("\r\n")
    headers = {}
    for line in filter(None, lines):
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    assert "transfer-encoding" not in headers
    length = headers.get("content-length")
    body = await (reader.read() if length is None else reader.readexactly(int(length)))
    return int(status.split()[1]), headers, body
