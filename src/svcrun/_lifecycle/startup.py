"""Start a set of services together, each one after its dependencies; all of them or none."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from functools import partial

from svcrun._lifecycle.backoff import Backoff
from svcrun._lifecycle.dependency_graph import Walk
from svcrun._lifecycle.unit import traces
from svcrun._util.current_service import on_behalf_of
from svcrun._util.eager import is_forked_copy
from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.per_loop import running_loop
from svcrun._util.progress import Progress
from svcrun._util.tasks import format_stack
from svcrun.errors import DependencyDown, StartCancelled, StartTimeout, show
from svcrun.restart import Restart
from svcrun.service.base import Service, own_stop
from svcrun.state import ServiceState

if TYPE_CHECKING:
    from svcrun._lifecycle.restarter import Recovery
    from svcrun._lifecycle.supervisor import Supervisor
    from svcrun._lifecycle.unit import Unit
    from svcrun.service._record import StartEvent

log = logging.getLogger("svcrun.lifecycle")

__all__ = ("Startup",)

STARTING, RUNNING = ServiceState.STARTING, ServiceState.RUNNING
STOPPED, FAILED = ServiceState.STOPPED, ServiceState.FAILED

START_PATIENCE = 10.0
"""Seconds after which a start-up in progress is reported for the first time."""

# A look-up in a class with a metaclass takes long, and there are two for each service.
_SET_LOOP = Service.set_loop

LISTEN_PATIENCE = 1.0
"""Seconds within which a server has to listen after ``start_event``, if ``start()`` runs on."""


class Startup:
    """Start `units` together.

    After the first failure no further ``start()`` is called, and the supervisor rolls the units
    back. :attr:`errors` holds the exceptions.

    Race: a unit may be stopped while it starts. That sets ``unit.in_sweep``, which then receives
    the end of the start and prevents a retry.

    :param supervisor: stops a unit that fails after the end of the start-up.
    :param timeout: seconds that a start may take, for services without a limit of their own.
    :param retry: the policy for retries of a failed start, for services without one of their own.
    :param recovery: the restart in progress, which has a policy of its own; None at a first start.
    """

    __slots__ = (
        "_context",
        "_is_over",
        "_loop",
        "_recovery",
        "_retries",
        "_retry",
        "_supervisor",
        "_timeout",
        "errors",
        "units",
        "walk",
    )

    def __init__(
        self,
        supervisor: Supervisor,
        units: list[Unit],
        loop: asyncio.AbstractEventLoop,
        *,
        timeout: float | None,
        retry: Restart | None,
        recovery: Recovery | None,
    ) -> None:
        self._supervisor = supervisor
        self._loop = loop
        self._timeout = timeout
        self._retry = retry
        self._recovery = recovery
        self._retries: dict[Unit, tuple[float, BaseException]] = {}
        self._is_over = False
        self.units = units
        self.walk = Walk(units, self._launch, upwards=True)
        self.errors: list[BaseException] = []
        # Every start() runs in the context of the caller, not in that of a dependency's task.
        self._context = contextvars.copy_context()
        traced = traces()
        for unit in units:
            unit.in_startup = self
            unit.traced = traced

    async def run(self) -> None:
        """Return when all units have started, or one has failed, or the caller is cancelled."""
        progress: Progress | None = None
        try:
            self.walk.go()
            if self.walk.pending and not self.walk.is_stopped:
                progress = Progress(self._loop, START_PATIENCE, self._report)
            await self.walk.wait(self._loop)
        except asyncio.CancelledError as error:
            self.fail(error, at_once=True)
        finally:
            self._is_over = True
            if progress is not None:
                progress.cancel()
            for unit in self._retries:
                if unit.in_sweep is None:
                    unit.end_timer()
            self._retries.clear()
            self.walk.end()
            for unit in self.units:
                unit.in_startup = unit.start_walk = None

    def _report(self, seconds: float) -> None:
        """Log the units that have not started after `seconds`, and where each waits."""
        from svcrun._lifecycle.wait_report import describe_starts  # few starts take long

        log.warning(
            "%d of %d services have not started after %.0f s:\n%s",
            len(self.walk.pending),
            len(self.units),
            seconds,
            describe_starts(self.units, self.walk, self._retries, self._loop),
        )

    def fail(self, error: BaseException, *, at_once: bool = False) -> None:
        """Record `error` and call no further ``start()``.

        :param at_once: whether to skip even the units that are ready to start.
        """
        self.errors.append(error)
        self.walk.stop(at_once=at_once)

    def _launch(self, unit: Unit) -> bool:
        """Start `unit`, and return whether it has started already."""
        service = unit.service
        for required in unit.requires:
            if not required.is_up or required.state is not RUNNING:
                self.fail(DependencyDown(service, required.service))
                return False

        unit.record.prepare(self._loop)
        set_loop = type(service).set_loop
        if set_loop is not _SET_LOOP:
            set_loop(service, self._loop)
        unit.move(STARTING)
        try:
            # No local name for the task: the traceback of its first step refers to this frame.
            unit.task = unit.begin(service.start, self._loop)
        except BaseException as error:  # raised after the roll-back
            if is_forked_copy(self._loop):
                raise
            return self._start_ended(unit, error)
        if unit.task.done():
            if not unit.task.cancelled() and unit.task.exception() is None:
                unit.task = None
                self._started(unit)
                unit.record.set_start_event()
                return True
            if self._failed_at_once(unit):
                return False

        unit.task.add_done_callback(partial(self._on_task_done, unit))
        event = unit.start_event
        if event.is_set():
            self._started(unit)
            return True
        self._watch(unit, event)
        return False

    def _failed_at_once(self, unit: Unit) -> bool:
        """React to a ``start()`` that failed in its first step, unless it had set its event."""
        if unit.start_event.is_set():
            return False  # that is a crash, to which the callback of the task reacts
        task, unit.task = unit.task, None
        self._start_ended(unit, _outcome(task, unit.service))
        return True

    def _watch(self, unit: Unit, event: StartEvent) -> None:
        """Set the callback for the readiness of `unit`, and the timer for its time limit."""
        event.callback = partial(self._on_ready, unit)
        # Race: a thread may have set the event before the callback was in place.
        if event.is_set():
            self._loop.call_soon(self._on_ready, unit)
        own = unit.service.start_timeout
        timeout = self._timeout if own is None else own
        if timeout is not None:
            unit.timer = self._loop.call_later(timeout, self._overrun, unit, timeout)
        if unit.in_sweep is not None:
            unit.in_sweep.start_waits(unit)

    def _started(self, unit: Unit) -> None:
        if unit.timer is not None:
            unit.end_timer()
        unit.needs_stop = True
        unit.move(RUNNING)
        if unit.service._svcrun_is_server:
            self._check_listening(unit)
        if unit.in_sweep is not None:
            # Race: the unit became ready during its stop. Its own task may be running now.
            self._loop.call_soon(unit.in_sweep.start_ended, unit, None)

    def _check_listening(self, unit: Unit) -> None:
        if unit.in_sweep is not None or unit.service._svcrun_listens():
            return
        if unit.task is None:
            self._warn_not_listening(unit)
        else:  # start() runs on and may listen later
            unit.timer = self._loop.call_later(LISTEN_PATIENCE, self._warn_not_listening, unit)

    @staticmethod
    def _warn_not_listening(unit: Unit) -> None:
        service = unit.service
        if unit.state is RUNNING and not service._svcrun_listens():
            with on_behalf_of(service):
                log.warning(
                    "%s does not listen; an overriding start() has to await super().start()",
                    show(service),
                )

    def _start_ended(self, unit: Unit, error: BaseException | None) -> bool:
        """React to the end of a ``start()`` that had not set ``start_event``."""
        service = unit.service
        if error is None:
            self._started(unit)
            unit.record.set_start_event()
            return True

        if not self._is_over and not unit.start_cancelled:
            if self._plan_retry(unit, error):
                return False
            self._failed(unit, error)
        else:
            with on_behalf_of(service):
                log.error(
                    "%s failed while its start was being cancelled", show(service), exc_info=error
                )
        self._not_started(unit, FAILED)
        return False

    def _not_started(self, unit: Unit, state: ServiceState) -> None:
        self._end_start(unit, state)
        if unit.in_sweep is not None:
            unit.in_sweep.start_ended(unit, None)
        elif unit.at_rest:
            self._supervisor.forget(unit)
        elif self._is_over:  # otherwise the roll-back stops the unit
            self._supervisor.begin_stop_of((unit,), None)

    @staticmethod
    def _end_start(unit: Unit, state: ServiceState) -> None:
        """Move `unit`, whose ``start()`` has ended, to `state`, or plan the stop of its bases."""
        unit.end_timer()
        unit.undo = own_stop(unit.service)
        if unit.undo is None:
            unit.move(state)
        else:
            # start() may have opened sockets and created tasks before it failed or was cancelled.
            unit.move(FAILED)
            unit.failed = state is FAILED
            unit.needs_stop = True

    def _overrun(self, unit: Unit, timeout: float) -> None:
        unit.timer = None
        if unit.task is not None and unit.in_sweep is None:
            error = StartTimeout(unit.service, timeout, format_stack(unit.task))
            if not self._plan_retry(unit, error):
                self._failed(unit, error)

    def _failed(self, unit: Unit, error: BaseException) -> None:
        if isinstance(error, SystemExit | KeyboardInterrupt):
            pass  # an exit that the program asked for
        elif self._recovery is not None:
            self._recovery.start_failed(unit.service, error)
        elif unit.backoff is not None:
            unit.backoff.report_start(unit.service, error, None)
        else:
            with on_behalf_of(unit.service):
                log.error("%s failed to start", show(unit.service), exc_info=error)
        self.fail(error)

    # Retries.

    def is_starting(self, unit: Unit) -> bool:
        """Return whether `unit` has not started, but may still start."""
        return unit in self._retries or (not unit.needs_stop and unit.in_sweep is None)

    def _plan_retry(self, unit: Unit, error: BaseException) -> bool:
        """Record a retry of a failed start, and return whether there will be one."""
        policy = self._policy(unit.service)
        if policy is None or not isinstance(error, Exception):
            return False
        if self.walk.is_stopped or unit.in_sweep is not None:
            return False
        if unit.backoff is None:
            unit.backoff = Backoff()
        delay = unit.backoff.next_delay(policy, self._loop.time())
        if delay is None:
            unit.backoff.report_end(unit.service, policy)
            return False
        unit.backoff.report_start(unit.service, error, delay)
        unit.end_timer()
        self._retries[unit] = delay, error
        if unit.task is None:
            self._end_start(unit, FAILED)
        if unit.at_rest and unit.state is FAILED:
            self.schedule_retry(unit, hung=False)
        else:
            # Stop this unit only: its dependants wait for the next attempt.
            self._supervisor.sweep([unit], error, self._supervisor.stop_timeout)
        return True

    def _policy(self, service: Service) -> Restart | None:
        if self._recovery is not None:
            return None
        try:
            policy: object = service.start_retry
        except Exception:  # noqa: BLE001 - a property of a subclass may raise anything
            return None
        # A subclass may use the name for something else; it is not retried then.
        return self._retry if policy is None else policy if isinstance(policy, Restart) else None

    def schedule_retry(self, unit: Unit, *, hung: bool) -> bool:
        """Schedule the next attempt at `unit`, now rolled back; return whether there will be one.

        :param hung: whether the failed ``start()`` ignored its cancellation and still runs.
        """
        if unit not in self._retries:
            return False
        delay, error = self._retries[unit]
        if hung and not self.walk.is_stopped:
            self._failed(unit, error)
        if self.walk.is_stopped:
            del self._retries[unit]
            return False
        unit.record.start_event.callback = None  # race: a thread may set the old event later
        unit.start_cancelled = False
        unit.undo = None
        unit.timer = self._loop.call_later(delay, self._relaunch, unit, context=self._context)
        return True

    def _relaunch(self, unit: Unit) -> None:
        unit.timer = None
        del self._retries[unit]
        if not self.walk.is_stopped and self._launch(unit):
            self.walk.done(unit)

    def _on_ready(self, unit: Unit) -> None:
        """React to ``start_event``, which a task of the service sets, or a thread."""
        if running_loop() is not self._loop:
            self._loop.call_soon_threadsafe(self._on_ready, unit)
            return
        # Race: the unit may have failed since then, or been abandoned, which drops its task.
        if unit.state is not STARTING or unit.task is None:
            return
        self._started(unit)
        if unit.in_sweep is None:
            self._loop.call_soon(self.walk.done, unit, context=self._context)

    def _on_task_done(self, unit: Unit, task: asyncio.Task[Any]) -> None:
        """React to the end of a ``start()`` that did not return in its first step."""
        called_off = unit.start_cancelled and task.cancelled()
        error = None if called_off else _outcome(task, unit.service)
        if unit.task is not task:  # it was abandoned when it ignored its cancellation
            if error is not None:
                with on_behalf_of(unit.service):
                    log.error(
                        "%s failed after it was abandoned", show(unit.service), exc_info=error
                    )
            return

        unit.task = None
        if unit.record.state is not STARTING:
            if unit.in_sweep is not None:
                unit.in_sweep.start_ended(unit, error)
            elif error is not None:
                self._supervisor.crashed(unit, error)
        elif called_off:
            self._not_started(unit, STOPPED)
        elif self._start_ended(unit, error) and unit.in_sweep is None:
            self.walk.done(unit)


def _outcome(task: Any, service: Service) -> BaseException | None:
    """Return the exception of `task`, which has ended, or None."""
    try:
        error: BaseException | None = task.exception()
    except asyncio.CancelledError as cancellation:
        error = StartCancelled(service)
        # Its traceback shows the line of start(). Drop this frame, which refers to `error`.
        inner = cancellation.__traceback__ and cancellation.__traceback__.tb_next
        error.__cause__ = cancellation.with_traceback(inner)
    return error
