"""Start, watch, restart and stop a set of services, in their order and within their time limits.

A start in progress is a :class:`Batch`, a stop in progress a :class:`svcrun.sweep.Sweep`, a
restart in progress a :class:`svcrun.recovery.Recovery`. A service belongs to one of them at a time.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from svcrun.current import on_behalf_of
from svcrun.eager import start_eagerly
from svcrun.errors import (
    DependencyDown,
    NotAService,
    ServiceInUse,
    ShuttingDown,
    StartCancelled,
    StartDuringStop,
    StartTimeout,
    raise_together,
    show,
)
from svcrun.order import Walk, link, unlink, with_dependants
from svcrun.per_loop import running_loop
from svcrun.recovery import Recovery
from svcrun.restart import Restart
from svcrun.service.base import Service, StartEvent, check_lifecycle_parameters, own_stop
from svcrun.state import ServiceState
from svcrun.sweep import Sweep
from svcrun.tasks import current_work, format_stack
from svcrun.unit import Unit, traces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

log = logging.getLogger(__name__)

__all__ = ("Supervisor",)

STARTING, RUNNING, STOPPING = ServiceState.STARTING, ServiceState.RUNNING, ServiceState.STOPPING
STOPPED, FAILED = ServiceState.STOPPED, ServiceState.FAILED


class Batch:
    """Services that are being started together, and fail together."""

    __slots__ = ("context", "errors", "units", "walk")

    def __init__(self, units: list[Unit], launch: Callable[[Unit], bool]) -> None:
        self.units = units
        self.walk = Walk(units, launch, upwards=True)
        self.errors: list[BaseException] = []
        # Every start() runs in the context of the caller, also one that another service's readiness
        # lets loose.
        self.context = contextvars.copy_context()
        traced = traces()
        for unit in units:
            unit.in_batch = self
            unit.traced = traced

    def fail(self, error: BaseException, *, at_once: bool = False) -> None:
        """Start nothing more.

        :param at_once: whether that means even what is about to be started at the same time.
        """
        self.errors.append(error)
        self.walk.stop(at_once=at_once)


class Supervisor:
    """Look after services in `loop`.

    :param start_timeout: seconds that a start may take, for services that do not say it themselves.
    :param stop_timeout: seconds that a stop may take, of however many services.
    :param on_fatal: called with the error when a crash is to end everything.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        start_timeout: float | None = None,
        stop_timeout: float | None = None,
        on_fatal: Callable[[BaseException], object],
    ) -> None:
        self._loop = loop
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._on_fatal = on_fatal
        self._units: dict[int, Unit] = {}
        self._batches: set[Batch] = set()
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
            if unit.owes_stop or unit.state is STOPPING
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
            elif unit.owes_stop:  # it crashed
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
        batch = Batch(units, self._launch)
        self._batches.add(batch)
        try:
            batch.walk.go()
            await batch.walk.wait(self._loop)
        except asyncio.CancelledError as error:
            batch.fail(error, at_once=True)
        finally:
            self._batches.discard(batch)
            for unit in units:
                unit.in_batch = None
        if batch.errors:
            await self._roll_back(batch, recovery)

    def _admit(self, services: Iterable[Service]) -> list[Unit]:
        units: dict[int, Unit] = {}
        for service in services:
            key = id(service)
            if key in self._units or key in units:
                continue
            if service._state in (STARTING, RUNNING, STOPPING):
                raise ServiceInUse(service)
            units[key] = Unit(service)
        link(units.values(), self._units.values())
        self._units.update(units)
        return list(units.values())

    def _launch(self, unit: Unit) -> bool:
        """Start `unit`, and tell whether that is settled already."""
        service = unit.service
        for required in unit.requires:
            if not required.is_up or required.state is not RUNNING:
                unit.in_batch.fail(DependencyDown(service, required.service))
                return False

        service.set_loop(self._loop)
        unit.move(STARTING)
        try:
            task = unit.begin(service.start, self._loop)
        except BaseException as error:  # noqa: BLE001 - whatever it is comes out after the rollback
            return self._start_ended(unit, error)
        if task.done():
            failure = _outcome(task, service)
            if failure is None or not service.start_event.is_set():
                return self._start_ended(unit, failure)

        unit.task = task
        task.add_done_callback(partial(self._on_task_done, unit))
        event = service.start_event
        if event.is_set():
            self._started(unit)
            return True
        self._wait_for(unit, event)
        return False

    def _wait_for(self, unit: Unit, event: asyncio.Event) -> None:
        """Have somebody notice when `unit` is ready, or does not get there."""
        if isinstance(event, StartEvent):
            event.callback = partial(self._on_ready, unit)
            if event.is_set():  # by a thread, just now
                self._loop.call_soon(self._on_ready, unit)
        own = unit.service.start_timeout
        timeout = self._start_timeout if own is None else own
        if timeout is not None:
            unit.timer = self._loop.call_later(timeout, self._start_overrun, unit, timeout)
        if unit.in_sweep is not None:
            unit.in_sweep.start_waits(unit)

    def _started(self, unit: Unit) -> None:
        if unit.timer is not None:
            unit.end_timer()
        unit.owes_stop = True
        unit.move(RUNNING)
        if unit.in_sweep is not None:
            # It came through although it is to be stopped. Not now: its own task may be running.
            self._loop.call_soon(unit.in_sweep.start_ended, unit, None)

    def _start_ended(self, unit: Unit, error: BaseException | None) -> bool:
        """Take note that the ``start()`` of a service that was not ready yet has ended."""
        service = unit.service
        if error is None:
            self._started(unit)
            if service._start_event is not None:
                service._start_event.set()
            return True

        if unit.in_batch in self._batches and not unit.start_cancelled:
            unit.in_batch.fail(error)
        else:
            with on_behalf_of(service):
                log.error(
                    "%s failed while its start was being called off", show(service), exc_info=error
                )
        self._not_started(unit, FAILED)
        return False

    def _not_started(self, unit: Unit, state: ServiceState) -> None:
        unit.end_timer()
        unit.undo = own_stop(unit.service)
        if unit.undo is None:
            unit.move(state)
        else:
            # It may have opened sockets and begun tasks before it failed, or was called off.
            unit.move(FAILED)
            unit.failed = state is FAILED
            unit.owes_stop = True
        if unit.in_sweep is not None:
            unit.in_sweep.start_ended(unit, None)
        elif unit.at_rest:
            self._forget(unit)
        elif unit.in_batch not in self._batches:  # else its roll-back sees to it
            self._begin_stop_of((unit,), None)

    def _start_overrun(self, unit: Unit, timeout: float) -> None:
        unit.timer = None
        if unit.task is not None and unit.in_sweep is None:
            unit.in_batch.fail(StartTimeout(unit.service, timeout, format_stack(unit.task)))

    async def _roll_back(self, batch: Batch, recovery: Recovery | None) -> None:
        """Stop what `batch` started, and raise what made it fail."""
        errors = [
            error for error in batch.errors if not isinstance(error, asyncio.CancelledError)
        ] or batch.errors
        for unit in batch.units:
            if unit.at_rest:
                self._forget(unit)
        # Once closing, everything is stopped by close(). Waiting for that here could be waiting for
        # ourselves.
        if not self._closing:
            cause = None if isinstance(errors[0], asyncio.CancelledError) else errors[0]
            services = [unit.service for unit in batch.units]
            sweeps = self._begin_stop(services, cause, recovery)
            current = asyncio.current_task()
            while going_on := [
                sweep.ended
                for sweep in sweeps
                if not sweep.ended.done() and not sweep.owns(current)
            ]:
                try:
                    await asyncio.wait(going_on)
                except asyncio.CancelledError:
                    log.debug("cancelled during a roll-back, which goes on")
        raise_together("several services failed to start", errors)

    # Watching.

    def _on_ready(self, unit: Unit) -> None:
        """React to ``start_event``, which the service's own task is setting, or a thread."""
        if running_loop() is not self._loop:
            self._loop.call_soon_threadsafe(self._on_ready, unit)
            return
        if unit.state is not STARTING or unit.task is None:  # without a task, it was left alone
            return
        self._started(unit)
        if unit.in_sweep is None:
            self._loop.call_soon(unit.in_batch.walk.done, unit, context=unit.in_batch.context)

    def _on_task_done(self, unit: Unit, task: asyncio.Task[Any]) -> None:
        """React to the end of a ``start()`` that had to wait."""
        called_off = unit.start_cancelled and task.cancelled()
        error = None if called_off else _outcome(task, unit.service)
        if unit.task is not task:  # it was left alone when it did not end in time
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
                self._crashed(unit, error)
        elif called_off:
            self._not_started(unit, STOPPED)
        elif self._start_ended(unit, error) and unit.in_sweep is None:
            unit.in_batch.walk.done(unit)

    def _crashed(self, unit: Unit, error: BaseException) -> None:
        service = unit.service
        unit.traced = traces()
        unit.move(FAILED)
        if isinstance(error, SystemExit | KeyboardInterrupt):
            return  # the loop has passed it on already
        with on_behalf_of(service):
            log.error("%s crashed", show(service), exc_info=error)
        if isinstance(service.on_crash, Restart):
            recovery = Recovery(self, unit, service.on_crash, self._loop)
            self.recoveries.add(recovery)
            recovery.begin(unit, error)
        elif service.on_crash != "ignore":
            self.errors.append(error)
            self._on_fatal(error)

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
        for sweep in self._begin_stop_of(units, exception):
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
        return self._begin_stop_of(units, exception)

    def _begin_stop_of(self, units: Iterable[Unit], exception: BaseException | None) -> list[Sweep]:
        """Begin to stop `units` and their dependants.

        Return the sweeps to wait for: our own, then those that others began. What is being stopped
        does not wait for its own end, nor does a piece of work that it may be waiting for.
        """
        units = with_dependants(units)
        others = {unit.in_sweep for unit in units if unit.in_sweep is not None}
        stopping = set(units)
        for unit in units:
            if unit.in_batch is not None and not unit.owes_stop and unit.in_sweep is None:
                down = next((required for required in unit.requires if required in stopping), None)
                error = (
                    StartCancelled(unit.service)
                    if down is None
                    else DependencyDown(unit.service, down.service)
                )
                unit.in_batch.fail(error, at_once=True)
        own = self._sweep(
            [unit for unit in units if unit.in_sweep is None and not unit.at_rest],
            exception,
            self._stop_timeout,
        )
        if current_work.get() is not None:
            return [own]
        current = asyncio.current_task()
        return [own, *(sweep for sweep in others if not sweep.owns(current))]

    def waits_for(self, task: asyncio.Task[Any] | None) -> bool:
        """Tell whether `task`, the current one, has to end before a stop that is in progress."""
        return any(sweep.owns(task) for sweep in self._sweeps)

    async def close(self, exception: BaseException | None, limit: float | None) -> None:
        """Stop everything within `limit` seconds, and start nothing more.

        :attr:`errors` tells what was raised.
        """
        self._closing = True
        for batch in tuple(self._batches):
            batch.fail(ShuttingDown([unit.service for unit in batch.units]), at_once=True)
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
            if unit.in_sweep is None and (unit.owes_stop or unit.state is STARTING)
        ]
        own = self._sweep(units, exception, limit)
        for sweep in (own, *self._sweeps):
            await asyncio.shield(sweep.ended)
        self.errors += own.errors
        if recoveries:
            await asyncio.wait(recoveries)

    def hurry(self) -> None:
        """Cancel all that is being stopped, and wait for it no longer than a moment."""
        self._hurried = True
        for sweep in tuple(self._sweeps):
            sweep.hurry()

    def _sweep(
        self, units: list[Unit], exception: BaseException | None, limit: float | None
    ) -> Sweep:
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
            self._forget(unit)
        sweep.ended.set_result(None)

    def _forget(self, unit: Unit) -> None:
        if self._units.get(id(unit.service)) is unit:
            del self._units[id(unit.service)]
        if unit.requires:
            unlink(unit)
        if unit.moved is not None:
            unit.wake()


def _outcome(task: asyncio.Task[Any], service: Service) -> BaseException | None:
    """Tell what `task`, which has ended, raised."""
    return StartCancelled(service) if task.cancelled() else task.exception()
