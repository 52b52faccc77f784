"""Start a set of services together, each one after its dependencies; all of them or none."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from functools import partial

from svcrun._lifecycle.backoff import Backoff, retry_policy
from svcrun._lifecycle.dependency_graph import Traversal
from svcrun._lifecycle.listen_check import check_listening
from svcrun._lifecycle.service_record import start_outcome
from svcrun._util.current_service import on_behalf_of
from svcrun._util.eager import is_forked_copy
from svcrun._util.hints import TYPE_CHECKING, Any, Protocol
from svcrun._util.per_loop import running_loop
from svcrun._util.progress import Progress
from svcrun._util.tasks import format_stack
from svcrun.errors import DependencyDown, StartTimeout, show
from svcrun.service.base import Service, base_stop
from svcrun.state import ServiceState

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcrun._lifecycle.service_record import ServiceRecord
    from svcrun.restart import Restart
    from svcrun.service._internals import StartEvent

log = logging.getLogger("svcrun.lifecycle")

__all__ = ("Startup",)

STARTING, RUNNING = ServiceState.STARTING, ServiceState.RUNNING
STOPPED, FAILED = ServiceState.STOPPED, ServiceState.FAILED

FIRST_REPORT = 10.0
"""Seconds after which a start-up in progress is reported for the first time."""


class StartupOwner(Protocol):
    """The methods of a supervisor that a :class:`Startup` calls."""

    def move(self, record: ServiceRecord, state: ServiceState) -> None:
        """Move the service of `record` to `state`."""

    def crashed(self, record: ServiceRecord, error: BaseException) -> None:
        """React to a ``start()`` that raised `error` after the service was ready."""

    def retry(self, record: ServiceRecord, error: BaseException) -> None:
        """Stop the service of `record`, but not its dependants, before another attempt."""

    def discard(self, record: ServiceRecord) -> None:
        """Forget the service of `record` if it is at rest, otherwise stop it."""


class Startup:
    """One start-up: a set of services that start together.

    1. Each ``start()`` is called when all dependencies of the service are ready. A service is ready
       when its ``start()`` returns, or sets ``start_event`` and runs on.
    2. A ``start()`` that raises, or exceeds its time limit, is retried if there is a policy for it.
       The service is stopped before each further attempt; its dependants go on waiting.
    3. Without a further attempt the start-up fails: it calls no further ``start()`` and returns
       with the exceptions in :attr:`errors`. The supervisor then stops all services of the
       start-up, dependants first.

    Race: a service may be stopped while it starts. Its ``record.shutdown`` is set then; that
    shutdown receives the end of the ``start()``, and there is no retry.

    :param owner: the supervisor.
    :param records: the services to start.
    :param timeout: seconds that a ``start()`` may take, for services without a limit of their own.
    :param retry: the policy for retries of a failed start, for services without one of their own.
    :param report_failure: called with each service and error of a restart, whose policy replaces
        that for retries; None for a first start.
    """

    __slots__ = (
        "_context",
        "_is_over",
        "_loop",
        "_owner",
        "_report_failure",
        "_retries",
        "_retry",
        "_tasks",
        "_timeout",
        "errors",
        "records",
        "traversal",
    )

    def __init__(
        self,
        owner: StartupOwner,
        records: list[ServiceRecord],
        loop: asyncio.AbstractEventLoop,
        *,
        timeout: float | None,
        retry: Restart | None,
        report_failure: Callable[[Service, BaseException], None] | None,
    ) -> None:
        self._owner = owner
        self._loop = loop
        self._timeout = timeout
        self._retry = retry
        self._report_failure = report_failure
        self._retries: dict[ServiceRecord, tuple[float, BaseException]] = {}
        # The records of the start() that run. With this, a callback of a task is a bound method,
        # which is one object for the garbage collector to visit; a partial() of it makes three.
        self._tasks: dict[asyncio.Task[Any], ServiceRecord] = {}
        self._is_over = False
        self.records = records
        self.traversal = Traversal(records, self._launch, dependencies_first=True)
        self.errors: list[BaseException] = []
        # Each start() runs in the context of the caller, not in that of a dependency's task.
        self._context = contextvars.copy_context()
        for record in records:
            record.startup = self
            if record.history is not None and report_failure is not None:
                record.history.restarts += 1

    async def run(self) -> None:
        """Return when all services are ready, or one has failed, or the caller is cancelled."""
        progress: Progress | None = None
        try:
            self.traversal.advance()
            if self.traversal.pending and not self.traversal.is_stopped:
                progress = Progress(self._loop, FIRST_REPORT, self._report)
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
            self.traversal.close()
            for record in self.records:
                record.startup = record.start_traversal = None

    def _report(self, seconds: float) -> None:
        """Log the services that are not ready after `seconds`, and where each waits."""
        from svcrun._lifecycle.wait_report import log_starts  # few starts take long

        log_starts(seconds, self.records, self.traversal, self._retries, self._loop)

    def fail(self, error: BaseException, *, at_once: bool = False) -> None:
        """Record `error` and call no further ``start()``.

        :param at_once: whether to skip even the services that are ready to be started.
        """
        self.errors.append(error)
        self.traversal.stop(at_once=at_once)

    # The call of start().

    def _launch(self, record: ServiceRecord) -> bool:
        """Call ``start()``, and return whether the service is ready already."""
        service = record.service
        for required in record.requires:
            if not required.is_up or required.state is not RUNNING:
                self.fail(DependencyDown(service, required.service))
                return False

        record.internals.prepare(self._loop)
        set_loop = type(service).set_loop
        if set_loop is not Service.set_loop:
            set_loop(service, self._loop)
        self._owner.move(record, STARTING)
        try:
            # No local name for the task: the traceback of its first step refers to this frame.
            record.start_task = record.call(service.start, self._loop)
        except BaseException as error:  # raised after the roll-back
            if is_forked_copy(self._loop):
                raise
            return self._start_ended(record, error)
        if record.start_task.done():
            if not record.start_task.cancelled() and record.start_task.exception() is None:
                record.start_task = None
                self._started(record)
                record.internals.set_start_event()
                return True
            if self._failed_at_once(record):
                return False

        self._tasks[record.start_task] = record
        # Without a context, asyncio would copy the current one for each service.
        record.start_task.add_done_callback(self._on_task_done, context=self._context)
        event = record.start_event
        if event.is_set():
            self._started(record)
            return True
        self._watch(record, event)
        return False

    def _watch(self, record: ServiceRecord, event: StartEvent) -> None:
        """Set the callback for the readiness of the service, and the timer for its time limit."""
        event.callback = partial(self._on_ready, record)
        # Race: a thread may have set the event before the callback was in place.
        if event.is_set():
            self._loop.call_soon(self._on_ready, record)
        own = record.service.start_timeout
        timeout = self._timeout if own is None else own
        if timeout is not None:
            record.timer = self._loop.call_later(timeout, self._timed_out, record, timeout)
        if record.shutdown is not None:
            record.shutdown.start_waits(record)

    def _failed_at_once(self, record: ServiceRecord) -> bool:
        """React to a ``start()`` that failed in its first step, unless it had set its event."""
        if record.start_event.is_set():
            return False  # a crash, to which the callback of the task reacts
        task, record.start_task = record.start_task, None
        self._start_ended(record, start_outcome(task, record.service))
        return True

    def _timed_out(self, record: ServiceRecord, timeout: float) -> None:
        record.timer = None
        if record.start_task is not None and record.shutdown is None:
            error = StartTimeout(record.service, timeout, format_stack(record.start_task))
            if record.history is not None:
                record.history.fail(error)
            if not self._plan_retry(record, error):
                self._failed(record, error)

    # Success.

    def _on_ready(self, record: ServiceRecord) -> None:
        """React to ``start_event``, which a task of the service sets, or a thread."""
        if running_loop() is not self._loop:
            self._loop.call_soon_threadsafe(self._on_ready, record)
            return
        # Race: start() may have failed since then, or been abandoned, which drops its task.
        if record.state is not STARTING or record.start_task is None:
            return
        self._started(record)
        if record.shutdown is None:
            self._loop.call_soon(self.traversal.done, record, context=self._context)

    def _started(self, record: ServiceRecord) -> None:
        if record.timer is not None:
            record.cancel_timer()
        record.needs_stop = True
        self._owner.move(record, RUNNING)
        if record.service._svcrun_is_server:
            check_listening(record, self._loop)
        if record.shutdown is not None:
            # Race: the service became ready during its stop. Its own task may be running now.
            self._loop.call_soon(record.shutdown.start_ended, record, None)

    # The end of start(), and failure.

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        """React to the end of a ``start()`` that did not return in its first step."""
        record = self._tasks.pop(task)
        is_cancelled = record.start_cancelled and task.cancelled()
        error = None if is_cancelled else start_outcome(task, record.service)
        if record.start_task is not task:  # it was abandoned when it ignored its cancellation
            if error is not None:
                with on_behalf_of(record.service):
                    log.error(
                        "%s failed after it was abandoned", show(record.service), exc_info=error
                    )
            return

        record.start_task = None
        if record.internals.state is not STARTING:
            if record.shutdown is not None:
                record.shutdown.start_ended(record, error)
            elif error is not None:
                self._owner.crashed(record, error)
        elif is_cancelled:
            self._not_started(record, STOPPED)
        elif self._start_ended(record, error) and record.shutdown is None:
            self.traversal.done(record)

    def _start_ended(self, record: ServiceRecord, error: BaseException | None) -> bool:
        """React to the end of a ``start()`` that had not set ``start_event``.

        Return whether the service is ready.
        """
        service = record.service
        if error is None:
            self._started(record)
            record.internals.set_start_event()
            return True

        if record.history is not None:
            record.history.fail(error)
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

    def _failed(self, record: ServiceRecord, error: BaseException) -> None:
        """Log `error`, and end the start-up with it."""
        service = record.service
        if isinstance(error, SystemExit | KeyboardInterrupt):
            pass  # an exit that the program asked for
        elif self._report_failure is not None:
            self._report_failure(service, error)
        elif record.backoff is not None:
            record.backoff.report_start(service, error, None)
        else:
            with on_behalf_of(service):
                log.error("%s failed to start", show(service), exc_info=error)
        self.fail(error)

    def _not_started(self, record: ServiceRecord, state: ServiceState) -> None:
        self._end_start(record, state)
        if record.shutdown is not None:
            record.shutdown.start_ended(record, None)
        elif record.is_at_rest or self._is_over:
            self._owner.discard(record)
        # Otherwise the roll-back stops the service.

    def _end_start(self, record: ServiceRecord, state: ServiceState) -> None:
        """Move a service whose ``start()`` has ended to `state`.

        A base class of svcrun may have opened sockets and created tasks before ``start()`` failed
        or was cancelled. Then its ``stop()`` is due, and the move to `state` follows that.
        """
        record.cancel_timer()
        record.base_stop = base_stop(record.service)
        if record.base_stop is None:
            self._owner.move(record, state)
        else:
            self._owner.move(record, FAILED)
            record.failed = state is FAILED
            record.needs_stop = True

    # Retries.

    def is_starting(self, record: ServiceRecord) -> bool:
        """Return whether the service has not started, but may still start."""
        return record in self._retries or (not record.needs_stop and record.shutdown is None)

    def _plan_retry(self, record: ServiceRecord, error: BaseException) -> bool:
        """Record a retry of a failed start, and return whether there will be one."""
        if self._report_failure is not None or not isinstance(error, Exception):
            return False
        policy = retry_policy(record.service, self._retry)
        if policy is None or self.traversal.is_stopped or record.shutdown is not None:
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
        if record.start_task is None:
            self._end_start(record, FAILED)
        if record.is_at_rest and record.state is FAILED:
            self.schedule_retry(record, hung=False)
        else:
            self._owner.retry(record, error)
        return True

    def schedule_retry(self, record: ServiceRecord, *, hung: bool) -> bool:
        """Schedule the next attempt at a service that is at rest again.

        :param hung: whether the failed ``start()`` ignored its cancellation and still runs.
        :returns: whether there will be another attempt.
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
        record.base_stop = None
        record.timer = self._loop.call_later(delay, self._relaunch, record, context=self._context)
        return True

    def _relaunch(self, record: ServiceRecord) -> None:
        record.timer = None
        del self._retries[record]
        if not self.traversal.is_stopped and self._launch(record):
            self.traversal.done(record)
