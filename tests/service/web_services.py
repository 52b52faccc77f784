"""The web services of all kinds, which greet each client."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from tests.conftest import Certificates
from tests.service.webs import Web
from tests.support import has

KINDS = ["aiohttp", "aiohttp-tls"]
KINDS += ["asgi", "asgi-tls"] * has("aiohttp_asgi") + ["uvicorn", "uvicorn-tls"] * has("uvicorn")


async def greet(_: Any) -> web.Response:
    return web.Response(text="hello")


async def greet_asgi(scope: Any, _: Any, send: Any) -> None:
    if scope["type"] == "http":
        headers = [(b"content-length", b"5")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"hello"})


class Kind:
    """A kind of web service, without TLS or with it.

    :param certificates: those of both sides for TLS, None for plain HTTP.
    """

    def __init__(self, name: str, certificates: Certificates | None) -> None:
        self.name = name
        self.web = Web(certificates)

    def service(self, **parameters: Any) -> Any:
        """Return a service on a free port that greets."""
        if self.name == "aiohttp":
            return self.web.service(greet, **parameters)
        parameters = {"address": "127.0.0.1", "port": 0, "app": greet_asgi, **parameters}
        files: Any = self.web.certificates
        if self.name == "uvicorn":
            from svcrun.service.uvicorn import UvicornService

            if files is not None:
                parameters |= {"ssl_certfile": files.server_cert, "ssl_keyfile": files.server_key}
            return UvicornService(lifespan="off", **parameters)
        from svcrun.service.asgi import ASGIHTTPService, ASGIHTTPSSLService

        if files is None:
            return ASGIHTTPService(lifespan="off", **parameters)
        files = {"cert": files.server_cert, "key": files.server_key}
        return ASGIHTTPSSLService(lifespan="off", **files, **parameters)

    async def ask(self, service: Any) -> bytes:
        """Return the answer to a new client."""
        return (await self.web.get(service)).body


@contextlib.asynccontextmanager
async def running(service: Any) -> AsyncIterator[Any]:
    """Start a service for the block, and stop it after."""
    service.start_event.clear()
    task = asyncio.create_task(service.start())
    started = asyncio.create_task(service.start_event.wait())
    await asyncio.wait((task, started), return_when=asyncio.FIRST_COMPLETED)
    started.cancel()
    if task.done():
        await task
    try:
        yield service
    finally:
        async with asyncio.timeout(10):
            await service.stop()
            await task
