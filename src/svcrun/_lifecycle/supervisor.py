"""Start, watch, restart and stop a set of services, in their order and within their time limits.

A start in progress is a :class:`svcrun._lifecycle.startup.Startup`, a stop in progress a
:class:`svcrun._lifecycle.shutdown.Sweep`, a restart in progress a
:class:`svcrun._lifecycle.restarter.Recovery`. A service belongs to one of them at a time.
"""

from __future__ import annotations

import asyncio
import logging

from svcrun._lifecycle.dependency_graph import link, unlink, with_dependants
from svcrun._lifecycle.restarter import Recovery
from svcrun._lifecycle.shutdown import Sweep
from svcrun._lifecycle.startup import Startup
from svcrun._lifecycle.unit import Unit, traces
from svcrun._util.current_service import on_behalf_of
from svcrun._util.eager import start_eagerly
from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.raising import brief, raise_together
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
        self._units: dict[int, Unit] = {}
        self._startups: set[Startup] = set()
        self._sweeps: set[Sweep] = set()
        self._closing = False
        self._hurried = False
        self.recoveries: set[Recovery] = set()
        self.errors: list[BaseException] = []
        """What ended or hindered the shutdown, in the order it came."""
        self.hung = False
        """Whether something did not stop although its time was over."""

    @property
    def services(self) -> tuple[Service, ...]:
        """The services that were started and not stopped since, in the order they were given."""
        return tuple(
            unit.service
            for unit in self._units.values()
            if unit.needs_stop or unit.state is STOPPING
        )

    @property
    def is_stopping(self) -> bool:
        """Whether any service is being stopped."""
        return bool(self._sweeps)

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
        waited = bool(self._units)
        while waited:  # while we wait for one, another may be on the move again
            waited = False
            for service in services:
                waited = await self._settle(service) or waited
        await self.start_at_rest(services)

    async def _settle(self, service: Service) -> bool:
        """Wait until `service` either runs or is at rest, and tell whether that took a while."""
        current = asyncio.current_task()
        waited = False
        while (unit := self._units.get(id(service))) is not None:
            if unit.in_sweep is not None:
                if unit.in_sweep.owns(current):
                    raise StartDuringStop(service)
                await asyncio.shield(unit.in_sweep.ended)
            elif unit.state is RUNNING:
                break
            elif unit.needs_stop:  # it crashed
                await self.stop_units([unit], None)
            elif unit.state is STARTING and unit.task in (None, current):
                break  # it asks itself, perhaps in the first step of its start()
            else:
                await unit.next_move(self._loop)
            waited = True
        return waited

    async def start_at_rest(
        self, services: Iterable[Service], recovery: Recovery | None = None
    ) -> None:
        """Start those of `services` that do not run (see :meth:`start`).

        :param recovery: what wants that, and wants it again if it fails.
        """
        if self._closing:
            raise ShuttingDown(services)
        units = self._admit(services)
        if not units:
            return
        startup = Startup(
            self,
            units,
            self._loop,
            timeout=self._start_timeout,
            retry=self._start_retry,
            recovery=recovery,
        )
        self._startups.add(startup)
        try:
            await startup.run()
        finally:
            self._startups.discard(startup)
        if startup.errors:
            await self._roll_back(startup, recovery)

    def _admit(self, services: Iterable[Service]) -> list[Unit]:
        units: dict[int, Unit] = {}
        for service in services:
            key = id(service)
            if key in self._units or key in units:
                continue
            if state_of(service) in (STARTING, RUNNING, STOPPING):
                raise ServiceInUse(service)
            units[key] = Unit(service)
        link(units.values(), self._units.values())
        self._units.update(units)
        return list(units.values())

    async def _roll_back(self, startup: Startup, recovery: Recovery | None) -> None:
        """Stop the units that `startup` started, and raise its errors."""
        errors = startup.errors
        if not all(isinstance(error, asyncio.CancelledError) for error in errors):
            errors[:] = [e for e in errors if not isinstance(e, asyncio.CancelledError)]
        for unit in startup.units:
            if unit.at_rest:
                self.forget(unit)
        # Once closing, everything is stopped by close(). Waiting for that here could be waiting for
        # ourselves.
        if not self._closing:
            cancelled = isinstance(errors[0], asyncio.CancelledError)
            await self._wait_for_all(
                self._begin_stop(
                    [unit.service for unit in startup.units],
                    None if cancelled else errors[0],
                    recovery,
                )
            )
        raise_together("several services failed to start", errors)

    @staticmethod
    async def _wait_for_all(sweeps: list[Sweep]) -> None:
        """Wait for the end of `sweeps`, even if the caller is cancelled meanwhile."""
        current = asyncio.current_task()
        cancelled: asyncio.CancelledError | None = None
        while going_on := [
            sweep.ended for sweep in sweeps if not sweep.ended.done() and not sweep.owns(current)
        ]:
            try:
                with heard(cancelled):
                    await asyncio.wait(going_on)
            except asyncio.CancelledError as error:
                cancelled = error
                log.debug("cancelled during a roll-back; completing it first")

    # Watching.

    def crashed(self, unit: Unit, error: BaseException) -> None:
        """React to a ``start()`` that raised `error` after readiness, as ``on_crash`` requires."""
        service = unit.service
        unit.traced = traces()
        unit.move(FAILED)
        if isinstance(error, SystemExit | KeyboardInterrupt):
            return  # the loop has passed it on already
        if isinstance(service.on_crash, Restart):
            recovery = Recovery(self, unit, service.on_crash, self._loop)
            self.recoveries.add(recovery)
            recovery.begin(unit, error)
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
                log.error("%s crashed again: %s", show(service), brief(error))

    def recovered(self, recovery: Recovery) -> None:
        """Take note that `recovery` has done its work."""
        self.recoveries.discard(recovery)

    def fatal(self, recovery: Recovery, error: BaseException) -> None:
        """Take note that `recovery` has given up because of `error`."""
        self.recoveries.discard(recovery)
        self.errors.append(error)
        self._on_fatal(error)

    # Stopping.

    async def stop(self, services: Sequence[Service], exception: BaseException | None) -> None:
        """Stop `services`, and those that depend on them first.

        :param exception: passed to their ``stop()``.
        :raises BaseException: what a ``stop()`` raised, as it is; several as a group.
        """
        sweeps = self._begin_stop(services, exception)
        for sweep in sweeps:
            await asyncio.shield(sweep.ended)
        raise_together("several services failed to stop", sweeps[0].errors)

    async def stop_units(self, units: Iterable[Unit], exception: BaseException | None) -> None:
        """Stop `units` and their dependants; what fails is logged."""
        for sweep in self.begin_stop_of(units, exception):
            await asyncio.shield(sweep.ended)

    def _begin_stop(
        self,
        services: Iterable[Service],
        exception: BaseException | None,
        recovery: Recovery | None = None,
    ) -> list[Sweep]:
        """Begin to stop `services` for good, whoever but `recovery` was about to restart them."""
        for other in self.recoveries - {recovery}:
            other.leave_out(services)
        units = [unit for service in services if (unit := self._units.get(id(service))) is not None]
        return self.begin_stop_of(units, exception)

    def begin_stop_of(self, units: Iterable[Unit], exception: BaseException | None) -> list[Sweep]:
        """Begin to stop `units` and their dependants.

        Return the sweeps to wait for: our own, then those that others began. What is being stopped
        does not wait for its own end, nor does a piece of work that it may be waiting for.
        """
        units = with_dependants(units)
        others = {unit.in_sweep for unit in units if unit.in_sweep is not None}
        stopping = set(units)
        for unit in units:
            if unit.in_startup is not None and unit.in_startup.is_starting(unit):
                down = next((required for required in unit.requires if required in stopping), None)
                error = (
                    StartCancelled(unit.service)
                    if down is None
                    else DependencyDown(unit.service, down.service)
                )
                unit.in_startup.fail(error, at_once=True)
        own = self.sweep(
            [unit for unit in units if unit.in_sweep is None and not unit.at_rest],
            exception,
            self.stop_timeout,
        )
        if current_work.get() is not None:
            return [own]
        current = asyncio.current_task()
        return [own, *(sweep for sweep in others if not sweep.owns(current))]

    def waits_for(self, task: asyncio.Task[Any] | None) -> bool:
        """Tell whether `task`, the current one, has to end before a stop that is in progress."""
        return any(sweep.owns(task) for sweep in self._sweeps)

    def awaited(self) -> list[Unit]:
        """Return the units for which stops in progress wait."""
        return [unit for sweep in self._sweeps for unit in sweep.busy()]

    async def close(self, exception: BaseException | None, limit: float | None) -> None:
        """Stop everything within `limit` seconds, and start nothing more.

        :attr:`errors` tells what was raised.
        """
        self._closing = True
        for startup in tuple(self._startups):
            startup.fail(ShuttingDown([unit.service for unit in startup.units]), at_once=True)
        recoveries = [
            r.task for r in self.recoveries if r.task not in (None, asyncio.current_task())
        ]
        self.recoveries.clear()
        for task in recoveries:
            task.cancel()
        if limit is not None:
            for sweep in self._sweeps:
                sweep.limit(limit)

        units = [
            unit
            for unit in self._units.values()
            if unit.in_sweep is None and (unit.needs_stop or unit.state is STARTING)
        ]
        own = self.sweep(units, exception, limit)
        for sweep in (own, *self._sweeps):
            await asyncio.shield(sweep.ended)
        self.errors += own.errors
        own.errors.clear()  # a frame in a traceback may refer to the sweep
        if recoveries:
            await asyncio.wait(recoveries)

    def hurry(self) -> None:
        """Cancel all that is being stopped, and wait for it no longer than a moment."""
        self._hurried = True
        for sweep in tuple(self._sweeps):
            sweep.hurry()

    def sweep(
        self, units: list[Unit], exception: BaseException | None, limit: float | None
    ) -> Sweep:
        """Stop `units`, without their dependants."""
        sweep = Sweep(self._loop, units, exception, limit)
        self._sweeps.add(sweep)
        if self._hurried:
            sweep.hurry()
        if sweep.begin():
            self._swept(sweep, units)
        else:
            # A task of its own: the caller may be one of the tasks that are cancelled in its
            # course.
            sweep.task = start_eagerly(self._run(sweep, units), self._loop, name="stop of services")
        return sweep

    async def _run(self, sweep: Sweep, units: list[Unit]) -> None:
        try:
            await sweep.run()
        finally:
            self._swept(sweep, units)

    def _swept(self, sweep: Sweep, units: list[Unit]) -> None:
        self.hung = self.hung or sweep.hung
        self._sweeps.discard(sweep)
        for unit in units:
            if unit.in_startup is None or not unit.in_startup.schedule_retry(unit, hung=sweep.hung):
                self.forget(unit)
        sweep.ended.set_result(None)

    def forget(self, unit: Unit) -> None:
        """Forget `unit`, which is at rest."""
        if self._units.get(id(unit.service)) is unit:
            del self._units[id(unit.service)]
        if unit.requires:
            unlink(unit)
        if unit.moved is not None:
            unit.wake()
