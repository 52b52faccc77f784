"""An application of aiohttp with all that those are made of."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("httpx")
pytest.importorskip("websockets")

from aiohttp import BodyPartReader, WSMsgType, web
from aiohttp.typedefs import Handler

from svcrun.service.aiohttp import AIOHTTPService, AIOHTTPSSLService
from tests.applications.serving import Logged, Serving, needs_curl
from tests.conftest import Certificates
from tests.support import PATIENCE, eventually

EVENTS = web.AppKey("EVENTS", list[str])
ENDED = web.AppKey("ENDED", asyncio.Queue[int])
TICKS = web.AppKey("TICKS", asyncio.Queue[str])


async def greet(request: web.Request) -> web.Response:
    return web.json_response({"hello": request.match_info["name"]})


async def fail(_: web.Request) -> web.Response:
    raise ZeroDivisionError("of the handler")


async def upload(request: web.Request) -> web.Response:
    sizes: dict[str, int] = {}
    async for part in await request.multipart():
        assert isinstance(part, BodyPartReader)
        sizes[part.name or ""] = len(await part.read())
    return web.json_response(sizes)


async def shout(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(protocols=("shout",))
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data.upper())
    request.app[ENDED].put_nowait(socket.close_code or 0)
    return socket


async def tell(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    while True:
        tick = await request.app[TICKS].get()
        await response.write(f"data: {tick}\n\n".encode())


@web.middleware
async def mark(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except web.HTTPNotFound:
        return web.Response(status=404, text="not here")
    if not response.prepared:
        response.headers["x-mark"] = "seen"
    return response


async def pool(app: web.Application) -> AsyncIterator[None]:
    app[EVENTS].append("opened")
    yield
    app[EVENTS].append("closed")


async def inner_pool(app: web.Application) -> AsyncIterator[None]:
    app[EVENTS].append("inner opened")
    yield
    app[EVENTS].append("inner closed")


async def make(folder: Path) -> web.Application:
    """Make an application with an application below it."""
    app = web.Application(middlewares=[mark], client_max_size=1 << 20)
    app[EVENTS] = []
    app[ENDED] = asyncio.Queue()
    app[TICKS] = asyncio.Queue()
    app.cleanup_ctx.append(pool)
    app.router.add_get("/hello/{name}", greet)
    app.router.add_get("/fail", fail)
    app.router.add_post("/upload", upload)
    app.router.add_get("/shout", shout)
    app.router.add_get("/tell", tell)
    app.router.add_static("/static", folder)

    inner = web.Application()
    inner[EVENTS] = app[EVENTS]
    inner.cleanup_ctx.append(inner_pool)
    inner.router.add_get("/hello/{name}", greet)
    app.add_subapp("/inner", inner)
    return app


@contextlib.asynccontextmanager
async def served(
    app: web.Application, certificates: Certificates | None = None, shutdown_timeout: float = 5
) -> AsyncIterator[Serving]:
    service = AIOHTTPService("127.0.0.1", 0, app=app, shutdown_timeout=shutdown_timeout)
    if certificates is not None:
        cert, key = certificates.server_cert, certificates.server_key
        service = AIOHTTPSSLService(cert, key, address="127.0.0.1", port=0, app=app)
    await service.start()
    try:
        yield Serving(service, certificates)
    finally:
        await asyncio.wait_for(service.stop(), PATIENCE)


@pytest.fixture
async def app(tmp_path: Path) -> web.Application:
    (tmp_path / "page.html").write_text("<p>hello</p>")
    return await make(tmp_path)


async def test_routes_middlewares_and_subapplications_work(
    app: web.Application, logged: Logged
) -> None:
    async with served(app) as server, server.client() as client:
        for prefix in ("", "/inner"):
            response = await client.get(f"{prefix}/hello/wörld")
            assert response.json() == {"hello": "wörld"}
            assert response.headers["x-mark"] == "seen"
        response = await client.get("/nowhere")
        assert (response.status_code, response.text) == (404, "not here")
        response = await client.get("/fail")
        assert response.status_code == 500
        assert "ZeroDivisionError" not in response.text
        (error,) = logged()
        assert error.count("ZeroDivisionError: of the handler") == 1
        assert app[EVENTS] == ["opened", "inner opened"]
    assert app[EVENTS] == ["opened", "inner opened", "closed", "inner closed"]


async def test_uploads_and_static_files_work(app: web.Application) -> None:
    async with served(app) as server, server.client() as client:
        files = {"one": bytes(100_000), "two": b"2"}
        assert (await client.post("/upload", files=files)).json() == {"one": 100_000, "two": 1}
        response = await client.get("/static/page.html")
        assert response.text == "<p>hello</p>"
        assert response.headers["content-type"] == "text/html"
        response = await client.get("/static/page.html", headers={"range": "bytes=3-7"})
        assert (response.status_code, response.text) == (206, "hello")
        response = await client.get("/static/page.html", headers={"if-none-match": '"no"'})
        response = await client.get(
            "/static/page.html", headers={"if-none-match": response.headers["etag"]}
        )
        assert response.status_code == 304
        assert (await client.get("/static/%2e%2e/x")).status_code in {403, 404}


@needs_curl
async def test_static_files_are_served_by_https(
    app: web.Application, certificates: Certificates
) -> None:
    async with served(app, certificates) as server:
        done = await server.curl("/static/page.html", "--fail")
        assert (done.returncode, done.stdout) == (0, b"<p>hello</p>")
        async with server.web_socket("/shout") as socket:
            await socket.send("hi")
            assert await socket.recv() == "HI"


async def test_web_sockets_are_closed_before_the_application_is_cleaned_up(
    app: web.Application,
) -> None:
    async with served(app) as server:
        async with server.web_socket("/shout") as socket:
            await socket.send("bye")
            assert await socket.recv() == "BYE"
            await socket.close(3001)
        assert await asyncio.wait_for(app[ENDED].get(), PATIENCE) == 3001
        async with server.web_socket("/shout") as socket:
            await server.stop()
            await asyncio.wait_for(socket.wait_closed(), PATIENCE)
            assert socket.close_code == 1001
    assert app[EVENTS][-1] == "inner closed"


@needs_curl
async def test_an_event_stream_ends_with_the_service(app: web.Application) -> None:
    async with served(app, shutdown_timeout=0.1) as server:
        command = ["curl", "-q", "-sS", "-N", "--noproxy", "*", f"{server.url}/tell"]
        curl = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert curl.stdout is not None
        try:
            async with asyncio.timeout(PATIENCE):
                for tick in ("one", "two"):
                    app[TICKS].put_nowait(tick)
                    assert await curl.stdout.readline() == f"data: {tick}\n".encode()
                    assert await curl.stdout.readline() == b"\n"
                await server.stop()
                assert await curl.stdout.read() == b""
                await curl.wait()
        finally:
            if curl.returncode is None:
                curl.kill()
                await curl.wait()


async def test_a_handler_is_cancelled_when_its_client_disconnects(app: web.Application) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(_: web.Request) -> web.Response:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return web.Response()

    app.router.add_get("/wait", wait)
    async with served(app) as server:
        async with server.connection() as (_, writer):
            writer.write(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
            await asyncio.wait_for(began.wait(), PATIENCE)
        await eventually(cancelled.is_set)
