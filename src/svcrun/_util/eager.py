"""Run a task's next step now instead of in the next turn of the loop.

asyncio resumes a task through ``call_soon()``: a started coroutine, or one whose data has arrived,
waits for another turn of the loop, and each turn costs a system call. The first two tools here save
that turn. This is the only place of the package that goes past asyncio's public names, and each
falls back to the ordinary way where it can't do better:

* :func:`start_eagerly` makes a task and runs its first step before it returns. Python 3.12 can do
  that itself (``eager_start``); on 3.11 the step that the new task hands to ``loop.call_soon()`` is
  caught and run.
* :func:`current_loop` finds the loop that is set but does not run.
* :func:`wakeup_descriptor` finds the descriptor with which a loop wakes itself.
* :func:`propagate_exits` mends the step of a task that forked, in the child.
* :func:`listen_to_signals` hears of the signals that wake a loop.
* :class:`Waiter` is awaited like a future. It follows the protocol of future-like objects (see
  :func:`asyncio.isfuture`), so a task that awaits it hands over its wake-up call, which
  :meth:`Waiter.wake` runs directly.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import tasks as _tasks
from contextvars import Context, copy_context

from svcrun._util.hints import TYPE_CHECKING, Any, TypeVar
from svcrun._util.raising import raise_unchanged

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

T = TypeVar("T")

__all__ = (
    "Waiter",
    "current_loop",
    "is_forked_copy",
    "listen_to_signals",
    "propagate_exits",
    "start_eagerly",
    "wakeup_descriptor",
)


if sys.version_info >= (3, 14):

    def current_loop() -> asyncio.AbstractEventLoop | None:
        """Return the running loop, else the one that is set in this thread, else None."""
        try:
            return asyncio.get_event_loop()
        except RuntimeError:
            return None

else:

    def current_loop() -> asyncio.AbstractEventLoop | None:
        """Return the loop that is set in this thread (see the variant for Python 3.14).

        Up to Python 3.13, :func:`asyncio.get_event_loop` creates a loop if none is set, or warns.
        """
        local = getattr(asyncio.get_event_loop_policy(), "_local", None)  # type: ignore[deprecated]
        loop: asyncio.AbstractEventLoop | None = getattr(local, "_loop", None)
        return loop


def wakeup_descriptor(loop: asyncio.AbstractEventLoop) -> int | None:
    """Return the descriptor that wakes `loop` when written to, None if it can't be told.

    It is for :func:`signal.set_wakeup_fd`, and -1 with uvloop, which sets one whenever it runs.
    """
    if type(loop).__module__.partition(".")[0] == "uvloop":
        return -1
    self_pipe = getattr(loop, "_csock", None)
    return None if self_pipe is None else self_pipe.fileno()


def listen_to_signals(
    loop: asyncio.AbstractEventLoop, on_signal: Callable[[int], object]
) -> Callable[[], None] | None:
    """Call `on_signal` in `loop` with each signal that wakes it, independent of its handler.

    Return a function that ends this, None if the loop is not asyncio's own.
    """
    process = getattr(loop, "_process_self_data", None)
    if process is None:
        return None

    def listen(data: bytes) -> None:
        process(data)
        for signum in data:
            if signum:
                on_signal(signum)

    try:
        loop._process_self_data = listen  # type: ignore[attr-defined]
    except AttributeError:
        return None
    return lambda: delattr(loop, "_process_self_data")


if sys.version_info >= (3, 12):
    _new_task = asyncio.Task.__new__

    def start_eagerly(
        coro: Coroutine[Any, Any, T],
        loop: asyncio.AbstractEventLoop,
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """Make a task of `coro` and run its first step before returning.

        :param coro: the coroutine to run.
        :param loop: the running loop the task belongs to.
        :param name: the name of the task; asyncio's own numbering by default.
        :param context: the context to run in; a copy of the current one by default.

        A loop with a task factory, or one that is not running, gets an ordinary task.

        .. code-block:: python

            task = start_eagerly(handler(), asyncio.get_running_loop())
            if task.done():
                ...  # it never had to wait
        """
        if loop.get_task_factory() is not None or asyncio._get_running_loop() is not loop:
            return loop.create_task(coro, name=name, context=context)
        task: asyncio.Task[T] = _new_task(asyncio.Task)
        try:
            task.__init__(  # type: ignore[misc]
                coro, loop=loop, name=name, context=context, eager_start=True
            )
            return task
        except BaseException:
            # An exit comes out of the first step here as well; asyncio need not report it, too.
            error = task.exception() if task.done() else None
            # Since Python 3.14, a RuntimeError does if the step forked, see propagate_exits().
            if error is not None and is_forked_copy(loop):
                raise_unchanged(error)
            raise
        finally:
            # A traceback out of the first step leads to this frame, by way of the callers.
            del task
            error = None

else:

    def start_eagerly(
        coro: Coroutine[Any, Any, T],
        loop: asyncio.AbstractEventLoop,
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """Make a task of `coro` and run its first step (see the variant for Python 3.12)."""
        if loop.get_task_factory() is not None or asyncio._get_running_loop() is not loop:
            return loop.create_task(coro, name=name, context=context)

        if context is None:
            context = copy_context()
        caught: list[tuple[Callable[..., Any], tuple[Any, ...], Context | None]] = []

        def catch(callback: Callable[..., Any], *args: Any, context: Context | None = None) -> None:
            caught.append((callback, args, context))

        # An attribute of the instance hides the method, for as long as it takes to make the task.
        try:
            loop.call_soon = catch  # type: ignore[assignment, method-assign]
        except AttributeError:
            return loop.create_task(coro, name=name, context=context)
        try:
            task = asyncio.Task(coro, loop=loop, name=name, context=context)
        finally:
            del loop.call_soon

        # The task schedules its step last; anything before it came from a finalizer that the
        # garbage collector ran.
        step, _, _ = caught.pop()
        for callback, args, callback_context in caught:
            loop.call_soon(callback, *args, context=callback_context)

        current = _tasks._current_tasks.get(loop)  # type: ignore[attr-defined]
        try:
            if current is None:
                context.run(step)
            else:
                _tasks._leave_task(loop, current)
                try:
                    context.run(step)
                finally:
                    _tasks._enter_task(loop, current)
            return task
        except BaseException:
            # An exit comes out of the first step here as well; asyncio need not report it, too.
            task.exception()
            raise
        finally:
            # A traceback out of the first step leads to this frame, by way of the callers.
            del task, step


def is_forked_copy(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether code that `loop` runs is in a child process that it has just forked off.

    The loop, with all that runs in it, belongs to the parent: what comes out of such code has to go
    all the way out.
    """
    return asyncio._get_running_loop() is not loop


