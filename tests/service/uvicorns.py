"""Applications and clients for the tests of the uvicorn service."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import httpx

from svcrun.service.uvicorn import UvicornService
from tests.support import PATIENCE

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Handler = Callable[[Any, Receive, Send], Awaitable[None]]
Running = TypeVar("Running", bound=UvicornService)


async def answer(send: Send, body: bytes = b"hello", status: int = 200) -> None:
    """Send a response."""
    await begin(send, status)
    await send({"type": "http.response.body", "body": body})


async def begin(send: Send, status: int = 200) -> None:
    """Send the head of a response."""
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close a client's connection, and wait until nothing is left of it."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def greet(scope: Any, receive: Receive, send: Send) -> None:
    """Answer a request by its path."""
    await answer(send, f"hello {scope['path']}".encode())


class Application:
    """Answer requests by a handler, and record the events of the lifespan."""

    def __init__(self, handle: Handler = greet) -> None:
        self.life: list[str] = []
        self.handle = handle

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "lifespan":
            await self.handle(scope, receive, send)
            return
        while "lifespan.shutdown" not in self.life:
            kind = (await receive())["type"]
            self.life.append(kind)
            await send({"type": f"{kind}.complete"})


class Work:
    """A handler that begins a response, and ends it when :attr:`go_on` is set."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ends: list[str] = []

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            await begin(send)
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            self.began.set()
            await self.go_on.wait()
            await send({"type": "http.response.body", "body": b" last"})
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise
        self.ends.append("complete")


def make(handle: Handler = greet, /, **parameters: Any) -> UvicornService:
    """Return a service on a free port."""
    if parameters.keys().isdisjoint({"sock", "fd", "path", "uds", "address", "host"}):
        parameters = {"address": "127.0.0.1", "port": 0, **parameters}
    parameters.setdefault("app", Application(handle))
    return UvicornService(**parameters)


async def begin_start(service: UvicornService) -> asyncio.Task[None]:
    """Start a service, and return the task in which it runs on."""
    service.start_event.clear()
    task = asyncio.create_task(service.start())
    started = asyncio.create_task(service.start_event.wait())
    await asyncio.wait((task, started), timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    if not started.done():
        started.cancel()
        await task
        raise AssertionError("start() returned before it had started")
    return task


@contextlib.asynccontextmanager
async def running(service: Running) -> AsyncIterator[Running]:
    """Start a service for the block, and stop it after."""
    task = await begin_start(service)
    try:
        yield service
    finally:
        await service.stop()
        await asyncio.wait_for(task, PATIENCE)


async def use_network() -> None:
    """Make the loop open the descriptors that it keeps from its first server on."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    server.close()
    await server.wait_closed()


def client(service: UvicornService, **options: Any) -> httpx.AsyncClient:
    """Return a client whose URLs are paths at `service`."""
    if service.port is None:
        transport = httpx.AsyncHTTPTransport(uds=str(service.address))
        return httpx.AsyncClient(transport=transport, base_url="http://unix", **options)
    host = str(service.address)
    host = f"[{host}]" if ":" in host else host
    scheme = "https" if "verify" in options else "http"
    return httpx.AsyncClient(base_url=f"{scheme}://{host}:{service.port}", **options)


async def get(service: UvicornService, path: str = "/", **options: Any) -> httpx.Response:
    """Ask for a path by a connection of its own."""
    async with client(service, timeout=PATIENCE, **options) as one:
        return await one.get(path)


async def connect(service: UvicornService) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection, on which the test sends by itself."""
    return await asyncio.open_connection(str(service.address), service.port)


@contextlib.contextmanager
def raw_client(service: UvicornService, *, receive_buffer: int | None = None) -> Iterator[Any]:
    """Connect a socket that does nothing by itself."""
    with socket.socket() as sock:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(PATIENCE)
        sock.connect((str(service.address), service.port or 0))
        yield sock


def request(path: str = "/") -> bytes:
    """Return the bytes of a request."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
