"""Start a set of services together: each after those that it depends on, all of them or none."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from functools import partial

from svcrun.backoff import Backoff
from svcrun.current import on_behalf_of
from svcrun.eager import is_forked_copy
from svcrun.errors import DependencyDown, StartCancelled, StartTimeout, show
from svcrun.hints import TYPE_CHECKING, Any
from svcrun.order import Walk
from svcrun.per_loop import running_loop
from svcrun.progress import Progress
from svcrun.restart import Restart
from svcrun.service.base import Service, own_stop
from svcrun.state import ServiceState
from svcrun.tasks import format_stack
from svcrun.unit import traces

if TYPE_CHECKING:
    from svcrun.recovery import Recovery
    from svcrun.service._record import StartEvent
    from svcrun.supervisor import Supervisor
    from svcrun.unit import Unit

log = logging.getLogger(__name__)

__all__ = ("Startup",)

STARTING, RUNNING = ServiceState.STARTING, ServiceState.RUNNING
STOPPED, FAILED = ServiceState.STOPPED, ServiceState.FAILED


START_PATIENCE = 10.0
"""Seconds after which a start that goes on is reported for the first time."""

LISTEN_PATIENCE = 1.0
"""Seconds that a server with a ``start()`` that runs on has to listen once it is ready."""


class Startup:
    """Start `units` together.

    The first failure ends it: no further ``start()`` is called, and :attr:`errors` holds what was
    raised. The supervisor rolls the units back.

    :param supervisor: stops a unit that fails after the end of the start-up.
    :param timeout: seconds that a start may take, for services without a limit of their own.
    :param retry: says when a start that fails is tried again, for services without a policy of
        their own.
    :param recovery: what restarts the units, and has a policy for that.
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
        # Every start() runs in the context of the caller, also one that another service's readiness
        # lets loose.
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
        """Log which units have not started after so long, and where they wait."""
        from svcrun.waiting import describe_starts  # few starts take long

        log.warning(
            "%d of %d services have not started after %.0f s:\n%s",
            len(self.walk.pending),
            len(self.units),
            seconds,
            describe_starts(self.units, self.walk, self._retries, self._loop),
        )

    def fail(self, error: BaseException, *, at_once: bool = False) -> None:
        """Start nothing more.

        :param at_once: whether that means even what is about to be started at the same time.
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
        if type(service).set_loop is not Service.set_loop:
            type(service).set_loop(service, self._loop)
        unit.move(STARTING)
        try:
            # No local name for the task: the traceback of its first step leads to this frame.
            unit.task = unit.begin(service.start, self._loop)
        except BaseException as error:  # whatever it is comes out after the rollback
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
        """React to a ``start()`` that failed in its first step, unless that is a crash already."""
        if unit.start_event.is_set():
            return False  # the callback of the task reacts to that
        task, unit.task = unit.task, None
        self._start_ended(unit, _outcome(task, unit.service))
        return True

    def _watch(self, unit: Unit, event: StartEvent) -> None:
        """Watch for `unit` to become ready, and for its time limit."""
        event.callback = partial(self._on_ready, unit)
        if event.is_set():  # by a thread, just now
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
        unit.owes_stop = True
        unit.move(RUNNING)
        if unit.service._svcrun_is_server:
            self._check_listening(unit)
        if unit.in_sweep is not None:
            # It came through although it is to be stopped. Not now: its own task may be running.
            self._loop.call_soon(unit.in_sweep.start_ended, unit, None)

    def _check_listening(self, unit: Unit) -> None:
        if unit.in_sweep is not None or unit.service._svcrun_listens():
            return
        if unit.task is None:
            self._report_deaf(unit)
        else:  # it may be about to do so
            unit.timer = self._loop.call_later(LISTEN_PATIENCE, self._report_deaf, unit)

    @staticmethod
    def _report_deaf(unit: Unit) -> None:
        service = unit.service
        if unit.state is RUNNING and not service._svcrun_listens():
            with on_behalf_of(service):
                log.warning(
                    "%s is running and does not listen; "
                    "a start() that overrides its base's has to await super().start()",
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
            if self._try_again(unit, error):
                return False
            self._failed(unit, error)
        else:
            with on_behalf_of(service):
                log.error(
                    "%s failed while its start was being called off", show(service), exc_info=error
                )
        self._not_started(unit, FAILED)
        return False

    def _not_started(self, unit: Unit, state: ServiceState) -> None:
        self._fall(unit, state)
        if unit.in_sweep is not None:
            unit.in_sweep.start_ended(unit, None)
        elif unit.at_rest:
            self._supervisor.forget(unit)
        elif self._is_over:  # else the roll-back sees to it
            self._supervisor.begin_stop_of((unit,), None)

    @staticmethod
    def _fall(unit: Unit, state: ServiceState) -> None:
        """Move `unit`, whose ``start()`` has ended, to `state`; it may owe a stop of its bases."""
        unit.end_timer()
        unit.undo = own_stop(unit.service)
        if unit.undo is None:
            unit.move(state)
        else:
            # It may have opened sockets and begun tasks before it failed, or was called off.
            unit.move(FAILED)
            unit.failed = state is FAILED
            unit.owes_stop = True

    def _overrun(self, unit: Unit, timeout: float) -> None:
        unit.timer = None
        if unit.task is not None and unit.in_sweep is None:
            error = StartTimeout(unit.service, timeout, format_stack(unit.task))
            if not self._try_again(unit, error):
                self._failed(unit, error)

    def _failed(self, unit: Unit, error: BaseException) -> None:
        if isinstance(error, SystemExit | KeyboardInterrupt):
            pass  # a way to end
        elif self._recovery is not None:
            self._recovery.start_failed(unit.service, error)
        elif unit.backoff is not None:
            unit.backoff.report_start(unit.service, error, None)
        else:
            with on_behalf_of(unit.service):
                log.error("%s failed to start", show(unit.service), exc_info=error)
        self.fail(error)

    # Further attempts.

    def is_starting(self, unit: Unit) -> bool:
        """Return whether `unit` has not started, and may do so yet."""
        return unit in self._retries or (not unit.owes_stop and unit.in_sweep is None)

    def _try_again(self, unit: Unit, error: BaseException) -> bool:
        """Prepare the next attempt at a start that failed, and return whether there will be one."""
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
            self._fall(unit, FAILED)
        if unit.at_rest and unit.state is FAILED:
            self.undone(unit, hung=False)
        else:
            # Its dependants are left alone: they wait for the next attempt.
            self._supervisor.sweep([unit], error, self._supervisor.stop_timeout)
        return True

    def _policy(self, service: Service) -> Restart | None:
        if self._recovery is not None:
            return None
        try:
            policy: object = service.start_retry
        except Exception:  # noqa: BLE001 - a property of a subclass may raise anything
            return None
        # The name is younger than some classes: one that uses it otherwise is not tried again.
        return self._retry if policy is None else policy if isinstance(policy, Restart) else None

    def undone(self, unit: Unit, *, hung: bool) -> bool:
        """Wait for the next attempt at `unit`, and return whether there will be one.

        :param hung: whether the start that failed goes on in spite of its cancellation.
        """
        if unit not in self._retries:
            return False
        delay, error = self._retries[unit]
        if hung and not self.walk.is_stopped:
            self._failed(unit, error)
        if self.walk.is_stopped:
            del self._retries[unit]
            return False
        unit.record.start_event.callback = None  # a thread may set it yet
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
        """React to ``start_event``, which the service's own task is setting, or a thread."""
        if running_loop() is not self._loop:
            self._loop.call_soon_threadsafe(self._on_ready, unit)
            return
        if unit.state is not STARTING or unit.task is None:  # without a task, it was abandoned
            return
        self._started(unit)
        if unit.in_sweep is None:
            self._loop.call_soon(self.walk.done, unit, context=self._context)

    def _on_task_done(self, unit: Unit, task: asyncio.Task[Any]) -> None:
        """React to the end of a ``start()`` that had to wait, or that ran on."""
        called_off = unit.start_cancelled and task.cancelled()
        error = None if called_off else _outcome(task, unit.service)
        if unit.task is not task:  # it was abandoned when it did not end in time
            if error is not None:
                with on_behalf_of(unit.service):
                    log.error(
                        "%s failed after it was left alone", show(unit.service), exc_info=error
                    )
            return

        unit.task = None
        if unit.state is not STARTING:
            if unit.in_sweep is not None:
                unit.in_sweep.start_ended(unit, error)
            elif error is not None:
                self._supervisor.crashed(unit, error)
        elif called_off:
            self._not_started(unit, STOPPED)
        elif self._start_ended(unit, error) and unit.in_sweep is None:
            self.walk.done(unit)


def _outcome(task: Any, service: Service) -> BaseException | None:
    """Return what `task`, which has ended, raised."""
    try:
        error: BaseException | None = task.exception()
    except asyncio.CancelledError as cancellation:
        error = StartCancelled(service)
        # It tells where start() was. This frame, the first of its traceback, refers to `error`.
        inner = cancellation.__traceback__ and cancellation.__traceback__.tb_next
        error.__cause__ = cancellation.with_traceback(inner)
    return error
