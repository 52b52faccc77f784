"""Run an entrypoint from the start of its services to the end of its threads.

A shutdown begins with a signal, the crash of a service, a call of ``graceful_shutdown()``, or the
end of the block, whichever is first. The first three interrupt the start or the block. After its
end, :meth:`Runtime.finish` stops the services, unless a task does so already. Then it ends the
tasks and threads that remain.
"""

from __future__ import annotations

import asyncio
import logging
import signal

from svcrun._lifecycle.supervisor import Supervisor
from svcrun._runtime import forking
from svcrun._runtime.event_loop import drive_in_task
from svcrun._runtime.exit_watchdog import ExitWatchdog
from svcrun._runtime.hooks import Hooks
from svcrun._runtime.loop_cleanup import Deadline, end_executor, end_tasks, end_threads
from svcrun._runtime.options import log_options
from svcrun._runtime.os_signals import OSSignals
from svcrun._runtime.outcome import Outcome
from svcrun._runtime.reloading import Reloading
from svcrun._runtime.shutdown_report import ShutdownReport, is_at_terminal, place_of, running_work
from svcrun._util.drain import GRACE_PERIOD
from svcrun._util.eager import start_eagerly
from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.raising import one_line
from svcrun._util.tasks import format_stack, wait_for_task
from svcrun.context import Context
from svcrun.errors import show

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from svcrun._runtime.block import Block
    from svcrun._runtime.options import Options
    from svcrun.log import LogSession
    from svcrun.service.base import Service
    from svcrun.thread_pool.executor import ThreadPoolExecutor

log = logging.getLogger("svcrun.entrypoint")

__all__ = ("Runtime",)

ROLL_BACK_GRACE = 3 * GRACE_PERIOD
"""Seconds past its time limit that the roll-back of a start has to cancel its services."""

EXIT_GRACE = 10 * GRACE_PERIOD
"""Seconds past its time limit that a shutdown has to cancel services, hooks, tasks and threads."""


