"""Log the reason for a shutdown, the services and tasks that it waits for, and its duration."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading

from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.progress import Progress
from svcrun._util.tasks import format_stack, service_of
from svcrun.errors import show

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("ShutdownReport", "hint", "place_of", "running_work")

PATIENCE = 1.0
"""Seconds after which a shutdown in progress is logged for the first time."""

SHOWN = 20
"""The maximum number of services, tasks and threads that a log record lists."""

_HERE = os.path.dirname(os.path.dirname(__file__)) + os.sep
_ASYNCIO = os.path.dirname(asyncio.__file__) + os.sep
# The ends of those lines in the stack of a thread that belong to functions that run jobs of a pool.
_JOB = (" in run_job", " in run")
# Files whose lines are not code of the program.
_MACHINERY = (_HERE, threading.__file__, os.path.join("concurrent", "futures", "thread.py"))


class ShutdownReport:
    """Log the begin of a shutdown, its progress at growing intervals, and its end.

    :param loop: the loop, whose clock measures the shutdown.
    :param log: the logger.
    :param awaited: returns descriptions of the services, hooks, tasks and threads that the shutdown
        waits for.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: logging.Logger,
        awaited: Callable[[], list[str]],
    ) -> None:
        self._loop = loop
        self._log = log
        self._awaited = awaited
        self._level = logging.DEBUG
        self._began = 0.0
        self._progress: Progress | None = None

    def warn_of_no_thread(self) -> None:
        """Log that nothing limits a shutdown while the loop is blocked."""
        self._log.warning(
            "no thread could be started for the exit watchdog; shutdown_timeout may have no effect"
            " while a callback blocks the event loop"
        )

    def begin(self, level: int, message: str, *args: object) -> None:
        """Log the reason for the shutdown, or a further reason.

        The end is logged at the highest level of the reasons, at most INFO. It is logged at INFO if
        the shutdown took so long that its progress was logged.
        """
        self._log.log(level, message, *args)
        self._level = max(self._level, min(level, logging.INFO))
        if self._progress is None:
            self._began = self._loop.time()
            self._progress = Progress(self._loop, PATIENCE, self._report_progress)

    def _report_progress(self, seconds: float) -> None:
        self._level = logging.INFO
        awaited = self._awaited()
        names = ", ".join(awaited[:SHOWN]) or "the event loop"
        if len(awaited) > SHOWN:
            names += f" and {len(awaited) - SHOWN} more"
        self._log.warning("shutdown still in progress after %.0f s, waiting for %s", seconds, names)

    def end(self, *, complete: bool) -> None:
        """Log the end of the shutdown and its duration; do nothing if it has not begun.

        :param complete: whether all services, hooks, tasks and threads have stopped.
        """
        if self._progress is None:
            return
        self._progress.cancel()
        self._progress = None  # reference cycle: it refers to this object
        seconds = self._loop.time() - self._began
        if complete:
            message = "shutdown completed in %.1f s, all services have stopped"
            self._log.log(self._level, message, seconds)
        else:
            self._log.warning("shutdown timed out after %.1f s", seconds)


def hint() -> str:
    """Return how to cut the shutdown short, if stdin or stderr is a terminal, else ``""``."""
    return "; press Ctrl-C again to cut it short" if os.isatty(0) or os.isatty(2) else ""


def place_of(task: asyncio.Future[Any] | None, name: str) -> str:
    """Return `name` and the innermost line of code outside of asyncio at which `task` waits."""
    if not isinstance(task, asyncio.Task):
        return name
    lines = [line.strip() for line in format_stack(task).splitlines() if line.startswith("  File")]
    own = [line for line in lines if _ASYNCIO not in line]
    return f"{name} ({(own or lines)[-1]})" if lines else name


def running_work(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Describe the tasks of `loop` and the threads that run after all services have stopped.

    The current task is left out, and tasks whose coroutine belongs to this package.
    """
    current = asyncio.current_task(loop)
    found = []
    for task in asyncio.all_tasks(loop) - {current}:
        code = getattr(task.get_coro(), "cr_code", None)
        if code is None or not code.co_filename.startswith(_HERE):
            service = service_of(task)
            owner = "" if service is None else f" of {show(service)}"
            found.append(place_of(task, f"task {task.get_name()}{owner}"))
    # The pools of this package import that module. Without a pool, the shutdown waits for no
    # thread.
    if "svcrun.thread_pool.thread_group" in sys.modules:
        found += _threads()
    return found


def _threads() -> list[str]:
    """Describe the threads that run a job of a pool, each with the line of the job it is at."""
    from svcrun.thread_pool.thread_group import HungThread

    found = []
    for thread in threading.enumerate():
        if thread in (threading.current_thread(), threading.main_thread()):
            continue
        lines = [line.strip() for line in HungThread(thread).stack.splitlines()]
        places = [line for line in lines if line.startswith("File ")]
        own = [line for line in places if not any(part in line for part in _MACHINERY)]
        if any(line.endswith(_JOB) for line in places if line not in own):
            found.append(f"thread {thread.name}" + (f" ({own[-1]})" if own else ""))
    return found
