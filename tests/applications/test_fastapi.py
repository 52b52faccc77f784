"""Applications of FastAPI, as their authors write them."""

import asyncio
import contextlib
import gc
import gzip
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("websockets")
pytest.importorskip("python_multipart")

from fastapi import BackgroundTasks, Depends, FastAPI, Form, HTTPException, Request, UploadFile
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.types import Receive, Scope, Send

from svcrun.entrypoint import entrypoint
from svcrun.errors import ApplicationStartFailed
from tests.applications.serving import (
    Logged,
    Serve,
    Serving,
    import_service,
    needs_curl,
    only_asgi,
    read_response,
)
from tests.support import PATIENCE, eventually


class Item(BaseModel):
    name: str
    price: float


async def test_a_route_gets_path_query_and_body(serve: Serve) -> None:
    app = FastAPI()

    @app.put("/items/{number}")
    async def put(number: int, item: Item, tag: Annotated[str, "query"] = "") -> dict[str, Any]:
        return {"number": number, "item": item.model_dump(), "tag": tag}

    server = await serve(app)
    async with server.client() as client:
        response = await client.put(
            "/items/7", params={"tag": "a b&c=ü"}, json={"name": "Käse", "price": 2.5}
        )
        assert response.status_code == 200
        assert response.json() == {
            "number": 7,
            "item": {"name": "Käse", "price": 2.5},
            "tag": "a b&c=ü",
        }


async def test_an_invalid_body_is_answered_by_422(serve: Serve) -> None:
    app = FastAPI()

    @app.post("/")
    async def post(item: Item) -> Item:
        return item

    server = await serve(app)
    async with server.client() as client:
        response = await client.post("/", json={"name": "x", "price": "a lot"})
        assert response.status_code == 422
        assert response.json()["detail"][0]["loc"] == ["body", "price"]


@pytest.mark.parametrize("path", ["/fine", "/refused"])
async def test_a_dependency_is_closed_after_the_response(serve: Serve, path: str) -> None:
    closed = asyncio.Event()
    order: list[str] = []

    async def connection() -> AsyncIterator[str]:
        order.append("opened")
        try:
            yield "connection"
        finally:
            order.append("closed")
            closed.set()

    app = FastAPI()
    Connection = Annotated[str, Depends(connection)]  # noqa: N806 - a type

    @app.get("/fine")
    async def fine(used: Connection) -> str:
        order.append("used")
        return used

    @app.get("/refused")
    async def refused(used: Connection) -> None:
        order.append("used")
        raise HTTPException(409, used, headers={"X-Why": "because"})

    server = await serve(app)
    async with server.client() as client:
        response = await client.get(path)
        if path == "/fine":
            assert response.json() == "connection"
        else:
            assert response.status_code == 409
            assert response.json() == {"detail": "connection"}
            assert response.headers["x-why"] == "because"
        await asyncio.wait_for(closed.wait(), PATIENCE)
    assert order == ["opened", "used", "closed"]


async def test_an_unhandled_exception_is_answered_by_500_and_logged_once(
    serve: Serve, logged: Logged
) -> None:
    app = FastAPI()

    @app.get("/")
    async def fail() -> None:
        raise ZeroDivisionError("of the endpoint")

    server = await serve(app)
    async with server.client() as client:
        response = await client.get("/")
        assert response.status_code == 500
        assert response.text == "Internal Server Error"
        assert "endpoint" not in response.text
        # The service is there for the next one.
        assert (await client.get("/nowhere")).status_code == 404
    await server.stop()
    (error,) = logged()
    assert error.count("ZeroDivisionError: of the endpoint") == 1


async def test_each_cookie_has_a_header_of_its_own(serve: Serve) -> None:
    app = FastAPI()

    @app.get("/")
    async def get(response: Response) -> None:
        response.set_cookie("a", "1")
        response.set_cookie("b", "2", httponly=True)

    server = await serve(app)
    async with server.client() as client:
        response = await client.get("/")
        assert len(response.headers.get_list("set-cookie")) == 2
        assert dict(client.cookies) == {"a": "1", "b": "2"}


