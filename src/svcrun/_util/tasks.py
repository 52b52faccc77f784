"""Find running tasks and their services, show where tasks wait, cancel them, wait for them."""

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
    "CALLBACK_CODE",
    "cancel_and_wait",
    "current_work",
    "format_stack",
    "mark_retrieved",
    "running_task_and_service",
    "service_of",
    "shield_after_cancellation",
    "wait_for_task",
)

current_work: ContextVar[object] = ContextVar("current_work", default=None)
"""The piece of work that the code belongs to: a scheduled call, a request, a graceful task.

The tasks that such work creates belong to it as well, because they inherit the context. A
``stop()`` that waits for work in flight leaves out the work that called it: each would wait for the
other.
"""


CALLBACK_CODE = asyncio.Handle._run.__code__  # noqa: SLF001 - there is no other mark in a stack
"""The code object in which asyncio's own loop calls every callback; uvloop has no such frame."""


def running_task_and_service(
    loop: asyncio.AbstractEventLoop, frame: FrameType | None
) -> tuple[asyncio.Task[Any] | None, object]:
    """Return the task and the service that are running in `loop`, each None if there is none.

    Race: it may be called from any thread, and then the answer may be out of date.

    :param frame: the innermost frame of the thread of the loop, from :func:`sys._current_frames`.
        It leads to the service of a callback outside of tasks, on asyncio's own loop only.
    """
    task = asyncio.current_task(loop)
    if task is not None:
        return task, service_of(task)
    context = _context_of_callback(frame)
    return None, None if context is None else context.get(current_service)


def service_of(work: object) -> object:
    """Return the service that created a task or scheduled a callback, None if there is none.

    :param work: a task, or the handle of a callback.
    """
    if hasattr(work, "get_context"):  # since Python 3.12, but for uvloop's handles
        context = work.get_context()
    else:
        # The first context that a task refers to is its own; those of its callbacks follow.
        import gc

        context = next((one for one in gc.get_referents(work) if isinstance(one, Context)), None)
    return None if context is None else context.get(current_service)


def _context_of_callback(frame: FrameType | None) -> Context | None:
    while frame is not None:
        if frame.f_code is CALLBACK_CODE:
            # Race: the frame drops the handle, its `self`, at the very end of the call.
            return getattr(frame.f_locals["self"], "_context", None)
        frame = frame.f_back
    return None


def format_stack(task: asyncio.Task[Any]) -> str:
    """Return the frames in which `task` is waiting, outermost first, with their source lines.

    :meth:`asyncio.Task.get_stack` ends at the coroutine of the task. This continues in the
    coroutines and tasks that it awaits.
    """
    lines = []
    awaited: Any = task.get_coro()
    tasks = {task}  # tasks may wait for each other in a cycle
    while awaited is not None:
        frame = _first_of(awaited, "cr_frame", "gi_frame", "ag_frame")
        if frame is None:
            # An iterator that awaits a task, or a step of an asynchronous generator, has no public
            # attribute for it, but refers to it.
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

    The calling task is left out, because it cannot wait for itself. Return the tasks that have not
    ended.
    """
    current = asyncio.current_task()
    pending = {task for task in tasks if task is not current and not task.done()}
    for task in pending:
        task.cancel()
    if pending:
        _, pending = await asyncio.wait(pending, timeout=timeout)
    return pending


async def wait_for_task(task: asyncio.Task[T]) -> T:
    """Wait until `task` ends, however often the caller is cancelled, and return its result.

    A cancellation of the caller is raised afterwards, unless `task` raises an error.
    """
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            with shield_after_cancellation(cancelled):
                await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result


def shield_after_cancellation(
    cancelled: asyncio.CancelledError | None,
) -> AbstractContextManager[object]:
    """Return a context for a wait that continues after the caller was cancelled.

    A cancelled scope of anyio cancels its tasks in every iteration of the loop until they leave it.
    A wait that continues would be a busy loop, so this shields it.

    :param cancelled: the cancellation of the caller; None if it has not been cancelled yet.
    """
    anyio = None if cancelled is None else sys.modules.get("anyio")
    return nullcontext() if anyio is None else anyio.CancelScope(shield=True)


def mark_retrieved(task: asyncio.Task[Any]) -> None:
    """Retrieve the exception of `task`, so that asyncio does not report it a second time."""
    if not task.cancelled():
        task.exception()
