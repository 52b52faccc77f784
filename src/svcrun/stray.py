"""End a forked child process that returns to the event loop of its parent.

A child that was forked in a running loop has that loop further down on its stack. When the code
that forked returns, the child would go on with the parent's tasks, on sockets that it shares with
the parent. The child ends there instead.

Invariant: the child changes nothing of the loop that the parent could see. Its run methods raise,
``close()`` has no effect, and a new epoll instance replaces the shared one. Otherwise the child
would take events from the parent, and a transport that it closes would remove the socket from the
parent's selector.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import sys
from collections import deque
from contextlib import suppress
from inspect import iscoroutine
from threading import get_ident

from svcrun.hints import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Iterable, Iterator
    from typing import NoReturn

__all__ = ("catch", "disown", "end_if_stray", "end_job", "end_step", "mark_thread")

thread = 0
"""The thread whose stack leads back to the parent's code; 0 in a process without one.

Where speed matters, look at this before calling a function of this module.
"""

_FOREIGN = (
    "this event loop belongs to the parent process; a child that was forked off can use"
    " asyncio.run() or an entrypoint of its own"
)

_task: asyncio.Task[Any] | None = None  # the one that forked


def disown(loop: asyncio.AbstractEventLoop) -> None:
    """Leave a loop of the parent to the parent."""
    loop.set_exception_handler(_on_error)
    _replace_epoll(loop)
    for name, method in (
        ("run_until_complete", _refuse_to_run),
        ("run_forever", _refuse_to_run_forever),
        ("shutdown_asyncgens", _nothing),
        ("shutdown_default_executor", _nothing),
        ("close", _nothing),
        ("is_closed", _true),
    ):
        with suppress(AttributeError):  # the loop may have slots
            setattr(loop, name, method)


def _replace_epoll(loop: asyncio.AbstractEventLoop) -> None:
    descriptor = _epoll_descriptor(loop)
    if descriptor is not None and hasattr(select, "epoll"):
        with suppress(OSError), select.epoll() as empty:
            os.dup2(empty.fileno(), descriptor, inheritable=False)


def _epoll_descriptor(loop: asyncio.AbstractEventLoop) -> int | None:
    # asyncio's loop has it in its selector; uvloop returns its descriptor.
    selector = getattr(loop, "_selector", None)
    tell = getattr(selector, "fileno", None) or getattr(loop, "_get_backend_id", None)
    return None if tell is None else tell()


def catch(
    loop: asyncio.AbstractEventLoop,
    task: asyncio.Task[Any] | None,
    tasks: Iterable[asyncio.Task[Any]],
) -> None:
    """End this process when it comes back to `loop`, a disowned one, which runs in this thread.

    :param task: the task that forked, None if a callback did.
    :param tasks: all tasks of the loop, as found before the fork: Python 3.14 and 3.15 forget them
        in the child, and find some of them again when one ends.
    """
    # A Runner cancels the tasks that its loop has when its block is left.
    for one in tasks:
        asyncio._unregister_task(one)  # noqa: SLF001 - documented, for other kinds of tasks
    global _task  # noqa: PLW0603 - it belongs to the process
    mark_thread()
    _task = task
    # A task that the block runs is no end: what it returns is the block's.
    is_run = task is not None and "run_until_complete" in repr(task)
    _cancel_calls(loop)
    loop.call_soon(_come_back, loop, is_run)


def mark_thread() -> None:
    """Note that the stack of this thread leads back to the parent's code."""
    global thread  # noqa: PLW0603 - it belongs to the process
    thread = get_ident()


def end_if_stray(error: BaseException | None = None) -> None:
    """End this process if it has come back from code of the program to the parent's.

    :param error: what that code raised.
    """
    # In a loop of its own, the child is at its own work.
    if thread == get_ident() and asyncio._get_running_loop() is None:  # noqa: SLF001 - for event loops
        _end(error)


def end_step() -> None:
    """Do that after a step of the task that forked."""
    end_if_stray(_outcome(_task))


def end_job(future: concurrent.futures.Future[Any]) -> None:
    """Do that after a job in a thread that forked."""
    end_if_stray(_outcome(future))


def _outcome(
    future: asyncio.Future[Any] | concurrent.futures.Future[Any] | None,
) -> BaseException | None:
    if future is None or not future.done():
        return None
    return asyncio.CancelledError() if future.cancelled() else future.exception()


def _come_back(loop: asyncio.AbstractEventLoop, is_run: bool) -> None:
    if is_run and _task is not None and _task.done():
        _cancel_calls(loop)
        loop.stop()
    elif _task is None:
        # An exit that a callback raised ends uvloop after a further iteration.
        loop.call_soon(_end, None)
    else:
        _end(_outcome(_task))


def _cancel_calls(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel all that `loop` is about to call, and all that it is to call later."""
    for handle in _calls(loop):
        handle.cancel()


def _calls(loop: asyncio.AbstractEventLoop) -> Iterator[asyncio.Handle]:
    import gc  # few programs fork

    # asyncio's loop has them in attributes, uvloop's in members that only the collector knows.
    with suppress(TypeError):  # the loop may have slots
        yield from _handles(vars(loop).values())
    yield from _handles(gc.get_referents(loop))


def _handles(groups: Iterable[object]) -> Iterator[asyncio.Handle]:
    for group in groups:
        if isinstance(group, (deque, list, set)):
            for handle in tuple(group):
                if type(handle).__name__ in ("Handle", "TimerHandle"):
                    yield handle


def _on_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle what the code that forked raised; all else is the parent's to report."""
    error = context.get("exception")
    if error is None or thread != get_ident() or "future" in context or "task" in context:
        return
    if type(error) is RuntimeError and "is not the running loop" in str(error):
        # In a child, asyncio forgets the running loop. From Python 3.14 on, the step of a task that
        # forked ends with this error for that, which hides an exit.
        if isinstance(error.__context__, (SystemExit, KeyboardInterrupt)):
            raise error.__context__
        return
    _end(error)


def _end(error: BaseException | None) -> NoReturn:
    """End this process as the interpreter would do, without what it has of its parent."""
    code = 1
    try:
        if error is None:
            code = 0
        elif isinstance(error, SystemExit):
            code = _code_of(error)
        else:
            sys.excepthook(type(error), error, error.__traceback__)
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with suppress(OSError, ValueError):
                    stream.flush()
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        os._exit(code)


def _code_of(error: SystemExit) -> int:
    code = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)  # noqa: T201 - as the interpreter does
    return 1


def _refuse_to_run(future: object = None) -> None:
    if future is None:
        return  # a Runner, with one of the functions below
    if iscoroutine(future):
        future.close()
    raise RuntimeError(_FOREIGN)


def _refuse_to_run_forever() -> None:
    raise RuntimeError(_FOREIGN)


def _nothing(*_: object) -> None:
    return None


def _true() -> bool:
    return True
