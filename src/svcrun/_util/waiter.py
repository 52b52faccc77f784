"""Resume a task in the callback that has its data, instead of in the next iteration of the loop.

asyncio resumes a task through ``call_soon()``, so the task waits for another iteration of the loop,
with its system call. Measured on Python 3.11 and 3.13, with a future in place of :class:`Waiter`:
on asyncio's own loop, the TCP server takes 12 % more processor time to echo a line for 64 clients,
and 18 % more for one client. On uvloop the difference is below 5 %.

:class:`Waiter` follows the protocol of future-like objects (see :func:`asyncio.isfuture`): the task
that awaits it hands over its wake-up callback, which :meth:`Waiter.wake` calls directly.
"""

from __future__ import annotations

import asyncio

from svcrun._util.hints import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextvars import Context

__all__ = ("Waiter",)


def _raise(error: BaseException) -> None:
    raise error


class Waiter:
    """Suspend one task until :meth:`wake`, which runs it at once where that is safe.

    :param loop: the loop of the tasks that will wait.

    A waiter suspends one task at a time, any number of times. Cancelling the task works as with a
    future.

    .. code-block:: python

        waiter = Waiter(loop)
        ...
        await waiter  # in the task
        ...
        waiter.wake()  # in a callback of the loop: the task runs now, up to its next ``await``
    """

    __slots__ = ("_asyncio_future_blocking", "_cancel_message", "_context", "_loop", "_wakeup")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asyncio_future_blocking = False
        self._loop = loop
        self._wakeup: Callable[[Any], object] | None = None
        self._context: Context | None = None
        self._cancel_message: tuple[Any, ...] | None = None

    @property
    def waiting(self) -> bool:
        """Whether a task is suspended here."""
        return self._wakeup is not None

    def wake(self) -> None:
        """Resume the task that waits here; do nothing without one.

        The task runs before this returns, unless another task is running: then it runs in the next
        iteration of the loop.
        """
        wakeup = self._wakeup
        if wakeup is None:
            return
        self._wakeup = None
        context = self._context
        if context is not None and asyncio.current_task(self._loop) is None:
            try:
                context.run(wakeup, self)
            except (SystemExit, KeyboardInterrupt) as error:
                # These end the loop. uvloop would only log them if a protocol raised them.
                self._loop.call_soon(_raise, error)
        else:
            self._loop.call_soon(wakeup, self, context=context)

    def __await__(self) -> Generator[Any, None, None]:
        if self._wakeup is not None:
            msg = f"{self!r} already suspends a task"
            raise RuntimeError(msg)
        self._asyncio_future_blocking = True
        yield self

    # The methods that a task calls on the future that it awaits.

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop."""
        return self._loop

    def add_done_callback(
        self, wakeup: Callable[[Any], object], *, context: Context | None = None
    ) -> None:
        """Keep the wake-up callback of the task that waits."""
        self._wakeup = wakeup
        self._context = context

    def result(self) -> None:
        """Raise the cancellation, if there was one."""
        message = self._cancel_message
        if message is not None:
            self._cancel_message = None
            raise asyncio.CancelledError(*message)

    def cancel(self, msg: Any = None) -> bool:
        """Wake the task with a cancellation, and return whether a task waits."""
        wakeup = self._wakeup
        if wakeup is None:
            return False
        self._wakeup = None
        self._cancel_message = () if msg is None else (msg,)
        self._loop.call_soon(wakeup, self, context=self._context)
        return True
