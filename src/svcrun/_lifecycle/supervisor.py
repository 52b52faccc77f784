"""Start, watch, restart and stop a set of services, in their order and within their time limits.

A start in progress is a :class:`svcrun._lifecycle.startup.Startup`, a stop in progress a
:class:`svcrun._lifecycle.shutdown.Shutdown`, a restart in progress a
:class:`svcrun._lifecycle.restarter.Restarter`. A service belongs to one of them at a time.
"""

from __future__ import annotations

import asyncio
import logging

from svcrun._lifecycle.dependency_graph import link, unlink, with_dependants
from svcrun._lifecycle.restarter import Restarter
from svcrun._lifecycle.service_record import ServiceRecord, transitions_are_logged
from svcrun._lifecycle.shutdown import Shutdown
from svcrun._lifecycle.startup import Startup
from svcrun._util.current_service import on_behalf_of
from svcrun._util.eager import start_eagerly
from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.raising import one_line, raise_together
from svcrun._util.tasks import current_work, heard
from svcrun.errors import (
    DependencyDown,
    NotAService,
    ServiceInUse,
    ShuttingDown,
    StartCancelled,
    StartDuringStop,
    show,
)
from svcrun.restart import Restart
from svcrun.service._keywords import warn_of_misspellings
from svcrun.service.base import Service, check_lifecycle_parameters, state_of
from svcrun.state import ServiceState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

log = logging.getLogger("svcrun.lifecycle")

__all__ = ("Supervisor",)

STARTING, RUNNING, STOPPING = ServiceState.STARTING, ServiceState.RUNNING, ServiceState.STOPPING
STOPPED, FAILED = ServiceState.STOPPED, ServiceState.FAILED


