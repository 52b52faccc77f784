"""Drain: wait for tasks in flight until a deadline, then cancel them, then abandon them.

Every server, and every part of a shutdown that waits for the code of others, ends its tasks here,
in three steps:

1. Wait for the tasks, for as long as the caller allows.
2. Log the place of a task that is still running, and cancel all that are.
3. Wait :data:`GRACE_PERIOD` for the cancelled tasks, then log the place of each that is still
   running and abandon it: nothing waits for it any longer.
"""

from __future__ import annotations

import asyncio

from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.tasks import cancel_and_wait, format_stack
from svcrun.errors import show

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterable

    Task = asyncio.Task[Any]

__all__ = ("GRACE_PERIOD", "Drain", "cancel_or_abandon", "log_abandoned", "log_late")

GRACE_PERIOD = 1.0
"""Seconds that a cancelled task has to clean up before it is abandoned."""


class Drain:
    """The orderly end of the tasks that work for one owner.

    :param logger: receives the warnings.
    :param owner: the owner, as log messages show it.
    :param in_flight: return the tasks to wait for, finished ones or not. It is called again when
        the tasks of the previous call have finished, because tasks may begin others, and after
        :meth:`recheck`.
    :param describe: return how a log message names a task; its name by default.
    """

    def __init__(
        self,
        logger: logging.Logger,
        owner: object,
        in_flight: Callable[[], Iterable[Task]],
        describe: Callable[[Task], str] | None = None,
    ) -> None:
        self._logger = logger
        self._owner = owner
        self._in_flight = in_flight
        self._describe = describe
        # Done when wait() is to call in_flight() again.
        self._recheck: asyncio.Future[None] | None = None

    def recheck(self) -> None:
        """Make :meth:`wait` call `in_flight` again, which may return fewer tasks now."""
        if self._recheck is not None and not self._recheck.done():
            self._recheck.set_result(None)

    async def wait(self, deadline: float | None = None) -> list[Task]:
        """Wait until no task is in flight, or until `deadline`.

        :param deadline: a time of the loop's clock; None for no limit.
        :returns: the tasks that are still running.
        """
        loop = asyncio.get_running_loop()
        while tasks := [task for task in self._in_flight() if not task.done()]:
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                break
            self._recheck = loop.create_future()
            # One callback for each task, rather than a call of asyncio.wait() whenever one of them
            # ends: with thousands of tasks that would take quadratic time.
            running = set(tasks)

            def on_end(task: Task, running: set[Task] = running) -> None:
                running.discard(task)
                if not running:
                    self.recheck()

            for task in tasks:
                task.add_done_callback(on_end)
            try:
                await asyncio.wait((self._recheck,), timeout=left)
            finally:
                self._recheck = None
                for task in tasks:
                    task.remove_done_callback(on_end)
        return tasks

    async def run(self, timeout: float, limit: str, *, deadline: float | None = None) -> list[Task]:
        """Wait for the tasks in flight, cancel those that are late, abandon those that ignore it.

        If the caller is cancelled, the tasks are left as they are.

        :param timeout: seconds that the tasks may run on.
        :param limit: the name of the parameter that set `timeout`, for the log message.
        :param deadline: when `timeout` ends, as a time of the loop's clock; from now on by default.
        :returns: the tasks that were abandoned.
        """
        loop = asyncio.get_running_loop()
        late = await self.wait(loop.time() + timeout if deadline is None else deadline)
        if not late:
            return []
        when = f"after {limit}={timeout:g} s"
        log_late(self._logger, self._owner, late, when, name=self._name_of(late[0]))
        for task in late:
            task.cancel()
        # Tasks that begin others in their clean-up are waited for as well.
        abandoned = await self.wait(loop.time() + GRACE_PERIOD)
        for task in abandoned:
            log_abandoned(self._logger, f"{show(self._owner)}: {self._name_of(task)}", task)
        return abandoned

    def _name_of(self, task: Task) -> str:
        return task.get_name() if self._describe is None else self._describe(task)


async def cancel_or_abandon(task: Task, logger: logging.Logger, name: str) -> bool:
    """Cancel `task` and wait :data:`GRACE_PERIOD` for its end.

    :param name: how a log message names the task.
    :returns: whether the task is still running, and therefore abandoned.
    """
    if await cancel_and_wait((task,), GRACE_PERIOD):
        log_abandoned(logger, name, task)
        return True
    return False


def log_late(
    logger: logging.Logger,
    owner: object,
    late: list[Task],
    when: str,
    *,
    name: str | None = None,
    is_cancelled: bool = True,
) -> None:
    """Log how many tasks are late, and where the first of them is waiting.

    :param when: the time limit that has passed, as ``"after drain_timeout=5 s"``.
    :param name: how the message names the first task; its name by default.
    :param is_cancelled: whether the tasks are cancelled next. Otherwise they are left running.
    """
    logger.warning(
        "%s: %s still running %s; %s; %s is waiting at\n%s",
        show(owner),
        "1 task is" if len(late) == 1 else f"{len(late)} tasks are",
        when,
        "cancelling" if is_cancelled else "left running",
        late[0].get_name() if name is None else name,
        format_stack(late[0]),
    )


def log_abandoned(logger: logging.Logger, name: str, task: Task) -> None:
    """Log that `task` ignored its cancellation, and where it is waiting."""
    logger.error("%s ignored cancellation; abandoning it at\n%s", name, format_stack(task))
