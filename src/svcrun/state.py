"""The states of a service and the moves between them."""

import enum

from svcrun.errors import IllegalTransition

__all__ = ("TRANSITIONS", "ServiceState", "check_transition")


@enum.unique
class ServiceState(enum.Enum):
    """What a service is doing; read it as :attr:`svcrun.Service.state`.

    >>> from svcrun import Service
    >>> class Nothing(Service):
    ...     async def start(self): ...
    >>> Nothing().state
    <ServiceState.NEW: 'new'>
    """

    NEW = "new"
    """Made, never started."""

    STARTING = "starting"
    """``start()`` runs, and the service has not said yet that it is ready."""

    RUNNING = "running"
    """``start()`` returned, or set ``start_event``."""

    STOPPING = "stopping"
    """``stop()`` runs, or ``start()`` is being cancelled."""

    STOPPED = "stopped"
    """At rest again; it can be started once more."""

    FAILED = "failed"
    """``start()`` or ``stop()`` raised or did not end in time."""


TRANSITIONS = {
    ServiceState.NEW: frozenset({ServiceState.STARTING}),
    ServiceState.STARTING: frozenset({ServiceState.RUNNING, ServiceState.STOPPED, ServiceState.FAILED}),
    ServiceState.RUNNING: frozenset({ServiceState.STOPPING, ServiceState.FAILED}),
    ServiceState.STOPPING: frozenset({ServiceState.STOPPED, ServiceState.FAILED}),
    ServiceState.STOPPED: frozenset({ServiceState.STARTING}),
    # A service that failed while it ran is still owed its stop().
    ServiceState.FAILED: frozenset({ServiceState.STARTING, ServiceState.STOPPING}),
}
"""From each state, the states that may follow it."""


def check_transition(owner: object, old: ServiceState, new: ServiceState) -> None:
    """Refuse a move that :data:`TRANSITIONS` does not list.

    :raises IllegalTransition: naming the owner and both states.
    """
    if new not in TRANSITIONS[old]:
        raise IllegalTransition(owner, old, new)
