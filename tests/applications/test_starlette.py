"""Applications of Starlette: files, events, parts of applications, web sockets."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")
pytest.importorskip("websockets")

from starlette.applications import Starlette
from starlette.endpoints import WebSocketEndpoint
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from websockets.exceptions import InvalidStatus

from tests.applications.serving import Logged, Serve, needs_curl, only_asgi, read_response
from tests.support import PATIENCE, eventually

CONTENT = bytes(range(256)) * 1000


def app_of(*routes: BaseRoute) -> Starlette:
    return Starlette(routes=routes)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "content.bin"
    path.write_bytes(CONTENT)
    return path


# Files.


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("bytes=0-9", CONTENT[:10]),
        ("bytes=1000-", CONTENT[1000:]),
        ("bytes=-5", CONTENT[-5:]),
    ],
    ids=["first", "from", "last"],
)
async def test_a_range_of_a_file_is_served(
    serve: Serve, file: Path, wanted: str, expected: bytes
) -> None:
    async def get(request: Request) -> Response:
        return FileResponse(file)

    server = await serve(app_of(Route("/", get)))
    async with server.client() as client:
        response = await client.get("/", headers={"range": wanted})
        assert response.status_code == 206
        assert response.headers["content-range"].endswith(f"/{len(CONTENT)}")
        assert response.content == expected
        # The connection is as good as before.
        assert (await client.get("/")).content == CONTENT


async def test_several_ranges_of_a_file_are_served_and_an_unsatisfiable_one_is_refused(
    serve: Serve, file: Path
) -> None:
    async def get(request: Request) -> Response:
        return FileResponse(file)

    server = await serve(app_of(Route("/", get)))
    async with server.client() as client:
        response = await client.get("/", headers={"range": "bytes=0-1,10-11"})
        assert response.status_code == 206
        assert response.headers["content-type"].startswith("multipart/byteranges")
        assert CONTENT[10:12] in response.content
        response = await client.get("/", headers={"range": f"bytes={len(CONTENT)}-"})
        assert response.status_code == 416


async def test_a_head_response_has_the_length_and_no_body(serve: Serve, file: Path) -> None:
    async def get(request: Request) -> Response:
        return FileResponse(file)

    server = await serve(app_of(Route("/", get)))
    async with server.client() as client:
        for _ in range(2):
            response = await client.head("/")
            assert response.headers["content-length"] == str(len(CONTENT))
            assert response.content == b""


async def test_static_files_in_the_cache_of_the_client_are_not_sent_again(
    serve: Serve, file: Path
) -> None:
    server = await serve(app_of(Mount("/static", StaticFiles(directory=file.parent))))
    async with server.client() as client:
        response = await client.get(f"/static/{file.name}")
        assert response.content == CONTENT
        headers = {"if-none-match": response.headers["etag"]}
        for _ in range(2):
            response = await client.get(f"/static/{file.name}", headers=headers)
            assert response.status_code == 304
            assert response.content == b""
        assert (await client.get("/static/../conftest.py")).status_code == 404


@needs_curl
async def test_curl_resumes_a_download(serve: Serve, file: Path, tmp_path: Path) -> None:
    async def get(request: Request) -> Response:
        return FileResponse(file)

    server = await serve(app_of(Route("/", get)))
    part = tmp_path / "part.bin"
    part.write_bytes(CONTENT[:1234])
    done = await server.curl("/", "-C", "-", "-o", str(part))
    assert done.returncode == 0, done.stderr
    assert part.read_bytes() == CONTENT


# Small responses.


async def test_a_redirect_is_followed(serve: Serve) -> None:
    async def old(request: Request) -> Response:
        return RedirectResponse("/new?a=b", status_code=307)

    async def new(request: Request) -> Response:
        return JSONResponse([request.method, request.url.query, (await request.body()).decode()])

    routes = (Route(f"/{one.__name__}", one, methods=["POST"]) for one in (old, new))
    server = await serve(app_of(*routes))
    async with server.client(follow_redirects=True) as client:
        response = await client.post("/old", content=b"once more")
        assert response.json() == ["POST", "a=b", "once more"]
        assert len(response.history) == 1


async def test_a_connection_is_usable_after_a_response_without_content(serve: Serve) -> None:
    async def get(request: Request) -> Response:
        assert request.client is not None
        return Response(status_code=204, headers={"x-port": str(request.client.port)})

    server = await serve(app_of(Route("/", get)))
    async with server.client() as client:
        responses = [await client.get("/") for _ in range(3)]
        assert [response.status_code for response in responses] == [204] * 3
        assert len({response.headers["x-port"] for response in responses}) == 1


async def test_a_mounted_application_has_its_root_path(serve: Serve) -> None:
    async def where(request: Request) -> Response:
        return JSONResponse(
            [request.scope["root_path"], request.url.path, str(request.url_for("where"))]
        )

    inner = app_of(Route("/whére", where, name="where"))
    server = await serve(app_of(Mount("/api", app=app_of(Mount("/v1", app=inner)))))
    async with server.client() as client:
        response = await client.get("/api/v1/wh%C3%A9re")
        assert response.json() == ["/api/v1", "/api/v1/whére", f"{server.url}/api/v1/whére"]


async def test_the_scope_has_the_address_of_the_client(serve: Serve) -> None:
    async def get(request: Request) -> Response:
        return JSONResponse([request.client, request.scope["server"], request.url.scheme])

    server = await serve(app_of(Route("/", get)))
    async with server.connection() as (reader, writer), asyncio.timeout(PATIENCE):
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        host, port = writer.get_extra_info("sockname")
        *_, body = (await reader.read()).partition(b"\r\n\r\n")
    expected = f'[["{host}",{port}],["127.0.0.1",{server.service.port}],"http"]'
    assert body == expected.encode()


# Server-sent events.


class Clock:
    """An application that sends events for as long as it may."""

    def __init__(self) -> None:
        self.app = app_of(Route("/", self.get))
        self.wanted: asyncio.Queue[str] = asyncio.Queue()
        self.clients = 0

    async def events(self) -> AsyncIterator[str]:
        self.clients += 1
        try:
            while True:
                yield f"data: {await self.wanted.get()}\n\n"
        finally:
            self.clients -= 1

    async def get(self, request: Request) -> Response:
        return StreamingResponse(
            self.events(), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )


@needs_curl
async def test_curl_receives_events_at_once_and_until_the_service_stops(
    serve: Serve, logged: Logged
) -> None:
    clock = Clock()
    server = await serve(clock.app, shutdown_timeout=0.1)
    command = ["curl", "-q", "-sS", "-N", "--noproxy", "*", "--max-time", f"{PATIENCE:g}"]
    curl = await asyncio.create_subprocess_exec(
        *command, server.url, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert curl.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            for text in ("tick", "tock"):
                clock.wanted.put_nowait(text)
                assert await curl.stdout.readline() == f"data: {text}\n".encode()
                assert await curl.stdout.readline() == b"\n"
            await server.stop()
            assert await curl.stdout.read() == b""
            await curl.wait()
    finally:
        if curl.returncode is None:
            curl.kill()
            await curl.wait()
    await eventually(lambda: clock.clients == 0)
    assert all("uvicorn.error" in error for error in logged())  # it logs requests that it cancels


# Web sockets.


class Shout(WebSocketEndpoint):
    encoding = "text"

    async def on_connect(self, websocket: WebSocket) -> None:
        await websocket.accept(headers=[(b"x-greeting", b"hello")])

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        if data == "leave":
            await websocket.close(4001, "as you wish")
        else:
            await websocket.send_text(data.upper())

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        websocket.app.state.codes.put_nowait(close_code)


@pytest.fixture
def shouting() -> Starlette:
    app = app_of(WebSocketRoute("/shout/{name}", Shout))
    app.state.codes = asyncio.Queue()
    return app


async def test_a_web_socket_endpoint_sends_and_receives(serve: Serve, shouting: Starlette) -> None:
    server = await serve(shouting)
    async with server.web_socket("/shout/me") as socket:
        assert socket.response is not None
        assert socket.response.headers["x-greeting"] == "hello"
        await socket.send("hé")
        assert await socket.recv() == "HÉ"
        await socket.close(3003, "enough")
    assert await asyncio.wait_for(shouting.state.codes.get(), PATIENCE) == 3003


async def test_an_endpoint_can_close_a_web_socket(serve: Serve, shouting: Starlette) -> None:
    server = await serve(shouting)
    async with server.web_socket("/shout/me") as socket:
        await socket.send("leave")
        await asyncio.wait_for(socket.wait_closed(), PATIENCE)
        assert (socket.close_code, socket.close_reason) == (4001, "as you wish")


async def test_a_web_socket_without_a_route_is_refused(serve: Serve, shouting: Starlette) -> None:
    server = await serve(shouting)
    with pytest.raises(InvalidStatus) as caught:
        await server.web_socket("/nowhere")
    assert caught.value.response.status_code == 403


async def test_a_web_socket_can_be_denied_by_a_response_of_the_application(
    serve: Serve, logged: Logged
) -> None:
    async def deny(websocket: WebSocket) -> None:
        assert "websocket.http.response" in websocket.scope["extensions"]
        await websocket.send_denial_response(
            PlainTextResponse("no money", 402, headers={"x-price": "3"})
        )

    server = await serve(app_of(WebSocketRoute("/", deny)))
    with pytest.raises(InvalidStatus) as caught:
        await server.web_socket("/")
    response = caught.value.response
    assert response.status_code == 402
    assert response.headers["x-price"] == "3"
    assert response.body == b"no money"
    assert all("uvicorn.error" in error for error in logged())  # it takes it for a failure


async def test_a_web_socket_passes_a_middleware_and_a_mount(serve: Serve) -> None:
    async def nothing(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(websocket.scope["root_path"] + text)

    inner = app_of(WebSocketRoute("/echo", echo))
    app = app_of(Mount("/inner", app=inner))
    app.add_middleware(BaseHTTPMiddleware, dispatch=nothing)
    server = await serve(app)
    async with server.web_socket("/inner/echo") as socket:
        await socket.send("!")
        assert await socket.recv() == "/inner!"


async def test_web_sockets_are_closed_when_the_service_stops(
    serve: Serve, shouting: Starlette
) -> None:
    server = await serve(shouting)
    async with server.web_socket("/shout/a") as one, server.web_socket("/shout/b") as other:
        await asyncio.wait_for(server.stop(), PATIENCE)
        for socket in (one, other):
            await asyncio.wait_for(socket.wait_closed(), PATIENCE)
            assert socket.close_code in {1001, 1012}
    codes = {await asyncio.wait_for(shouting.state.codes.get(), PATIENCE) for _ in range(2)}
    assert codes <= {1001, 1012}


# An application of no framework, and one below another.


async def test_a_function_is_an_application(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    server = await serve(app)
    async with server.client() as client:
        assert (await client.get("/a")).text == "/a"


@only_asgi  # uvicorn sends the head at once
@pytest.mark.parametrize("pauses", [False, True])
async def test_a_failure_before_the_body_is_answered_by_500(
    serve: Serve, logged: Logged, *, pauses: bool
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if pauses:
            await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError("of the application")

    server = await serve(app, lifespan="off")
    async with server.connection() as (reader, writer), asyncio.timeout(PATIENCE):
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            status, headers, _ = await read_response(reader)
            assert status == 500
            if headers.get("connection") == "close":
                assert await reader.read() == b""
                break
    assert all("ZeroDivisionError: of the application" in error for error in logged())
