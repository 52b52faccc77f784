"""Wait for tasks in flight until a deadline, then cancel them, then abandon them.

Every server, and every part of a shutdown that waits for code of the program, ends its tasks here,
in three steps:

1. Wait for the tasks until the time limit of the caller.
2. Log where the first of the running tasks waits, and cancel all of them.
3. Wait :data:`GRACE_PERIOD` for the cancelled tasks. Then log where each running task waits, and
   abandon it.
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
    """Drain the tasks that work for one owner.

    :param logger: the logger of the warnings and errors.
    :param owner: the owner of the tasks, for log messages.
    :param in_flight: returns the tasks to wait for; tasks that have ended are ignored. It is called
        again when the tasks of the previous call have ended, because tasks may create others, and
        after :meth:`recheck`.
    :param describe: returns the name of a task for log messages; ``get_name()`` by default.
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
            # Each task has one callback. A call of asyncio.wait() after the end of each task would
            # take quadratic time with thousands of tasks.
            running = set(tasks)

            # Race: a callback of this round may run in the next one, because it was scheduled
            # before it is removed. So the default binds it to the set of its own round.
            def on_end(task: Task, running: set[Task] = running) -> None:
                running.discard(task)
                if not running:
                    self.recheck()

            for task in tasks:
                task.add_done_callback(on_end)
            # The end of the tasks, recheck() and the timeout all end this wait. The next round
            # calls in_flight() and reads the clock again, so the cause need not be known.
            try:
                await asyncio.wait((self._recheck,), timeout=left)
            finally:
                self._recheck = None
                for task in tasks:
                    task.remove_done_callback(on_end)
        return tasks

    async def run(self, timeout: float, limit: str, *, deadline: float | None = None) -> list[Task]:
        """Wait for the tasks in flight, cancel those that are late, abandon those that ignore it.

        If the caller is cancelled, the tasks run on.

        :param timeout: the time limit of the tasks, in seconds.
        :param limit: the name of the parameter that sets `timeout`, for the log message.
        :param deadline: the end of `timeout`, as a time of the loop's clock; `timeout` seconds from
            now by default.
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
        # wait() includes the tasks that cancelled tasks create in their clean-up.
        abandoned = await self.wait(loop.time() + GRACE_PERIOD)
        for task in abandoned:
            log_abandoned(self._logger, f"{show(self._owner)}: {self._name_of(task)}", task)
        return abandoned

    def _name_of(self, task: Task) -> str:
        return task.get_name() if self._describe is None else self._describe(task)


async def cancel_or_abandon(task: Task, logger: logging.Logger, name: str) -> bool:
    """Cancel `task` and wait :data:`GRACE_PERIOD` for its end.

    :param name: the name of the task for the log message.
    :returns: whether the task was abandoned, because it is still running.
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

    :param when: the time limit that has passed, such as ``"after drain_timeout=5 s"``.
    :param name: the name of the first task for the message; ``get_name()`` by default.
    :param is_cancelled: whether the caller cancels the tasks next. Otherwise they run on.
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
