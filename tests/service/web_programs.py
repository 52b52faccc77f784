"""Programs that each serve one kind of web service, and clients of them."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.conftest import Certificates
from tests.service.streams import Streams
from tests.service.webs import Answer, read_answer, request
from tests.support import Outcome, Program, has

PROGRAM = """
import asyncio, json, sys, time
from svcrun import entrypoint

kind, certificates, options = json.loads(sys.argv[1])
parameters, options = options["service"], options["entrypoint"]
parameters = {"address": "127.0.0.1", "port": 0, **parameters}
gate = asyncio.Event()


async def parts(path, body):
    '''Yield the parts of the response to a request.'''
    if path != "/":
        print("request", path, flush=True)
    if path == "/block":
        time.sleep(float(body))
    elif path == "/slow":
        await asyncio.sleep(float(body))
    elif path == "/stream":
        yield b"begun "
        await gate.wait()
    elif path == "/open":
        gate.set()
    yield path.encode()


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    body = b"" if scope["path"] == "/unread" else (await receive())["body"]
    headers = [(b"content-type", b"text/plain"), (b"connection", b"keep-alive")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async for part in parts(scope["path"], body):
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def handle(request):
    body = b"" if request.path == "/unread" else await request.read()
    response = web.StreamResponse()
    await response.prepare(request)
    async for part in parts(request.path, body):
        await response.write(part)
    return response


if kind == "uvicorn":
    from svcrun.service.uvicorn import UvicornService as Service

    if certificates:
        parameters.update(zip(("ssl_certfile", "ssl_keyfile"), certificates))
    service = Service(app=app, **parameters)
elif kind == "asgi":
    from svcrun.service.asgi import ASGIHTTPService as Service, ASGIHTTPSSLService

    if certificates:
        Service = ASGIHTTPSSLService
        parameters.update(zip(("cert", "key"), certificates))
    service = Service(app=app, **parameters)
else:
    from aiohttp import web
    from svcrun.service.aiohttp import AIOHTTPService as Service, AIOHTTPSSLService

    if certificates:
        Service = AIOHTTPSSLService
        parameters.update(zip(("cert", "key"), certificates))

    def make_app():
        made = web.Application()
        made.router.add_route("*", "/{path:.*}", handle)
        return made

    service = Service(app=make_app, **parameters)

with entrypoint(service, log_level="warning", **options) as loop:
    print("port", service.port, flush=True)
    loop.run_forever()
"""


NEEDS_UVLOOP = pytest.mark.skipif(not has("uvloop"), reason="needs uvloop")
LOOPS = (pytest.param("0", id="asyncio"), pytest.param("1", id="uvloop", marks=NEEDS_UVLOOP))
KINDS = tuple(
    pytest.param(kind, marks=pytest.mark.skipif(not has(*modules), reason=f"needs {modules[-1]}"))
    for kind, modules in {
        "aiohttp": ("aiohttp",),
        "asgi": ("aiohttp", "aiohttp_asgi"),
        "uvicorn": ("uvicorn",),
    }.items()
)


class WebProgram:
    """A program that serves one web service, and its clients.

    :param certificates: those of both sides for TLS, None for plain HTTP.
    """

    def __init__(
        self,
        run_program: Callable[..., Program],
        kind: str,
        use_uvloop: str,
        certificates: Certificates | None = None,
    ) -> None:
        self._run_program = run_program
        self.kind = kind
        self._use_uvloop = use_uvloop
        self._certificates = certificates
        self.port = 0

    async def start(self, *, entrypoint: Any = None, **parameters: Any) -> None:
        """Start the program.

        :param entrypoint: the options of the entrypoint.
        :param parameters: those of the service.
        """
        files = None
        if self._certificates is not None:
            files = [str(self._certificates.server_cert), str(self._certificates.server_key)]
        options = {"service": parameters, "entrypoint": entrypoint or {}}
        self.program = self._run_program(
            PROGRAM,
            json.dumps([self.kind, files, options]),
            options=(),
            env={"SVCRUN_USE_UVLOOP": self._use_uvloop},
        )
        self.port = int((await self.wait_for(r"port (\d+)"))[1])

    async def wait_for(self, pattern: str) -> Any:
        """Wait for a line of the output, and return the match."""
        return await asyncio.to_thread(self.program.wait_for_line, pattern)

    async def terminate(self) -> None:
        """Send SIGTERM, and return when new connections are refused."""
        self.program.terminate()
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                await asyncio.sleep(0.01)

    async def end(self) -> Outcome:
        """Wait for the end of the program."""
        return await asyncio.to_thread(self.program.wait)

    async def connect(self) -> Streams:
        """Open a connection."""
        context = None
        if self._certificates is not None:
            context = ssl.create_default_context(cafile=self._certificates.ca)
        name = None if context is None else "localhost"
        return await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context, server_hostname=name
        )

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Streams]:
        """Open a connection for the block."""
        reader, writer = await self.connect()
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def ask(streams: Streams, path: str = "/", *, body: bytes = b"") -> Answer:
    """Send a request, and read the response."""
    reader, writer = streams
    writer.write(request(path, body=body))
    return await read_answer(reader)
