"""Serve an aiohttp application that counts words, by HTTP and by web socket.

    python examples/web_aiohttp.py
    curl -d 'to be or not to be' http://127.0.0.1:8080/count
    python -m websockets ws://127.0.0.1:8080/live

It needs aiohttp: pip install 'svcrun[aiohttp]'. The second client is that of ``websockets``. When
the program ends, requests under way are answered, and web sockets closed with code 1001.
"""

import argparse

from aiohttp import web

from svcrun import entrypoint
from svcrun.service.aiohttp import AIOHTTPService


def count(text: str) -> dict[str, int]:
    """Return the counts of lines, words and characters of a text."""
    words = text.split()
    return {"characters": len(text), "words": len(words), "different": len(set(words))}


class Words(AIOHTTPService):
    """A server that counts words."""

    longest: int = 65_536  # bytes of a text

    async def create_application(self) -> web.Application:
        app = web.Application(client_max_size=self.longest)
        app.add_routes([web.post("/count", self.answer), web.get("/live", self.talk)])
        return app

    async def answer(self, request: web.Request) -> web.Response:
        """Count the words of a request."""
        return web.json_response(count(await request.text()))

    async def talk(self, request: web.Request) -> web.WebSocketResponse:
        """Count the words of each message until the client disconnects."""
        socket = web.WebSocketResponse(heartbeat=20, max_msg_size=self.longest)
        await socket.prepare(request)
        async for message in socket:
            if message.type is web.WSMsgType.TEXT:
                await socket.send_json(count(message.data))
        return socket


def main() -> None:
    """Run the server until a signal ends it."""
    parser = argparse.ArgumentParser(description="Count the words of texts.")
    parser.add_argument("--address", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="0 for a free one (%(default)s)")
    options = parser.parse_args()

    words = Words(options.address, options.port)
    with entrypoint(words) as loop:
        print(f"listening on {words.address} port {words.port}", flush=True)
        loop.run_forever()


if __name__ == "__main__":
    main()
