"""The states of a service, and the transitions between them."""

from __future__ import annotations

import enum

__all__ = ("TRANSITIONS", "ServiceState")


@enum.unique
class ServiceState(enum.Enum):
    """The state of a service; read it as :attr:`svcrun.Service.state`.

    A service starts in NEW. Only the transitions in :data:`svcrun.state.TRANSITIONS` occur.

    >>> from svcrun import Service
    >>> class Nothing(Service):
    ...     async def start(self): ...
    >>> Nothing().state
    <ServiceState.NEW: 'new'>
    """

    NEW = "new"
    """It was created and never started."""

    STARTING = "starting"
    """``start()`` runs, and the service is not ready yet."""

    RUNNING = "running"
    """It is ready: ``start()`` returned, or set ``start_event`` and runs on."""

    STOPPING = "stopping"
    """``stop()`` runs, or ``start()`` is being cancelled."""

    STOPPED = "stopped"
    """It has stopped; it can be started again."""

    FAILED = "failed"
    """``start()`` or ``stop()`` raised, or did not end in time; it can be started again."""

    successors: tuple[ServiceState, ...]


_NEW, _STARTING, _RUNNING, _STOPPING, _STOPPED, _FAILED = ServiceState

TRANSITIONS: dict[ServiceState, tuple[ServiceState, ...]] = {
    _NEW: (_STARTING,),
    _STARTING: (_RUNNING, _STOPPED, _FAILED),
    _RUNNING: (_STOPPING, _FAILED),
    _STOPPING: (_STOPPED, _FAILED),
    _STOPPED: (_STARTING,),
    # A service that fails after it was ready still has to be stopped.
    _FAILED: (_STARTING, _STOPPING),
}
"""From each state, the states that may follow it."""

# Each member has its row of the table as well: a look-up in the dict would call Enum.__hash__(), in
# Python, at each transition of each service.
for _state, _successors in TRANSITIONS.items():
    _state.successors = _successors
