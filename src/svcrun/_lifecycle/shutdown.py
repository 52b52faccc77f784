"""Stop a set of services: dependants first, all of them, within the time limits."""

from __future__ import annotations

import asyncio
import logging

from svcrun._lifecycle.dependency_graph import Traversal
from svcrun._util.current_service import on_behalf_of
from svcrun._util.drain import GRACE_PERIOD
from svcrun._util.eager import is_forked_copy
from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.tasks import format_stack, shield_after_cancellation
from svcrun.errors import StopTimeout, show
from svcrun.service.base import Service
from svcrun.state import ServiceState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from svcrun._lifecycle.service_record import ServiceRecord, StopInProgress

log = logging.getLogger("svcrun.lifecycle")

__all__ = ("Shutdown", "wait_for_all")

STARTING, STOPPING = ServiceState.STARTING, ServiceState.STOPPING
STOPPED, FAILED = ServiceState.STOPPED, ServiceState.FAILED


async def wait_for_all(shutdowns: Collection[StopInProgress]) -> None:
    """Wait for the end of `shutdowns`, even if the caller is cancelled meanwhile.

    A shutdown that waits for the caller is left out.
    """
    current = asyncio.current_task()
    cancelled: asyncio.CancelledError | None = None
    while pending := [
        shutdown.ended
        for shutdown in shutdowns
        if not shutdown.ended.done() and not shutdown.waits_for(current)
    ]:
        try:
            with shield_after_cancellation(cancelled):
                await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancelled = error
            log.debug("cancelled during a roll-back; completing it first")


