"""Log a flood of exceptions in one coroutine, and measure the loop lag in another."""

import asyncio
import contextlib
import logging
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.programs.protocol import answer, loop_factory, requests, run

log = logging.getLogger("benchmark")

TICK = 0.001
"""Seconds between two turns of either coroutine."""

BURST = 10
"""Exceptions in a turn: 10 000 in a second."""


class Collector(BaseHTTPRequestHandler):
    """Accept events and discard them."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Respond as Sentry does."""
        self.rfile.read(int(self.headers["Content-Length"]))
        # In one piece: a second one would wait for the acknowledgement of the first.
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def collect(port: Connection) -> None:
    """Send the port, and serve until the other end of the pipe is closed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port.send(server.server_port)
    with contextlib.suppress(EOFError):
        port.recv()  # the command kills this program, which could not end its children then


@contextlib.contextmanager
def collector() -> Iterator[str]:
    """Run the server in a process of its own, and yield the address of a project there."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=collect, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://public@127.0.0.1:{ours.recv()}/1"
    finally:
        process.kill()
        process.join()


def fail(depth: int, text: str) -> None:
    """Raise an error some calls deep, with variables in each frame."""
    if depth:
        fail(depth - 1, text)
    raise ValueError(text)


async def flood(exceptions: int) -> dict[str, float]:
    """Log exceptions, and return the cost of one in the loop's thread, and the maximum lag.

    The cost is that of the whole loop, which also sends.
    """
    loop = asyncio.get_running_loop()
    latest = 0.0

    async def watch() -> None:
        nonlocal latest
        while True:
            due = loop.time() + TICK
            await asyncio.sleep(TICK)
            latest = max(latest, loop.time() - due)

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(10 * TICK)
    cpu, due = time.thread_time(), loop.time()
    for number in range(exceptions):
        try:
            fail(10, "a local variable")
        except ValueError:
            log.exception("number %d failed", number)
        if number % BURST == 0:
            due += TICK
            await asyncio.sleep(max(0.0, due - loop.time()))
    await asyncio.sleep(10 * TICK)
    cpu = time.thread_time() - cpu
    watcher.cancel()
    return {"cost": cpu / exceptions, "late": max(latest, 1e-6)}


def serve(factory: Callable[[], Any], *services: Any) -> None:
    """Handle the requests while services run."""
    from svcrun import entrypoint

    with entrypoint(*services, log_config=False, loop_factory=factory) as loop:
        for exceptions in requests():
            answer(loop.run_until_complete(flood(exceptions)))


def raven_alone(dsn: str, factory: Callable[[], Any]) -> None:
    """Make events with raven in the log call, and discard them."""
    from raven import Client
    from raven.handlers.logging import SentryHandler
    from raven.transport.base import AsyncTransport

    class Forgetting(AsyncTransport):  # type: ignore[misc]  # raven has no types
        def async_send(self, *_: object) -> None:
            pass

    client = Client(
        dsn,
        transport=Forgetting,
        install_sys_hook=False,
        install_logging_hook=False,
        hook_libraries=(),
    )
    logging.getLogger().addHandler(SentryHandler(client, level=logging.WARNING))
    serve(factory)


def raven_sender(dsn: str, factory: Callable[[], Any]) -> None:
    """Send events with RavenSender."""
    from svcrun.service.raven import RavenSender

    serve(factory, RavenSender(sentry_dsn=dsn))


def sentry_alone(dsn: str, factory: Callable[[], Any]) -> None:
    """Make events with sentry-sdk in the log call, and discard them."""
    import sentry_sdk
    from sentry_sdk.integrations.logging import LoggingIntegration
    from sentry_sdk.transport import Transport

    class Forgetting(Transport):
        def capture_envelope(self, envelope: object) -> None:
            pass

    sentry_sdk.init(
        dsn,
        transport=Forgetting,
        default_integrations=False,
        integrations=[LoggingIntegration(event_level=logging.WARNING)],
    )
    serve(factory)


def sentry_sender(dsn: str, factory: Callable[[], Any]) -> None:
    """Send events with SentrySender."""
    from svcrun.service.sentry import SentrySender

    serve(factory, SentrySender(sentry_dsn=dsn))


SIDES = {
    "raven": raven_alone,
    "RavenSender": raven_sender,
    "sentry-sdk": sentry_alone,
    "SentrySender": sentry_sender,
}


def main(side: str, loop: str) -> None:
    """Answer each request with the cost of a flood of that many exceptions."""
    with collector() as dsn:
        SIDES[side](dsn, loop_factory(loop))


if __name__ == "__main__":
    run(main)
