"""What is done to tasks: tell which one runs and where others wait, cancel them, wait for them."""

from __future__ import annotations

import asyncio
import inspect
import linecache
import sys
from contextlib import nullcontext
from contextvars import Context, ContextVar

from svcrun._util.current_service import current_service
from svcrun._util.hints import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from contextlib import AbstractContextManager
    from types import FrameType


T = TypeVar("T")

__all__ = (
    "CALLBACK",
    "cancel_and_wait",
    "current_work",
    "format_stack",
    "heard",
    "join",
    "retrieve",
    "running_task_and_service",
    "service_of",
)

current_work: ContextVar[object] = ContextVar("current_work", default=None)
"""Stands for the piece of work that code belongs to, be it in other tasks that this one began.

Who waits for pieces of work to end, and is called by one of them, must not wait for that one.
"""


CALLBACK = asyncio.Handle._run.__code__  # noqa: SLF001 - there is no other mark in a stack
"""The code in which asyncio's own loop makes all its calls; uvloop leaves no trace of it."""


def running_task_and_service(
    loop: asyncio.AbstractEventLoop, frame: FrameType | None
) -> tuple[asyncio.Task[Any] | None, object]:
    """Return the task and the service that are running in `loop`, each None if there is none.

    Any thread may ask. What it is told may be over by then.

    :param frame: the innermost frame of the loop's thread, of :func:`sys._current_frames`. The
        service that a callback works for, which no task runs, is found by it, on asyncio's own
        loop; uvloop leaves no trace of it.
    """
    task = asyncio.current_task(loop)
    if task is not None:
        return task, service_of(task)
    context = _context_of_callback(frame)
    return None, None if context is None else context.get(current_service)


def service_of(work: object) -> object:
    """Return the service that has begun a task, or asked for a callback; None if nobody can tell.

    :param work: a task, or a handle of a loop's.
    """
    if hasattr(work, "get_context"):  # since Python 3.12, but for uvloop's handles
        context = work.get_context()
    else:
        # The first one that a task refers to; what follows are those of its callbacks.
        import gc

        context = next((one for one in gc.get_referents(work) if isinstance(one, Context)), None)
    return None if context is None else context.get(current_service)


def _context_of_callback(frame: FrameType | None) -> Context | None:
    while frame is not None:
        if frame.f_code is CALLBACK:
            # The call lets go of the handle, its `self`, at its very end.
            return getattr(frame.f_locals["self"], "_context", None)
        frame = frame.f_back
    return None


def format_stack(task: asyncio.Task[Any]) -> str:
    """Tell where `task` is waiting, outermost call first, one line for each frame and its source.

    :meth:`asyncio.Task.get_stack` ends at the task's own coroutine; this follows what that one
    awaits, be it another task.
    """
    lines = []
    awaited: Any = task.get_coro()
    tasks = {task}  # which may wait for each other in a circle
    while awaited is not None:
        frame = _first_of(awaited, "cr_frame", "gi_frame", "ag_frame")
        if frame is None:
            # What awaits a task, or a step of an asynchronous generator, does not tell whose it is,
            # but refers to it.
            import gc

            for one in gc.get_referents(awaited):
                if inspect.isasyncgen(one):
                    awaited = one
                    break
                if isinstance(one, asyncio.Task) and one not in tasks:
                    tasks.add(one)
                    awaited = one.get_coro()
                    break
            else:
                break
            continue
        code = frame.f_code
        number = frame.f_lineno or 0  # that of compiled code is None
        lines.append(f'  File "{code.co_filename}", line {number}, in {code.co_qualname}')
        source = linecache.getline(code.co_filename, number, frame.f_globals).strip()
        if source:
            lines.append(f"    {source}")
        awaited = _first_of(awaited, "cr_await", "gi_yieldfrom", "ag_await")
    return "\n".join(lines) or f"  {task!r}"


def _first_of(awaited: object, *names: str) -> Any:
    return next((value for name in names if (value := getattr(awaited, name, None))), None)


async def cancel_and_wait(
    tasks: Iterable[asyncio.Future[Any]], timeout: float | None = None
) -> Collection[asyncio.Future[Any]]:
    """Cancel `tasks` and wait for their end, for `timeout` seconds at most (no limit by default).

    The calling task is left out: it can't wait for itself. Returns the tasks that have not ended.
    """
    current = asyncio.current_task()
    pending = {task for task in tasks if task is not current and not task.done()}
    for task in pending:
        task.cancel()
    if pending:
        _, pending = await asyncio.wait(pending, timeout=timeout)
    return pending


async def join(task: asyncio.Task[T]) -> T:
    """Wait for `task` to its end, however often the caller is cancelled, and return its result.

    A cancellation that came is passed on afterwards, unless `task` failed: then its error comes
    out.
    """
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            with heard(cancelled):
                await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result


def heard(cancelled: asyncio.CancelledError | None) -> AbstractContextManager[object]:
    """Return a context for a wait that continues after the caller was cancelled.

    A cancelled scope of anyio cancels its tasks in every iteration of the loop, until they leave
    it. A wait that continues would be a busy loop, so this shields it.

    :param cancelled: the cancellation of the caller; None if it has not been cancelled yet.
    """
    anyio = None if cancelled is None else sys.modules.get("anyio")
    return nullcontext() if anyio is None else anyio.CancelScope(shield=True)


def retrieve(task: asyncio.Task[Any]) -> None:
    """Take notice of how `task` ended, so that asyncio does not report it a second time."""
    if not task.cancelled():
        task.exception()
