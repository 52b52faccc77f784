"""Run an entrypoint from the start of its services to the end of its threads.

A shutdown begins with a signal, the crash of a service, a call of ``graceful_shutdown()``, or the
end of the block, whichever is first. The first three interrupt the start or the block. After its
end, :meth:`Runtime.finish` stops the services, unless a task does so already. Then it ends the
tasks and threads that remain. With ``drain_delay``, SIGTERM begins a delay instead, and the end of
the delay begins the shutdown.
"""

from __future__ import annotations

import asyncio
import logging
import signal

from svcrun._lifecycle.supervisor import Supervisor
from svcrun._runtime import forking
from svcrun._runtime.drain_delay import DrainDelay
from svcrun._runtime.event_loop import drive_in_task
from svcrun._runtime.exit_watchdog import ExitWatchdog
from svcrun._runtime.facilities import Facilities
from svcrun._runtime.hooks import Hooks
from svcrun._runtime.interruption import Interruption
from svcrun._runtime.loop_cleanup import Deadline, end_tasks
from svcrun._runtime.observers import Observers
from svcrun._runtime.os_signals import OSSignals
from svcrun._runtime.outcome import Outcome
from svcrun._runtime.reloading import Reloading
from svcrun._runtime.shutdown_report import ShutdownReport, hint, place_of, running_work
from svcrun._util.drain import GRACE_PERIOD
from svcrun._util.eager import start_eagerly
from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.passed_descriptors import take_passed_descriptors, warn_of_unused_descriptors
from svcrun._util.raising import one_line
from svcrun._util.tasks import wait_for_task
from svcrun._util.terminating import is_terminating, shutdown_deadline
from svcrun.context import Context
from svcrun.errors import show

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from svcrun._runtime.block import Block
    from svcrun._runtime.options import Options
    from svcrun.service.base import Service

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
        self._shutdown: asyncio.Task[None] | None = None
        self._has_begun_block = False
        self._is_terminating = False  # whether SIGTERM began the shutdown
        self._has_stopped = False  # all services have; tasks and threads may still run
        self._hung = False
        self.facilities = Facilities(options, loop, owns_loop=owns_loop)
        self.block = block
        block.stop_services = self._stop_by_hand
        self.is_ready = False
        """Whether the start has ended and nothing has requested a shutdown; any thread reads it."""
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
        self.services = tuple(services)
        self.observers = Observers(self.services)
        self.reloading = Reloading(
            loop,
            lambda: self.supervisor.running,
            lambda: self.observers.notify("reloading"),
            lambda: self.observers.notify("started"),
        )
        self._watchdog = ExitWatchdog(loop, self.facilities.flush_log)
        self._foreground = foreground = Interruption(block, self._give_up)
        self._drain_delay = DrainDelay(
            loop,
            options.drain_delay,
            self._watchdog,
            on_end=self._on_delay_end,
            limit_shutdown=self._limit_shutdown,
        )
        self._os_signals = OSSignals(
            loop,
            options.catch_signals,
            self._watchdog,
            on_caught=self._on_caught,
            on_first=self._on_signal,
            on_second_sigint=self._on_second_sigint,
            in_block=lambda: foreground.in_block,
            services=lambda: self.supervisor.services,
            delay=self._drain_delay,
        )

    def set_up(self) -> None:
        """Set up the log, the threads and the signals; :meth:`dispose` takes them down again."""
        self.facilities.set_up()
        take_passed_descriptors()  # before a service starts a process, which would inherit them
        if not self.loop.is_running():
            self.block.spare.hold()
        self._watchdog.start(self._report.warn_of_no_thread)
        forking.register(self._watchdog, self._os_signals, self.loop, self._on_forked)
        self._os_signals.install()

    def dispose(self) -> None:
        """Undo :meth:`set_up` as far as it came, except for the handlers of signals."""
        self.block.spare.free()
        self.observers.notify("left")
        self.reloading.restore()
        self._os_signals.detach()
        self._watchdog.disarm()
        self.context.close()
        self.facilities.dispose(max(self._deadline.left(), GRACE_PERIOD))

    def restore_signals(self) -> None:
        """Restore the handlers of signals; call this last, as a signal may arrive at any time."""
        try:
            self._os_signals.restore()
        finally:
            forking.unregister(self._watchdog)

    # Entering.

    async def enter(self, start: Coroutine[Any, Any, None]) -> None:
        """Run `start` in the current task, which a signal cancels."""
        self._foreground.begin_start()
        self.observers.notify("entering", self)
        try:
            await start
        finally:
            self._foreground.end_start()
        self._os_signals.check()
        while self._os_signals.first is not None and self.signal is None:  # noqa: ASYNC110
            await asyncio.sleep(0)  # race: the handler has scheduled _on_signal(), not yet called
        if self.block.is_closing:  # race: the shutdown began in the last iteration of the start
            raise asyncio.CancelledError
        self.is_ready = True
        if self._os_signals.first is not None:  # race: caught since the check
            self.is_ready = False
        self.observers.notify("started")
        self.reloading.open()
        warn_of_unused_descriptors()

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
            error, lambda: by_signal(self.signal), was_interrupted=self._foreground.is_wanted
        )

    # The block, and the events that end it.

    def begin_block(self) -> None:
        """Record that the code of the block runs."""
        self._has_begun_block = True
        self._foreground.begin_block()

    def end_block(self) -> None:
        """Record that the code of the block has ended."""
        self.is_ready = False
        self._foreground.end_block()
        self._watchdog.pong()  # the block may not have run the loop, but finish() runs it

    def _on_caught(self) -> None:
        """React to the first signal, in its handler."""
        was_ready, self.is_ready = self.is_ready, False
        if was_ready and self._os_signals.first == signal.SIGTERM and self._drain_delay.seconds:
            self._drain_delay.begin()
        else:
            self._limit_shutdown()

    def _limit_shutdown(self) -> None:
        """Limit the time of the shutdown, in a signal handler or a thread."""
        self._watchdog.arm_in_handler(
            self._options.shutdown_timeout, EXIT_GRACE, self._os_signals.repeat
        )

    def _on_signal(self, signum: int) -> None:
        """React to the first signal, in the loop."""
        self.signal = signum
        received = signal.Signals(signum).name
        if self._drain_delay.schedule_end():
            seconds = self._drain_delay.seconds
            log.info("%s received; shutting down in %g s (drain_delay)", received, seconds)
            self.observers.notify("closing")
            return
        self._begin_shutdown(logging.INFO, f"%s received, shutting down{hint()}", received)
        self.interrupt()

    def _on_delay_end(self) -> None:
        self._begin_shutdown(logging.INFO, f"drain_delay has ended, shutting down{hint()}")
        self.interrupt()

    def _on_crash(self, error: BaseException) -> None:
        self.outcome.crashes.append(error)
        self._begin_shutdown(logging.ERROR, "shutting down because of %r", error)
        self.interrupt()

    def _on_roll_back(self) -> None:
        # A service may start others and handle their failure, which does not end the entrypoint.
        if asyncio.current_task() is self._foreground.starting:
            self.observers.notify("closing")

    def _on_second_sigint(self) -> None:
        """Cancel the services, the hooks, and the start or the block at once."""
        log.warning("interrupted again, cutting everything short")
        self._deadline.set(self.loop.time())
        self.supervisor.force()
        self.hooks.cancel()
        self._foreground.cut_short(ROLL_BACK_GRACE, GRACE_PERIOD)

    def interrupt(self) -> None:
        """Interrupt the start or the block, once."""
        self._foreground.interrupt(self._deadline.left() + ROLL_BACK_GRACE)

    def _give_up(self, code: str) -> None:
        """End the process, because nothing can end the code. Stop the services first."""
        reason = f"{code} ignored cancellation"
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
                del self._report, self._watchdog, self._os_signals, self.observers, self.reloading
                del self._foreground, self._drain_delay

    def _begin_shutdown(self, level: int, reason: str, *args: object) -> None:
        """Log the reason for the shutdown, or a further reason; the first sets the time limit."""
        self._report.begin(level, reason, *args)
        if self.block.is_closing:
            return
        self.is_ready = False
        self._is_terminating = self.signal == signal.SIGTERM
        self._drain_delay.cancel()
        timeout = self._options.shutdown_timeout
        self.block.close()
        self.observers.notify("closing")
        self.reloading.close()
        self._deadline.set(self.loop.time() + timeout)
        self._watchdog.arm(timeout, EXIT_GRACE)
        if self._foreground.in_block:
            self._foreground.limit(timeout)

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
        self._foreground.lift_limit()  # the program may go on for as long as it likes
        self._watchdog.disarm()

    @property
    def hung(self) -> bool:
        """Whether a service, hook, task or thread did not end in time."""
        return self._hung or self._foreground.hung or self.supervisor.hung or self.hooks.hung

    @property
    def is_stopping(self) -> bool:
        """Whether a service is stopping, or the stop of all services has begun."""
        return self._shutdown is not None or self.supervisor.is_stopping

    def waits_for(self, task: asyncio.Task[Any] | None) -> bool:
        """Return whether the shutdown waits for `task`, the current one: a hook or a ``stop()``."""
        return task in self.hooks.tasks or self.supervisor.waits_for(task)

    async def _stop_all(self, exception: BaseException | None) -> None:
        is_terminating.set(self._is_terminating)
        shutdown_deadline.set(self.loop.time() + self._deadline.left())
        services = self.supervisor.services
        for error in await self.hooks.errors("pre_stop", services):
            self.outcome.add(error)
        await self.supervisor.close(exception, self._deadline.left())
        for error in await self.hooks.errors("post_stop", services):
            self.outcome.add(error)

    async def finish(self, exception: BaseException | None) -> None:
        """Stop the services, then end the pool's threads and the tasks of a loop that is owned."""
        self._foreground.skip()
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
        ended &= await self.facilities.end_threads(self._deadline)
        self._hung |= not ended
        self._report.end(complete=not self.hung)

    def _reason(self, exception: BaseException | None) -> tuple[Any, ...]:
        """Return level, message and arguments for a shutdown after the start or the block."""
        if not self._has_begun_block:
            return logging.DEBUG, "the start has ended, shutting down"
        if exception is None:
            return logging.DEBUG, "the block has ended, shutting down"
        return logging.INFO, "the block raised %s, shutting down", one_line(exception)

    def waiting(self) -> list[str]:
        """Describe the services, hooks, tasks and threads that the start or shutdown waits for."""
        if self._drain_delay.is_running:
            return ["drain_delay"]
        if not self.block.is_closing:
            # Before the start-up begins, no service has a record.
            awaited = self.supervisor.pending or self.services
            return [show(service) for service in awaited if service not in self.observers]
        found = self.hooks.places() + [
            place_of(record.stop_task or record.start_task, show(record.service))
            for record in self.supervisor.in_progress()
        ]
        if self._has_stopped:
            return found or running_work(self.loop)
        return found or self._foreground.places()

    async def finish_in_task(self, exception: BaseException | None) -> None:
        """Run :meth:`finish` in a task of its own, even if the caller is cancelled meanwhile."""
        await wait_for_task(
            start_eagerly(self.finish(exception), self.loop, name="end of the entrypoint")
        )
