"""A service that waits for its tasks when it stops."""

from __future__ import annotations

import asyncio
import logging
from contextvars import copy_context
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from svcrun._util.drain import log_late
from svcrun._util.tasks import current_work
from svcrun._util.validation import number, optional
from svcrun.errors import show
from svcrun.service._internals import loop_of, part_of
from svcrun.service._parameters import parameter
from svcrun.service.base import Service

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

__all__ = ("GracefulService",)

log = logging.getLogger(__name__)


class GracefulService(Service, base=True):
    """Create tasks that the service waits for, or cancels, when it stops.

    It can be combined with every other service. ``class Shop(GracefulService, TCPServer)`` stops
    the server first, whose handlers may create tasks until then, and waits for the tasks
    afterwards.

    :param graceful_wait_timeout: seconds that the stop waits for tasks. By default there is no
        limit except those of the stop itself.
    :param cancel_on_timeout: cancel tasks that take longer. On by default; otherwise they are left
        running.

    :raises ValueError, TypeError: naming a parameter whose value is not accepted.

    >>> import asyncio
    >>> from svcrun.service import GracefulService
    >>> class Shop(GracefulService):
    ...     async def deliver(self):
    ...         await asyncio.sleep(0.01)
    ...         print("delivered")
    ...
    ...     async def advertise(self):
    ...         while True:
    ...             await asyncio.sleep(3600)
    ...
    ...     async def start(self):
    ...         self.create_graceful_task(self.deliver())
    ...         self.create_graceful_task(self.advertise(), cancel=True)
    >>> async def main():
    ...     shop = Shop()
    ...     await shop.start()
    ...     await shop.stop()
    >>> asyncio.run(main())
    delivered
    """

    graceful_wait_timeout: float | None = parameter(
        default=None, check=optional(number(low=0, high=inf, unit="seconds"), "no limit")
    )
    cancel_on_timeout: bool = True

    def create_graceful_task(
        self, coro: Coroutine[Any, Any, T], *, cancel: bool = False
    ) -> asyncio.Task[T]:
        """Run `coro` as a task that ends with the service.

        When the service stops, it waits for the task. An exception of the task is logged.

        :param cancel: cancel the task when the service stops, before waiting for it.
        """
        own = part_of(self, _GracefulTasks)
        entry = _Entry(self, cancel)
        context = copy_context()
        context.run(current_work.set, entry)
        name = getattr(coro, "__qualname__", None)
        task = loop_of(self).create_task(coro, name=name, context=context)
        own.entries[task] = entry
        task.add_done_callback(own.on_end)
        if cancel and own.stops:
            entry.is_cancelled = True
            task.cancel()
        return task

    async def stop(self, exception: Any = None) -> None:
        """Stop the other bases of the service, then wait for the tasks.

        A task may call this, and is then not waited for. If the call is cancelled, it cancels the
        tasks and does not wait for them.
        """
        work = current_work.get()
        own = work if isinstance(work, _Entry) and work.owner is self else None
        tasks = part_of(self, _GracefulTasks)
        tasks.stops += 1
        if own is not None:
            own.stops += 1
        try:
            try:
                await super().stop(exception)
            except Exception:
                await tasks.end(self, own)
                raise
            await tasks.end(self, own)
        except asyncio.CancelledError:
            # If a task called this, other calls in progress still wait for the other tasks.
            if own is None or tasks.stops == 1:
                tasks.cancel(own)
            raise
        finally:
            tasks.stops -= 1
            if own is not None:
                own.stops -= 1


class _GracefulTasks:
    """The tasks of a service, and the calls of stop() that wait for them."""

    def __init__(self, _: GracefulService) -> None:
        self.entries: dict[asyncio.Task[Any], _Entry] = {}
        self.stops = 0  # the number of calls of stop() in progress

    def on_end(self, task: asyncio.Task[Any]) -> None:
        """Remove a task that has ended, and log its exception."""
        service = self.entries.pop(task).owner
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, SystemExit | KeyboardInterrupt):  # the loop raises those
            log.error("%s: %s failed", show(service), task.get_name(), exc_info=error)

    async def end(self, service: GracefulService, own: _Entry | None) -> None:
        """Wait for the tasks, except that of `own`, which waits for this call: a deadlock."""
        entries = self.entries
        for task, entry in entries.items():
            if entry.cancel and not entry.is_cancelled and entry is not own:
                entry.is_cancelled = True
                task.cancel()

        loop = asyncio.get_running_loop()
        limit = service.graceful_wait_timeout
        deadline = None if limit is None else loop.time() + limit
        # Tasks may create others until the last of them has ended.
        while tasks := [task for task, entry in entries.items() if entry.is_awaited_by(own)]:
            late = [task for task in tasks if not (entries[task].cancel or task.done())]
            left = deadline - loop.time() if late and deadline is not None else None
            if left is None or left > 0:
                await asyncio.wait(tasks, timeout=left)
            else:
                self._leave(late)
                await asyncio.sleep(0)  # the cancellation reaches them in this iteration

    def cancel(self, own: _Entry | None) -> None:
        """Cancel the tasks, except that of `own` and those that were left running."""
        tasks = [
            task
            for task, entry in self.entries.items()
            if not (entry is own or entry.is_left or task.done())
        ]
        if not tasks:
            return
        owner = self.entries[tasks[0]].owner
        log_late(log, owner, tasks, "when the stop was cut short")
        for task in tasks:
            self.entries[task].is_cancelled = False  # a task that ignores this is cancelled again
            task.cancel()

    def _leave(self, tasks: list[asyncio.Task[Any]]) -> None:
        """Log `tasks`, which are late, and cancel them if the service wants that."""
        service = self.entries[tasks[0]].owner
        when = f"after graceful_wait_timeout={service.graceful_wait_timeout:g} s"
        log_late(log, service, tasks, when, is_cancelled=service.cancel_on_timeout)
        for task in tasks:
            self.entries[task].is_left = True
            if service.cancel_on_timeout:
                task.cancel()


class _Entry:
    """The state of a task. It is also the value of ``current_work`` in the task and its children.

    So a stop() that the task calls, directly or through a child task, knows which task calls it.
    """

    __slots__ = ("cancel", "is_cancelled", "is_left", "owner", "stops")

    def __init__(self, owner: GracefulService, cancel: bool) -> None:
        self.owner = owner
        # Whether a stop cancels the task, and whether one has: a second cancellation would disturb
        # its clean-up.
        self.cancel = cancel
        self.is_cancelled = False
        # Whether the task was late, so that stops do not wait for it any longer.
        self.is_left = False
        # The number of calls of stop() that the task waits for.
        self.stops = 0

    def is_awaited_by(self, own: _Entry | None) -> bool:
        """Return whether a stop waits for the task.

        Deadlock: tasks that call stop() must not wait for each other. They do wait for tasks that
        are cancelled.

        :param own: the task that called the stop, None if no task of the service did.
        """
        if self.is_left or self is own:
            return False
        return own is None or self.cancel or not self.stops