class Runtime:
    """The parts of an entrypoint while it is entered, and the events that end it.

    :param options: the options of the entrypoint.
    :param owns_loop: whether the entrypoint has created `loop` and will close it.
    :param services: the services that entering starts.
    :param call_hook: returns a coroutine that calls the receivers of the signal with that name, or
        None if the signal has no receivers.
    :param on_forked: called in each forked child.
    """

    def __init__(
        self,
        options: Options,
        loop: asyncio.AbstractEventLoop,
        block: Block,
        *,
        owns_loop: bool,
        services: Iterable[Service],
        call_hook: Callable[[str, tuple[Service, ...]], Coroutine[Any, Any, None] | None],
        on_forked: Callable[[], object],
    ) -> None:
        self._options = options
        self.loop = loop
        self._owns_loop = owns_loop
        self._on_forked = on_forked
        self._starting: asyncio.Task[Any] | None = None
        self._shutdown: asyncio.Task[None] | None = None
        self._wants_end = False  # whether the start or the block has to be interrupted
        self._is_interrupted = False  # whether it has been interrupted
        self._has_begun_block = False
        self._is_leaving = False
        self._has_stopped = False  # whether all services have; tasks and threads may still run
        self._hung = False
        self._time_limit: asyncio.TimerHandle | None = None  # of the start or the block
        self._pool: ThreadPoolExecutor | None = None
        self._log: LogSession | None = None
        self.block = block
        block.stop_services = self._stop_by_hand
        self.in_block = False
        """Whether the code of the block runs."""
        self.signal: int | None = None
        """The signal that ended the block."""

        self.context = Context(loop)
        self.supervisor = Supervisor(
            loop,
            start_timeout=options.start_timeout,
            start_retry=options.start_retry,
            stop_timeout=options.shutdown_timeout,
            on_fatal=self._on_crash,
            on_roll_back=self._on_roll_back,
        )
        self._deadline = Deadline(loop)
        self.hooks = Hooks(block, self._deadline, call_hook)
        self.outcome = Outcome(self.supervisor.errors, block.is_interruption)
        self._report = ShutdownReport(loop, log, self.waiting)
        self._services = tuple(services)
        self._observers: list[Any] = [one for one in self._services if one._svcrun_observes]  # noqa: SLF001
        self.reloading = Reloading(
            loop,
            lambda: self.supervisor.running,
            lambda: self._notify("_svcrun_reloading"),
            lambda: self._notify("_svcrun_started"),
        )
        self._watchdog = ExitWatchdog(loop, self._flush_log)
        self._os_signals = OSSignals(
            loop,
            options.catch_signals,
            self._watchdog,
            on_caught=self._on_caught,
            on_first=self._on_signal,
            on_second_sigint=self._on_second_sigint,
            in_block=lambda: self.in_block,
            services=lambda: self.supervisor.services,
        )

    def set_up(self) -> None:
        """Set up the log, the threads and the signals; :meth:`dispose` takes them down again."""
        if self._options.log_config:
            from svcrun.log import basic_config

            self._log = basic_config(loop=self.loop, **log_options(self._options))
        if self._owns_loop or self._options.pool_size is not None:
            from svcrun.thread_pool.executor import ThreadPoolExecutor  # asyncio's own is as late

            self._pool = pool = ThreadPoolExecutor(self._options.pool_size)
            if self._owns_loop:
                self.loop.set_default_executor(pool)
            else:
                pool.attach(self.loop)
        if not self.loop.is_running():
            self.block.spare.hold()
        self._watchdog.start(_warn_of_no_thread)
        forking.register(self._watchdog, self._os_signals, self.loop, self._on_forked)
        self._os_signals.install()

    def dispose(self) -> None:
        """Undo :meth:`set_up` as far as it came, except for the handlers of signals."""
        self.block.spare.free()
        self._notify("_svcrun_left")
        self.reloading.restore()
        self._os_signals.detach()
        self._watchdog.disarm()
        self.context.close()
        if self._pool is not None and not self._owns_loop:  # loop.close() shuts down its executor
            self._pool.shutdown(wait=False, cancel_futures=True)
        if self._log is not None:
            self._log.close(timeout=max(self._deadline.left(), GRACE_PERIOD))

    def restore_signals(self) -> None:
        """Restore the handlers of signals; call this last, as a signal may arrive at any time."""
        try:
            self._os_signals.restore()
        finally:
            forking.unregister(self._watchdog)

    # Entering.

    async def enter(self, start: Coroutine[Any, Any, None]) -> None:
        """Run `start` in the current task, which a signal cancels."""
        self._starting = asyncio.current_task()
        self._notify("_svcrun_entering", self)
        try:
            await start
        finally:
            self._starting = None
            self._cancel_time_limit()
        self._os_signals.check()
        while self._os_signals.first is not None and self.signal is None:  # noqa: ASYNC110
            await asyncio.sleep(0)  # race: the handler has scheduled _on_signal(), not yet called
        if self.block.is_closing:  # race: the shutdown began in the last iteration of the start
            raise asyncio.CancelledError
        self._notify("_svcrun_started")
        self.reloading.open()

    async def enter_in_task(self, start: Coroutine[Any, Any, None]) -> BaseException | None:
        """Run :meth:`enter` in a task of its own; return the exception that ended it, or None."""
        return await drive_in_task(self.loop, self.enter(start), name="start of the entrypoint")

    def start_error(
        self, error: BaseException, by_signal: Callable[[int | None], BaseException]
    ) -> BaseException:
        """Return the exception to raise for a start that ended with `error`, after the roll-back.

        :param by_signal: returns the exception for a start that a signal interrupted.
        """
        if self.hung:
            return self.outcome.exit_hung(error)
        return self.outcome.start_error(
            error, lambda: by_signal(self.signal), was_interrupted=self._wants_end
        )

    # The block, and the events that end it.

    def begin_block(self) -> None:
        """Record that the code of the block runs."""
        self.block.watch()
        self.in_block = self._has_begun_block = True

    def end_block(self) -> None:
        """Record that the code of the block has ended."""
        self.in_block = False
        self._is_leaving = True
        self.block.unwatch()
        self._cancel_time_limit()
        self._watchdog.pong()  # the block may not have run the loop, but finish() runs it

    def _on_caught(self) -> None:
        """React to the first signal, in its handler."""
        self._watchdog.arm_in_handler(
            self._options.shutdown_timeout, EXIT_GRACE, self._os_signals.repeat
        )

    def _on_signal(self, signum: int) -> None:
        """React to the first signal, in the loop."""
        self.signal = signum
        hint = "; press Ctrl-C again to cut it short" if is_at_terminal() else ""
        received = signal.Signals(signum).name
        self._begin_shutdown(logging.INFO, "%s received, shutting down%s", received, hint)
        self.interrupt()

    def _on_crash(self, error: BaseException) -> None:
        self.outcome.crashes.append(error)
        self._begin_shutdown(logging.ERROR, "shutting down because of %r", error)
        self.interrupt()

    def _on_roll_back(self) -> None:
        # A service may start others and handle their failure, which does not end the entrypoint.
        if asyncio.current_task() is self._starting:
            self._notify("_svcrun_closing")

    def _on_second_sigint(self) -> None:
        """Cancel the services, the hooks, and the start or the block at once."""
        log.warning("interrupted again, cutting everything short")
        self._deadline.set(self.loop.time())
        self.supervisor.force()
        self.hooks.cancel()
        if self._starting is not None:
            self._starting.cancel()
            self._set_time_limit(ROLL_BACK_GRACE)
        elif self.in_block:
            self.block.cancel()
            self._set_time_limit(GRACE_PERIOD)

    def interrupt(self) -> None:
        """Interrupt the start or the block, once."""
        self._wants_end = True
        if self._is_interrupted or self._is_leaving:
            return
        if self.in_block:
            self._is_interrupted = self.block.interrupt()
        elif self._starting is not None:
            self._is_interrupted = self._starting.cancel()
            self._set_time_limit(self._deadline.left() + ROLL_BACK_GRACE)
        if not self._is_interrupted:
            # Race: the start, or a wait of the block, has just ended. Retry in the next iteration.
            self.loop.call_soon(self.interrupt)

    def _set_time_limit(self, seconds: float) -> None:
        self._cancel_time_limit()
        self._time_limit = self.loop.call_later(seconds, self._give_up)

    def _cancel_time_limit(self) -> None:
        if self._time_limit is not None:
            self._time_limit.cancel()

    def _give_up(self) -> None:
        """React to a start or a block that ignored its interruption until the time limit."""
        self._hung = True
        name, task = ("block", self.block.task) if self.in_block else ("start", self._starting)
        if isinstance(task, asyncio.Task):
            stack = format_stack(task)
            log.error("the %s of the entrypoint ignored cancellation; it waits at\n%s", name, stack)
        if not self.in_block or not self.block.stop_loop():
            # The process has to end, because no code can end the task. Stop the services first.
            reason = f"the {name} of the entrypoint ignored cancellation"
            self.shut_down(None).add_done_callback(lambda _: self._watchdog.exit_process(reason))

    # Leaving.

    def conclude(self, error: BaseException | None) -> bool:
        """Return whether `error`, which ended the block, has to be suppressed.

        It raises the same as :meth:`Outcome.conclude`. Call it last, because it drops the parts.
        """
        try:
            return self.outcome.conclude(error, hung=self.hung)
        finally:
            if not self.hung:  # an abandoned task may go on to use the parts
                # Reference cycle: the parts refer to the runtime. Deleting these references frees
                # them without the garbage collector, which takes a twelfth of a short life.
                del self.block, self.supervisor, self.hooks, self.outcome
                del self._report, self._watchdog, self._os_signals, self._observers, self.reloading

    def _begin_shutdown(self, level: int, reason: str, *args: object) -> None:
        """Log the reason for the shutdown, or a further reason; the first sets the time limit."""
        self._report.begin(level, reason, *args)
        if self.block.is_closing:
            return
        timeout = self._options.shutdown_timeout
        self.block.close()
        self._notify("_svcrun_closing")
        self.reloading.close()
        self._deadline.set(self.loop.time() + timeout)
        self._watchdog.arm(timeout, EXIT_GRACE)
        if self.in_block:
            self._set_time_limit(timeout)

    def shut_down(self, exception: BaseException | None) -> asyncio.Task[Any]:
        """Begin to stop all services, once, and return the task that all callers wait for."""
        if self._shutdown is None:
            if not self.block.is_closing:
                self._begin_shutdown(logging.INFO, "graceful_shutdown() called, shutting down")
            self._shutdown = start_eagerly(self._stop_all(exception), self.loop, name="shutdown")
        return self._shutdown

    def _stop_by_hand(self) -> asyncio.Future[Any]:
        """Stop all services for a program that may never leave the block."""
        shutdown = self.shut_down(self.outcome.exception_for_services(None))
        shutdown.add_done_callback(self._on_stopped_by_hand)
        return shutdown

    def _on_stopped_by_hand(self, _: asyncio.Task[Any]) -> None:
        self._cancel_time_limit()  # the program may go on for as long as it likes
        self._watchdog.disarm()

    @property
    def hung(self) -> bool:
        """Whether a service, hook, task or thread did not end in time."""
        return self._hung or self.supervisor.hung or self.hooks.hung

    @property
    def is_stopping(self) -> bool:
        """Whether a service is stopping, or the stop of all services has begun."""
        return self._shutdown is not None or self.supervisor.is_stopping

    def waits_for(self, task: asyncio.Task[Any] | None) -> bool:
        """Return whether the shutdown waits for `task`, the current one: a hook or a ``stop()``."""
        return task in self.hooks.tasks or self.supervisor.waits_for(task)

    async def _stop_all(self, exception: BaseException | None) -> None:
        services = self.supervisor.services
        for error in await self.hooks.errors("pre_stop", services):
            self.outcome.add(error)
        await self.supervisor.close(exception, self._deadline.left())
        for error in await self.hooks.errors("post_stop", services):
            self.outcome.add(error)

    async def finish(self, exception: BaseException | None) -> None:
        """Stop the services, then end the pool's threads and the tasks of a loop that is owned."""
        self._is_leaving = True
        try:
            if self._shutdown is None:
                self._shutdown = asyncio.current_task()
                if not self.block.is_closing:
                    self._begin_shutdown(*self._reason(exception))
                await self._stop_all(exception)
            else:
                await wait_for_task(self._shutdown)
        except asyncio.CancelledError:
            log.error("the shutdown was cancelled from outside")  # noqa: TRY400
        self._has_stopped = True
        ended = not self._owns_loop or await end_tasks(self.loop, self._deadline)
        if self._pool is not None:
            ended &= await end_threads(self._pool, self._deadline)
        if self._owns_loop:
            ended &= await end_executor(self.loop, self._deadline)
        self._hung |= not ended
        self._report.end(complete=not self.hung)

    def _reason(self, exception: BaseException | None) -> tuple[Any, ...]:
        """Return level, message and arguments for a shutdown after the start or the block."""
        if not self._has_begun_block:
            return logging.DEBUG, "the start has ended, shutting down"
        if exception is None:
            return logging.DEBUG, "the block has ended, shutting down"
        return logging.INFO, "the block raised %s, shutting down", one_line(exception)

    def _notify(self, method: str, *args: object) -> None:
        """Call a method of the services that observe the entrypoint."""
        for observer in self._observers:
            getattr(observer, method)(*args)

    def waiting(self) -> list[str]:
        """Describe the services, hooks, tasks and threads that the start or shutdown waits for."""
        if not self.block.is_closing:
            # Before the start-up begins, no service has a record.
            awaited = self.supervisor.pending or self._services
            return [show(service) for service in awaited if service not in self._observers]
        found = [f"hook {place_of(task, task.get_name())}" for task in self.hooks.tasks if task]
        found += [
            place_of(record.stop_task or record.start_task, show(record.service))
            for record in self.supervisor.in_progress()
        ]
        if self._has_stopped:
            return found or running_work(self.loop)
        if self._starting is not None and not found:
            found.append(place_of(self._starting, "the start"))
        elif self.in_block and not found:
            found.append(place_of(self.block.task, "the block"))
        return found

    async def finish_in_task(self, exception: BaseException | None) -> None:
        """Run :meth:`finish` in a task of its own, even if the caller is cancelled meanwhile."""
        await wait_for_task(
            start_eagerly(self.finish(exception), self.loop, name="end of the entrypoint")
        )

    def _flush_log(self) -> None:
        if self._log is not None:
            self._log.flush(timeout=GRACE_PERIOD)


def _warn_of_no_thread() -> None:
    log.warning(
        "no thread could be started for the exit watchdog; shutdown_timeout may have no effect"
        " while a callback blocks the event loop"
    )