class Shutdown:
    """One shutdown: a set of services that stop together.

    1. Each ``stop()`` is called when the ``stop()`` of all dependants has ended. A service that is
       still starting has its ``start()`` cancelled instead.
    2. When all ``stop()`` have ended, each ``start()`` that still runs is cancelled, in the same
       order.
    3. Services that report how others ended follow, with the same two steps.

    A ``stop()`` that exceeds its time limit is cancelled, and so is everything that runs when the
    shutdown exceeds its own. After a grace period, tasks that ignored the cancellation are
    abandoned. An error never ends the shutdown.

    :param move: changes the state of a service.
    :param on_end: called when the shutdown is complete, before :attr:`ended` is done.
    :param exception: passed to each ``stop()``.
    :param limit: seconds for the whole shutdown; None for no limit.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        records: Collection[ServiceRecord],
        exception: BaseException | None,
        limit: float | None,
        *,
        move: Callable[[ServiceRecord, ServiceState], None],
        on_end: Callable[[Shutdown], None],
    ) -> None:
        self._loop = loop
        self.records = records
        self._stages = _in_stages(records)
        self._exception = exception
        self._limit = limit
        self._move = move
        self._on_end = on_end
        self._is_calling = False  # whether a stop() runs its first step
        self._traversal: Traversal | None = None
        self._is_forced = False  # whether what runs was cancelled, and what follows is at once
        self._is_abandoning = False  # whether the grace period after that is over
        self._timers: list[asyncio.TimerHandle] = []
        self.errors: list[BaseException] = []
        """The exceptions that ``start()`` and ``stop()`` raised, and time-outs."""
        self.hung = False
        """Whether the limit was exceeded, or a task abandoned."""
        self.task: asyncio.Task[None] | None = None
        self.ended: asyncio.Future[None] = loop.create_future()
        """Done when the shutdown is complete."""
        for record in records:
            record.shutdown = self

    def begin(self) -> bool:
        """Call each ``stop()`` that is due now, and return whether this completes the shutdown."""
        first = self._stages[0]
        self._traversal = Traversal(first, self._call_stop, dependencies_first=False)
        self._traversal.advance()
        is_done = not self._traversal.pending and all(record.start_task is None for record in first)
        if not is_done or len(self._stages) > 1:
            return False
        self._end()
        return True

    async def run(self) -> None:
        """Complete the shutdown that :meth:`begin` began. Raises nothing."""
        if self._limit is not None:
            self.limit(self._limit)
        try:
            if self._traversal is not None:
                await self._traversal.wait(self._loop)
            first, *later = self._stages
            await self._traverse(_running(first), self._cancel_start)
            for records in later:
                await self._traverse(records, self._call_stop)
                await self._traverse(_running(records), self._cancel_start)
        finally:
            self._end()

    async def _traverse(
        self, records: Collection[ServiceRecord], visit: Callable[[ServiceRecord], bool]
    ) -> None:
        if self._is_abandoning:  # tasks of the previous step; these are not even cancelled yet
            self._is_abandoning = False
            self._timers.append(self._loop.call_later(GRACE_PERIOD, self._abandon_all))
        self._traversal = Traversal(records, visit, dependencies_first=False)
        self._traversal.advance()
        await self._traversal.wait(self._loop)

    def waits_for(self, task: asyncio.Task[Any] | None) -> bool:
        """Return whether the shutdown waits for `task`, the current one: a deadlock otherwise.

        That is a ``stop()``, or a ``start()`` that was cancelled. A ``start()`` that is still to be
        cancelled may wait for the shutdown.
        """
        return self._is_calling or any(
            task is record.stop_task or (task is record.start_task and record.start_cancelled)
            for record in self.records
            if task is not None
        )

    # Visits; each returns whether the service is done.

    def _call_stop(self, record: ServiceRecord) -> bool:  # noqa: PLR0911 - each return is one way to be done
        service = record.service
        if record.internals.state is STARTING:
            return self._cancel_start(record)
        if not record.needs_stop:
            return True

        record.needs_stop = False
        self._move(record, STOPPING)
        if type(service).stop is Service.stop and "stop" not in service.__dict__:
            return True
        self._is_calling = True
        try:
            if record.base_stop is not None:
                record.stop_task = record.call(
                    record.base_stop, self._loop, service, self._exception
                )
            elif type(service)._svcrun_stop_takes_exception:
                record.stop_task = record.call(service.stop, self._loop, self._exception)
            else:
                record.stop_task = record.call(service.stop, self._loop)
        except BaseException as error:  # one failing stop() never cuts another short
            if is_forked_copy(self._loop):
                raise
            self._failed(record, error, "stop() of %s failed")
            return True
        finally:
            self._is_calling = False
        if record.stop_task.done():
            self._stop_ended(record, record.stop_task)
            return True

        record.stop_task.add_done_callback(lambda task: self._on_stop_done(task, record))
        if self._is_forced:
            return self._cancel(record)
        self._limit_stop(record)
        return False

    def _cancel_start(self, record: ServiceRecord) -> bool:
        if record.start_task is None:
            # Without a task, a start() is in its first step, which called us.
            return record.state is not STARTING
        return not record.start_task.done() and self._cancel(record)

    def _cancel(self, record: ServiceRecord) -> bool:
        """Cancel the ``stop()`` or ``start()``, and return whether it was abandoned at once."""
        if record.stop_task is not None:
            record.stop_cancelled = True
            record.stop_task.cancel()
        elif record.start_task is not None:
            record.start_cancelled = True
            record.start_task.cancel()
        if self._is_abandoning:
            self._abandon(record)
        return self._is_abandoning

    # The end of a task.

    def start_waits(self, record: ServiceRecord) -> None:
        """React to a ``start()`` that began the shutdown in its first step, and waits now."""
        if (
            self._traversal is not None
            and record in self._traversal.in_progress
            and self._cancel(record)
        ):
            self._traversal.done(record)

    def start_ended(self, record: ServiceRecord, error: BaseException | None) -> None:
        """React to the end of a ``start()``, which raised `error` unless that is None."""
        if error is not None:
            self._failed(record, error, "start() of %s failed while the service was being stopped")
        traversal = self._traversal
        if traversal is None or record not in traversal.in_progress or record.stop_task is not None:
            return
        # Race: a start() that was cancelled may still succeed, and then its stop() is due.
        if not record.needs_stop or self._call_stop(record):
            traversal.done(record)

    def _on_stop_done(self, task: asyncio.Task[Any], record: ServiceRecord) -> None:
        if record.stop_task is task:
            self._stop_ended(record, task)
            if self._traversal is not None:
                self._traversal.done(record)
        elif not task.cancelled() and (error := task.exception()) is not None:
            with on_behalf_of(record.service):
                log.error(
                    "stop() of %s failed after it was abandoned",
                    show(record.service),
                    exc_info=error,
                )

    def _stop_ended(self, record: ServiceRecord, task: asyncio.Task[Any]) -> None:
        if record.timer is not None:
            record.cancel_timer()
        record.stop_task = None
        if record.history is not None:
            record.history.stopped()
        if task.cancelled():
            if not record.stop_cancelled:
                with on_behalf_of(record.service):
                    log.warning("stop() of %s was cancelled by other code", show(record.service))
        elif (error := task.exception()) is not None:
            self._failed(record, error, "stop() of %s failed")

    def _failed(self, record: ServiceRecord, error: BaseException, message: str) -> None:
        record.failed = True
        if record.history is not None:
            record.history.fail(error)
        self.errors.append(error)
        with on_behalf_of(record.service):
            log.error(message, show(record.service), exc_info=error)

    # The time limits.

    def limit(self, seconds: float) -> None:
        """Limit the shutdown to `seconds` from now on."""
        self._timers.append(self._loop.call_later(seconds, self._on_limit, seconds))

    def force(self) -> None:
        """Cancel what runs, and cancel each further ``stop()`` as soon as it waits."""
        if self._is_forced:
            return
        self._is_forced = True
        for record in self.in_progress():
            with on_behalf_of(record.service):
                log.warning(
                    "shutdown forced: cancelling %s, which waits at\n%s",
                    show(record.service),
                    _stack(record),
                )
            self._cancel(record)
        self._timers.append(self._loop.call_later(GRACE_PERIOD, self._abandon_all))

    def in_progress(self) -> list[ServiceRecord]:
        """Return the records whose ``start()`` or ``stop()`` the shutdown waits for."""
        # Race: a start() may have succeeded, and a task may have ended, a moment ago. The callback
        # for that follows in this iteration of the loop.
        return [
            record
            for record in (() if self._traversal is None else self._traversal.in_progress)
            if not record.needs_stop and not _has_ended(record)
        ]

    def _on_limit(self, limit: float) -> None:
        if self._is_forced:
            return
        self.hung = True
        self._is_forced = True
        for record in self.in_progress():
            self._cancel_late(record, limit)
        self._timers.append(self._loop.call_later(GRACE_PERIOD, self._abandon_all))

    def _limit_stop(self, record: ServiceRecord) -> None:
        record.cancel_timer()
        try:
            timeout = record.service.stop_timeout
            if timeout is not None:
                record.timer = self._loop.call_later(timeout, self._stop_timed_out, record, timeout)
        except Exception as error:  # noqa: BLE001 - valid at the start, and changed since
            self._failed(record, error, "invalid stop_timeout of %s; waiting without a limit")

    def _stop_timed_out(self, record: ServiceRecord, timeout: float) -> None:
        record.timer = None
        self._cancel_late(record, timeout)
        record.timer = self._loop.call_later(GRACE_PERIOD, self._abandon_late, record)

    def _cancel_late(self, record: ServiceRecord, timeout: float) -> None:
        error = StopTimeout(record.service, timeout, _stack(record))
        self._failed(record, error, "%s did not stop in time; cancelling it")
        self._cancel(record)

    def _abandon_all(self) -> None:
        self._is_abandoning = True
        for record in self.in_progress():
            self._abandon_late(record)

    def _abandon_late(self, record: ServiceRecord) -> None:
        if _has_ended(record):
            return
        self._abandon(record)
        if self._traversal is not None:
            self._traversal.done(record)

    def _abandon(self, record: ServiceRecord) -> None:
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
            record.start_task = None

    def _end(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._exception = None  # a frame in its traceback may refer to this shutdown
        if self._traversal is not None:
            self._traversal.close()
        for record in self.records:
            if record.timer is not None:
                record.cancel_timer()
            record.shutdown = record.stop_traversal = None
            record.start_task = None
            state = record.internals.state
            if state is STARTING or (record.failed and state is STOPPING):
                self._move(record, FAILED)
            elif state is STOPPING:
                self._move(record, STOPPED)
            record.failed = False
        self._on_end(self)
        self.ended.set_result(None)


def _in_stages(records: Collection[ServiceRecord]) -> tuple[Collection[ServiceRecord], ...]:
    """Split off the services that stop last, together with their dependencies."""
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
    return [record for record in records if record.start_task is not None]


def _has_ended(record: ServiceRecord) -> bool:
    task = record.stop_task or record.start_task
    return task is not None and task.done()


def _stack(record: ServiceRecord) -> str:
    task = record.stop_task or record.start_task
    return "  (no task)" if task is None else format_stack(task)
