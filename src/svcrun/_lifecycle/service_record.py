"""The record that a supervisor keeps of a service, from its start to the end of its stop."""

from __future__ import annotations

import asyncio

from svcrun._util.current_service import current_service
from svcrun._util.eager import start_eagerly
from svcrun._util.hints import TYPE_CHECKING, Any, Protocol
from svcrun.errors import DependencyDown, StartCancelled, show
from svcrun.service._internals import internals_of
from svcrun.state import ServiceState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine

    from svcrun._lifecycle.backoff import Backoff
    from svcrun._lifecycle.history import ServiceHistory
    from svcrun.service._internals import StartEvent
    from svcrun.service.base import Service

__all__ = (
    "ServiceRecord",
    "StopInProgress",
    "cancellation_error",
    "start_outcome",
)


class StartInProgress(Protocol):
    """The start-up that a service belongs to, see :class:`svcrun._lifecycle.startup.Startup`."""

    def is_starting(self, record: ServiceRecord) -> bool:
        """Return whether the service has not started, but may still start."""

    def fail(self, error: BaseException, *, at_once: bool = False) -> None:
        """Record `error` and call no further ``start()``."""

    def schedule_retry(self, record: ServiceRecord, *, hung: bool) -> bool:
        """Schedule the next attempt, and return whether there will be one."""


class StopInProgress(Protocol):
    """The shutdown that a service belongs to, see :class:`svcrun._lifecycle.shutdown.Shutdown`."""

    ended: asyncio.Future[None]
    errors: list[BaseException]

    def waits_for(self, task: asyncio.Task[Any] | None) -> bool:
        """Return whether the shutdown waits for `task`, the current one."""

    def start_waits(self, record: ServiceRecord) -> None:
        """React to a ``start()`` that began the shutdown and waits now."""

    def start_ended(self, record: ServiceRecord, error: BaseException | None) -> None:
        """React to the end of a ``start()``."""


class TraversalInProgress(Protocol):
    """A traversal of the graph, see :class:`svcrun._lifecycle.dependency_graph.Traversal`."""

    def unfinished(self) -> Collection[ServiceRecord]:
        """Return the records that block others."""

    def release(self, record: ServiceRecord, before: ServiceRecord) -> None:
        """Record that `record` need not wait for `before`."""

    def wake(self) -> None:
        """Continue the traversal in the context of its own caller."""


class ServiceRecord:
    """The state of one service under a supervisor.

    The supervisor creates the record when the service is to be started, and drops it when the
    service is at rest again. So a service that is started twice has two records, one after the
    other. The attributes are grouped by the object that writes them.

    Invariant: :attr:`needs_stop` alone decides whether ``stop()`` is called. It becomes true when
    the service is ready and false when ``stop()`` is called, so no path calls it twice or skips it.
    """

    __slots__ = (
        "backoff",
        "base_stop",
        "dependants",
        "failed",
        "history",
        "internals",
        "needs_stop",
        "requires",
        "service",
        "shutdown",
        "start_cancelled",
        "start_task",
        "start_traversal",
        "startup",
        "stop_cancelled",
        "stop_task",
        "stop_traversal",
        "timer",
        "waiter",
    )

    def __init__(self, service: Service) -> None:
        self.service = service
        self.internals = internals_of(service)

        # Written by the dependency graph.
        self.requires: Collection[ServiceRecord] = ()
        self.dependants: dict[ServiceRecord, None] = {}  # an ordered set
        self.start_traversal: TraversalInProgress | None = None
        self.stop_traversal: TraversalInProgress | None = None

        # Written by the supervisor.
        self.waiter: asyncio.Future[None] | None = None  # done at the next change of state
        self.history: ServiceHistory | None = None  # while other threads report on the services

        # Written by the start-up.
        self.startup: StartInProgress | None = None
        self.start_task: asyncio.Task[Any] | None = None  # until start() ends or is abandoned
        self.backoff: Backoff | None = None  # since the first start() failed
        # Called in place of stop() after a failed start(): the stop() of svcrun's own base class.
        self.base_stop: Callable[..., Coroutine[Any, Any, None]] | None = None
        self.needs_stop = False

        # Written by the shutdown.
        self.shutdown: StopInProgress | None = None
        self.stop_task: asyncio.Task[Any] | None = None  # until stop() ends or is abandoned
        self.start_cancelled = False  # by the shutdown, not by other code
        self.stop_cancelled = False
        self.failed = False  # whether start() or stop() raised or was abandoned

        # The time limit of the start() or stop() that runs; written by the start-up or shutdown.
        self.timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<ServiceRecord {show(self.service)}>"

    @property
    def state(self) -> ServiceState:
        """The state of the service."""
        return self.internals.state

    @property
    def is_at_rest(self) -> bool:
        """Whether the service neither starts nor stops, and does not have to be stopped."""
        return (
            not self.needs_stop
            and self.shutdown is None
            and self.internals.state is not ServiceState.STARTING
        )

    @property
    def is_up(self) -> bool:
        """Whether the service has started and is not being stopped."""
        return self.needs_stop and self.shutdown is None

    @property
    def start_event(self) -> StartEvent:
        """The event that the service sets when it is ready."""
        try:
            given: object = self.service.start_event
        except Exception:  # noqa: BLE001 - a property of a subclass may raise anything
            given = None
        return self.internals.adopt(given)

    def call(
        self,
        method: Callable[..., Coroutine[Any, Any, Any]],
        loop: asyncio.AbstractEventLoop,
        *args: Any,
    ) -> asyncio.Task[Any]:
        """Run a method of the service in a task, for which it is the current service."""
        service = self.service
        token = current_service.set(service)
        try:
            return start_eagerly(method(*args), loop, name=type(service).__qualname__)
        finally:
            current_service.reset(token)

    def cancel_timer(self) -> None:
        """Cancel the time limit of the ``start()`` or ``stop()``."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    async def wait_for_move(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait until the state changes, or the record is dropped."""
        if self.waiter is None:
            self.waiter = loop.create_future()
        await asyncio.shield(self.waiter)

    def wake(self) -> None:
        """Resume the callers of :meth:`wait_for_move`."""
        if self.waiter is not None:
            self.waiter.set_result(None)
            self.waiter = None


def start_outcome(task: Any, service: Service) -> BaseException | None:
    """Return the exception of a ``start()`` that has ended, or None if it returned.

    A cancellation is a :class:`StartCancelled`, because a ``CancelledError`` that reaches the
    caller would look like a cancellation of the caller.
    """
    try:
        error: BaseException | None = task.exception()
    except asyncio.CancelledError as cancellation:
        error = StartCancelled(service)
        # Its traceback shows the line of start(). Drop this frame, which refers to `error`.
        inner = cancellation.__traceback__ and cancellation.__traceback__.tb_next
        error.__cause__ = cancellation.with_traceback(inner)
    return error


def cancellation_error(
    record: ServiceRecord, stopping: Collection[ServiceRecord]
) -> StartCancelled | DependencyDown:
    """Return the error of a start that is cancelled because the services in `stopping` stop."""
    down = next((required for required in record.requires if required in stopping), None)
    if down is None:
        return StartCancelled(record.service)
    return DependencyDown(record.service, down.service)
