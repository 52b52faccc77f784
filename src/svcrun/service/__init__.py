"""The services that need no extra."""

from __future__ import annotations

from svcrun._util.hints import TYPE_CHECKING
from svcrun._util.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from svcrun.service.aiohttp import (
        AIOHTTPService as AIOHTTPService,
        AIOHTTPSSLService as AIOHTTPSSLService,
    )
    from svcrun.service.asgi import (
        ASGIHTTPService as ASGIHTTPService,
        ASGIHTTPSSLService as ASGIHTTPSSLService,
    )
    from svcrun.service.base import Service, ServiceMeta, SimpleClient, SimpleServer, TaskStoreBase
    from svcrun.service.cron import CronService as CronService
    from svcrun.service.graceful import GracefulService
    from svcrun.service.health import HealthService
    from svcrun.service.periodic import PeriodicService
    from svcrun.service.process import ProcessService, RespawningProcessService
    from svcrun.service.profiler import Profiler
    from svcrun.service.raven import RavenSender as RavenSender
    from svcrun.service.sentry import SentrySender as SentrySender
    from svcrun.service.tcp import RobustTCPClient, TCPClient, TCPServer
    from svcrun.service.tls import RobustTLSClient, TLSClient, TLSServer
    from svcrun.service.tracer import MemoryTracer
    from svcrun.service.udp import UDPServer
    from svcrun.service.uvicorn import UvicornService as UvicornService
    from svcrun.service.watchdog import LoopWatchdog

__all__ = (
    "GracefulService",
    "HealthService",
    "LoopWatchdog",
    "MemoryTracer",
    "PeriodicService",
    "ProcessService",
    "Profiler",
    "RespawningProcessService",
    "RobustTCPClient",
    "RobustTLSClient",
    "Service",
    "ServiceMeta",
    "SimpleClient",
    "SimpleServer",
    "TCPClient",
    "TCPServer",
    "TLSClient",
    "TLSServer",
    "TaskStoreBase",
    "UDPServer",
)

_HOMES = {
    "GracefulService": "svcrun.service.graceful",
    "HealthService": "svcrun.service.health",
    "LoopWatchdog": "svcrun.service.watchdog",
    "MemoryTracer": "svcrun.service.tracer",
    "PeriodicService": "svcrun.service.periodic",
    "ProcessService": "svcrun.service.process",
    "Profiler": "svcrun.service.profiler",
    "RespawningProcessService": "svcrun.service.process",
    "RobustTCPClient": "svcrun.service.tcp",
    "RobustTLSClient": "svcrun.service.tls",
    "Service": "svcrun.service.base",
    "ServiceMeta": "svcrun.service.base",
    "SimpleClient": "svcrun.service.base",
    "SimpleServer": "svcrun.service.base",
    "TCPClient": "svcrun.service.tcp",
    "TCPServer": "svcrun.service.tcp",
    "TLSClient": "svcrun.service.tls",
    "TLSServer": "svcrun.service.tls",
    "TaskStoreBase": "svcrun.service.base",
    "UDPServer": "svcrun.service.udp",
}

# The services that need an extra, whose modules name it if it is not installed. They are not in
# `__all__`, so that an import of all names works without extras.
_EXTRAS = {
    "AIOHTTPSSLService": "svcrun.service.aiohttp",
    "AIOHTTPService": "svcrun.service.aiohttp",
    "ASGIHTTPSSLService": "svcrun.service.asgi",
    "ASGIHTTPService": "svcrun.service.asgi",
    "CronService": "svcrun.service.cron",
    "RavenSender": "svcrun.service.raven",
    "SentrySender": "svcrun.service.sentry",
    "UvicornService": "svcrun.service.uvicorn",
}

if not TYPE_CHECKING:
    __getattr__ = lazy_exports(__name__, _HOMES | _EXTRAS)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
