"""Stop a set of services: dependants first, all of them, within the time limits."""

from __future__ import annotations

import logging

from svcrun._lifecycle.dependency_graph import Traversal
from svcrun._lifecycle.service_record import transitions_are_logged
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

    from svcrun._lifecycle.service_record import ServiceRecord

log = logging.getLogger("svcrun.lifecycle")

__all__ = ("GRACE", "Shutdown")

_STOP = Service.stop  # a look-up in a class with a metaclass takes long

GRACE = 1.0
"""Seconds that what was cancelled for being late has left to clean up."""


class Shutdown:
    """Stop `records`.

    First every ``stop()`` is called, dependants before what they depend on, and only when all have
    ended, the ``start()`` that still run are cancelled, in the same order. A record that is still
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
        records: Collection[ServiceRecord],
        exception: BaseException | None,
        limit: float | None,
    ) -> None:
        self._loop = loop
        self._records = records
        self._stages = _in_stages(records)
        self._exception = exception
        self._limit = limit
        self._calling = False  # whether a stop() runs its first step
        self._walk: Traversal | None = None
        self._is_forced = False
        self._abandoning = False
        self._timers: list[asyncio.TimerHandle] = []
        self.errors: list[BaseException] = []
        self.hung = False
        self.task: asyncio.Task[None] | None = None
        self.ended: asyncio.Future[None] = loop.create_future()
        are_logged = transitions_are_logged()
        for record in records:
            record.shutdown = self
            record.logs_transitions = are_logged

    def begin(self) -> bool:
        """Call what can be called now, and tell whether all of it has ended already."""
        first = self._stages[0]
        self._walk = Traversal(first, self._call_stop, upwards=False)
        self._walk.go()
        is_done = not self._walk.pending and all(record.task is None for record in first)
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
            for records in later:
                await self._visit(records, self._call_stop)
                await self._visit(_running(records), self._cancel_start)
        finally:
            self._end()

    async def _visit(
        self, records: Collection[ServiceRecord], visit: Callable[[ServiceRecord], bool]
    ) -> None:
        if self._abandoning:  # on what hung; these are not even cancelled yet
            self._abandoning = False
            self._timers.append(self._loop.call_later(GRACE, self._abandon))
        self._walk = Traversal(records, visit, upwards=False)
        self._walk.go()
        await self._walk.wait(self._loop)

    def limit(self, seconds: float) -> None:
        """Let no more than `seconds` pass from now on."""
        self._timers.append(self._loop.call_later(seconds, self._overrun, seconds))

    def owns(self, task: asyncio.Task[Any] | None) -> bool:
        """Return whether the current task, `task`, would wait for itself by waiting for this.

        A ``start()`` that is to be cancelled at the end of the shutdown can wait for that.
        """
        return self._calling or any(
            task is record.stop_task or (task is record.task and record.start_cancelled)
            for record in self._records
            if task is not None
        )

    def force(self) -> None:
        """Cancel what runs, and give what is left no time to wait."""
        if self._is_forced:
            return
        self._is_forced = True
        for record in self.busy():
            with on_behalf_of(record.service):
                log.warning(
                    "%s is cut short; it was waiting at\n%s", show(record.service), _stack(record)
                )
            self._cut(record)
        self._timers.append(self._loop.call_later(GRACE, self._abandon))

    # The end of a task of a record in this shutdown.

    def start_waits(self, record: ServiceRecord) -> None:
        """Take note that ``start()`` of `record`, in whose first step we began, waits now."""
        if self._walk is not None and record in self._walk.busy and self._cut(record):
            self._walk.done(record)

    def start_ended(self, record: ServiceRecord, error: BaseException | None) -> None:
        """Take note that ``start()`` of `record` has ended, with `error` if it failed."""
        if error is not None:
            self._failed(record, error, "start() of %s failed while the service was being stopped")
        traversal = self._walk
        if traversal is None or record not in traversal.busy or record.stop_task is not None:
            return
        # One that owes a stop() here was starting, and came through in spite of being cancelled.
        if not record.needs_stop or self._call_stop(record):
            traversal.done(record)

    def _stop_ended(self, record: ServiceRecord, task: asyncio.Task[Any]) -> None:
        if record.timer is not None:
            record.cancel_timer()
        record.stop_task = None
        if task.cancelled():
            if not record.stop_cancelled:
                with on_behalf_of(record.service):
                    log.warning(
                        "stop() of %s ended by cancellation, which did not come from here",
                        show(record.service),
                    )
        elif (error := task.exception()) is not None:
            self._failed(record, error, "stop() of %s failed")

    def _on_stop_done(self, task: asyncio.Task[Any], record: ServiceRecord) -> None:
        if record.stop_task is task:
            self._stop_ended(record, task)
            if self._walk is not None:
                self._walk.done(record)
        elif not task.cancelled() and (error := task.exception()) is not None:
            with on_behalf_of(record.service):
                log.error(
                    "stop() of %s failed after it was abandoned",
                    show(record.service),
                    exc_info=error,
                )

    # What the two traversals do with a record; each tells whether the record is done.

    def _call_stop(self, record: ServiceRecord) -> bool:  # noqa: PLR0911 - each return is one way to be done
        service = record.service
        if record.internals.state is ServiceState.STARTING:
            return self._cancel_start(record)
        if not record.needs_stop:
            return True

        record.needs_stop = False
        record.move_to(ServiceState.STOPPING)
        if type(service).stop is _STOP and "stop" not in service.__dict__:
            return True
        self._calling = True
        try:
            if record.undo is not None:
                record.stop_task = record.begin(record.undo, self._loop, service, self._exception)
            elif type(service)._svcrun_stop_takes_exception:
                record.stop_task = record.begin(service.stop, self._loop, self._exception)
            else:
                record.stop_task = record.begin(service.stop, self._loop)
        except BaseException as error:  # one failing stop() never cuts another short
            if is_forked_copy(self._loop):
                raise
            self._failed(record, error, "stop() of %s failed")
            return True
        finally:
            self._calling = False
        if record.stop_task.done():
            self._stop_ended(record, record.stop_task)
            return True

        record.stop_task.add_done_callback(lambda task: self._on_stop_done(task, record))
        if self._is_forced:
            return self._cut(record)
        self._limit_stop(record)
        return False

    def _limit_stop(self, record: ServiceRecord) -> None:
        record.cancel_timer()
        try:
            timeout = record.service.stop_timeout
            if timeout is not None:
                record.timer = self._loop.call_later(timeout, self._stop_overrun, record, timeout)
        except Exception as error:  # noqa: BLE001 - it was right at the start, and changed since
            self._failed(record, error, "the stop_timeout of %s is not usable")

    def _cancel_start(self, record: ServiceRecord) -> bool:
        if record.task is None:
            # Without a task, a start() is in its first step, out of which we were called.
            return record.state is not ServiceState.STARTING
        return not record.task.done() and self._cut(record)

    def _cut(self, record: ServiceRecord) -> bool:
        """Cancel what `record` runs, and tell whether it is not to be waited for any more."""
        if record.stop_task is not None:
            record.stop_cancelled = True
            record.stop_task.cancel()
        elif record.task is not None:
            record.start_cancelled = True
            record.task.cancel()
        if self._abandoning:
            self._give_up(record)
        return self._abandoning

    # The time limits.

    def _stop_overrun(self, record: ServiceRecord, timeout: float) -> None:
        record.timer = None
        self._late(record, timeout)
        record.timer = self._loop.call_later(GRACE, self._abandon_record, record)

    def _overrun(self, limit: float) -> None:
        if self._is_forced:
            return
        self.hung = True
        self._is_forced = True
        for record in self.busy():
            self._late(record, limit)
        self._timers.append(self._loop.call_later(GRACE, self._abandon))

    def _late(self, record: ServiceRecord, timeout: float) -> None:
        self._failed(
            record,
            StopTimeout(record.service, timeout, _stack(record)),
            "%s hangs and is cancelled",
        )
        self._cut(record)

    def _abandon(self) -> None:
        self._abandoning = True
        for record in self.busy():
            self._abandon_record(record)

    def _abandon_record(self, record: ServiceRecord) -> None:
        if _has_ended(record):
            return
        self._give_up(record)
        if self._walk is not None:
            self._walk.done(record)

    def _give_up(self, record: ServiceRecord) -> None:
        self.hung = True
        record.failed = True
        with on_behalf_of(record.service):
            log.error(
                "%s ignored cancellation; abandoning it at\n%s",
                show(record.service),
                _stack(record),
            )
        if record.stop_task is not None:
            record.stop_task = None
        else:
            record.task = None

    def busy(self) -> list[ServiceRecord]:
        """Return the records whose ``start()`` or ``stop()`` still runs."""
        # One that needs a stop() came through its start just now, and what has ended is about to be
        # taken note of.
        return [
            record
            for record in (() if self._walk is None else self._walk.busy)
            if not record.needs_stop and not _has_ended(record)
        ]

    def _failed(self, record: ServiceRecord, error: BaseException, message: str) -> None:
        record.failed = True
        self.errors.append(error)
        with on_behalf_of(record.service):
            log.error(message, show(record.service), exc_info=error)

    def _end(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._exception = None  # a frame in its traceback may refer to this shutdown
        if self._walk is not None:
            self._walk.end()
        for record in self._records:
            if record.timer is not None:
                record.cancel_timer()
            record.shutdown = record.stop_traversal = None
            record.task = None
            state = record.internals.state
            if state is ServiceState.STARTING or (record.failed and state is ServiceState.STOPPING):
                record.move_to(ServiceState.FAILED)
            elif state is ServiceState.STOPPING:
                record.move_to(ServiceState.STOPPED)
            record.failed = False


def _in_stages(records: Collection[ServiceRecord]) -> tuple[Collection[ServiceRecord], ...]:
    """Part those that stop last, and what they need for it, from the others, which come first."""
    last = {record for record in records if record.service._svcrun_stops_last}
    if not last:
        return (records,)
    queue = list(last)
    while queue:
        needed = set(queue.pop().requires) - last
        last |= needed
        queue += needed
    return (
        [record for record in records if record not in last],
        [record for record in records if record in last],
    )


def _running(records: Collection[ServiceRecord]) -> list[ServiceRecord]:
    return [record for record in records if record.task is not None]


def _has_ended(record: ServiceRecord) -> bool:
    task = record.stop_task or record.task
    return task is not None and task.done()


def _stack(record: ServiceRecord) -> str:
    task = record.stop_task or record.task
    return "  (nowhere)" if task is None else format_stack(task)