def propagate_exits(loop: asyncio.AbstractEventLoop) -> None:
    """Raise SystemExit and KeyboardInterrupt out of the copy of `loop` in a forked child.

    asyncio forgets the running loop in a forked child. Since Python 3.14, the step of the task that
    forked therefore ends with a RuntimeError, whose context is the SystemExit. asyncio passes the
    RuntimeError to the exception handler of the loop, which raises the SystemExit again.
    """
    found = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if type(error) is RuntimeError and "is not the running loop" in str(error):
            if isinstance(error.__context__, (SystemExit, KeyboardInterrupt)):
                raise error.__context__
        elif found is not None:
            found(loop, context)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)


def _raise(error: BaseException) -> None:
    raise error


class Waiter:
    """Suspend one task until :meth:`wake`, which runs it at once where that is safe.

    :param loop: the loop of the tasks that will wait.

    A waiter holds one task at a time and can be awaited again and again. Cancelling the task works
    as with a future.

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
        """Resume the task that waits here; without one, do nothing.

        The task runs before this returns, unless another task is running just now: then it has to
        wait its turn.
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
                # These end the loop. uvloop would only log them when they come out of a protocol.
                self._loop.call_soon(_raise, error)
        else:
            self._loop.call_soon(wakeup, self, context=context)

    def __await__(self) -> Generator[Any, None, None]:
        if self._wakeup is not None:
            msg = f"{self!r} holds a task already"
            raise RuntimeError(msg)
        self._asyncio_future_blocking = True
        yield self

    # What a task asks of the future it waits for.

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop."""
        return self._loop

    def add_done_callback(
        self, wakeup: Callable[[Any], object], *, context: Context | None = None
    ) -> None:
        """Take the wake-up call of the task that waits."""
        self._wakeup = wakeup
        self._context = context

    def result(self) -> None:
        """Raise the cancellation, if there was one."""
        message = self._cancel_message
        if message is not None:
            self._cancel_message = None
            raise asyncio.CancelledError(*message)

    def cancel(self, msg: Any = None) -> bool:
        """Wake the task with a cancellation, and tell whether there is one."""
        wakeup = self._wakeup
        if wakeup is None:
            return False
        self._wakeup = None
        self._cancel_message = () if msg is None else (msg,)
        self._loop.call_soon(wakeup, self, context=self._context)
        return True
