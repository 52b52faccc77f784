"""A service whose tasks may come to their ends when it stops."""

from __future__ import annotations

import asyncio
import logging
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

from svcrun.errors import ParameterError, ParameterTypeError, show
from svcrun.service.base import Service
from svcrun.tasks import current_work, format_stack

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

__all__ = ("GracefulService",)

log = logging.getLogger(__name__)


class GracefulService(Service):
    """Create tasks that are waited for, or cancelled, when the service stops.

    It goes with every other service: ``class Shop(GracefulService, TCPServer)`` stops the server
    first, whose handlers may create tasks until then, and sees to the tasks after that.

    :param graceful_wait_timeout: seconds that the stop waits for tasks; without limit by default,
        so that only the limits of the stop itself hold.
    :param cancel_on_timeout: whether tasks that take longer are cancelled; otherwise they are left
        to run.

    :raises ValueError, TypeError: naming a parameter that has a wrong value.

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

    graceful_wait_timeout: float | None = None
    cancel_on_timeout: bool = True

    def __init__(self, **kwargs: Any) -> None:
        self._graceful_tasks: dict[asyncio.Task[Any], _Entry] = {}
        self._is_ending_tasks = False
        super().__init__(**kwargs)
        self._check_wait_timeout()

    def _check_wait_timeout(self) -> None:
        value = self.graceful_wait_timeout
        accepted = "a number of seconds, 0 to not wait, or None for no limit"
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ParameterTypeError(self, "graceful_wait_timeout", value, accepted)
        if not value >= 0:
            raise ParameterError(self, "graceful_wait_timeout", value, accepted)

    def create_graceful_task(
        self, coro: Coroutine[Any, Any, T], *, cancel: bool = False
    ) -> asyncio.Task[T]:
        """Run `coro` as a task, and see to it when the service stops.

        An exception that ends it goes to the log.

        :param cancel: cancel the task at the stop, instead of waiting for it to end by itself.
        """
        work = object()
        context = copy_context()
        context.run(current_work.set, work)
        task = self.loop.create_task(coro, context=context)
        self._graceful_tasks[task] = _Entry(work, cancel)
        task.add_done_callback(self._on_end)
        if cancel and self._is_ending_tasks:
            task.cancel()
        return task

    def _on_end(self, task: asyncio.Task[Any]) -> None:
        del self._graceful_tasks[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: %s failed", show(self), task.get_name(), exc_info=error)

    async def stop(self, exception: BaseException | None = None) -> None:
        """Stop what else the service is, then wait for the tasks.

        A task may stop the service itself, and is not waited for then.
        """
        try:
            await super().stop(exception)
        finally:
            self._is_ending_tasks = True
            try:
                await self._end_tasks()
            finally:
                self._is_ending_tasks = False

    async def _end_tasks(self) -> None:
        entries = self._graceful_tasks
        for task, entry in list(entries.items()):
            if entry.work is current_work.get():
                entry.is_left = True  # it waits for this
            elif entry.cancel:
                task.cancel()

        loop = asyncio.get_running_loop()
        limit = self.graceful_wait_timeout
        deadline = None if limit is None else loop.time() + limit
        try:
            # Tasks may create others until the last of them has ended.
            while tasks := [task for task, entry in entries.items() if not entry.is_left]:
                willing = [task for task in tasks if not entries[task].cancel]
                left = deadline - loop.time() if willing and deadline is not None else None
                if left is None or left > 0:
                    await asyncio.wait(tasks, timeout=left)
                else:
                    self._leave(willing)
                    await asyncio.sleep(0)  # so that they hear of it
        except asyncio.CancelledError:
            # Nobody waits any longer, so what is left ends without being waited for.
            for task, entry in entries.items():
                if entry.work is not current_work.get():
                    task.cancel()
            raise

    def _leave(self, tasks: list[asyncio.Task[Any]]) -> None:
        """Do what is to be done about `tasks` that take too long."""
        for task in tasks:
            self._graceful_tasks[task].is_left = True
            if self.cancel_on_timeout:
                task.cancel()
        log.warning(
            "%s: %d tasks were not done within graceful_wait_timeout=%g s, so they are %s; "
            "%s waits at\n%s",
            show(self),
            len(tasks),
            self.graceful_wait_timeout,
            "cancelled" if self.cancel_on_timeout else "left to run",
            tasks[0].get_name(),
            format_stack(tasks[0]),
        )


class _Entry:
    """What is known of a task."""

    __slots__ = ("cancel", "is_left", "work")

    def __init__(self, work: object, cancel: bool) -> None:
        self.work = work
        self.cancel = cancel  # whether the stop cancels it
        self.is_left = False  # whether the stop doesn't wait for it
