"""The base classes of the package, and how each is made."""

from importlib import import_module
from typing import Any

import pytest

from tests.conftest import Certificates


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answer requests, and know nothing of a lifespan."""
    if scope["type"] == "lifespan":
        raise NotImplementedError
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body"})


def make_application() -> Any:
    return import_module("aiohttp.web").Application()


PLACE = {"address": "127.0.0.1", "port": 0}
DSN = {"sentry_dsn": "http://key@127.0.0.1:9/1"}

# Each base, and the keywords that it does not start without.
BASES: dict[str, dict[str, Any]] = {
    "aiohttp:AIOHTTPService": {**PLACE, "app": make_application},
    "aiohttp:AIOHTTPSSLService": {**PLACE, "app": make_application},
    "asgi:ASGIHTTPService": {**PLACE, "app": application},
    "asgi:ASGIHTTPSSLService": {**PLACE, "app": application},
    "base:Service": {},
    "base:SimpleClient": {},
    "base:SimpleServer": {},
    "base:TaskStoreBase": {},
    "cron:CronService": {},
    "graceful:GracefulService": {},
    "periodic:PeriodicService": {"interval": 60, "delay": 60},
    "profiler:Profiler": {},
    "raven:RavenSender": DSN,
    "sentry:SentrySender": DSN,
    "tcp:TCPServer": PLACE,
    "tls:TLSServer": PLACE,
    "tracer:MemoryTracer": {},
    "udp:UDPServer": PLACE,
    "uvicorn:UvicornService": {**PLACE, "app": application, "log_config": None},
    "watchdog:LoopWatchdog": {},
}
EXTRAS = {"aiohttp", "asgi", "cron", "raven", "sentry", "uvicorn"}


def find_base(base: str) -> Any:
    """Return the base class, or skip the test if its extra is not installed."""
    module, _, name = base.partition(":")
    if module in EXTRAS:
        pytest.importorskip(
            {"asgi": "aiohttp_asgi", "cron": "croniter", "sentry": "sentry_sdk"}.get(module, module)
        )
    return getattr(import_module(f"svcrun.service.{module}"), name)


def keywords_of(base: str, certificates: Certificates) -> dict[str, Any]:
    """Return the keywords that the base class does not start without."""
    keywords = dict(BASES[base])
    if base.endswith(("SSLService", "TLSServer")):
        keywords |= {"cert": certificates.server_cert, "key": certificates.server_key}
    return keywords
