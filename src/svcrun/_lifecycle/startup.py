"""Start a set of services together, each one after its dependencies; all of them or none."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from functools import partial

from svcrun._lifecycle.backoff import Backoff
from svcrun._lifecycle.dependency_graph import Traversal
from svcrun._lifecycle.service_record import transitions_are_logged
from svcrun._util.current_service import on_behalf_of
from svcrun._util.eager import is_forked_copy
from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.per_loop import running_loop
from svcrun._util.progress import Progress
from svcrun._util.tasks import format_stack
from svcrun.errors import DependencyDown, StartCancelled, StartTimeout, show
from svcrun.restart import Restart
from svcrun.service.base import Service, base_stop
from svcrun.state import ServiceState

if TYPE_CHECKING:
    from svcrun._lifecycle.restarter import Restarter
    from svcrun._lifecycle.service_record import ServiceRecord
    from svcrun._lifecycle.supervisor import Supervisor
    from svcrun.service._internals import StartEvent

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
    """Start `records` together.

    After the first failure no further ``start()`` is called, and the supervisor rolls the records
    back. :attr:`errors` holds the exceptions.

    Race: a service may be stopped while it starts. That sets ``record.shutdown``, which then
    receives the end of the start and prevents a retry.

    :param supervisor: stops a record that fails after the end of the start-up.
    :param timeout: seconds that a start may take, for services without a limit of their own.
    :param retry: the policy for retries of a failed start, for services without one of their own.
    :param restarter: the restart in progress, which has a policy of its own; None at a first start.
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
        "records",
        "traversal",
    )

    def __init__(
        self,
        supervisor: Supervisor,
        records: list[ServiceRecord],
        loop: asyncio.AbstractEventLoop,
        *,
        timeout: float | None,
        retry: Restart | None,
        restarter: Restarter | None,
    ) -> None:
        self._supervisor = supervisor
        self._loop = loop
        self._timeout = timeout
        self._retry = retry
        self._recovery = restarter
        self._retries: dict[ServiceRecord, tuple[float, BaseException]] = {}
        self._is_over = False
        self.records = records
        self.traversal = Traversal(records, self._launch, upwards=True)
        self.errors: list[BaseException] = []
        # Every start() runs in the context of the caller, not in that of a dependency's task.
        self._context = contextvars.copy_context()
        are_logged = transitions_are_logged()
        for record in records:
            record.startup = self
            record.logs_transitions = are_logged

    async def run(self) -> None:
        """Return when all records have started, or one has failed, or the caller is cancelled."""
        progress: Progress | None = None
        try:
            self.traversal.go()
            if self.traversal.pending and not self.traversal.is_stopped:
                progress = Progress(self._loop, START_PATIENCE, self._report)
            await self.traversal.wait(self._loop)
        except asyncio.CancelledError as error:
            self.fail(error, at_once=True)
        finally:
            self._is_over = True
            if progress is not None:
                progress.cancel()
            for record in self._retries:
                if record.shutdown is None:
                    record.cancel_timer()
            self._retries.clear()
            self.traversal.end()
            for record in self.records:
                record.startup = record.start_traversal = None

    def _report(self, seconds: float) -> None:
        """Log the records that have not started after `seconds`, and where each waits."""
        from svcrun._lifecycle.wait_report import describe_starts  # few starts take long

        log.warning(
            "%d of %d services have not started after %.0f s:\n%s",
            len(self.traversal.pending),
            len(self.records),
            seconds,
            describe_starts(self.records, self.traversal, self._retries, self._loop),
        )

    def fail(self, error: BaseException, *, at_once: bool = False) -> None:
        """Record `error` and call no further ``start()``.

        :param at_once: whether to skip even the records that are ready to start.
        """
        self.errors.append(error)
        self.traversal.stop(at_once=at_once)

    def _launch(self, record: ServiceRecord) -> bool:
        """Start `record`, and return whether it has started already."""
        service = record.service
        for required in record.requires:
            if not required.is_up or required.state is not RUNNING:
                self.fail(DependencyDown(service, required.service))
                return False

        record.internals.prepare(self._loop)
        set_loop = type(service).set_loop
        if set_loop is not _SET_LOOP:
            set_loop(service, self._loop)
        record.move_to(STARTING)
        try:
            # No local name for the task: the traceback of its first step refers to this frame.
            record.task = record.begin(service.start, self._loop)
        except BaseException as error:  # raised after the roll-back
            if is_forked_copy(self._loop):
                raise
            return self._start_ended(record, error)
        if record.task.done():
            if not record.task.cancelled() and record.task.exception() is None:
                record.task = None
                self._started(record)
                record.internals.set_start_event()
                return True
            if self._failed_at_once(record):
                return False

        record.task.add_done_callback(partial(self._on_task_done, record))
        event = record.start_event
        if event.is_set():
            self._started(record)
            return True
        self._watch(record, event)
        return False

    def _failed_at_once(self, record: ServiceRecord) -> bool:
        """React to a ``start()`` that failed in its first step, unless it had set its event."""
        if record.start_event.is_set():
            return False  # that is a crash, to which the callback of the task reacts
        task, record.task = record.task, None
        self._start_ended(record, _outcome(task, record.service))
        return True

    def _watch(self, record: ServiceRecord, event: StartEvent) -> None:
        """Set the callback for the readiness of `record`, and the timer for its time limit."""
        event.callback = partial(self._on_ready, record)
        # Race: a thread may have set the event before the callback was in place.
        if event.is_set():
            self._loop.call_soon(self._on_ready, record)
        own = record.service.start_timeout
        timeout = self._timeout if own is None else own
        if timeout is not None:
            record.timer = self._loop.call_later(timeout, self._overrun, record, timeout)
        if record.shutdown is not None:
            record.shutdown.start_waits(record)

    def _started(self, record: ServiceRecord) -> None:
        if record.timer is not None:
            record.cancel_timer()
        record.needs_stop = True
        record.move_to(RUNNING)
        if record.service._svcrun_is_server:
            self._check_listening(record)
        if record.shutdown is not None:
            # Race: the record became ready during its stop. Its own task may be running now.
            self._loop.call_soon(record.shutdown.start_ended, record, None)

    def _check_listening(self, record: ServiceRecord) -> None:
        if record.shutdown is not None or record.service._svcrun_listens():
            return
        if record.task is None:
            self._warn_not_listening(record)
        else:  # start() runs on and may listen later
            record.timer = self._loop.call_later(LISTEN_PATIENCE, self._warn_not_listening, record)

    @staticmethod
    def _warn_not_listening(record: ServiceRecord) -> None:
        service = record.service
        if record.state is RUNNING and not service._svcrun_listens():
            with on_behalf_of(service):
                log.warning(
                    "%s does not listen; an overriding start() has to await super().start()",
                    show(service),
                )

    def _start_ended(self, record: ServiceRecord, error: BaseException | None) -> bool:
        """React to the end of a ``start()`` that had not set ``start_event``."""
        service = record.service
        if error is None:
            self._started(record)
            record.internals.set_start_event()
            return True

        if not self._is_over and not record.start_cancelled:
            if self._plan_retry(record, error):
                return False
            self._failed(record, error)
        else:
            with on_behalf_of(service):
                log.error(
                    "%s failed while its start was being cancelled", show(service), exc_info=error
                )
        self._not_started(record, FAILED)
        return False

    def _not_started(self, record: ServiceRecord, state: ServiceState) -> None:
        self._end_start(record, state)
        if record.shutdown is not None:
            record.shutdown.start_ended(record, None)
        elif record.is_at_rest:
            self._supervisor.forget(record)
        elif self._is_over:  # otherwise the roll-back stops the record
            self._supervisor.begin_stop_of((record,), None)

    @staticmethod
    def _end_start(record: ServiceRecord, state: ServiceState) -> None:
        """Move `record`, whose ``start()`` has ended, to `state`, or plan the stop of its bases."""
        record.cancel_timer()
        record.undo = base_stop(record.service)
        if record.undo is None:
            record.move_to(state)
        else:
            # start() may have opened sockets and created tasks before it failed or was cancelled.
            record.move_to(FAILED)
            record.failed = state is FAILED
            record.needs_stop = True

    def _overrun(self, record: ServiceRecord, timeout: float) -> None:
        record.timer = None
        if record.task is not None and record.shutdown is None:
            error = StartTimeout(record.service, timeout, format_stack(record.task))
            if not self._plan_retry(record, error):
                self._failed(record, error)

    def _failed(self, record: ServiceRecord, error: BaseException) -> None:
        if isinstance(error, SystemExit | KeyboardInterrupt):
            pass  # an exit that the program asked for
        elif self._recovery is not None:
            self._recovery.start_failed(record.service, error)
        elif record.backoff is not None:
            record.backoff.report_start(record.service, error, None)
        else:
            with on_behalf_of(record.service):
                log.error("%s failed to start", show(record.service), exc_info=error)
        self.fail(error)

    # Retries.

    def is_starting(self, record: ServiceRecord) -> bool:
        """Return whether `record` has not started, but may still start."""
        return record in self._retries or (not record.needs_stop and record.shutdown is None)

    def _plan_retry(self, record: ServiceRecord, error: BaseException) -> bool:
        """Record a retry of a failed start, and return whether there will be one."""
        policy = self._policy(record.service)
        if policy is None or not isinstance(error, Exception):
            return False
        if self.traversal.is_stopped or record.shutdown is not None:
            return False
        if record.backoff is None:
            record.backoff = Backoff()
        delay = record.backoff.next_delay(policy, self._loop.time())
        if delay is None:
            record.backoff.report_end(record.service, policy)
            return False
        record.backoff.report_start(record.service, error, delay)
        record.cancel_timer()
        self._retries[record] = delay, error
        if record.task is None:
            self._end_start(record, FAILED)
        if record.is_at_rest and record.state is FAILED:
            self.schedule_retry(record, hung=False)
        else:
            # Stop this record only: its dependants wait for the next attempt.
            self._supervisor.shut_down([record], error, self._supervisor.stop_timeout)
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

    def schedule_retry(self, record: ServiceRecord, *, hung: bool) -> bool:
        """Schedule the next attempt at `record`, now rolled back; return whether there will be one.

        :param hung: whether the failed ``start()`` ignored its cancellation and still runs.
        """
        if record not in self._retries:
            return False
        delay, error = self._retries[record]
        if hung and not self.traversal.is_stopped:
            self._failed(record, error)
        if self.traversal.is_stopped:
            del self._retries[record]
            return False
        record.internals.start_event.callback = None  # race: a thread may set the old event later
        record.start_cancelled = False
        record.undo = None
        record.timer = self._loop.call_later(delay, self._relaunch, record, context=self._context)
        return True

    def _relaunch(self, record: ServiceRecord) -> None:
        record.timer = None
        del self._retries[record]
        if not self.traversal.is_stopped and self._launch(record):
            self.traversal.done(record)

    def _on_ready(self, record: ServiceRecord) -> None:
        """React to ``start_event``, which a task of the service sets, or a thread."""
        if running_loop() is not self._loop:
            self._loop.call_soon_threadsafe(self._on_ready, record)
            return
        # Race: the record may have failed since then, or been abandoned, which drops its task.
        if record.state is not STARTING or record.task is None:
            return
        self._started(record)
        if record.shutdown is None:
            self._loop.call_soon(self.traversal.done, record, context=self._context)

    def _on_task_done(self, record: ServiceRecord, task: asyncio.Task[Any]) -> None:
        """React to the end of a ``start()`` that did not return in its first step."""
        called_off = record.start_cancelled and task.cancelled()
        error = None if called_off else _outcome(task, record.service)
        if record.task is not task:  # it was abandoned when it ignored its cancellation
            if error is not None:
                with on_behalf_of(record.service):
                    log.error(
                        "%s failed after it was abandoned", show(record.service), exc_info=error
                    )
            return

        record.task = None
        if record.internals.state is not STARTING:
            if record.shutdown is not None:
                record.shutdown.start_ended(record, error)
            elif error is not None:
                self._supervisor.crashed(record, error)
        elif called_off:
            self._not_started(record, STOPPED)
        elif self._start_ended(record, error) and record.shutdown is None:
            self.traversal.done(record)


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
