"""Serve an ASGI application: the one below, or any other.

    python examples/web_asgi.py
    curl -N http://127.0.0.1:8080/5
    python examples/web_asgi.py --app package.module:app

It needs aiohttp-asgi: pip install 'svcrun[asgi]'. With ``--cert`` and ``--key`` it speaks HTTPS.

The application counts to a number, or as long as its client listens. It is written without a
framework, to show what passes between an application and a server.
"""

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from svcrun import entrypoint
from svcrun.service.asgi import ASGIHTTPService, ASGIHTTPSSLService

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

INTERVAL = 0.5  # seconds between two numbers
FAR_ENOUGH = 8


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """Handle one request, or the lifespan."""
    if scope["type"] == "lifespan":
        await live(scope["state"], receive, send)
    elif scope["type"] == "http":
        await answer(scope, receive, send)
    else:
        raise NotImplementedError(scope["type"])


async def live(state: Message, receive: Receive, send: Send) -> None:
    """Start before the first request, and end after the last one."""
    await receive()
    guests: set[str] = set()
    state["guests"] = guests
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print(f"{len(guests)} addresses have called", flush=True)
    await send({"type": "lifespan.shutdown.complete"})


async def answer(scope: Message, receive: Receive, send: Send) -> None:
    """Stream numbers, one line of JSON each."""
    host, _ = scope["client"]
    scope["state"]["guests"].add(host)
    text = scope["path"].removeprefix("/") or str(FAR_ENOUGH)
    last = min(int(text), FAR_ENOUGH) if text.isdecimal() else 0
    headers = [(b"content-type", b"application/x-ndjson")]
    status = 200 if last else 404
    await send({"type": "http.response.start", "status": status, "headers": headers})
    counting = asyncio.create_task(count(last, send))
    listening = asyncio.create_task(wait_for_leave(receive))
    await asyncio.wait({counting, listening}, return_when=asyncio.FIRST_COMPLETED)
    if not counting.done():
        print(f"{host} has gone", flush=True)
    for task in (counting, listening):
        task.cancel()
    await asyncio.gather(counting, listening, return_exceptions=True)


async def count(last: int, send: Send) -> None:
    """Count to `last`."""
    for number in range(1, last + 1):
        line = json.dumps({"number": number}).encode() + b"\n"
        await send({"type": "http.response.body", "body": line, "more_body": True})
        await asyncio.sleep(INTERVAL)
    await send({"type": "http.response.body"})


async def wait_for_leave(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass  # other messages of the client


def main() -> None:
    """Run the server until a signal ends it."""
    parser = argparse.ArgumentParser(description="Serve an ASGI application.")
    parser.add_argument("--address", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="0 for a free one (%(default)s)")
    parser.add_argument("--app", default=app, help="package.module:name of an application")
    parser.add_argument("--cert", help="the server's certificate, a PEM file")
    parser.add_argument("--key", help="its private key")
    options = parser.parse_args()

    place = {"address": options.address, "port": options.port, "app": options.app}
    if options.cert is None:
        service = ASGIHTTPService(**place)
    else:
        service = ASGIHTTPSSLService(cert=options.cert, key=options.key, **place)
    with entrypoint(service) as loop:
        print(f"listening on {service.address} port {service.port}", flush=True)
        loop.run_forever()


if __name__ == "__main__":
    main()