async def test_plain_functions_run_concurrently_in_threads(
    serve: Serve,
) -> None:
    app = FastAPI()
    meeting = threading.Barrier(3)

    @app.get("/")
    def get() -> bool:
        meeting.wait(PATIENCE)  # none returns before all have come
        return threading.current_thread() is threading.main_thread()

    server = await serve(app)
    async with server.client() as client:
        responses = await asyncio.gather(*(client.get("/") for _ in range(3)))
        assert [response.json() for response in responses] == [False] * 3


async def test_an_upload_by_a_form_arrives_whole(serve: Serve) -> None:
    app = FastAPI()

    @app.post("/")
    async def post(file: UploadFile, title: Annotated[str, Form()]) -> dict[str, Any]:
        content = await file.read()
        return {"title": title, "name": file.filename, "size": len(content), "end": content[-1]}

    server = await serve(app)
    content = bytes(3 << 20) + b"\x07"  # enough to be rolled over to a file
    async with server.client() as client:
        response = await client.post(
            "/", data={"title": "Übersicht"}, files={"file": ("a.bin", content)}
        )
        assert response.json() == {
            "title": "Übersicht",
            "name": "a.bin",
            "size": len(content),
            "end": 7,
        }


# Background tasks.


class Background:
    """An application whose response is followed by work that the test lets end."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.began = asyncio.Event()
        self.may_end = asyncio.Event()
        self.ended = asyncio.Event()
        self.app.get("/work")(self.begin)
        self.app.get("/port")(self.port)

    async def work(self) -> None:
        self.began.set()
        await self.may_end.wait()
        self.ended.set()

    async def begin(self, request: Request, tasks: BackgroundTasks) -> int:
        tasks.add_task(self.work)
        return await self.port(request)

    async def port(self, request: Request) -> int:
        assert request.client is not None
        return request.client.port


async def test_a_background_task_does_not_delay_the_next_request(serve: Serve) -> None:
    background = Background()
    server = await serve(background.app)
    async with server.client() as client:
        port = (await client.get("/work")).json()
        await asyncio.wait_for(background.began.wait(), PATIENCE)
        assert (await client.get("/port")).json() == port  # by the same connection
        assert not background.ended.is_set()
        background.may_end.set()
        await asyncio.wait_for(background.ended.wait(), PATIENCE)


async def test_a_background_task_outlives_its_client(serve: Serve) -> None:
    background = Background()
    server = await serve(background.app)
    async with server.client() as client:
        await client.get("/work")
        await asyncio.wait_for(background.began.wait(), PATIENCE)
    async with server.client() as client:  # when the first one has left
        await client.get("/port")
    background.may_end.set()
    await asyncio.wait_for(background.ended.wait(), PATIENCE)


async def test_the_stop_waits_for_background_tasks(serve: Serve) -> None:
    background = Background()
    server = await serve(background.app, shutdown_timeout=PATIENCE)
    async with server.client() as client:
        await client.get("/work")
    await asyncio.wait_for(background.began.wait(), PATIENCE)
    stop = asyncio.create_task(server.stop())
    done, _ = await asyncio.wait({stop}, timeout=0.2)
    assert not done
    background.may_end.set()
    await asyncio.wait_for(stop, PATIENCE)
    assert background.ended.is_set()


async def test_the_error_of_a_background_task_is_logged_once(serve: Serve, logged: Logged) -> None:
    app = FastAPI()

    async def fail() -> None:
        raise ZeroDivisionError("of the task")

    @app.get("/")
    async def get(tasks: BackgroundTasks) -> str:
        tasks.add_task(fail)
        return "fine"

    server = await serve(app)
    async with server.client() as client:
        assert (await client.get("/")).json() == "fine"
        assert (await client.get("/")).json() == "fine"
    await server.stop()
    first, second = logged()
    assert first.count("ZeroDivisionError: of the task") == 1
    assert second.count("ZeroDivisionError: of the task") == 1


# Streams.


async def test_each_chunk_of_a_stream_is_received_at_once(serve: Serve) -> None:
    app = FastAPI()
    wanted: asyncio.Queue[str] = asyncio.Queue()

    async def pieces() -> AsyncIterator[str]:
        while piece := await wanted.get():
            yield piece

    @app.get("/")
    async def get() -> StreamingResponse:
        return StreamingResponse(pieces(), media_type="text/plain")

    server = await serve(app)
    async with server.client() as client, client.stream("GET", "/") as response:
        assert response.status_code == 200  # is known before there is a first piece
        arriving = response.aiter_text()
        for piece in ("one", "two", "three"):
            wanted.put_nowait(piece)
            assert await anext(arriving) == piece
        wanted.put_nowait("")
        assert [piece async for piece in arriving] == []


async def test_a_stream_of_a_plain_iterator_is_received_whole(serve: Serve) -> None:
    app = FastAPI()

    def pieces() -> Iterator[bytes]:
        for number in range(256):
            yield bytes([number]) * 4000

    @app.get("/")
    def get() -> StreamingResponse:
        return StreamingResponse(pieces())

    server = await serve(app)
    async with server.client() as client:
        response = await client.get("/")
        assert response.content == b"".join(pieces())


class Endless:
    """A stream that its application does not end."""

    def __init__(self, *, pauses: bool) -> None:
        self.app = FastAPI()
        self.app.get("/")(self.get)
        self.pauses = pauses
        self.count = 0
        self.closed = asyncio.Event()

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            while True:
                self.count += 1
                yield bytes(65536)
                if self.pauses:
                    await asyncio.sleep(0)
        finally:
            self.closed.set()

    async def get(self) -> StreamingResponse:
        return StreamingResponse(self.pieces())


async def ends_when_its_client_has_left(endless: Endless, server: Serving) -> None:
    async with server.client() as client, client.stream("GET", "/") as response:
        await anext(response.aiter_raw())
    # Starlette leaves it to the garbage collector to close the generator.
    await eventually(lambda: endless.closed.is_set() or gc.collect() < 0)
    count = endless.count
    async with server.client() as client:
        assert (await client.get("/nowhere")).status_code == 404
    assert endless.count == count


async def test_a_stream_ends_when_its_client_disconnects(serve: Serve) -> None:
    endless = Endless(pauses=True)
    await ends_when_its_client_has_left(endless, await serve(endless.app))


@only_asgi  # with uvicorn it is never interrupted
async def test_a_stream_without_a_pause_ends_when_its_client_disconnects(serve: Serve) -> None:
    endless = Endless(pauses=False)
    await ends_when_its_client_has_left(endless, await serve(endless.app))


async def test_a_waiting_stream_ends_by_its_next_chunk_when_its_client_disconnected(
    serve: Serve,
) -> None:
    app = FastAPI()
    wanted: asyncio.Queue[bytes] = asyncio.Queue()
    ended = asyncio.Event()

    class Noted(StreamingResponse):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await super().__call__(scope, receive, send)
            finally:
                ended.set()

    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield await wanted.get()

    @app.get("/")
    async def get() -> Response:
        return Noted(pieces())

    server = await serve(app)
    wanted.put_nowait(b"first")
    async with server.client() as client, client.stream("GET", "/") as response:
        assert await anext(response.aiter_raw()) == b"first"
    async with server.client() as client:  # when the first one has left
        assert (await client.get("/nowhere")).status_code == 404

    def has_ended() -> bool:
        wanted.put_nowait(b"next")
        return ended.is_set()

    await eventually(has_ended)


async def test_a_stream_waits_for_a_slow_client(serve: Serve) -> None:
    app = FastAPI()
    count = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal count
        for _ in range(400):
            count += 1
            yield bytes(65536)

    @app.get("/")
    async def get() -> StreamingResponse:
        return StreamingResponse(pieces())

    server = await serve(app)
    async with server.client() as client, client.stream("GET", "/") as response:
        previous = -1
        while previous != count:
            previous = count
            await asyncio.sleep(0.05)
        assert count < 390
        assert sum([len(piece) async for piece in response.aiter_raw()]) == 400 * 65536


async def test_a_request_body_that_is_not_read_does_not_disturb_the_next_request(
    serve: Serve,
) -> None:
    app = FastAPI()

    @app.post("/")
    async def post() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"not "
            yield b"read"

        return StreamingResponse(pieces())

    server = await serve(app)
    async with server.client() as client:
        for size in (1, 1 << 20, 1):
            response = await client.post("/", content=bytes(size))
            assert response.text == "not read"


async def test_a_request_body_can_be_read_as_a_stream(serve: Serve) -> None:
    app = FastAPI()
    got: asyncio.Queue[bytes] = asyncio.Queue()

    @app.post("/")
    async def post(request: Request) -> int:
        total = 0
        async for piece in request.stream():
            total += len(piece)
            if piece:
                got.put_nowait(piece)
        return total

    async def body() -> AsyncIterator[bytes]:
        for piece in (b"one", b"two", b"three"):
            yield piece
            assert await asyncio.wait_for(got.get(), PATIENCE) == piece

    server = await serve(app)
    async with server.client() as client:
        assert (await client.post("/", content=body())).json() == 11


async def test_is_disconnected_reports_a_disconnected_client(serve: Serve) -> None:
    app = FastAPI()
    answers: list[bool] = []
    asked, left = asyncio.Event(), asyncio.Event()

    @app.post("/")
    async def post(request: Request) -> None:
        await request.body()
        answers.append(await request.is_disconnected())
        asked.set()
        while not await request.is_disconnected():  # noqa: ASYNC110 - how it is asked
            await asyncio.sleep(0.001)
        left.set()

    server = await serve(app)
    async with server.connection() as (_, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx")
        await asyncio.wait_for(asked.wait(), PATIENCE)
    await asyncio.wait_for(left.wait(), PATIENCE)
    assert answers == [False]


@only_asgi  # uvicorn logs the error that Starlette raises
@pytest.mark.parametrize("streams", [False, True])
async def test_a_client_that_disconnects_within_its_body_logs_no_traceback(
    serve: Serve, *, streams: bool
) -> None:
    app = FastAPI()
    began, ended = asyncio.Event(), asyncio.Event()

    async def pieces(request: Request) -> AsyncIterator[bytes]:
        try:
            async for piece in request.stream():
                began.set()
                yield piece
        finally:
            ended.set()

    @app.post("/")
    async def post(request: Request) -> Response:
        if streams:
            return StreamingResponse(pieces(request))
        return Response(b"".join([piece async for piece in pieces(request)]))

    server = await serve(app)
    async with server.connection() as (_, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nx")
        await asyncio.wait_for(began.wait(), PATIENCE)
    await asyncio.wait_for(ended.wait(), PATIENCE)


# Middlewares.


@only_asgi  # with uvicorn, Starlette takes pieces of the body for nothing while it sends
async def test_a_stream_passes_a_middleware(serve: Serve) -> None:
    app = FastAPI()

    async def stamp(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-path"] = request.url.path
        return response

    app.add_middleware(BaseHTTPMiddleware, dispatch=stamp)

    @app.post("/echo")
    async def echo(request: Request) -> StreamingResponse:
        return StreamingResponse(request.stream())

    server = await serve(app)
    async with server.client() as client:
        response = await client.post("/echo", content=bytes(1 << 20))
        assert response.headers["x-path"] == "/echo"
        assert response.content == bytes(1 << 20)


async def test_a_stream_below_a_middleware_ends_when_its_client_disconnects(serve: Serve) -> None:
    async def nothing(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    endless = Endless(pauses=True)
    endless.app.add_middleware(BaseHTTPMiddleware, dispatch=nothing)
    await ends_when_its_client_has_left(endless, await serve(endless.app))


async def test_a_middleware_can_compress_responses(serve: Serve) -> None:
    app = FastAPI()
    app.add_middleware(GZipMiddleware, minimum_size=100)

    @app.get("/")
    async def get() -> Response:
        return Response("x" * 10_000, media_type="text/plain")

    server = await serve(app)
    async with (
        server.client(headers={"accept-encoding": "gzip"}) as client,
        client.stream("GET", "/") as response,
    ):
        raw = b"".join([piece async for piece in response.aiter_raw()])
    assert response.headers["content-encoding"] == "gzip"
    assert int(response.headers["content-length"]) == len(raw) < 1000
    assert gzip.decompress(raw) == b"x" * 10_000


async def test_a_compressed_request_reaches_the_application_as_it_was_sent(serve: Serve) -> None:
    app = FastAPI()

    @app.post("/")
    async def post(request: Request) -> Response:
        body = await request.body()
        assert int(request.headers["content-length"]) == len(body)
        return Response(gzip.decompress(body), media_type="text/plain")

    server = await serve(app)
    async with server.client() as client:
        response = await client.post(
            "/", content=gzip.compress(b"hello"), headers={"content-encoding": "gzip"}
        )
        assert response.text == "hello"


async def test_a_middleware_answers_a_cors_preflight(serve: Serve) -> None:
    app = FastAPI()
    app.add_middleware(CORSMiddleware, allow_origins=["https://a.example"], allow_methods=["PUT"])

    server = await serve(app)
    async with server.client() as client:
        headers = {"origin": "https://a.example", "access-control-request-method": "PUT"}
        response = await client.options("/", headers=headers)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://a.example"
        assert "PUT" in response.headers["access-control-allow-methods"]


# Lifespan.


async def test_each_request_has_the_state_of_the_lifespan(serve: Serve) -> None:
    events: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        events.append("started")
        yield {"pool": ["shared"], "name": "pool"}
        events.append("ended")

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def get(request: Request) -> JSONResponse:
        answer = JSONResponse({"pool": request.state.pool, "name": request.state.name})
        request.state.name = "changed by one request"
        return answer

    server = await serve(app)
    assert events == ["started"]
    async with server.client() as client:
        for _ in range(2):
            assert (await client.get("/")).json() == {"pool": ["shared"], "name": "pool"}
    await server.stop()
    assert events == ["started", "ended"]


class Broken(Exception):
    """The failure of an application's start-up."""


