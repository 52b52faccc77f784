"""Start, watch, restart and stop a set of services, in their order and within their time limits.

A start in progress is a :class:`svcrun._lifecycle.startup.Startup`, a stop in progress a
:class:`svcrun._lifecycle.shutdown.Shutdown`, a restart in progress a
:class:`svcrun._lifecycle.restarter.Restarter`. The supervisor creates them, and is the only one
that changes the state of a service.

A failed start, for example: ``Startup`` calls no further ``start()`` and returns the exceptions;
``_roll_back`` begins a ``Shutdown`` of all services of that start-up, waits for its end, and raises
the exceptions.
"""

from __future__ import annotations

import asyncio
import logging

from svcrun._lifecycle.backoff import report_crash
from svcrun._lifecycle.dependency_graph import with_dependants
from svcrun._lifecycle.registry import Registry
from svcrun._lifecycle.restarter import Restarter
from svcrun._lifecycle.service_record import StopInProgress, cancellation_error
from svcrun._lifecycle.shutdown import Shutdown, wait_for_all
from svcrun._lifecycle.startup import Startup
from svcrun._util.current_service import on_behalf_of
from svcrun._util.eager import start_eagerly
from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.raising import raise_together
from svcrun._util.tasks import current_work
from svcrun.errors import IllegalTransition, ShuttingDown, StartDuringStop, show
from svcrun.restart import Restart
from svcrun.service.base import Service, check_service
from svcrun.state import ServiceState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from svcrun._lifecycle.service_record import ServiceRecord

log = logging.getLogger("svcrun.lifecycle")

__all__ = ("Supervisor",)

STARTING, RUNNING, STOPPING = ServiceState.STARTING, ServiceState.RUNNING, ServiceState.STOPPING
STOPPED, FAILED = ServiceState.STOPPED, ServiceState.FAILED


