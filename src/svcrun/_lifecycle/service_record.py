"""A service in the hands of its supervisor."""

from __future__ import annotations

import asyncio
import logging

from svcrun._util.current_service import current_service, on_behalf_of
from svcrun._util.eager import start_eagerly
from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun.errors import IllegalTransition, show
from svcrun.service._internals import internals_of
from svcrun.state import ServiceState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine

    from svcrun._lifecycle.backoff import Backoff
    from svcrun.service._internals import StartEvent
    from svcrun.service.base import Service

    Undo = Callable[..., Coroutine[Any, Any, None]]

log = logging.getLogger("svcrun.lifecycle")

__all__ = ("NO_DEPENDANTS", "ServiceRecord", "transitions_are_logged")

NO_DEPENDANTS: dict[ServiceRecord, None] = {}
"""The dependants of most records: a set that keeps its order, shared until there is a first
member."""


def transitions_are_logged() -> bool:
    """Tell whether moves of records are to be logged."""
    return log.isEnabledFor(logging.DEBUG)


class ServiceRecord:
    """What a supervisor knows of one service.

    :attr:`needs_stop` says that the service was started and its ``stop()`` not called since. It
    alone decides whether ``stop()`` is called, so that no way to the end can forget it or do it
    twice.
    """

    __slots__ = (
        "backoff",
        "dependants",
        "failed",
        "internals",
        "logs_transitions",
        "needs_stop",
        "requires",
        "service",
        "shutdown",
        "start_cancelled",
        "start_traversal",
        "startup",
        "stop_cancelled",
        "stop_task",
        "stop_traversal",
        "task",
        "timer",
        "transition",
        "undo",
    )

    def __init__(self, service: Service) -> None:
        self.service = service
        self.internals = internals_of(service)
        self.requires: Collection[ServiceRecord] = ()
        self.dependants = NO_DEPENDANTS
        self.task: asyncio.Task[Any] | None = None  # runs start(), until that has ended
        self.stop_task: asyncio.Task[Any] | None = None  # runs stop(), until that has ended
        self.timer: asyncio.TimerHandle | None = None  # limits the start() or stop() that runs
        self.startup: Any = None  # the Startup that is starting it
        self.backoff: Backoff | None = None  # since its first start() failed
        self.start_traversal: Any = None  # the Traversal that starts it, or did last
        self.stop_traversal: Any = None  # the Traversal that stops it, or did last
        self.shutdown: Any = None  # the Shutdown that is stopping it
        self.start_cancelled = False  # whether we have cancelled start()
        self.stop_cancelled = False  # whether we have cancelled stop()
        self.failed = False  # whether stop(), or start() meanwhile, raised or hung
        self.needs_stop = False
        self.undo: Undo | None = None  # what is owed instead of stop(), after a failed start()
        self.transition: asyncio.Future[None] | None = None
        # Whether transitions are logged; read once for all of a start, or a stop.
        self.logs_transitions = False

    def __repr__(self) -> str:
        return f"<ServiceRecord {show(self.service)}>"

    @property
    def state(self) -> ServiceState:
        """The state of the service."""
        return self.internals.state

    @property
    def start_event(self) -> StartEvent:
        """The event that the service sets when it is ready."""
        try:
            given: object = self.service.start_event
        except Exception:  # noqa: BLE001 - a property of a subclass may raise anything
            given = None
        return self.internals.adopt(given)

    def begin(
        self,
        method: Callable[..., Coroutine[Any, Any, Any]],
        loop: asyncio.AbstractEventLoop,
        *args: Any,
    ) -> asyncio.Task[Any]:
        """Run a method of the service, in a task and a context in which the service is at work."""
        service = self.service
        token = current_service.set(service)
        try:
            return start_eagerly(method(*args), loop, name=type(service).__qualname__)
        finally:
            current_service.reset(token)

    def move_to(self, state: ServiceState) -> None:
        """Move the service to `state`.

        :raises IllegalTransition: if its present state does not allow that.
        """
        internals = self.internals
        old = internals.state
        if state not in old.successors:
            raise IllegalTransition(self.service, old, state)
        internals.state = state
        if self.logs_transitions:
            with on_behalf_of(self.service):
                log.debug("%s: was %s", show(self.service), old.name)
        if self.transition is not None:
            self.wake()

    @property
    def is_at_rest(self) -> bool:
        """Whether there is nothing to stop, nor being stopped."""
        return (
            not self.needs_stop
            and self.shutdown is None
            and self.internals.state is not ServiceState.STARTING
        )

    @property
    def is_up(self) -> bool:
        """Whether the service was started and nobody has begun to stop it."""
        return self.needs_stop and self.shutdown is None

    async def wait_for_transition(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for the next move, or until there will be none."""
        if self.transition is None:
            self.transition = loop.create_future()
        await asyncio.shield(self.transition)

    def wake(self) -> None:
        """Resume those who wait for a move."""
        if self.transition is not None:
            self.transition.set_result(None)
            self.transition = None

    def cancel_timer(self) -> None:
        """Forget the time limit."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
