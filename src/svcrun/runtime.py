"""One life of an entrypoint: what is set up for the services, how the end is brought about, what is left behind."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from typing import TYPE_CHECKING, Any

from svcrun.context import Context
from svcrun.eager import start_eagerly
from svcrun.errors import StopTimeout, raise_together
from svcrun.guard import EXIT_HUNG, Guard
from svcrun.interrupts import Interrupts
from svcrun.supervisor import Supervisor
from svcrun.sweep import GRACE
from svcrun.tasks import format_stack, join
from svcrun.teardown import end_tasks, end_threads

if TYPE_CHECKING:
    from contextlib import ExitStack
    from collections.abc import Callable, Coroutine

    from svcrun.body import Body
    from svcrun.log import LogSession
    from svcrun.options import Options
    from svcrun.service.base import Service
    from svcrun.thread_pool.executor import ThreadPoolExecutor

log = logging.getLogger(__name__)

__all__ = ("Runtime", "drive", "make_loop")

# Seconds past the time limit that a shutdown has in which all that hangs is cancelled, one kind after the other.
GUARD_GRACE = 8 * GRACE


def make_loop(options: Options, undo: ExitStack) -> asyncio.AbstractEventLoop:
    """Make an event loop and have it be the current one; `undo` closes it."""
    loop = _new_loop(options) if options.loop_factory is None else options.loop_factory()
    undo.callback(_close_loop, loop)
    loop.set_debug(options.debug)
    asyncio.set_event_loop(loop)
    return loop


def _close_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(None)
    loop.close()


def _new_loop(options: Options) -> asyncio.AbstractEventLoop:
    if options.use_uvloop:
        try:
            import uvloop  # noqa: PLC0415 - optional
        except ImportError:
            pass
        else:
            return uvloop.new_event_loop()
    return asyncio.new_event_loop()


class Runtime:
    """Everything that is there while an entrypoint runs.

    :param options: those of the entrypoint.
    :param loop: the loop it runs in.
    :param owns_loop: whether the loop ends with it.
    :param call_hook: makes the call of the entrypoint's signal of that name, or returns None if nobody listens.
    """

    def __init__(
        self,
        options: Options,
        loop: asyncio.AbstractEventLoop,
        body: Body,
        *,
        owns_loop: bool,
        call_hook: Callable[[str, tuple[Service, ...]], Coroutine[Any, Any, None] | None],
    ) -> None:
        self._options = options
        self._loop = loop
        self._owns_loop = owns_loop
        self._call_hook = call_hook
        self._starting: asyncio.Task[Any] | None = None
        self._shutdown: asyncio.Task[None] | None = None
        self._hook: asyncio.Task[None] | None = None
        self._deadline: float | None = None
        self._errors: list[BaseException] = []
        self._hung = False
        self._pool: ThreadPoolExecutor | None = None
        self._log: LogSession | None = None
        self.body = body
        self.in_body = False
        """Whether the code of the block runs."""
        self.signal: int | None = None
        """The signal that ends it."""

        self.context = Context(loop)
        self.supervisor = Supervisor(
            loop,
            start_timeout=options.start_timeout,
            stop_timeout=options.shutdown_timeout,
            on_fatal=self._on_crash,
        )
        self._guard = Guard(loop, self._flush_log)
        self._interrupts = Interrupts(
            loop,
            self._signals_to_catch(),
            self._guard,
            on_caught=self._on_caught,
            on_first=self._on_signal,
            on_insist=self._on_insist,
            in_body=lambda: self.in_body,
        )

    def set_up(self) -> None:
        """Put in place what services may rely on; :meth:`dispose` takes it away again."""
        if self._options.log is not None:
            from svcrun.log import basic_config  # noqa: PLC0415 - for those who want it

            self._log = basic_config(loop=self._loop, **self._options.log)
        if self._owns_loop or self._options.pool_size is not None:
            self._pool = self._make_pool()
        self._interrupts.install()

    def dispose(self) -> None:
        """Take away everything, however far it has come."""
        self._interrupts.restore()
        self._guard.release()
        self.context.close()
        if self._pool is not None and not self._owns_loop:  # else closing the loop does it
            self._pool.shutdown(wait=False, cancel_futures=True)
        if self._log is not None:
            self._log.close(timeout=max(self._time_left(), GRACE))

    def _make_pool(self) -> ThreadPoolExecutor:
        from svcrun.thread_pool.executor import ThreadPoolExecutor  # noqa: PLC0415 - asyncio loads it late as well

        pool = ThreadPoolExecutor(self._options.pool_size)
        if self._owns_loop:
            self._loop.set_default_executor(pool)
        else:
            pool.attach(self._loop)
        return pool

    def _signals_to_catch(self) -> tuple[int, ...]:
        if self._options.signals is not None:
            return self._options.signals
        in_main_thread = threading.current_thread() is threading.main_thread()
        return (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()

    # Entering.

    async def enter(self, start: Coroutine[Any, Any, None]) -> None:
        """Run `start`; a signal cancels the task that does this."""
        self._starting = asyncio.current_task()
        try:
            await start
        finally:
            self._starting = None
        self.in_body = True

    async def enter_in_task(self, start: Coroutine[Any, Any, None]) -> None:
        """Do :meth:`enter` in a task of its own, so that a signal does not cancel the caller."""
        await start_eagerly(self.enter(start), self._loop, name="start of the entrypoint")

    def start_error(
        self, error: BaseException, interrupted: Callable[[int], BaseException]
    ) -> BaseException:
        """Tell what to raise for a start that ended with `error`.

        :param interrupted: makes the exception for a start that a signal ended.
        """
        if not self.body.is_closing or not isinstance(error, asyncio.CancelledError):
            return error
        crashes = self.supervisor.errors
        if crashes:
            return (
                crashes[0] if len(crashes) == 1 else BaseExceptionGroup("services failed", crashes)
            )
        return error if self.signal is None else interrupted(self.signal)

    # What ends the block.

    def _on_caught(self) -> None:
        """React to the first signal, in its handler."""
        self._guard.watch(self._options.shutdown_timeout, GUARD_GRACE, in_thread=True)

    def _on_signal(self, signum: int) -> None:
        """React to the first signal, in the loop."""
        log.info("%s received, shutting down", signal.Signals(signum).name)
        self.signal = signum
        self._close()
        self._interrupt()

    def _on_crash(self, error: BaseException) -> None:
        log.error("shutting down because of %r", error)
        self._close()
        self._interrupt()

    def _on_insist(self) -> None:
        """React to somebody who does not want to wait."""
        log.warning("interrupted again, cutting everything short")
        self._deadline = self._loop.time()
        self.supervisor.hurry()
        if self._hook is not None:
            self._hook.cancel()
        self._give_up()

    def _interrupt(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        elif self.in_body:
            self.body.interrupt()
            if self._deadline is not None:
                self._loop.call_at(self._deadline, self._give_up)

    def _give_up(self) -> None:
        """Wait no longer for a block that goes on although it was asked to end."""
        if not self.in_body:
            return
        task = self.body.task
        if isinstance(task, asyncio.Task):
            self._hung = True
            log.error("the block does not end; it waits at\n%s", format_stack(task))
        self.body.give_up(self._guard)

    # Leaving.

    def cause(self, error: BaseException | None) -> BaseException | None:
        """What to tell the services of `error`, which ended the block."""
        if not self.body.is_interruption(error):
            return error
        crashes = self.supervisor.errors
        return crashes[0] if crashes else None

    def conclude(self, error: BaseException | None) -> bool:
        """Raise what is to come out of the block, or tell whether `error`, which ended it, is to be swallowed.

        :raises SystemExit: with code 70, if something hung.
        :raises BaseException: what went wrong with services and hooks, unless the block failed by itself.
        """
        errors = [*self._errors, *self.supervisor.errors]
        late = next((error for error in errors if isinstance(error, StopTimeout)), None)
        ours = self.body.is_interruption(error)
        if self._hung or self.supervisor.hung or (late is not None and ours):
            raise SystemExit(EXIT_HUNG) from (late if ours else error)
        if ours:
            raise_together("services failed", errors)
        return ours and error is not None

    def _close(self) -> None:
        """Begin the shutdown: tell everybody, and set its time limit."""
        if self.body.is_closing:
            return
        self.body.close()
        self._deadline = self._loop.time() + self._options.shutdown_timeout
        self._guard.watch(self._options.shutdown_timeout, GUARD_GRACE, in_thread=False)

    def shut_down(self, exception: BaseException | None) -> asyncio.Task[None]:
        """Stop everything, once; everybody who wants it waits for the same task."""
        if self._shutdown is None:
            self._close()
            self._shutdown = start_eagerly(self._stop_all(exception), self._loop, name="shutdown")
        return self._shutdown

    async def _stop_all(self, exception: BaseException | None) -> None:
        services = self.supervisor.services
        self._errors += await self.hook_errors("pre_stop", services)
        await self.supervisor.close(exception, self._time_left())
        self._errors += await self.hook_errors("post_stop", services)

    async def finish(self, exception: BaseException | None) -> None:
        """Stop everything, then end what is left in a loop of our own and in our threads."""
        self.in_body = False
        if self._shutdown is None:
            self._shutdown = asyncio.current_task()
            self._close()
            await self._stop_all(exception)
        else:
            await join(self._shutdown)
        if self._owns_loop and not await end_tasks(self._loop, self._time_left()):
            self._hung = True
        if self._pool is not None and not await end_threads(self._pool, self._time_left()):
            self._hung = True

    async def finish_in_task(self, exception: BaseException | None) -> None:
        """Do :meth:`finish` in a task of its own, which ends however often the caller is cancelled."""
        await join(start_eagerly(self.finish(exception), self._loop, name="end of the entrypoint"))

    def _time_left(self) -> float:
        """Seconds until the time limit; past it still a moment, for what was cancelled to clean up."""
        return (
            GRACE / 2
            if self._deadline is None
            else max(self._deadline - self._loop.time(), GRACE / 2)
        )

    async def hook_errors(self, name: str, services: tuple[Service, ...]) -> list[BaseException]:
        """Call the receivers of a hook and return what they raised; in a shutdown, for as long as that may take."""
        call = self._call_hook(name, services)
        if call is None:
            return []
        task = start_eagerly(call, self._loop, name=name)
        if self.body.is_closing and not task.done():
            self._hook = task
            await asyncio.wait((task,), timeout=self._time_left())
            self._hook = None
            if not task.done():
                self._hung = True
                log.error(
                    "a hook %s hangs and is cancelled; it waits at\n%s", name, format_stack(task)
                )
                task.cancel()
                await asyncio.wait((task,), timeout=GRACE)
                return []
        try:
            await task
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
        except Exception as error:
            log.exception("a hook %s failed", name)
            return [error]
        return []

    def _flush_log(self) -> None:
        if self._log is not None:
            self._log.flush(timeout=GRACE)


def drive(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, None], *, cancel: bool
) -> None:
    """Run `coro` to its end, also when the loop is stopped or an exception comes out of it meanwhile.

    :param cancel: whether to cancel `coro` then.
    """
    task = loop.create_task(coro)
    interruption: BaseException | None = None
    while not task.done():
        try:
            loop.run_until_complete(task)
        except BaseException as error:  # noqa: BLE001 - raised below, after the end of the task
            if task.done() or isinstance(error, RuntimeError):
                continue  # the task's own error, or somebody stopped the loop
            interruption = interruption or error
            if cancel:
                task.cancel()
    if interruption is not None:
        raise interruption
    task.result()
