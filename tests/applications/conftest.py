"""The services that the applications of these tests are served by."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import PATIENCE, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from svcrun.service.base import Service
    from tests.applications.serving import Logged, Serve, Serving
    from tests.conftest import Certificates


def _errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = caplog.get_records("call") + caplog.get_records("teardown")
    return [caplog.handler.format(record) for record in records if record.levelno >= logging.ERROR]


# Of services without TLS and with it: their names, and the parameters of their certificates.
_NAMES = {
    "asgi": [("ASGIHTTPService", "", ""), ("ASGIHTTPSSLService", "cert", "key")],
    "uvicorn": [
        ("UvicornService", "", ""),
        ("UvicornService", "ssl_certfile", "ssl_keyfile"),
    ],
}


async def _start(service: Service) -> None:
    """Start a service as an entrypoint does: until it is done, or says that it runs."""
    starting = asyncio.create_task(service.start())
    running = asyncio.create_task(service.start_event.wait())
    await asyncio.wait({starting, running}, return_when=asyncio.FIRST_COMPLETED)
    running.cancel()
    if starting.done():
        await starting


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Logged:
    """Return and remove the logged errors; an error that remains fails the test."""

    def take() -> list[str]:
        errors = _errors(caplog)
        caplog.clear()
        return errors

    return take


@pytest.fixture(params=["asgi", "uvicorn"])
async def serve(
    request: pytest.FixtureRequest, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Serve]:
    """Serve applications by each kind of service; at the end of the test, nothing of them is left.

    A test takes the errors that it expects in the log by the fixture `logged`.
    """
    from tests.applications.serving import Serving, import_service

    module = import_service(request.param)
    before = asyncio.all_tasks()

    async with contextlib.AsyncExitStack() as stack:

        async def start(app: Any, *, tls: bool = False, **parameters: Any) -> Serving:
            parameters = {"address": "127.0.0.1", "port": 0, "app": app, **parameters}
            name, cert, key = _NAMES[request.param][tls]
            if tls:
                parameters[cert] = certificates.server_cert
                parameters[key] = certificates.server_key
            made = getattr(module, name)(**parameters)
            await _start(made)
            stack.push_async_callback(made.stop)
            return Serving(made, certificates if tls else None)

        yield start

        # A service that can't stop is to fail one test, not all of them.
        async with asyncio.timeout(PATIENCE):
            await stack.aclose()
    await eventually(lambda: not asyncio.all_tasks() - before - {asyncio.current_task()})
    assert _errors(caplog) == []
