"""The history of services: crashes, restarts and times, for threads that report them."""

from __future__ import annotations

import time
from weakref import ref

from svcrun._util.hints import TYPE_CHECKING
from svcrun._util.raising import one_line
from svcrun.state import ServiceState

if TYPE_CHECKING:
    from svcrun.service.base import Service

__all__ = ("History", "ServiceHistory")

STARTING, RUNNING = ServiceState.STARTING, ServiceState.RUNNING


class ServiceHistory:
    """The crashes, restarts and times of one service since its history began."""

    __slots__ = (
        "_moved_at",
        "crashes",
        "last_error",
        "restarts",
        "service",
        "since",
        "start_seconds",
        "stop_seconds",
    )

    def __init__(self, service: ref[Service]) -> None:
        self.service = service
        self.since: float | None = None
        """When its state changed last, in seconds since the epoch; None if it has not changed."""
        self.crashes = 0
        """The number of crashes."""
        self.restarts = 0
        """The number of starts after a crash, of this service or one that it depends on."""
        self.start_seconds: float | None = None
        """The seconds that its last start took; None before the first one."""
        self.stop_seconds: float | None = None
        """The seconds that its last ``stop()`` took; None before the first one."""
        self.last_error: str | None = None
        """The last error of a start, a stop or a crash."""
        self._moved_at = 0.0

    def move(self, old: ServiceState, new: ServiceState) -> None:
        """Record that the state has changed."""
        now = time.monotonic()
        if old is STARTING and new is RUNNING:
            self.start_seconds = now - self._moved_at
        self._moved_at = now
        self.since = time.time()

    def stopped(self) -> None:
        """Record that ``stop()`` has ended. The state changes when all services have stopped."""
        self.stop_seconds = time.monotonic() - self._moved_at

    def crash(self, error: BaseException) -> None:
        """Record that the service crashed."""
        self.crashes += 1
        self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Record that the service failed. The error itself may refer to any object."""
        self.last_error = one_line(error)


class History:
    """The histories of the services of a supervisor.

    Only the loop adds to it. Any thread may read it: ``list()`` copies the histories while no other
    thread runs.
    """

    def __init__(self) -> None:
        self._of: dict[int, ServiceHistory] = {}

    def of(self, service: Service) -> ServiceHistory | None:
        """Return the history of `service`, None if it has none."""
        found = self._of.get(id(service))
        return found if found is not None and found.service() is service else None

    def services(self) -> list[Service]:
        """Return the services that have a history and still exist, in the order of their start."""
        found = [history.service() for history in list(self._of.values())]
        return [service for service in found if service is not None]

    def open(self, service: Service) -> ServiceHistory:
        """Return the history of `service`, which begins now if it has none."""
        found = self.of(service)
        if found is None:
            key = id(service)
            # The identity of a service is not used again before the callback has run.
            reference = ref(service, lambda _: self._of.pop(key, None))
            found = self._of[key] = ServiceHistory(reference)
        return found
