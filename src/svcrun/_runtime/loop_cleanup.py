"""End the tasks, generators and threads that remain when all services have stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from contextlib import suppress

from svcrun._runtime.exit_watchdog import EXIT_HUNG
from svcrun._util.drain import GRACE_PERIOD, log_abandoned
from svcrun._util.eager import start_eagerly
from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.tasks import format_stack
from svcrun.errors import PoolClosed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine

    from svcrun.thread_pool import ThreadPoolExecutor
    from svcrun.thread_pool.thread_group import HungThread

log = logging.getLogger("svcrun.entrypoint")

__all__ = ("Deadline", "abandon", "end_executor", "end_tasks", "end_threads")

END_TIME = 3.0
"""Seconds within which the interpreter has to exit after a task or thread was abandoned."""


class Deadline:
    """The time until which a shutdown waits for tasks.

    A wait that begins later, or before the deadline is set, still lasts for half a grace period, in
    which cancelled tasks can clean up.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._when = 0.0
        self._waits: set[asyncio.Timeout] = set()

    def set(self, when: float) -> None:
        """Move the deadline to a time of the loop's clock, for waits in progress as well."""
        self._when = when
        for wait in self._waits:
            wait.reschedule(self._latest())

    def left(self) -> float:
        """Return the number of seconds that are left for a wait."""
        return self._latest() - self._loop.time()

    def _latest(self) -> float:
        return max(self._when, self._loop.time() + GRACE_PERIOD / 2)

    async def wait(self, futures: Collection[asyncio.Future[Any]]) -> list[asyncio.Future[Any]]:
        """Wait until all `futures` are done, and return those that are not at the deadline."""
        try:
            async with asyncio.timeout_at(self._latest()) as wait:
                self._waits.add(wait)
                await asyncio.wait(futures)
        except TimeoutError:
            pass
        finally:
            self._waits.discard(wait)
        return [future for future in futures if not future.done()]


async def end_tasks(loop: asyncio.AbstractEventLoop, deadline: Deadline) -> bool:
    """Cancel all tasks except the current one, then close the asynchronous generators.

    The exception of a task goes to the exception handler of the loop. Return whether all tasks and
    generators ended in time.
    """
    hung: Collection[asyncio.Future[Any]] = ()
    current = asyncio.current_task()
    # A cancelled task may create others.
    while not hung and (tasks := asyncio.all_tasks(loop) - {current}):
        for task in tasks:
            task.cancel()
        hung = await deadline.wait(tasks)
        for task in tasks:
            _report(loop, task)

    closing = start_eagerly(loop.shutdown_asyncgens(), loop, name="close of async generators")
    if not closing.done() and await deadline.wait((closing,)):
        stacks = "\n".join(map(format_stack, asyncio.all_tasks(loop) - {current}))
        log.error("an async generator did not close; abandoning it at\n%s", stacks)
        closing.cancel()
        await asyncio.wait((closing,), timeout=GRACE_PERIOD)
        abandon(closing)
        return False
    return not hung


def _report(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    if not task.done():
        log_abandoned(log, task.get_name(), task)
        abandon(task)
    elif not task.cancelled() and (error := task.exception()) is not None:
        loop.call_exception_handler(
            {"message": "unhandled exception during shutdown", "exception": error, "task": task}
        )


async def end_threads(pool: ThreadPoolExecutor, deadline: Deadline) -> bool:
    """Close the thread pool and wait for the separate threads of the loop.

    Return whether all of them ended in time.
    """
    closers: list[Callable[..., Coroutine[Any, Any, list[HungThread]]]] = [pool.close]
    separate = sys.modules.get("svcrun.thread_pool.separate_threads")
    if separate is not None:  # otherwise there are none
        closers.append(separate.wait_separate_threads)
    loop = asyncio.get_running_loop()
    ended = True
    for close in closers:
        closing = start_eagerly(close(), loop)
        if not closing.done() and await deadline.wait((closing,)):
            closing.cancel()
            for thread in await close(0):
                ended = False
                log.error("%s", thread)
    return ended


async def end_executor(loop: asyncio.AbstractEventLoop, deadline: Deadline) -> bool:
    """Shut down the default executor of the loop, unless it is our thread pool, closed by now.

    Return whether it ended in time.
    """
    try:
        loop.run_in_executor(None, _nothing).cancel()
    except PoolClosed:
        return True
    except RuntimeError:
        pass  # the program has shut the executor down, but its threads may still run
    closing = start_eagerly(loop.shutdown_default_executor(), loop)
    if closing.done() or not await deadline.wait((closing,)):
        if not closing.cancelled() and (error := closing.exception()) is not None:
            # asyncio waits in a new thread, and the system could not start one. loop.close() shuts
            # the executor down, and the interpreter waits for its threads when it exits.
            log.warning(
                "could not wait for the default executor that the program has set: %s", error
            )
            abandon()
        return True
    from svcrun.thread_pool.thread_group import HungThread

    abandon(closing)
    main = threading.main_thread()
    for thread in threading.enumerate():
        if thread is not main and not thread.daemon:
            found = HungThread(thread)
            log.error("the default executor that the program has set did not end: %s", found)
    return False


def _nothing() -> None:
    """Return; the submission of this job shows which executor the loop has."""


# A reference to each abandoned object. To collect one could run its code again, or wait for it.
_abandoned: list[object] = []


def abandon(*hung: object) -> None:
    """Keep objects that hang, and limit the time that the interpreter waits for them at exit.

    :data:`END_TIME` after the exit began, the process ends with exit code 70.
    """
    # The only hook that runs before the interpreter joins its threads.
    at_exit = getattr(threading, "_register_atexit", None)
    if at_exit is not None and not _abandoned:
        with suppress(RuntimeError):  # the interpreter is exiting already
            at_exit(_limit_exit)
    _abandoned.extend(hung)


def _limit_exit() -> None:
    def exit_now(_signum: int, _frame: object) -> None:
        exit_process(EXIT_HUNG)

    exit_process = os._exit  # the module may be empty when the handler runs
    if signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL:
        return  # the program uses the timer, perhaps in an atexit function
    with suppress(ValueError):  # the exit began in another thread
        signal.signal(signal.SIGALRM, exit_now)
        signal.setitimer(signal.ITIMER_REAL, END_TIME)
