"""End what is left in a loop that is about to be closed."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from contextlib import suppress

from svcrun._runtime.exit_watchdog import EXIT_HUNG
from svcrun._util.drain import GRACE_PERIOD
from svcrun._util.eager import start_eagerly
from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.signal_timer import set_handler
from svcrun._util.tasks import format_stack
from svcrun.errors import PoolClosed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine

    from svcrun.thread_pool import ThreadPoolExecutor
    from svcrun.thread_pool.thread_group import HungThread

log = logging.getLogger("svcrun.entrypoint")

__all__ = ("Deadline", "abandon", "end_executor", "end_tasks", "end_threads")

END_TIME = 3.0
"""Seconds that the interpreter has for its own end after something hung."""


class Deadline:
    """The time until which a shutdown waits for what has to end.

    Past it, or without one, there still is a moment for what was cancelled to clean up.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._when = 0.0
        self._waits: set[asyncio.Timeout] = set()

    def set(self, when: float) -> None:
        """Move it to a time of the loop's clock, also for those who wait already."""
        self._when = when
        for wait in self._waits:
            wait.reschedule(self._latest())

    def left(self) -> float:
        """Return the number of seconds that are left."""
        return self._latest() - self._loop.time()

    def _latest(self) -> float:
        return max(self._when, self._loop.time() + GRACE_PERIOD / 2)

    async def wait(self, futures: Collection[asyncio.Future[Any]]) -> list[asyncio.Future[Any]]:
        """Wait for the end of all `futures`, and return those that did not end in time."""
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
    """Cancel all tasks but the current one, then close the async generators.

    What a task raises while it is being cancelled goes to the loop's exception handler. Returns
    whether all of that ended in time.
    """
    hung: Collection[asyncio.Future[Any]] = ()
    current = asyncio.current_task()
    # Those that are cancelled may make new ones.
    while not hung and (tasks := asyncio.all_tasks(loop) - {current}):
        for task in tasks:
            task.cancel()
        hung = await deadline.wait(tasks)
        for task in tasks:
            _report(loop, task)

    closing = start_eagerly(loop.shutdown_asyncgens(), loop, name="close of async generators")
    if not closing.done() and await deadline.wait((closing,)):
        log.error("an async generator does not close; it waits at\n%s", _stacks(loop, current))
        closing.cancel()
        await asyncio.wait((closing,), timeout=GRACE_PERIOD)
        abandon(closing)
        return False
    return not hung


def _report(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    if not task.done():
        log.error(
            "%s ignored cancellation; it is waiting at\n%s",
            task.get_name(),
            format_stack(task),
        )
        abandon(task)
    elif not task.cancelled() and (error := task.exception()) is not None:
        loop.call_exception_handler(
            {"message": "unhandled exception during shutdown", "exception": error, "task": task}
        )


def _stacks(loop: asyncio.AbstractEventLoop, current: asyncio.Task[Any] | None) -> str:
    return "\n".join(map(format_stack, asyncio.all_tasks(loop) - {current}))


async def end_threads(pool: ThreadPoolExecutor, deadline: Deadline) -> bool:
    """Close the thread pool and wait for other threads that work for the loop.

    Returns whether all of them ended in time.
    """
    closers: list[Callable[..., Coroutine[Any, Any, list[HungThread]]]] = [pool.close]
    separate = sys.modules.get("svcrun.thread_pool.separate_threads")
    if separate is not None:  # else there can't be any
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
    """End the default executor of the loop, if it is not our thread pool, which is closed by now.

    Returns whether it ended in time.
    """
    try:
        loop.run_in_executor(None, _nothing).cancel()
    except PoolClosed:
        return True
    except RuntimeError:
        pass  # the program has shut it down, which does not mean that its threads have ended
    closing = start_eagerly(loop.shutdown_default_executor(), loop)
    if closing.done() or not await deadline.wait((closing,)):
        if not closing.cancelled() and (error := closing.exception()) is not None:
            # asyncio waits in a thread of its own, which can't be started. Closing the loop shuts
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
            log.error("the default executor that the program has set does not end: %s", found)
    return False


def _nothing() -> None:
    """Do a job that tells whether there is somebody to do it."""


# What hangs. To collect it could mean to run its code once more, or to wait for it.
_abandoned: list[object] = []


def abandon(*hung: object) -> None:
    """Keep what hangs as it is, and see to it that it can't hold up the end of the interpreter."""
    at_end = getattr(threading, "_register_atexit", None)  # the only hook before threads are joined
    if at_end is not None and not _abandoned:
        with suppress(RuntimeError):  # it is at its end already
            at_end(_limit_end)
    _abandoned.extend(hung)


def _limit_end() -> None:
    def exit_now(_signum: int, _frame: object) -> None:
        exit_process(EXIT_HUNG)

    exit_process = os._exit  # modules are taken apart meanwhile
    if signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL:
        return  # the program uses it, perhaps in functions of atexit
    with suppress(ValueError):  # some other thread ends the interpreter
        set_handler(signal.SIGALRM, exit_now)
        signal.setitimer(signal.ITIMER_REAL, END_TIME)
