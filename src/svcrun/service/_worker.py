"""Resume a parked task by a plain call: without a turn of the loop, and without the task's help.

Like :mod:`svcrun.eager` this goes past asyncio's public names. It goes a step further than the
waiter there, since a datagram can cost less than what asyncio does to resume a task.
"""

from __future__ import annotations

import asyncio
from asyncio import _enter_task, _leave_task  # public: "Extending asyncio", of the manual
from types import coroutine
from typing import TYPE_CHECKING, Any

from svcrun.eager import start_eagerly

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from contextvars import Context

__all__ = ("Worker",)

# What a coroutine yields that wants to be run by its task again.
_LEAVE = object()


class Worker:
    """A task that parks with ``await worker``, until :meth:`resume` or :meth:`wake`.

    :param loop: the running event loop.
    :param context: the context of the task.

    To its task, the worker is a future that the coroutine awaits (see :func:`asyncio.isfuture`).
    The task goes on waiting for it, as far as asyncio knows, while :meth:`resume` drives the
    coroutine: as the current task and in its context, so that the coroutine sees no difference.
    When it parks again, nothing has changed. When it comes to await something else, that is given
    the wake-up call of the task, and the worker passes on to it what the task asks of the future
    that it waits for.

    The coroutine has to ``await worker.leave()`` before it returns or raises.
    """

    __slots__ = (
        "_asyncio_future_blocking",
        "_awaited",
        "_driven",
        "_loop",
        "_raises",
        "_run",
        "_send",
        "_wakeup",
        "context",
        "task",
        "undisturbed",
    )

    task: asyncio.Task[Any]

    def __init__(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        self.context = context
        #: Whether the coroutine, since :meth:`resume`, has awaited nothing and was not cancelled.
        self.undisturbed = False
        self._asyncio_future_blocking = False
        self._loop = loop
        self._run = context.run
        # Whether resume() is driving the coroutine just now.
        self._driven = False
        # How the task wants to be called to run on; None while nothing is to call it from here.
        self._wakeup: Callable[[Any], object] | None = None
        # What the coroutine awaits since it was driven there.
        self._awaited: asyncio.Future[Any] | None = None
        # What the coroutine is to find raised where it waits.
        self._raises: BaseException | None = None

    def start(self, coro: Coroutine[Any, Any, None], name: str) -> None:
        """Make the task, which runs `coro`, and run its first step."""
        self._send = coro.send
        self.task = start_eagerly(coro, self._loop, name=name, context=self.context)

    def resume(self) -> None:
        """Run the parked coroutine on, now, up to where it waits next.

        To be called in a callback of the loop. Without a parked coroutine nothing happens.
        """
        if self._wakeup is None:
            return
        task = self.task
        self._driven = self.undisturbed = True
        _enter_task(self._loop, task)
        try:
            awaited = self._run(self._send, None)
        finally:
            _leave_task(self._loop, task)
            self._driven = self.undisturbed = False
        if awaited is not self or self._raises is not None:
            self._wait_for(awaited)

    def wake(self) -> None:
        """Let the task of the parked coroutine run on, in the next turn of the loop."""
        wakeup, self._wakeup = self._wakeup, None
        if wakeup is not None:
            self._loop.call_soon(wakeup, self, context=self.context)

    def __await__(self) -> Generator[Any, None, None]:
        self._asyncio_future_blocking = True
        yield self

    @coroutine
    def leave(self) -> Generator[Any, None, None]:
        """Let the coroutine be run by its task again, without a turn of the loop."""
        if self._driven:
            yield _LEAVE

    def _wait_for(self, awaited: Any) -> None:
        """Do what the task would do with what its coroutine has yielded."""
        if awaited is _LEAVE:
            self._raises = None
            wakeup, self._wakeup = self._wakeup, None
            if wakeup is not None:
                self._run(wakeup, self)
        elif awaited is None or awaited is self:
            self.wake()  # after asyncio.sleep(0), or parked and cancelled
        elif not getattr(awaited, "_asyncio_future_blocking", False):
            self._fail(f"{self.task!r} got a bad yield: {awaited!r}")
        elif awaited.get_loop() is not self._loop:
            self._fail(f"{self.task!r} got {awaited!r} attached to a different loop")
        else:
            self._pass_on(awaited)

    def _pass_on(self, awaited: asyncio.Future[Any]) -> None:
        awaited._asyncio_future_blocking = False  # noqa: SLF001 - as a task does
        cancelled = self._raises
        if cancelled is not None and awaited.cancel(*cancelled.args):
            self._raises = cancelled = None
        if cancelled is not None:
            self.wake()
            return
        wakeup, self._wakeup = self._wakeup, None
        self._awaited = awaited
        if wakeup is not None:
            awaited.add_done_callback(wakeup, context=self.context)

    def _fail(self, reason: str) -> None:
        self._raises = RuntimeError(reason)
        self.wake()

    # What a task asks of the future that it awaits.

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(
        self,
        wakeup: Callable[[Any], object],
        *,
        context: Context | None = None,  # noqa: ARG002 - it is the worker's
    ) -> None:
        self._wakeup = wakeup
        self._awaited = None

    def result(self) -> None:
        error, self._raises = self._raises, None
        if error is not None:
            raise error

    def cancel(self, msg: Any = None) -> bool:
        if self._awaited is not None:
            return self._awaited.cancel(msg)
        if self._wakeup is None:
            return False
        self._raises = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        self.undisturbed = False
        if not self._driven:
            self.wake()
        return True
