"""Web servers that stop in order at SIGTERM, as each library does it. The answer is the port."""

import importlib
import socket
from typing import Any

from benchmarks.programs.protocol import answer, loop_factory, run
from benchmarks.programs.web_server import HOST, application, hello, make_service, svcrun


def bound() -> socket.socket:
    """Return a socket that is bound to a free port."""
    sock = socket.socket()
    sock.bind((HOST, 0))
    return sock


def run_aiohttp(loop: str) -> None:
    """Serve with aiohttp.web.run_app()."""
    from aiohttp import web

    sock = bound()
    answer(sock.getsockname()[1])
    options: Any = {"access_log": None, "print": None}
    web.run_app(application(), sock=sock, loop=loop_factory(loop)(), **options)


def run_uvicorn(loop: str) -> None:
    """Serve with uvicorn.Server."""
    uvicorn: Any = importlib.import_module("uvicorn")
    sock = bound()
    sock.listen(1024)
    answer(sock.getsockname()[1])
    kind = "uvloop" if loop == "uvloop" else "asyncio"
    config = uvicorn.Config(hello, loop=kind, log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[sock])


def main(server: str, loop: str) -> None:
    match server:
        case "aiohttp":
            run_aiohttp(loop)
        case "uvicorn":
            run_uvicorn(loop)
        case _:
            svcrun(make_service(server, access_log=False), loop)


if __name__ == "__main__":
    run(main)
