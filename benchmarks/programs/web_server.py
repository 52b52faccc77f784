"""Web servers that answer each request with the same few bytes; they run until they are killed.

The answer is its port. To each line that it reads it answers when all log records are written.
"""

import asyncio
import contextlib
import importlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from benchmarks.programs.protocol import answer, loop_factory, requests, run

HOST = "127.0.0.1"
TEXT = "hello world"

Message = MutableMapping[str, Any]


async def hello(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Say hello (an ASGI application)."""
    if scope["type"] == "lifespan":
        for _ in range(2):
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"11")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": TEXT.encode()})


def application() -> Any:
    """Make an aiohttp application that says hello."""
    from aiohttp import web

    async def handle(_: web.Request) -> web.Response:
        return web.Response(text=TEXT)

    app = web.Application()
    app.router.add_get("/", handle)
    return app


def asgi_application() -> Any:
    """Make an aiohttp application of the ASGI application, as aiohttp-asgi does."""
    from aiohttp import web
    from aiohttp_asgi import ASGIResource

    resource = ASGIResource(hello, root_path="/")
    app = web.Application()
    app.router.register_resource(resource)
    resource.lifespan_mount(app)
    return app


@contextlib.asynccontextmanager
async def aiohttp_runner(app: Any, access_log: bool) -> AsyncIterator[int]:
    """Serve with aiohttp.web.AppRunner."""
    from aiohttp import web

    options: Any = {} if access_log else {"access_log": None}
    runner = web.AppRunner(app, handler_cancellation=True, **options)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    yield runner.addresses[0][1]


@contextlib.asynccontextmanager
async def uvicorn_server(app: Any, access_log: bool) -> AsyncIterator[int]:
    """Serve with uvicorn.Server."""
    import uvicorn

    config = uvicorn.Config(app, HOST, 0, log_level="warning", access_log=access_log)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - it has nothing to wait for
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    await serving


def plain(
    serve: Callable[[Any, bool], AbstractAsyncContextManager[int]],
    make: Callable[[], Any],
    loop: str,
    access_log: bool,
) -> None:
    """Run a server without svcrun."""
    if access_log:
        logging.basicConfig(level=logging.INFO)

    async def main() -> None:
        async with serve(make(), access_log) as port:
            answer(port)
            await asyncio.get_running_loop().create_future()

    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        runner.run(main())


def svcrun(service: Any, loop: str) -> None:
    """Run a service."""
    from svcrun import entrypoint

    with entrypoint(service, loop_factory=loop_factory(loop), log_format="stream") as running:
        answer(service.port)
        running.run_forever()


def make_service(name: str, access_log: bool) -> Any:
    """Create a service of svcrun."""
    options: dict[str, Any]
    if name == "UvicornService":
        options = {"app": hello, "log_level": "warning", "access_log": access_log}
    else:
        app = hello if name == "ASGIHTTPService" else application
        options = {"app": app, "runner_kwargs": {} if access_log else {"access_log": None}}
    module = {"AIOHTTPService": "aiohttp", "ASGIHTTPService": "asgi", "UvicornService": "uvicorn"}
    service: Any = getattr(importlib.import_module(f"svcrun.service.{module[name]}"), name)
    return service(address=HOST, port=0, **options)


def flush_when_asked() -> None:
    """Answer each request when all previous log records are written."""
    for _ in requests():
        for handler in logging.getLogger().handlers:
            handler.flush()
        answer("flushed")


def main(server: str, loop: str, access_log: bool) -> None:
    threading.Thread(target=flush_when_asked, daemon=True).start()
    match server:
        case "aiohttp":
            plain(aiohttp_runner, application, loop, access_log)
        case "aiohttp_asgi":
            plain(aiohttp_runner, asgi_application, loop, access_log)
        case "uvicorn":
            plain(uvicorn_server, lambda: hello, loop, access_log)
        case _:
            svcrun(make_service(server, access_log), loop)


if __name__ == "__main__":
    run(main)
