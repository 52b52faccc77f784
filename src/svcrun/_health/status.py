"""The status of a program as other threads see it: its services, and whether it is ready."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from svcrun._util.current_service import name_of
from svcrun._util.redaction import redact
from svcrun.state import ServiceState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from svcrun._health.checks import HealthChecks
    from svcrun._util.observed_entrypoint import ObservedEntrypoint, ObservedPool

__all__ = ("ProgramStatus", "ServiceDetails", "ServiceStatus")


UNSETTLED: Final = frozenset({ServiceState.STARTING, ServiceState.STOPPING})
"""The states in which a service makes the program not ready.

One that was stopped for good, or that crashed with ``on_crash="ignore"``, does not count.
"""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """The status of one service."""

    label: str
    """Its name, or that of its class; ``#2`` and so on follow for services of the same name."""
    service: Any
    state: str
    problem: str | None
    """Why it is not ready, None if it is or does not count."""
    detail: str = ""
    """The error of its health check, without secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDetails:
    """The status and the history of one service, without secrets."""

    label: str
    state: str
    problem: str | None
    """Why it is not ready, with the error of its health check."""
    requires: list[str]
    """The labels of the services that it depends on."""
    since: float | None
    """When its state changed last, in seconds since the epoch; None if that is not known."""
    crashes: int
    restarts: int
    next_calls: list[tuple[float, str]]
    """The times and names of its next calls, if it makes calls on a schedule."""
    last_error: str


class ProgramStatus:
    """The status of a program; any thread may ask for it.

    :param program: the entrypoint.
    :param checks: the health checks of its services.
    :param state_of: returns the state of a service.
    :param dependencies: returns the services, and the classes of services, that a service needs.
    """

    def __init__(
        self,
        program: ObservedEntrypoint,
        checks: HealthChecks,
        state_of: Callable[[Any], ServiceState],
        dependencies: Callable[[Any], Iterable[Any]],
    ) -> None:
        self._program = program
        self._state_of = state_of
        self._dependencies = dependencies
        self._checks = checks
        self.history = program.supervisor.record_history()

    @property
    def is_ready(self) -> bool:
        """Whether the program has started, and nothing has requested a shutdown."""
        return self._program.is_ready

    @property
    def pool(self) -> ObservedPool | None:
        """The thread pool of the program."""
        return self._program.facilities.pool

    def services(self) -> list[ServiceStatus]:
        """Return the status of all services, in the order they were given."""
        restarting = set(map(id, self._program.supervisor.restarting))
        counts: dict[str, int] = {}
        found = []
        for service in self._known():
            name = name_of(service)
            counts[name] = number = counts.get(name, 0) + 1
            label = name if number == 1 else f"{name}#{number}"
            found.append(self._status(label, service, is_restarting=id(service) in restarting))
        return found

    def details(self) -> list[ServiceDetails]:
        """Return the status and the history of all services, in the order they were given."""
        services = self.services()
        labels = {id(one.service): one.label for one in services}
        return [self._details(one, services, labels) for one in services]

    def _details(
        self, status: ServiceStatus, services: Iterable[ServiceStatus], labels: dict[int, str]
    ) -> ServiceDetails:
        service = status.service
        history = self.history.of(service)
        problem = status.problem
        requires: list[str] = []
        for needed in self._dependencies(service):
            if isinstance(needed, type):
                requires += [o.label for o in services if isinstance(o.service, needed)]
            elif id(needed) in labels:
                requires.append(labels[id(needed)])
        return ServiceDetails(
            label=status.label,
            state=status.state,
            problem=f"{problem} ({status.detail})" if problem and status.detail else problem,
            requires=requires,
            since=None if history is None else history.since,
            crashes=0 if history is None else history.crashes,
            restarts=0 if history is None else history.restarts,
            next_calls=sorted(service._svcrun_next_calls()),  # noqa: SLF001
            last_error=self._redact((history and history.last_error) or "", service),
        )

    def _redact(self, error: str, service: Any) -> str:
        return redact(error, service._svcrun_given)

    def _known(self) -> list[Any]:
        program = self._program
        # A service that was stopped is shown as long as the program keeps it.
        given, active = program.services, program.supervisor.services
        return list({id(one): one for one in (*given, *active, *self.history.services())}.values())

    def _status(self, label: str, service: Any, *, is_restarting: bool) -> ServiceStatus:
        state = self._state_of(service)
        problem, detail = None, ""
        if state is ServiceState.RUNNING:
            detail = self._redact(self._checks.problem(service) or "", service)
            problem = "unhealthy" if detail else None
        elif is_restarting:
            problem = "restarting"
        elif state in UNSETTLED:
            problem = state.value
        return ServiceStatus(label, service, state.value, problem, detail)
