"""Django's ASGI application, in a process that is its own: Django has one configuration."""

import asyncio
from collections.abc import Callable

import pytest

pytest.importorskip("django")
pytest.importorskip("httpx")
pytest.importorskip("websockets")

import httpx

from tests.applications.serving import import_service
from tests.support import PATIENCE, Program

PROGRAM = """
import asyncio
import gc
import sys

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

from svcrun import Service, entrypoint

kind = sys.argv[1]
if kind == "asgi":
    from svcrun.service.asgi import ASGIHTTPService as Web
else:
    from svcrun.service.uvicorn import UvicornService as Web


def sync_view(request):
    return HttpResponse(f"sync {request.GET['a']}")


async def async_view(request):
    await asyncio.sleep(0)
    response = JsonResponse({"path": request.path, "client": request.META["REMOTE_ADDR"]})
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


async def echo(request):
    return HttpResponse(request.body, content_type="application/octet-stream")


def form(request):
    return JsonResponse({"name": request.POST["name"], "size": request.FILES["file"].size})


async def stream(request):
    async def pieces():
        for number in range(5):
            yield f"{number}\\n"
            await asyncio.sleep(0)

    return StreamingHttpResponse(pieces(), content_type="text/plain")


async def endless(request):
    async def pieces():
        try:
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)
        finally:
            print("closed", flush=True)

    return StreamingHttpResponse(pieces())


def collect(request):
    gc.collect()  # Django leaves it to the collector to close streams
    return HttpResponse()


def fail(request):
    raise ZeroDivisionError("of the view")


urlpatterns = [
    path("sync", sync_view),
    path("ünter/async", async_view),
    path("echo", echo),
    path("form", form),
    path("stream", stream),
    path("endless", endless),
    path("collect", collect),
    path("fail", fail),
]
settings.configure(
    DEBUG=False,
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for a test",
    LOGGING_CONFIG=None,
)
django.setup()


class Teller(Service):
    depends_on = (Web,)

    async def start(self):
        print("port", web.port, flush=True)
        self.start_event.set()
        await asyncio.Event().wait()


web = Web(address="127.0.0.1", port=0, app=get_asgi_application())
# Django's own threads and resources are for it to close, and no matter of these tests.
with entrypoint(web, Teller(), log_level="info", log_format="plain") as loop:
    loop.run_forever()
print("ended", flush=True)
"""


@pytest.mark.parametrize("kind", ["asgi", "uvicorn"])
async def test_a_django_site_is_served(kind: str, run_program: Callable[..., Program]) -> None:
    import_service(kind)
    program = run_program(PROGRAM, kind, options=("-X", "dev"))
    match = await asyncio.to_thread(program.wait_for_line, r"port (\d+)")
    url = f"http://127.0.0.1:{match[1]}"
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=PATIENCE) as client:
        assert (await client.get("/sync", params={"a": "b c"})).text == "sync b c"

        response = await client.get("/ünter/async")
        assert response.json() == {"path": "/ünter/async", "client": "127.0.0.1"}
        assert dict(client.cookies) == {"a": "1", "b": "2"}

        body = bytes(range(256)) * 4096
        assert (await client.post("/echo", content=body)).content == body
        response = await client.post("/form", data={"name": "x"}, files={"file": ("f", body)})
        assert response.json() == {"name": "x", "size": len(body)}

        assert (await client.get("/stream")).text == "0\n1\n2\n3\n4\n"
        response = await client.head("/sync", params={"a": "b"})
        assert (response.status_code, response.content) == (200, b"")

        assert (await client.get("/nowhere")).status_code == 404
        assert (await client.get("/fail")).status_code == 500

        async with client.stream("GET", "/endless") as response:
            await anext(response.aiter_raw())
        async with asyncio.timeout(PATIENCE):
            while "closed" not in program.stdout:
                assert (await client.get("/collect")).status_code == 200

    program.terminate()
    outcome = await asyncio.to_thread(program.wait)
    assert outcome.returncode == 0
    assert outcome.stdout.endswith("ended\n")
    assert outcome.stderr.count("Traceback") == 1
    assert outcome.stderr.count("ZeroDivisionError: of the view") == 1
