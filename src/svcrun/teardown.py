"""End what is left in a loop that is about to be closed."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING

from svcrun.eager import start_eagerly
from svcrun.tasks import cancel_and_wait, format_stack

if TYPE_CHECKING:
    from svcrun.thread_pool import ThreadPoolExecutor

log = logging.getLogger(__name__)

__all__ = ("end_tasks", "end_threads")


async def end_tasks(loop: asyncio.AbstractEventLoop, limit: float) -> bool:
    """Cancel all tasks but the current one, then close the async generators; return whether all of that ended.

    :param limit: seconds that it may take.

    What a task raises while it is being cancelled goes to the loop's exception handler.
    """
    tasks = asyncio.all_tasks(loop)
    tasks.discard(asyncio.current_task())  # type: ignore[arg-type] - there is one
    hung = await cancel_and_wait(tasks, limit) if tasks else ()
    for task in tasks:
        if task in hung:
            log.error(
                "%s does not end although it was cancelled; it waits at\n%s",
                task.get_name(),
                format_stack(task),
            )
        elif not task.cancelled() and (error := task.exception()) is not None:
            loop.call_exception_handler(
                {"message": "unhandled exception during shutdown", "exception": error, "task": task}
            )

    closing = start_eagerly(loop.shutdown_asyncgens(), loop, name="close of async generators")
    if not closing.done():
        await asyncio.wait((closing,), timeout=limit)
    if not closing.done():
        log.error("an async generator does not close; it waits at\n%s", format_stack(closing))
        closing.cancel()
        return False
    return not hung


async def end_threads(pool: ThreadPoolExecutor, limit: float) -> bool:
    """Close the thread pool and wait for other threads that work for the loop; return whether all of them ended.

    :param limit: seconds that it may take.
    """
    hung = await pool.close(limit)
    separate = sys.modules.get("svcrun.thread_pool.separate")
    if separate is not None:  # else there can't be any
        hung += await separate.wait_separate_threads(limit)
    for thread in hung:
        log.error("%s", thread)
    return not hung
