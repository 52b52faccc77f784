"""A service in the hands of its supervisor."""

from __future__ import annotations

import asyncio
import logging

from svcrun._util.current_service import current_service, on_behalf_of
from svcrun._util.eager import start_eagerly
from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun.errors import IllegalTransition, show
from svcrun.service._record import record_of
from svcrun.state import ServiceState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine

    from svcrun._lifecycle.backoff import Backoff
    from svcrun.service._record import StartEvent
    from svcrun.service.base import Service

    Undo = Callable[..., Coroutine[Any, Any, None]]

log = logging.getLogger("svcrun.lifecycle")

__all__ = ("NOBODY", "Unit", "traces")

NOBODY: dict[Unit, None] = {}
"""The dependants of most units: a set that keeps its order, shared until there is a first
member."""


def traces() -> bool:
    """Tell whether moves of units are to be logged."""
    return log.isEnabledFor(logging.DEBUG)


class Unit:
    """What a supervisor knows of one service.

    :attr:`needs_stop` says that the service was started and its ``stop()`` not called since. It
    alone decides whether ``stop()`` is called, so that no way to the end can forget it or do it
    twice.
    """

    __slots__ = (
        "backoff",
        "dependants",
        "failed",
        "in_startup",
        "in_sweep",
        "moved",
        "needs_stop",
        "record",
        "requires",
        "service",
        "start_cancelled",
        "start_walk",
        "stop_cancelled",
        "stop_task",
        "stop_walk",
        "task",
        "timer",
        "traced",
        "undo",
    )

    def __init__(self, service: Service) -> None:
        self.service = service
        self.record = record_of(service)
        self.requires: Collection[Unit] = ()
        self.dependants = NOBODY
        self.task: asyncio.Task[Any] | None = None  # runs start(), until that has ended
        self.stop_task: asyncio.Task[Any] | None = None  # runs stop(), until that has ended
        self.timer: asyncio.TimerHandle | None = None  # limits the start() or stop() that runs
        self.in_startup: Any = None  # the Startup that is starting it
        self.backoff: Backoff | None = None  # since its first start() failed
        self.start_walk: Any = None  # the Walk that starts it, or did last
        self.stop_walk: Any = None  # the Walk that stops it, or did last
        self.in_sweep: Any = None  # the Sweep that is stopping it
        self.start_cancelled = False  # whether we have cancelled start()
        self.stop_cancelled = False  # whether we have cancelled stop()
        self.failed = False  # whether stop(), or start() meanwhile, raised or hung
        self.needs_stop = False
        self.undo: Undo | None = None  # what is owed instead of stop(), after a failed start()
        self.moved: asyncio.Future[None] | None = None
        self.traced = False  # whether moves are logged; asked once for all of a start, or a stop

    def __repr__(self) -> str:
        return f"<Unit {show(self.service)}>"

    @property
    def state(self) -> ServiceState:
        """The state of the service."""
        return self.record.state

    @property
    def start_event(self) -> StartEvent:
        """The event that the service sets when it is ready."""
        try:
            given: object = self.service.start_event
        except Exception:  # noqa: BLE001 - a property of a subclass may raise anything
            given = None
        return self.record.adopt(given)

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

    def move(self, state: ServiceState) -> None:
        """Move the service to `state`.

        :raises IllegalTransition: if its present state does not allow that.
        """
        record = self.record
        old = record.state
        if state not in old.successors:
            raise IllegalTransition(self.service, old, state)
        record.state = state
        if self.traced:
            with on_behalf_of(self.service):
                log.debug("%s: was %s", show(self.service), old.name)
        if self.moved is not None:
            self.wake()

    @property
    def at_rest(self) -> bool:
        """Whether there is nothing to stop, nor being stopped."""
        return (
            not self.needs_stop
            and self.in_sweep is None
            and self.record.state is not ServiceState.STARTING
        )

    @property
    def is_up(self) -> bool:
        """Whether the service was started and nobody has begun to stop it."""
        return self.needs_stop and self.in_sweep is None

    async def next_move(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for the next move, or until there will be none."""
        if self.moved is None:
            self.moved = loop.create_future()
        await asyncio.shield(self.moved)

    def wake(self) -> None:
        """Resume those who wait for a move."""
        if self.moved is not None:
            self.moved.set_result(None)
            self.moved = None

    def end_timer(self) -> None:
        """Forget the time limit."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