class Supervisor:
    """Look after services in `loop`.

    :param start_timeout: seconds that a start may take, for services that do not say it themselves.
    :param start_retry: the policy for retries of a failed first start, for services without one of
        their own.
    :param stop_timeout: seconds that a stop may take, of however many services.
    :param on_fatal: called with the error when a crash is to end everything.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        start_timeout: float | None = None,
        start_retry: Restart | None = None,
        stop_timeout: float | None = None,
        on_fatal: Callable[[BaseException], object],
    ) -> None:
        self._loop = loop
        self._start_timeout = start_timeout
        self._start_retry = start_retry
        self.stop_timeout = stop_timeout
        self._on_fatal = on_fatal
        self._records: dict[int, ServiceRecord] = {}
        self._startups: set[Startup] = set()
        self._shutdowns: set[Shutdown] = set()
        self._closing = False
        self._is_forced = False
        self.restarters: set[Restarter] = set()
        self.errors: list[BaseException] = []
        """What ended or hindered the shutdown, in the order it came."""
        self.hung = False
        """Whether something did not stop although its time was over."""

    @property
    def services(self) -> tuple[Service, ...]:
        """The services that were started and not stopped since, in the order they were given."""
        return tuple(
            record.service
            for record in self._records.values()
            if record.needs_stop or record.state is STOPPING
        )

    @property
    def is_stopping(self) -> bool:
        """Whether any service is being stopped."""
        return bool(self._shutdowns)

    # Starting.

    async def start(self, services: Sequence[Service]) -> None:
        """Start `services`; if one fails, roll all of them back.

        :raises ValueError, TypeError: before anything is started, if they can't be started as
            given.
        :raises ShuttingDown: once :meth:`close` was called.
        :raises BaseException: what a ``start()`` raised, as it is; several as a group.
        """
        for service in services:
            if not isinstance(service, Service):
                raise NotAService(service)
            check_lifecycle_parameters(service)
            if type(service)._svcrun_keywords.undeclared:
                warn_of_misspellings(service)
        if self._closing:
            raise ShuttingDown(services)
        waited = bool(self._records)
        while waited:  # while we wait for one, another may be on the move again
            waited = False
            for service in services:
                waited = await self._settle(service) or waited
        await self.start_at_rest(services)

    async def _settle(self, service: Service) -> bool:
        """Wait until `service` either runs or is at rest, and tell whether that took a while."""
        current = asyncio.current_task()
        waited = False
        while (record := self._records.get(id(service))) is not None:
            if record.shutdown is not None:
                if record.shutdown.owns(current):
                    raise StartDuringStop(service)
                await asyncio.shield(record.shutdown.ended)
            elif record.state is RUNNING:
                break
            elif record.needs_stop:  # it crashed
                await self.stop_records([record], None)
            elif record.state is STARTING and record.task in (None, current):
                break  # it asks itself, perhaps in the first step of its start()
            else:
                await record.wait_for_transition(self._loop)
            waited = True
        return waited

    async def start_at_rest(
        self, services: Iterable[Service], restarter: Restarter | None = None
    ) -> None:
        """Start those of `services` that do not run (see :meth:`start`).

        :param restarter: what wants that, and wants it again if it fails.
        """
        if self._closing:
            raise ShuttingDown(services)
        records = self._admit(services)
        if not records:
            return
        startup = Startup(
            self,
            records,
            self._loop,
            timeout=self._start_timeout,
            retry=self._start_retry,
            restarter=restarter,
        )
        self._startups.add(startup)
        try:
            await startup.run()
        finally:
            self._startups.discard(startup)
        if startup.errors:
            await self._roll_back(startup, restarter)

    def _admit(self, services: Iterable[Service]) -> list[ServiceRecord]:
        records: dict[int, ServiceRecord] = {}
        for service in services:
            key = id(service)
            if key in self._records or key in records:
                continue
            if state_of(service) in (STARTING, RUNNING, STOPPING):
                raise ServiceInUse(service)
            records[key] = ServiceRecord(service)
        link(records.values(), self._records.values())
        self._records.update(records)
        return list(records.values())

    async def _roll_back(self, startup: Startup, restarter: Restarter | None) -> None:
        """Stop the records that `startup` started, and raise its errors."""
        errors = startup.errors
        if not all(isinstance(error, asyncio.CancelledError) for error in errors):
            errors[:] = [e for e in errors if not isinstance(e, asyncio.CancelledError)]
        for record in startup.records:
            if record.is_at_rest:
                self.forget(record)
        # Once closing, everything is stopped by close(). Waiting for that here could be waiting for
        # ourselves.
        if not self._closing:
            cancelled = isinstance(errors[0], asyncio.CancelledError)
            await self._wait_for_all(
                self._begin_stop(
                    [record.service for record in startup.records],
                    None if cancelled else errors[0],
                    restarter,
                )
            )
        raise_together("several services failed to start", errors)

    @staticmethod
    async def _wait_for_all(shutdowns: list[Shutdown]) -> None:
        """Wait for the end of `shutdowns`, even if the caller is cancelled meanwhile."""
        current = asyncio.current_task()
        cancelled: asyncio.CancelledError | None = None
        while going_on := [
            shutdown.ended
            for shutdown in shutdowns
            if not shutdown.ended.done() and not shutdown.owns(current)
        ]:
            try:
                with heard(cancelled):
                    await asyncio.wait(going_on)
            except asyncio.CancelledError as error:
                cancelled = error
                log.debug("cancelled during a roll-back; completing it first")

    # Watching.

    def crashed(self, record: ServiceRecord, error: BaseException) -> None:
        """React to a ``start()`` that raised `error` after readiness, as ``on_crash`` requires."""
        service = record.service
        record.logs_transitions = transitions_are_logged()
        record.move_to(FAILED)
        if isinstance(error, SystemExit | KeyboardInterrupt):
            return  # the loop has passed it on already
        if isinstance(service.on_crash, Restart):
            restarter = Restarter(self, record, service.on_crash, self._loop)
            self.restarters.add(restarter)
            restarter.begin(record, error)
            return
        self.report_crash(service, error)
        if service.on_crash != "ignore":
            self.errors.append(error)
            self._on_fatal(error)

    @staticmethod
    def report_crash(service: Service, error: BaseException, *, is_new: bool = True) -> None:
        """Log that `service` crashed, with a traceback if the error is new."""
        with on_behalf_of(service):
            if is_new:
                log.error("%s crashed", show(service), exc_info=error)
            else:
                log.error("%s crashed again: %s", show(service), one_line(error))

    def recovered(self, restarter: Restarter) -> None:
        """Take note that `restarter` has done its work."""
        self.restarters.discard(restarter)

    def fatal(self, restarter: Restarter, error: BaseException) -> None:
        """Take note that `restarter` has given up because of `error`."""
        self.restarters.discard(restarter)
        self.errors.append(error)
        self._on_fatal(error)

    # Stopping.

    async def stop(self, services: Sequence[Service], exception: BaseException | None) -> None:
        """Stop `services`, and those that depend on them first.

        :param exception: passed to their ``stop()``.
        :raises BaseException: what a ``stop()`` raised, as it is; several as a group.
        """
        shutdowns = self._begin_stop(services, exception)
        for shutdown in shutdowns:
            await asyncio.shield(shutdown.ended)
        raise_together("several services failed to stop", shutdowns[0].errors)

    async def stop_records(
        self, records: Iterable[ServiceRecord], exception: BaseException | None
    ) -> None:
        """Stop `records` and their dependants; what fails is logged."""
        for shutdown in self.begin_stop_of(records, exception):
            await asyncio.shield(shutdown.ended)

    def _begin_stop(
        self,
        services: Iterable[Service],
        exception: BaseException | None,
        restarter: Restarter | None = None,
    ) -> list[Shutdown]:
        """Begin to stop `services` for good, whoever but `restarter` was about to restart them."""
        for other in self.restarters - {restarter}:
            other.leave_out(services)
        records = [
            record for service in services if (record := self._records.get(id(service))) is not None
        ]
        return self.begin_stop_of(records, exception)

    def begin_stop_of(
        self, records: Iterable[ServiceRecord], exception: BaseException | None
    ) -> list[Shutdown]:
        """Begin to stop `records` and their dependants.

        Return the shutdowns to wait for: our own, then those that others began. A service that is
        being stopped does not wait for its own end, nor does a piece of work that it may be
        waiting for.
        """
        records = with_dependants(records)
        others = {record.shutdown for record in records if record.shutdown is not None}
        stopping = set(records)
        for record in records:
            if record.startup is not None and record.startup.is_starting(record):
                down = next(
                    (required for required in record.requires if required in stopping), None
                )
                error = (
                    StartCancelled(record.service)
                    if down is None
                    else DependencyDown(record.service, down.service)
                )
                record.startup.fail(error, at_once=True)
        own = self.shut_down(
            [record for record in records if record.shutdown is None and not record.is_at_rest],
            exception,
            self.stop_timeout,
        )
        if current_work.get() is not None:
            return [own]
        current = asyncio.current_task()
        return [own, *(shutdown for shutdown in others if not shutdown.owns(current))]

    def waits_for(self, task: asyncio.Task[Any] | None) -> bool:
        """Tell whether `task`, the current one, has to end before a stop that is in progress."""
        return any(shutdown.owns(task) for shutdown in self._shutdowns)

    def awaited(self) -> list[ServiceRecord]:
        """Return the records for which stops in progress wait."""
        return [record for shutdown in self._shutdowns for record in shutdown.busy()]

    async def close(self, exception: BaseException | None, limit: float | None) -> None:
        """Stop everything within `limit` seconds, and start nothing more.

        :attr:`errors` tells what was raised.
        """
        self._closing = True
        for startup in tuple(self._startups):
            startup.fail(ShuttingDown([record.service for record in startup.records]), at_once=True)
        restarters = [
            r.task for r in self.restarters if r.task not in (None, asyncio.current_task())
        ]
        self.restarters.clear()
        for task in restarters:
            task.cancel()
        if limit is not None:
            for shutdown in self._shutdowns:
                shutdown.limit(limit)

        records = [
            record
            for record in self._records.values()
            if record.shutdown is None and (record.needs_stop or record.state is STARTING)
        ]
        own = self.shut_down(records, exception, limit)
        for shutdown in (own, *self._shutdowns):
            await asyncio.shield(shutdown.ended)
        self.errors += own.errors
        own.errors.clear()  # a frame in a traceback may refer to the shutdown
        if restarters:
            await asyncio.wait(restarters)

    def force(self) -> None:
        """Cancel all that is being stopped, and wait for it no longer than a moment."""
        self._is_forced = True
        for shutdown in tuple(self._shutdowns):
            shutdown.force()

    def shut_down(
        self, records: list[ServiceRecord], exception: BaseException | None, limit: float | None
    ) -> Shutdown:
        """Stop `records`, without their dependants."""
        shutdown = Shutdown(self._loop, records, exception, limit)
        self._shutdowns.add(shutdown)
        if self._is_forced:
            shutdown.force()
        if shutdown.begin():
            self._shutdown_ended(shutdown, records)
        else:
            # A task of its own: the caller may be one of the tasks that are cancelled in its
            # course.
            shutdown.task = start_eagerly(
                self._run(shutdown, records), self._loop, name="stop of services"
            )
        return shutdown

    async def _run(self, shutdown: Shutdown, records: list[ServiceRecord]) -> None:
        try:
            await shutdown.run()
        finally:
            self._shutdown_ended(shutdown, records)

    def _shutdown_ended(self, shutdown: Shutdown, records: list[ServiceRecord]) -> None:
        self.hung = self.hung or shutdown.hung
        self._shutdowns.discard(shutdown)
        for record in records:
            if record.startup is None or not record.startup.schedule_retry(
                record, hung=shutdown.hung
            ):
                self.forget(record)
        shutdown.ended.set_result(None)

    def forget(self, record: ServiceRecord) -> None:
        """Forget `record`, which is at rest."""
        if self._records.get(id(record.service)) is record:
            del self._records[id(record.service)]
        if record.requires:
            unlink(record)
        if record.transition is not None:
            record.wake()
