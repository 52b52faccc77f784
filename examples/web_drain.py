"""Serve behind a load balancer, and stop without losing a request.

    python examples/web_drain.py --delay 5
    curl -i http://127.0.0.1:8080/ready
    kill -TERM ...

It needs aiohttp: pip install 'svcrun[aiohttp]'. After SIGTERM, /ready answers with status 503 and
everything else as before, until the load balancer has noticed. Then the program stops. Clients with
an open connection have half a second to send another request, whose response closes it.
"""

import argparse
import os

from aiohttp import web

from svcrun import entrypoint
from svcrun.service.aiohttp import AIOHTTPService


class Shop(AIOHTTPService):
    """A server that reports whether it is ready."""

    async def create_application(self) -> web.Application:
        app = web.Application()
        app.add_routes([web.get("/", self.order), web.get("/ready", self.ready)])
        return app

    async def order(self, _: web.Request) -> web.Response:
        """Serve a customer."""
        return web.Response(text=f"served by process {os.getpid()}\n")

    async def ready(self, _: web.Request) -> web.Response:
        """Return whether a load balancer may send requests."""
        if entrypoint.get_current().is_ready:
            return web.Response(text="ready\n")
        return web.Response(text="stopping\n", status=503)


def main() -> None:
    """Run the server until a signal ends it."""
    parser = argparse.ArgumentParser(description="Serve behind a load balancer.")
    parser.add_argument("--address", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="0 for a free one (%(default)s)")
    parser.add_argument(
        "--delay", type=float, default=5, help="seconds between SIGTERM and the stop (%(default)s)"
    )
    options = parser.parse_args()

    shop = Shop(options.address, options.port, idle_grace=0.5)
    with entrypoint(shop, drain_delay=options.delay) as loop:
        print(f"listening on {shop.address} port {shop.port}", flush=True)
        loop.run_forever()


if __name__ == "__main__":
    main()
