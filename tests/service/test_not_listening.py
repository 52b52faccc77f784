"""A server of any kind that runs without a listener logs a warning."""

import asyncio
import contextlib
import logging
import socket
from pathlib import Path
from typing import Any

import pytest

from svcrun import entrypoint
from svcrun.service.tcp import TCPServer
from svcrun.service.tls import TLSServer
from svcrun.service.udp import UDPServer
from tests.support import LoopFactory, eventually, has

if has("aiohttp", "aiohttp_asgi"):
    from aiohttp import web

    from svcrun.service.aiohttp import AIOHTTPService
    from svcrun.service.asgi import ASGIHTTPService
if has("uvicorn"):
    from svcrun.service.uvicorn import UvicornService


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Serve nothing."""


class Handles:
    async def handle_client(self, reader: Any, writer: Any) -> None:
        """Return at once."""

    def handle_datagram(self, data: bytes, addr: Any) -> None:
        """Return at once."""

    async def create_application(self) -> Any:
        return web.Application() if isinstance(self, AIOHTTPService) else application


def kinds() -> dict[str, tuple[type[Any], dict[str, Any]]]:
    """Return the kinds of server, and the parameters of each."""
    found: dict[str, tuple[type[Any], dict[str, Any]]] = {
        "tcp": (TCPServer, {}),
        "udp": (UDPServer, {}),
    }
    if has("aiohttp", "aiohttp_asgi"):
        found["aiohttp"] = (AIOHTTPService, {})
        found["asgi"] = (ASGIHTTPService, {"app": application})
    if has("uvicorn"):
        found["uvicorn"] = (UvicornService, {})
    return found


def listener_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings about servers without a listener."""
    return [
        record.getMessage()
        for record in caplog.records
        if "does not listen" in record.msg and record.levelno == logging.WARNING
    ]


def run(loop_factory: LoopFactory, service: Any, body: Any = None) -> None:
    """Run an entrypoint with a service, and `body` in its block."""

    async def main() -> None:
        async with entrypoint(service, log_config=False, catch_signals=()):
            if body is not None:
                await body()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("kind", kinds())
def test_a_start_that_does_not_call_its_base_is_a_warning(
    kind: str, loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    base: Any
    base, needed = kinds()[kind]

    class NotListening(Handles, base):  # type: ignore[misc]
        async def start(self) -> None:
            """Return at once."""

    service = NotListening(address="127.0.0.1", port=0, name="culprit", **needed)
    run(loop_factory, service)
    (message,) = listener_warnings(caplog)
    assert "culprit" in message


@pytest.mark.parametrize("kind", kinds())
def test_a_start_that_runs_on_without_a_listener_is_a_warning(
    kind: str, loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    base: Any
    base, needed = kinds()[kind]

    class NotListening(Handles, base):  # type: ignore[misc]
        async def start(self) -> None:
            self.start_event.set()
            await asyncio.Event().wait()

    service = NotListening(address="127.0.0.1", port=0, name="culprit", **needed)
    run(loop_factory, service, lambda: eventually(lambda: listener_warnings(caplog)))
    assert len(listener_warnings(caplog)) == 1


@pytest.mark.parametrize("kind", kinds())
def test_a_start_that_listens_before_or_after_it_is_ready_is_no_warning(
    kind: str, loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    base: Any
    base, needed = kinds()[kind]

    class Early(Handles, base):  # type: ignore[misc]
        async def start(self) -> None:
            self.start_event.set()
            await super().start()
            await asyncio.Event().wait()

    async def wait_past_the_check() -> None:
        loop = asyncio.get_running_loop()
        past = asyncio.Event()
        loop.call_later(1.2, past.set)
        await past.wait()

    for cls, body in ((type("Usual", (Handles, base), {}), None), (Early, wait_past_the_check)):
        run(loop_factory, cls(address="127.0.0.1", port=0, **needed), body)
    assert not listener_warnings(caplog)


def test_a_tls_server_without_a_listener_is_a_warning(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    class NotListening(Handles, TLSServer):
        async def start(self) -> None:
            """Return at once."""

    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    for path in (cert, key):
        path.write_bytes(b"")
    run(loop_factory, NotListening(address="127.0.0.1", port=0, cert=str(cert), key=str(key)))
    assert len(listener_warnings(caplog)) == 1


@pytest.mark.parametrize("where", ["server", "listener", "listeners", "transport", "sock"])
def test_a_subclass_with_a_listener_of_its_own_is_no_warning(
    where: str, loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    class Own(Handles, TCPServer):
        async def start(self) -> None:
            loop = asyncio.get_running_loop()
            if where == "transport":
                self.transport, _ = await loop.create_datagram_endpoint(
                    asyncio.DatagramProtocol, ("127.0.0.1", 0)
                )
            elif where == "sock":
                self.own = socket.create_server(("127.0.0.1", 0))
            else:
                server = await asyncio.start_server(self.handle_client, "127.0.0.1", 0)
                setattr(self, where, [server] if where == "listeners" else server)

        async def stop(self, exception: BaseException | None = None) -> None:
            with contextlib.suppress(AttributeError):
                self.transport.close()
            with contextlib.suppress(AttributeError):
                self.own.close()
            for name in ("server", "listener"):
                if getattr(self, name, None) is not None:
                    getattr(self, name).close()
            for server in getattr(self, "listeners", ()):
                server.close()

    run(loop_factory, Own(address="127.0.0.1", port=0))
    assert not listener_warnings(caplog)


def test_a_socket_passed_as_sock_is_not_a_listener(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    class NotListening(Handles, TCPServer):
        async def start(self) -> None:
            """Return at once."""

    with socket.create_server(("127.0.0.1", 0)) as sock:
        run(loop_factory, NotListening(sock=sock))
    assert len(listener_warnings(caplog)) == 1
