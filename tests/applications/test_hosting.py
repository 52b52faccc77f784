"""The forms in which an application can be given, and HTTPS."""

import asyncio
import functools
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("websockets")

from fastapi import FastAPI, Request

from tests.applications.serving import Serve, needs_curl

MODULE = """
from fastapi import FastAPI

def make():
    app = FastAPI()

    @app.get("/")
    async def get() -> str:
        return "hello"

    return app

async def make_later():
    return make()

class Holder:
    app = make()

app = Holder.app
"""


def make() -> FastAPI:
    """Make an application."""
    app = FastAPI()

    @app.get("/")
    async def get() -> str:
        return "hello"

    return app


async def make_later() -> FastAPI:
    """Make an application that needs the loop for it."""
    await asyncio.sleep(0)
    return make()


class Bare:
    """An application of no framework that is an instance."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        headers = [(b"content-type", b"application/json"), (b"content-length", b"7")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'"hello"'})


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(make(), id="application"),
        pytest.param(Bare(), id="instance"),
        pytest.param(make, id="function"),
        pytest.param(make_later, id="coroutine function"),
        pytest.param(functools.partial(make), id="partial"),
    ],
)
async def test_an_application_can_be_an_instance_or_a_factory(serve: Serve, form: Any) -> None:
    server = await serve(form)
    async with server.client() as client:
        assert (await client.get("/")).json() == "hello"


@pytest.mark.parametrize("name", ["app", "make", "make_later", "Holder.app"])
async def test_an_application_can_be_given_by_name(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    package = tmp_path / "svcrun_test_site"
    package.mkdir()
    (package / "main.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        server = await serve(f"svcrun_test_site.main:{name}")
        async with server.client() as client:
            assert (await client.get("/")).json() == "hello"
    finally:
        for loaded in [one for one in sys.modules if one.startswith("svcrun_test_site")]:
            del sys.modules[loaded]


async def test_each_start_calls_the_factory(serve: Serve) -> None:
    made: list[FastAPI] = []

    def factory() -> FastAPI:
        made.append(make())
        return made[-1]

    first = await serve(factory)
    await first.stop()
    second = await serve(factory)
    async with second.client() as client:
        assert (await client.get("/")).json() == "hello"
    assert len(set(map(id, made))) == 2


async def test_two_services_serve_one_application(serve: Serve) -> None:
    app = make()
    for server in [await serve(app), await serve(app)]:
        async with server.client() as client:
            assert (await client.get("/")).json() == "hello"


async def test_an_application_served_by_https_sees_the_scheme_https(serve: Serve) -> None:
    app = FastAPI()

    @app.post("/")
    async def post(request: Request) -> list[Any]:
        return [request.url.scheme, len(await request.body()), request.client is not None]

    server = await serve(app, tls=True)
    async with server.client() as client:
        for size in (0, 1 << 20):
            response = await client.post("/", content=bytes(size))
            assert response.json() == ["https", size, True]


@needs_curl
async def test_curl_verifies_the_certificate(serve: Serve) -> None:
    server = await serve(make(), tls=True)
    done = await server.curl("/", "--tlsv1.3", "--fail", "-w", " %{http_version}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == b'"hello" 1.1'
