"""The services that need no extra."""

from __future__ import annotations

from svcrun._util.hints import TYPE_CHECKING
from svcrun._util.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from svcrun.service.base import Service, ServiceMeta, SimpleClient, SimpleServer, TaskStoreBase
    from svcrun.service.graceful import GracefulService
    from svcrun.service.periodic import PeriodicService
    from svcrun.service.profiler import Profiler
    from svcrun.service.tcp import TCPServer
    from svcrun.service.tls import TLSServer
    from svcrun.service.tracer import MemoryTracer
    from svcrun.service.udp import UDPServer
    from svcrun.service.watchdog import LoopWatchdog

__all__ = (
    "GracefulService",
    "LoopWatchdog",
    "MemoryTracer",
    "PeriodicService",
    "Profiler",
    "Service",
    "ServiceMeta",
    "SimpleClient",
    "SimpleServer",
    "TCPServer",
    "TLSServer",
    "TaskStoreBase",
    "UDPServer",
)

_HOMES = {
    "GracefulService": "svcrun.service.graceful",
    "LoopWatchdog": "svcrun.service.watchdog",
    "MemoryTracer": "svcrun.service.tracer",
    "PeriodicService": "svcrun.service.periodic",
    "Profiler": "svcrun.service.profiler",
    "Service": "svcrun.service.base",
    "ServiceMeta": "svcrun.service.base",
    "SimpleClient": "svcrun.service.base",
    "SimpleServer": "svcrun.service.base",
    "TCPServer": "svcrun.service.tcp",
    "TLSServer": "svcrun.service.tls",
    "TaskStoreBase": "svcrun.service.base",
    "UDPServer": "svcrun.service.udp",
}


if not TYPE_CHECKING:
    __getattr__ = lazy_exports(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
