"""Restart a crashed service, together with the services that depend on it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from svcrun._lifecycle.backoff import backoff_of, report_crash
from svcrun._lifecycle.dependency_graph import with_dependants
from svcrun._util.current_service import on_behalf_of
from svcrun._util.eager import start_eagerly
from svcrun._util.hints import TYPE_CHECKING, Protocol
from svcrun._util.raising import one_line
from svcrun.errors import ShuttingDown, show
from svcrun.service.base import Service, dependencies

if TYPE_CHECKING:
    from collections.abc import Iterable

    from svcrun._lifecycle.service_record import ServiceRecord
    from svcrun.restart import Restart

log = logging.getLogger("svcrun.lifecycle")

__all__ = ("Restarter",)


class RestartOwner(Protocol):
    """The methods of a supervisor that a :class:`Restarter` calls."""

    restarters: set[Restarter]

    async def stop_records(
        self, records: Iterable[ServiceRecord], exception: BaseException | None
    ) -> None:
        """Stop the services of `records` and their dependants."""

    async def start_at_rest(
        self, services: Iterable[Service], restarter: Restarter | None = None
    ) -> None:
        """Start those of `services` that do not run."""

    def restart_failed(self, restarter: Restarter, error: BaseException) -> None:
        """Shut down because of `error`."""


class Restarter:
    """Restart a crashed service as its :class:`svcrun.Restart` policy says.

    The crashed service and its dependants are stopped. After the delay of the policy they are
    started together, and again after each failure, until that succeeds or the policy gives up.

    :param owner: the supervisor, which lists this restarter in ``restarters`` while it works.
    :param record: the record of the crashed service.
    """

    def __init__(
        self,
        owner: RestartOwner,
        record: ServiceRecord,
        policy: Restart,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._owner = owner
        self._crashed = record.service
        self._policy = policy
        self._backoff = backoff_of(record.service)
        self._failures: list[tuple[Service, BaseException]] = []
        self._loop = loop
        self.services = [other.service for other in with_dependants([record]) if other.is_up]
        """The services that it restarts."""
        self.task: asyncio.Task[None] | None = None

    def begin(self, record: ServiceRecord, error: BaseException) -> None:
        """Log the crash, and restart in a new task unless the policy gives up."""
        delay = self._next_delay()
        is_new = self._backoff.is_new(record.service, error)
        report_crash(record.service, error, is_new=is_new)
        if delay is None:
            self._give_up(error)
        else:
            name = f"restart of {show(record.service)}"
            self.task = start_eagerly(self._run(record, error, delay), self._loop, name=name)

    def exclude(self, services: Iterable[Service]) -> None:
        """Exclude `services`, and the services that need them, from the restart.

        The caller has stopped them for good, or restarts them itself.
        """
        lost = _with_dependants(self.services, services)
        if lost:
            self.services = [s for s in self.services if id(s) not in lost]

    def start_failed(self, service: Service, error: BaseException) -> None:
        """Record that ``start()`` of `service` raised `error`, to log it with the next delay."""
        self._failures.append((service, error))

    async def _run(self, record: ServiceRecord, error: BaseException, delay: float | None) -> None:
        await self._owner.stop_records([record], error)
        with on_behalf_of(self._crashed):
            log.warning("%s: restarting in %.1f s", show(self._crashed), delay)
        while delay is not None:
            await asyncio.sleep(delay)
            try:
                await self._start()
            except asyncio.CancelledError:
                raise
            except BaseException as failure:  # noqa: BLE001 - counted, and raised at the limit
                # Race: a restart that the shutdown cancels may raise another exception.
                is_cancelled = self not in self._owner.restarters
                delay = None if is_cancelled else self._next_delay()
                self._report(failure, delay)
                if is_cancelled:
                    return
                error = failure
            else:
                self._owner.restarters.discard(self)
                return
        try:
            self._give_up(error)
        finally:
            del error  # its traceback refers to this frame: a reference cycle

    def _give_up(self, error: BaseException) -> None:
        self._backoff.report_end(self._crashed, self._policy)
        self._owner.restart_failed(self, error)

    def _report(self, error: BaseException, delay: float | None) -> None:
        failures, self._failures = self._failures, []
        for service, failure in failures:
            self._backoff.report_start(service, failure, delay)
        if not failures and not isinstance(error, ShuttingDown):
            with on_behalf_of(self._crashed):
                log.error("%s could not be restarted: %s", show(self._crashed), one_line(error))

    async def _start(self) -> None:
        self._hand_over()
        started: list[Service] = []
        # Race: another restarter may hand over its services during the start.
        while started is not self.services:
            started = self.services
            await self._owner.start_at_rest(started, self)

    def _next_delay(self) -> float | None:
        return self._backoff.next_delay(self._policy, self._loop.time())

    def _hand_over(self) -> None:
        """Leave a service to the other restarter, if the latter restarts one of its dependencies.

        A service can depend on two crashed services. It must not start before both run again.
        """
        for other in self._owner.restarters - {self}:
            theirs = _with_dependants(self.services, other.services)
            if theirs:
                self.services = [s for s in self.services if id(s) not in theirs]
                theirs.update((id(s), s) for s in other.services)
                other.services = list(theirs.values())


def _with_dependants(services: Iterable[Service], needed: Iterable[Service]) -> dict[int, Service]:
    """Return, by id, the `services` that are in `needed` or depend on one of these.

    The records of stopped services are gone, so this reads ``depends_on``.
    """
    found: dict[int, Service] = {}
    queue = deque(needed)
    while queue:
        service = queue.popleft()
        for other in services:
            if id(other) not in found and (other is service or _depends(other, service)):
                found[id(other)] = other
                queue.append(other)
    return found


def _depends(service: Service, other: Service) -> bool:
    return any(
        isinstance(other, dependency) if isinstance(dependency, type) else other is dependency
        for dependency in dependencies(service)
    )
