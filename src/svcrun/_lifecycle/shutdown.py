"""Stop a set of services: dependants first, all of them, within the time limits."""

from __future__ import annotations

import logging

from svcrun._lifecycle.dependency_graph import Walk
from svcrun._lifecycle.unit import traces
from svcrun._util.current_service import on_behalf_of
from svcrun._util.eager import is_forked_copy
from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.tasks import format_stack
from svcrun.errors import StopTimeout, show
from svcrun.service.base import Service
from svcrun.state import ServiceState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection

    from svcrun._lifecycle.unit import Unit

log = logging.getLogger("svcrun.lifecycle")

__all__ = ("GRACE", "Sweep")

_STOP = Service.stop  # a look-up in a class with a metaclass takes long

GRACE = 1.0
"""Seconds that what was cancelled for being late has left to clean up."""


class Sweep:
    """Stop `units`.

    First every ``stop()`` is called, dependants before what they depend on, and only when all have
    ended, the ``start()`` that still run are cancelled, in the same order. A unit that is still
    starting is cancelled in place of its ``stop()``. When all of that is done, it is the turn of
    services that report how others ended.

    :param exception: passed to ``stop()``.
    :param limit: seconds for all of it.

    Afterwards :attr:`errors` holds what was raised, and :attr:`hung` says whether the limit was
    overrun.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        units: Collection[Unit],
        exception: BaseException | None,
        limit: float | None,
    ) -> None:
        self._loop = loop
        self._units = units
        self._stages = _in_stages(units)
        self._exception = exception
        self._limit = limit
        self._calling = False  # whether a stop() runs its first step
        self._walk: Walk | None = None
        self._hurried = False
        self._abandoning = False
        self._timers: list[asyncio.TimerHandle] = []
        self.errors: list[BaseException] = []
        self.hung = False
        self.task: asyncio.Task[None] | None = None
        self.ended: asyncio.Future[None] = loop.create_future()
        traced = traces()
        for unit in units:
            unit.in_sweep = self
            unit.traced = traced

    def begin(self) -> bool:
        """Call what can be called now, and tell whether all of it has ended already."""
        first = self._stages[0]
        self._walk = Walk(first, self._call_stop, upwards=False)
        self._walk.go()
        is_done = not self._walk.pending and all(unit.task is None for unit in first)
        if not is_done or len(self._stages) > 1:
            return False
        self._end()
        return True

    async def run(self) -> None:
        """Do the rest; raise nothing."""
        if self._limit is not None:
            self.limit(self._limit)
        try:
            if self._walk is not None:
                await self._walk.wait(self._loop)
            first, *later = self._stages
            await self._visit(_running(first), self._cancel_start)
            for units in later:
                await self._visit(units, self._call_stop)
                await self._visit(_running(units), self._cancel_start)
        finally:
            self._end()

    async def _visit(self, units: Collection[Unit], visit: Callable[[Unit], bool]) -> None:
        if self._abandoning:  # on what hung; these are not even cancelled yet
            self._abandoning = False
            self._timers.append(self._loop.call_later(GRACE, self._abandon))
        self._walk = Walk(units, visit, upwards=False)
        self._walk.go()
        await self._walk.wait(self._loop)

    def limit(self, seconds: float) -> None:
        """Let no more than `seconds` pass from now on."""
        self._timers.append(self._loop.call_later(seconds, self._overrun, seconds))

    def owns(self, task: asyncio.Task[Any] | None) -> bool:
        """Tell whether `task`, the current one, would wait for itself if it waited for this sweep.

        A ``start()`` that is to be cancelled at the end of the sweep can wait for that.
        """
        return self._calling or any(
            task is unit.stop_task or (task is unit.task and unit.start_cancelled)
            for unit in self._units
            if task is not None
        )

    def hurry(self) -> None:
        """Cancel what runs, and give what is left no time to wait."""
        if self._hurried:
            return
        self._hurried = True
        for unit in self.busy():
            with on_behalf_of(unit.service):
                log.warning(
                    "%s is cut short; it was waiting at\n%s", show(unit.service), _stack(unit)
                )
            self._cut(unit)
        self._timers.append(self._loop.call_later(GRACE, self._abandon))

    # The end of a task of a unit in this sweep.

    def start_waits(self, unit: Unit) -> None:
        """Take note that ``start()`` of `unit`, in whose first step we began, waits now."""
        if self._walk is not None and unit in self._walk.busy and self._cut(unit):
            self._walk.done(unit)

    def start_ended(self, unit: Unit, error: BaseException | None) -> None:
        """Take note that ``start()`` of `unit` has ended, with `error` if it failed."""
        if error is not None:
            self._failed(unit, error, "start() of %s failed while the service was being stopped")
        walk = self._walk
        if walk is None or unit not in walk.busy or unit.stop_task is not None:
            return
        # One that owes a stop() here was starting, and came through in spite of being cancelled.
        if not unit.needs_stop or self._call_stop(unit):
            walk.done(unit)

    def _stop_ended(self, unit: Unit, task: asyncio.Task[Any]) -> None:
        if unit.timer is not None:
            unit.end_timer()
        unit.stop_task = None
        if task.cancelled():
            if not unit.stop_cancelled:
                with on_behalf_of(unit.service):
                    log.warning(
                        "stop() of %s ended by cancellation, which did not come from here",
                        show(unit.service),
                    )
        elif (error := task.exception()) is not None:
            self._failed(unit, error, "stop() of %s failed")

    def _on_stop_done(self, task: asyncio.Task[Any], unit: Unit) -> None:
        if unit.stop_task is task:
            self._stop_ended(unit, task)
            if self._walk is not None:
                self._walk.done(unit)
        elif not task.cancelled() and (error := task.exception()) is not None:
            with on_behalf_of(unit.service):
                log.error(
                    "stop() of %s failed after it was abandoned",
                    show(unit.service),
                    exc_info=error,
                )

    # What the two walks do with a unit; each tells whether the unit is done.

    def _call_stop(self, unit: Unit) -> bool:  # noqa: PLR0911 - each return is one way to be done
        service = unit.service
        if unit.record.state is ServiceState.STARTING:
            return self._cancel_start(unit)
        if not unit.needs_stop:
            return True

        unit.needs_stop = False
        unit.move(ServiceState.STOPPING)
        if type(service).stop is _STOP and "stop" not in service.__dict__:
            return True
        self._calling = True
        try:
            if unit.undo is not None:
                unit.stop_task = unit.begin(unit.undo, self._loop, service, self._exception)
            elif type(service)._svcrun_stop_takes_exception:
                unit.stop_task = unit.begin(service.stop, self._loop, self._exception)
            else:
                unit.stop_task = unit.begin(service.stop, self._loop)
        except BaseException as error:  # one failing stop() never cuts another short
            if is_forked_copy(self._loop):
                raise
            self._failed(unit, error, "stop() of %s failed")
            return True
        finally:
            self._calling = False
        if unit.stop_task.done():
            self._stop_ended(unit, unit.stop_task)
            return True

        unit.stop_task.add_done_callback(lambda task: self._on_stop_done(task, unit))
        if self._hurried:
            return self._cut(unit)
        self._limit_stop(unit)
        return False

    def _limit_stop(self, unit: Unit) -> None:
        unit.end_timer()
        try:
            timeout = unit.service.stop_timeout
            if timeout is not None:
                unit.timer = self._loop.call_later(timeout, self._stop_overrun, unit, timeout)
        except Exception as error:  # noqa: BLE001 - it was right at the start, and changed since
            self._failed(unit, error, "the stop_timeout of %s is not usable")

    def _cancel_start(self, unit: Unit) -> bool:
        if unit.task is None:
            # Without a task, a start() is in its first step, out of which we were called.
            return unit.state is not ServiceState.STARTING
        return not unit.task.done() and self._cut(unit)

    def _cut(self, unit: Unit) -> bool:
        """Cancel what `unit` runs, and tell whether it is not to be waited for any more."""
        if unit.stop_task is not None:
            unit.stop_cancelled = True
            unit.stop_task.cancel()
        elif unit.task is not None:
            unit.start_cancelled = True
            unit.task.cancel()
        if self._abandoning:
            self._give_up(unit)
        return self._abandoning

    # The time limits.

    def _stop_overrun(self, unit: Unit, timeout: float) -> None:
        unit.timer = None
        self._late(unit, timeout)
        unit.timer = self._loop.call_later(GRACE, self._abandon_unit, unit)

    def _overrun(self, limit: float) -> None:
        if self._hurried:
            return
        self.hung = True
        self._hurried = True
        for unit in self.busy():
            self._late(unit, limit)
        self._timers.append(self._loop.call_later(GRACE, self._abandon))

    def _late(self, unit: Unit, timeout: float) -> None:
        self._failed(
            unit, StopTimeout(unit.service, timeout, _stack(unit)), "%s hangs and is cancelled"
        )
        self._cut(unit)

    def _abandon(self) -> None:
        self._abandoning = True
        for unit in self.busy():
            self._abandon_unit(unit)

    def _abandon_unit(self, unit: Unit) -> None:
        if _has_ended(unit):
            return
        self._give_up(unit)
        if self._walk is not None:
            self._walk.done(unit)

    def _give_up(self, unit: Unit) -> None:
        self.hung = True
        unit.failed = True
        with on_behalf_of(unit.service):
            log.error(
                "%s ignored cancellation; abandoning it at\n%s",
                show(unit.service),
                _stack(unit),
            )
        if unit.stop_task is not None:
            unit.stop_task = None
        else:
            unit.task = None

    def busy(self) -> list[Unit]:
        """Return the units whose ``start()`` or ``stop()`` still runs."""
        # One that needs a stop() came through its start just now, and what has ended is about to be
        # taken note of.
        return [
            unit
            for unit in (() if self._walk is None else self._walk.busy)
            if not unit.needs_stop and not _has_ended(unit)
        ]

    def _failed(self, unit: Unit, error: BaseException, message: str) -> None:
        unit.failed = True
        self.errors.append(error)
        with on_behalf_of(unit.service):
            log.error(message, show(unit.service), exc_info=error)

    def _end(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._exception = None  # a frame in its traceback may refer to this sweep
        if self._walk is not None:
            self._walk.end()
        for unit in self._units:
            if unit.timer is not None:
                unit.end_timer()
            unit.in_sweep = unit.stop_walk = None
            unit.task = None
            state = unit.record.state
            if state is ServiceState.STARTING or (unit.failed and state is ServiceState.STOPPING):
                unit.move(ServiceState.FAILED)
            elif state is ServiceState.STOPPING:
                unit.move(ServiceState.STOPPED)
            unit.failed = False


def _in_stages(units: Collection[Unit]) -> tuple[Collection[Unit], ...]:
    """Part those that stop last, and what they need for it, from the others, which come first."""
    last = {unit for unit in units if unit.service._svcrun_stops_last}
    if not last:
        return (units,)
    queue = list(last)
    while queue:
        needed = set(queue.pop().requires) - last
        last |= needed
        queue += needed
    return (
        [unit for unit in units if unit not in last],
        [unit for unit in units if unit in last],
    )


def _running(units: Collection[Unit]) -> list[Unit]:
    return [unit for unit in units if unit.task is not None]


def _has_ended(unit: Unit) -> bool:
    task = unit.stop_task or unit.task
    return task is not None and task.done()


def _stack(unit: Unit) -> str:
    task = unit.stop_task or unit.task
    return "  (nowhere)" if task is None else format_stack(task)
