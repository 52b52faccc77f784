"""The states of a service and the moves between them."""

from __future__ import annotations

import enum

__all__ = ("TRANSITIONS", "ServiceState")


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

    successors: tuple[ServiceState, ...]


_NEW, _STARTING, _RUNNING, _STOPPING, _STOPPED, _FAILED = ServiceState

TRANSITIONS: dict[ServiceState, tuple[ServiceState, ...]] = {
    _NEW: (_STARTING,),
    _STARTING: (_RUNNING, _STOPPED, _FAILED),
    _RUNNING: (_STOPPING, _FAILED),
    _STOPPING: (_STOPPED, _FAILED),
    _STOPPED: (_STARTING,),
    # A service that failed while it ran is still owed its stop().
    _FAILED: (_STARTING, _STOPPING),
}
"""From each state, the states that may follow it."""

# The same on the members: looking a member up in a dict would hash it in Python, at every move of
# every service.
for _state, _successors in TRANSITIONS.items():
    _state.successors = _successors