@contextlib.asynccontextmanager
async def broken(app: FastAPI) -> AsyncIterator[None]:
    if app.title:
        raise Broken("no data base")
    yield


async def test_a_failed_lifespan_fails_the_start(serve: Serve) -> None:
    with pytest.raises(ApplicationStartFailed, match="Broken: no data base"):
        await serve(FastAPI(lifespan=broken))


@pytest.mark.parametrize("kind", ["asgi", "uvicorn"])
def test_the_error_of_a_failed_lifespan_is_raised_by_the_entrypoint(kind: str) -> None:
    module = import_service(kind)
    service = {"asgi": "ASGIHTTPService", "uvicorn": "UvicornService"}[kind]
    app = FastAPI(lifespan=broken)
    options = {"address": "127.0.0.1", "port": 0, "app": app}
    with (
        pytest.raises(ApplicationStartFailed, match="Broken: no data base"),
        entrypoint(getattr(module, service)(**options), log_config=False),
    ):
        pytest.fail("it has started")


# A few more clients.


@needs_curl
async def test_curl_uploads_and_downloads_a_megabyte(serve: Serve) -> None:
    app = FastAPI()

    @app.put("/")
    async def put(request: Request) -> Response:
        assert request.headers["expect"] == "100-continue"
        return Response(await request.body())

    server = await serve(app)
    # With that much curl asks first whether it may send it.
    done = await server.curl(
        "/", "-X", "PUT", "-H", "Expect: 100-continue", "--data-binary", "x" * (1 << 16)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"x" * (1 << 16)


async def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    app = FastAPI()

    @app.post("/{name}")
    async def post(name: str, request: Request) -> Response:
        if name == "slow":
            await asyncio.sleep(0.01)
        return Response(name.encode() + await request.body())

    server = await serve(app)
    async with server.connection() as (reader, writer):
        writer.write(
            b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n-1"
            b"POST /fast HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n-2"
        )
        async with asyncio.timeout(PATIENCE):
            assert (await read_response(reader))[2] == b"slow-1"
            assert (await read_response(reader))[2] == b"fast-2"


@pytest.mark.parametrize("wanted", ["keep-alive", "close"])
async def test_an_http_1_0_client_gets_an_http_1_0_response(serve: Serve, wanted: str) -> None:
    app = FastAPI()

    @app.get("/whole")
    async def whole(request: Request) -> Response:
        return Response(f"HTTP/{request.scope['http_version']}")

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"a"
            yield b"b"

        return StreamingResponse(pieces())

    server = await serve(app)
    async with server.connection() as (reader, writer), asyncio.timeout(PATIENCE):
        if wanted == "keep-alive":
            writer.write(b"GET /whole HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
            status, headers, body = await read_response(reader)
            assert (status, body) == (200, b"HTTP/1.0")
            if headers.get("connection", "").lower() != "keep-alive":
                return  # a server need not
            writer.write(b"GET /stream HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
        else:
            writer.write(b"GET /stream HTTP/1.0\r\n\r\n")
        assert (await read_response(reader))[2] == b"ab"  # without chunks, to the end
        assert await reader.read() == b""
