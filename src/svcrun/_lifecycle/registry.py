"""The records of the services that a supervisor looks after."""

from __future__ import annotations

from svcrun._lifecycle.dependency_graph import in_start_order, link, unlink
from svcrun._lifecycle.history import History
from svcrun._lifecycle.service_record import ServiceRecord
from svcrun._util.hints import TYPE_CHECKING
from svcrun.errors import ServiceInUse
from svcrun.service.base import Service, state_of
from svcrun.state import ServiceState

if TYPE_CHECKING:
    from collections.abc import Iterable, ValuesView

__all__ = ("Registry",)

IN_USE = (ServiceState.STARTING, ServiceState.RUNNING, ServiceState.STOPPING)


class Registry:
    """The records of all services that are not at rest, in the order they were given.

    Any thread may read it: ``list()`` copies the records while no other thread runs.
    """

    def __init__(self) -> None:
        self._records: dict[int, ServiceRecord] = {}
        self._history: History | None = None

    def get(self, service: Service) -> ServiceRecord | None:
        """Return the record of `service`, None if it is at rest."""
        return self._records.get(id(service))

    @property
    def records(self) -> ValuesView[ServiceRecord]:
        """All records."""
        return self._records.values()

    @property
    def active(self) -> tuple[Service, ...]:
        """The services that were started, and whose stop has not ended."""
        return tuple(
            record.service
            for record in list(self.records)
            if record.needs_stop or record.state is ServiceState.STOPPING
        )

    @property
    def running(self) -> list[Service]:
        """The services that run, each after those that it requires."""
        return [
            record.service
            for record in in_start_order(self.records)
            if record.state is ServiceState.RUNNING
        ]

    def add(self, services: Iterable[Service]) -> list[ServiceRecord]:
        """Create records of those services that have none, and connect them with the others.

        :raises ValueError: if another entrypoint runs a service, or a dependency is invalid.
        """
        added: dict[int, ServiceRecord] = {}
        for service in services:
            key = id(service)
            if key in self._records or key in added:
                continue
            if state_of(service) in IN_USE:
                raise ServiceInUse(service)
            record = added[key] = ServiceRecord(service)
            if self._history is not None:
                record.history = self._history.open(service)
        link(added.values(), self.records)
        self._records.update(added)
        return list(added.values())

    def remove(self, record: ServiceRecord) -> None:
        """Remove the record of a service that is at rest. Idempotent."""
        if self.get(record.service) is record:
            del self._records[id(record.service)]
        if record.requires:
            unlink(record)
        if record.waiter is not None:
            record.wake()

    def record_history(self) -> History:
        """Return the history of the services, which begins with the first call."""
        if self._history is None:
            self._history = History()
            for record in self.records:
                record.history = self._history.open(record.service)
        return self._history