class Supervisor:
    """Supervise services in `loop`.

    :param start_timeout: seconds that a ``start()`` may take, for services without a limit of their
        own; None for no limit.
    :param start_retry: the policy for retries of a failed first start, for services without one of
        their own.
    :param stop_timeout: seconds that a stop of any number of services may take; None for no limit.
    :param on_fatal: called with the error of a crash that shuts the program down.
    :param on_roll_back: called before the services of a failed start-up are stopped, in the task of
        that start-up.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        start_timeout: float | None = None,
        start_retry: Restart | None = None,
        stop_timeout: float | None = None,
        on_fatal: Callable[[BaseException], object],
        on_roll_back: Callable[[], object] = bool,
    ) -> None:
        self._loop = loop
        self._start_timeout = start_timeout
        self._start_retry = start_retry
        self._stop_timeout = stop_timeout
        self._on_fatal = on_fatal
        self._on_roll_back = on_roll_back
        self._registry = Registry()
        self.record_history = self._registry.record_history
        self._startups: set[Startup] = set()
        self._shutdowns: set[Shutdown] = set()
        self._is_closing = False
        self._is_forced = False
        self._logs_moves = False  # read once for each start and stop: a call for each move is slow
        self.restarters: set[Restarter] = set()
        self.errors: list[BaseException] = []
        """The errors of crashes and of stops, in the order in which they occurred."""
        self.hung = False
        """Whether a ``start()`` or ``stop()`` did not end within its time limit."""

    @property
    def services(self) -> tuple[Service, ...]:
        """The services that were started and not stopped since, in the order they were given."""
        return self._registry.active

    @property
    def running(self) -> list[Service]:
        """The services that run, each after those that it requires."""
        return self._registry.running

    @property
    def restarting(self) -> list[Service]:
        """The services that crashed, or depend on one that did, and will be started again."""
        return [service for restarter in list(self.restarters) for service in restarter.services]

    @property
    def pending(self) -> list[Service]:
        """The services that a start-up in progress waits for, or has not begun to start."""
        return [
            record.service for startup in self._startups for record in startup.traversal.pending
        ]

    @property
    def is_stopping(self) -> bool:
        """Whether any service is being stopped."""
        return bool(self._shutdowns)

    def move(self, record: ServiceRecord, state: ServiceState) -> None:
        """Move the service of `record` to `state`; no other code changes the state of a service.

        :raises IllegalTransition: if the present state does not allow that.
        """
        internals = record.internals
        old = internals.state
        if state not in old.successors:
            raise IllegalTransition(record.service, old, state)
        internals.state = state
        if record.history is not None:
            record.history.move(old, state)
        if self._logs_moves:
            with on_behalf_of(record.service):
                log.debug("%s: was %s", show(record.service), old.name)
        if record.waiter is not None:
            record.wake()

    # Starting.

    async def start(self, services: Sequence[Service]) -> None:
        """Start `services`; if one fails, stop all of them again.

        :raises ValueError, TypeError: before anything is started, if a parameter is invalid.
        :raises ShuttingDown: once :meth:`close` was called.
        :raises BaseException: the error of a ``start()``; several errors as a group.
        """
        for service in services:
            check_service(service)
        if self._is_closing:
            raise ShuttingDown(services)
        has_waited = bool(self._registry.records)
        while has_waited:  # during a wait for one service, the state of another may change again
            has_waited = False
            for service in services:
                has_waited = await self._wait_until_settled(service) or has_waited
        await self.start_at_rest(services)

    async def _wait_until_settled(self, service: Service) -> bool:
        """Wait until `service` runs or is at rest, and return whether that took a while."""
        current = asyncio.current_task()
        has_waited = False
        while (record := self._registry.get(service)) is not None:
            if record.shutdown is not None:
                if record.shutdown.waits_for(current):
                    raise StartDuringStop(service)
                await asyncio.shield(record.shutdown.ended)
            elif record.state is RUNNING:
                break
            elif record.needs_stop:  # it crashed
                await self.stop_records([record], None)
            elif record.state is STARTING and record.start_task in (None, current):
                break  # the service starts itself, perhaps in the first step of its start()
            else:
                await record.wait_for_move(self._loop)
            has_waited = True
        return has_waited

    async def start_at_rest(
        self, services: Iterable[Service], restarter: Restarter | None = None
    ) -> None:
        """Start those of `services` that do not run (see :meth:`start`).

        :param restarter: the restarter that calls this, and calls it again if the start fails.
        """
        if self._is_closing:
            raise ShuttingDown(services)
        records = self._registry.add(services)
        self._logs_moves = log.isEnabledFor(logging.DEBUG)
        if not records:
            return
        startup = Startup(
            self,
            records,
            self._loop,
            timeout=self._start_timeout,
            retry=self._start_retry,
            report_failure=None if restarter is None else restarter.start_failed,
        )
        self._startups.add(startup)
        try:
            await startup.run()
        finally:
            self._startups.discard(startup)
        if startup.errors:
            await self._roll_back(startup, restarter)

    async def _roll_back(self, startup: Startup, restarter: Restarter | None) -> None:
        """Stop the services that `startup` started, and raise its errors."""
        errors = startup.errors
        if not all(isinstance(error, asyncio.CancelledError) for error in errors):
            errors[:] = [e for e in errors if not isinstance(e, asyncio.CancelledError)]
        for record in startup.records:
            if record.is_at_rest:
                self._registry.remove(record)
        # Once closing, close() stops everything. To wait for that here could be a deadlock, because
        # close() may wait for the caller.
        if not self._is_closing:
            self._on_roll_back()
            is_cancelled = isinstance(errors[0], asyncio.CancelledError)
            await wait_for_all(
                self._begin_stop(
                    [record.service for record in startup.records],
                    None if is_cancelled else errors[0],
                    restarter,
                )
            )
        raise_together("several services failed to start", errors)

    def retry(self, record: ServiceRecord, error: BaseException) -> None:
        """Stop a service whose start failed with `error`, before another attempt.

        Its dependants are not stopped: they wait for that attempt.
        """
        self._shut_down([record], error, self._stop_timeout)

    def discard(self, record: ServiceRecord) -> None:
        """Forget a service that is at rest; stop one that is not."""
        if record.is_at_rest:
            self._registry.remove(record)
        else:
            self._begin_stop_of((record,), None)

    # Crashes.

    def crashed(self, record: ServiceRecord, error: BaseException) -> None:
        """React to a ``start()`` that raised `error` after readiness, as ``on_crash`` requires."""
        service = record.service
        self._logs_moves = log.isEnabledFor(logging.DEBUG)
        self.move(record, FAILED)
        if isinstance(error, SystemExit | KeyboardInterrupt):
            return  # the loop has raised it already
        if record.history is not None:
            record.history.crash(error)
        if isinstance(service.on_crash, Restart):
            restarter = Restarter(self, record, service.on_crash, self._loop)
            self.restarters.add(restarter)
            restarter.begin(record, error)
            return
        report_crash(service, error)
        if service.on_crash != "ignore":
            self.errors.append(error)
            self._on_fatal(error)

    def restart_failed(self, restarter: Restarter, error: BaseException) -> None:
        """React to a restart that was given up because of `error`."""
        self.restarters.discard(restarter)
        self.errors.append(error)
        self._on_fatal(error)

    # Stopping.

    async def stop(self, services: Sequence[Service], exception: BaseException | None) -> None:
        """Stop `services`, their dependants first.

        :param exception: passed to each ``stop()``.
        :raises BaseException: the error of a ``stop()``; several errors as a group.
        """
        shutdowns = self._begin_stop(services, exception)
        for shutdown in shutdowns:
            await asyncio.shield(shutdown.ended)
        raise_together("several services failed to stop", shutdowns[0].errors)

    async def stop_records(
        self, records: Iterable[ServiceRecord], exception: BaseException | None
    ) -> None:
        """Stop the services of `records`, their dependants first; errors are only logged."""
        for shutdown in self._begin_stop_of(records, exception):
            await asyncio.shield(shutdown.ended)

    def _begin_stop(
        self,
        services: Iterable[Service],
        exception: BaseException | None,
        restarter: Restarter | None = None,
    ) -> list[StopInProgress]:
        """Begin to stop `services`, which no restarter except `restarter` starts again."""
        for other in self.restarters - {restarter}:
            other.exclude(services)
        known = [self._registry.get(service) for service in services]
        return self._begin_stop_of([record for record in known if record is not None], exception)

    def _begin_stop_of(
        self, records: Iterable[ServiceRecord], exception: BaseException | None
    ) -> list[StopInProgress]:
        """Begin to stop the services of `records` and their dependants.

        Return the shutdowns to wait for: the new one, then those in progress to which some of the
        services belong already. To prevent a deadlock, a shutdown in progress that waits for the
        caller is left out, and so are all of them if the caller belongs to a piece of work, such as
        a periodic call, for which a ``stop()`` may wait.
        """
        records = with_dependants(records)
        others = {record.shutdown for record in records if record.shutdown is not None}
        stopping = set(records)
        for record in records:
            if record.startup is not None and record.startup.is_starting(record):
                error = cancellation_error(record, stopping)
                record.startup.fail(error, at_once=True)
        own = self._shut_down(
            [record for record in records if record.shutdown is None and not record.is_at_rest],
            exception,
            self._stop_timeout,
        )
        if current_work.get() is not None:
            return [own]
        current = asyncio.current_task()
        return [own, *(shutdown for shutdown in others if not shutdown.waits_for(current))]

    def waits_for(self, task: asyncio.Task[Any] | None) -> bool:
        """Return whether a stop in progress waits for `task`, the current one."""
        return any(shutdown.waits_for(task) for shutdown in self._shutdowns)

    def in_progress(self) -> list[ServiceRecord]:
        """Return the records for which stops in progress wait."""
        return [record for shutdown in self._shutdowns for record in shutdown.in_progress()]

    async def close(self, exception: BaseException | None, limit: float | None) -> None:
        """Stop all services within `limit` seconds, and start no further one.

        Errors are added to :attr:`errors`.
        """
        self._is_closing = True
        for startup in tuple(self._startups):
            startup.fail(ShuttingDown([record.service for record in startup.records]), at_once=True)
        current = asyncio.current_task()
        restarts = [r.task for r in self.restarters if r.task not in (None, current)]
        self.restarters.clear()
        for task in restarts:
            task.cancel()
        if limit is not None:
            for shutdown in self._shutdowns:
                shutdown.limit(limit)

        records = [
            record
            for record in self._registry.records
            if record.shutdown is None and (record.needs_stop or record.state is STARTING)
        ]
        own = self._shut_down(records, exception, limit)
        for shutdown in (own, *self._shutdowns):
            await asyncio.shield(shutdown.ended)
        self.errors += own.errors
        own.errors.clear()  # a frame in a traceback may refer to the shutdown
        if restarts:
            await asyncio.wait(restarts)

    def force(self) -> None:
        """Cancel everything that a stop in progress waits for, and abandon it after a second."""
        self._is_forced = True
        for shutdown in tuple(self._shutdowns):
            shutdown.force()

    def _shut_down(
        self, records: list[ServiceRecord], exception: BaseException | None, limit: float | None
    ) -> Shutdown:
        """Begin to stop the services of `records`, without their dependants."""
        self._logs_moves = log.isEnabledFor(logging.DEBUG)
        shutdown = Shutdown(
            self._loop,
            records,
            exception,
            limit,
            move=self.move,
            on_end=self._shutdown_ended,
        )
        self._shutdowns.add(shutdown)
        if self._is_forced:
            shutdown.force()
        if not shutdown.begin():
            # The shutdown may cancel the caller, so it runs in a task of its own.
            shutdown.task = start_eagerly(shutdown.run(), self._loop, name="stop of services")
        return shutdown

    def _shutdown_ended(self, shutdown: Shutdown) -> None:
        self.hung |= shutdown.hung
        self._shutdowns.discard(shutdown)
        for record in shutdown.records:
            startup = record.startup
            if startup is None or not startup.schedule_retry(record, hung=shutdown.hung):
                self._registry.remove(record)
