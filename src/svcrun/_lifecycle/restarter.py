"""Bring a crashed service back, together with those that depend on it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from svcrun._lifecycle.backoff import Backoff
from svcrun._lifecycle.dependency_graph import with_dependants
from svcrun._util.current_service import on_behalf_of
from svcrun._util.eager import start_eagerly
from svcrun._util.hints import TYPE_CHECKING
from svcrun._util.raising import one_line
from svcrun.errors import ShuttingDown, show
from svcrun.service.base import Service, dependencies

if TYPE_CHECKING:
    from collections.abc import Iterable

    from svcrun._lifecycle.service_record import ServiceRecord
    from svcrun._lifecycle.supervisor import Supervisor
    from svcrun.restart import Restart

log = logging.getLogger("svcrun.lifecycle")

__all__ = ("Restarter",)


class Restarter:
    """Bring a crashed service back.

    Stop it and those that depend on it, wait, and start them again, until that succeeds.

    :param supervisor: does the stopping and the starting.
    :param record: what crashed.
    :param policy: says how long to wait, and when to give up.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        record: ServiceRecord,
        policy: Restart,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._supervisor = supervisor
        self._crashed = record.service
        self._policy = policy
        self._backoff = record.internals.backoff = record.internals.backoff or Backoff()
        self._failures: list[tuple[Service, BaseException]] = []
        self._loop = loop
        self._services = [u.service for u in with_dependants([record]) if u.is_up]
        self.task: asyncio.Task[None] | None = None

    def begin(self, record: ServiceRecord, error: BaseException) -> None:
        """Recover in a task of our own."""
        delay = self._next_delay()
        self._supervisor.report_crash(
            record.service, error, is_new=self._backoff.is_new(record.service, error)
        )
        if delay is None:
            self._give_up(error)
        else:
            self.task = start_eagerly(
                self._run(record, error, delay),
                self._loop,
                name=f"restart of {show(record.service)}",
            )

    def leave_out(self, services: Iterable[Service]) -> None:
        """Forget `services`, which are somebody else's now, and what can't run without them."""
        lost = _needing(self._services, services)
        if lost:
            self._services = [s for s in self._services if id(s) not in lost]

    def start_failed(self, service: Service, error: BaseException) -> None:
        """Record the `error` of a ``start()``, which is logged together with the next delay."""
        self._failures.append((service, error))

    async def _run(self, record: ServiceRecord, error: BaseException, delay: float | None) -> None:
        await self._supervisor.stop_records([record], error)
        with on_behalf_of(self._crashed):
            log.warning("%s: restarting in %.1f s", show(self._crashed), delay)
        while delay is not None:
            await asyncio.sleep(delay)
            try:
                await self._start()
            except asyncio.CancelledError:
                raise
            except BaseException as failure:  # noqa: BLE001 - counted, and raised at the limit
                # A cancelled restart may raise another exception than CancelledError.
                called_off = self not in self._supervisor.restarters
                delay = None if called_off else self._next_delay()
                self._report(failure, delay)
                if called_off:
                    return
                error = failure
            else:
                self._supervisor.recovered(self)
                return
        try:
            self._give_up(error)
        finally:
            del error  # its traceback refers to this frame: a reference cycle

    def _give_up(self, error: BaseException) -> None:
        self._backoff.report_end(self._crashed, self._policy)
        self._supervisor.fatal(self, error)

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
        while started is not self._services:  # others may have handed over theirs meanwhile
            started = self._services
            await self._supervisor.start_at_rest(started, self)

    def _next_delay(self) -> float | None:
        return self._backoff.next_delay(self._policy, self._loop.time())

    def _hand_over(self) -> None:
        """Leave what depends on a service that is still down to who brings that one back."""
        for other in self._supervisor.restarters - {self}:
            theirs = _needing(self._services, other._services)
            if theirs:
                self._services = [s for s in self._services if id(s) not in theirs]
                theirs.update((id(s), s) for s in other._services)
                other._services = list(theirs.values())


def _needing(services: Iterable[Service], needed: Iterable[Service]) -> dict[int, Service]:
    """Those of `services` that are in `needed` or depend on one of these, directly or not."""
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
