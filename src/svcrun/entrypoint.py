"""Run services: make the loop, start them, wait for the end, stop them, leave nothing behind."""

from __future__ import annotations

import asyncio
import enum
import inspect
import logging
import signal
import threading
from contextlib import ExitStack, suppress
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, final

from svcrun import environment, options
from svcrun.context import Context
from svcrun.eager import start_eagerly
from svcrun.errors import NoEntrypoint, NotAService, NotEntered, StopTimeout, raise_together
from svcrun.guard import EXIT_HUNG, Guard
from svcrun.interrupts import BodyInterrupted, Interrupts
from svcrun.log import basic_config
from svcrun.per_loop import PerLoop, running_loop
from svcrun.service.base import Service
from svcrun.signal import Signal
from svcrun.supervisor import Supervisor
from svcrun.sweep import GRACE
from svcrun.tasks import format_stack, join
from svcrun.teardown import end_tasks, end_threads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable
    from types import TracebackType

    from svcrun.log import LogFormat, LogSession
    from svcrun.thread_pool.executor import ThreadPoolExecutor

T = TypeVar("T")

log = logging.getLogger(__name__)

__all__ = ("Entrypoint", "entrypoint", "run")

DEFAULT_SHUTDOWN_TIMEOUT = 60.0

# Seconds past the time limit that a shutdown has in which all that hangs is cancelled, one kind after the other.
GUARD_GRACE = 8 * GRACE

_current: ContextVar[Entrypoint | None] = ContextVar("svcrun_entrypoint", default=None)
_by_loop: PerLoop[Entrypoint] = PerLoop()


class Phase(enum.Enum):
    """How far an entrypoint has come."""

    NEW = enum.auto()
    ENTERING = enum.auto()
    BODY = enum.auto()
    LEAVING = enum.auto()
    LEFT = enum.auto()


@final
class Entrypoint:
    """Run `services` for as long as a ``with`` block lasts.

    ``with entrypoint(...) as loop`` makes an event loop and owns it; ``async with entrypoint(...) as ep`` uses the one
    that runs. Entering starts the services, leaving stops them, and so does SIGINT, SIGTERM or the crash of a service.

    :param services: instances; those that do not depend on each other start and stop at the same time.
    :param loop: a loop to use, which is not closed afterwards, instead of a new one.
    :param pool_size: the number of threads of the loop's default executor (``SVCRUN_POOL_SIZE``; one for each
        processor by default, at least 4).
    :param log_level: name or number (``SVCRUN_LOG_LEVEL``; ``info`` by default).
    :param log_format: a name from :class:`svcrun.log.LogFormat` (``SVCRUN_LOG_FORMAT``; by what stderr is).
    :param log_buffering: whether a thread writes the log (``SVCRUN_LOG_BUFFERING``; on by default).
    :param log_buffer_size: the number of records that wake it (``SVCRUN_LOG_BUFFER``; 1024 by default).
    :param log_date_format: as for :func:`time.strftime` (``SVCRUN_LOG_DATE_FORMAT``).
    :param log_flush_interval: seconds that a record waits at most (``SVCRUN_LOG_FLUSH``; 0.2 by default).
    :param log_config: whether to configure logging at all (``SVCRUN_LOG_CONFIG``; on by default).
    :param log_handlers: further handlers, which are written to by a thread as well.
    :param loop_factory: makes the loop; uvloop where installed by default, unless ``SVCRUN_USE_UVLOOP`` is off.
    :param debug: the loop's debug mode (``SVCRUN_DEBUG``; off by default).
    :param catch_signals: signals that end the block; SIGINT and SIGTERM by default in the main thread, else none.
    :param shutdown_timeout: seconds for all of the shutdown (``SVCRUN_SHUTDOWN_TIMEOUT``; 60 by default). What hangs
        past it is logged with its stack, and the process ends with exit code 70.
    :param start_timeout: seconds for the start of each service that has no limit of its own; none by default.
    :param log_buffer_limit: the number of records past which new ones are dropped (100 000 by default).

    :raises ValueError, TypeError: naming an option, or an environment variable, with a wrong value.

    >>> from svcrun import Service, entrypoint
    >>> class Hello(Service):
    ...     async def start(self):
    ...         print("Hello")
    ...
    ...     async def stop(self, exception=None):
    ...         print("Good-bye")
    >>> with entrypoint(Hello(), log_config=False) as loop:
    ...     print("between")
    Hello
    between
    Good-bye
    """

    PRE_START: ClassVar[Signal] = Signal()
    POST_START: ClassVar[Signal] = Signal()
    PRE_STOP: ClassVar[Signal] = Signal()
    POST_STOP: ClassVar[Signal] = Signal()

    def __init__(
        self,
        *services: Service,
        loop: asyncio.AbstractEventLoop | None = None,
        pool_size: int | None = None,
        log_level: int | str | None = None,
        log_format: str | LogFormat | None = None,
        log_buffering: bool | None = None,
        log_buffer_size: int | None = None,
        log_date_format: str | None = None,
        log_flush_interval: float | None = None,
        log_config: bool | None = None,
        log_handlers: Iterable[logging.Handler] = (),
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
        debug: bool | None = None,
        catch_signals: Iterable[int] | None = None,
        shutdown_timeout: float | None = None,
        start_timeout: float | None = None,
        log_buffer_limit: int | None = None,
    ) -> None:
        for service in services:
            if not isinstance(service, Service):
                raise NotAService(service)
        self._given = services
        self._loop = loop
        self._loop_factory = loop_factory
        self._debug = environment.read_bool("DEBUG", default=False) if debug is None else debug
        self._pool_size = options.pool_size(pool_size)
        self._signals = options.signals(catch_signals)
        self._start_timeout = options.seconds("start_timeout", start_timeout, None)
        self._shutdown_timeout = options.shutdown_timeout(shutdown_timeout, DEFAULT_SHUTDOWN_TIMEOUT)
        self._log_options = None
        if environment.read_bool("LOG_CONFIG", default=True) if log_config is None else log_config:
            self._log_options = options.log_options(
                {
                    "level": log_level,
                    "log_format": log_format,
                    "buffered": log_buffering,
                    "buffer_size": log_buffer_size,
                    "date_format": log_date_format,
                    "flush_interval": log_flush_interval,
                    "handlers": tuple(log_handlers),
                    "buffer_limit": log_buffer_limit,
                }
            )

        self.pre_start = self.PRE_START.copy()
        self.post_start = self.POST_START.copy()
        self.pre_stop = self.PRE_STOP.copy()
        self.post_stop = self.POST_STOP.copy()

        self.ctx: Context | None = None
        """The values that the services share; there while the entrypoint runs."""

        self._phase = Phase.NEW
        self._owns_loop = False
        self._undo = ExitStack()
        self._pool: ThreadPoolExecutor | None = None
        self._log_session: LogSession | None = None
        self._supervisor: Supervisor | None = None
        self._guard: Guard | None = None

        # What a signal or a crash has to interrupt: the start, then what the block runs.
        self._entering: asyncio.Task[None] | None = None
        self._body: asyncio.Task[Any] | None = None
        self._cancelled_body = False
        self._gave_up = False
        self._is_async = False
        self._run_until_complete: Callable[[Awaitable[Any]], Any] | None = None

        self._closing: asyncio.Event | None = None
        self._await_closing: set[asyncio.Task[Any] | None] = set()
        self._shutdown: asyncio.Task[None] | None = None
        self._hook: asyncio.Task[None] | None = None
        self._deadline = 0.0
        self._errors: list[BaseException] = []
        self._hung = False
        self._signal: int | None = None
        self._raise_signal = False

    # What users ask.

    @staticmethod
    def get_current() -> Entrypoint:
        """Find the entrypoint that runs here.

        :raises RuntimeError: if there is none.
        """
        current = _current.get()
        if current is not None and current._phase is not Phase.LEFT:
            return current
        loop = running_loop()
        current = None if loop is None else _by_loop.get(loop)
        if current is None:
            raise NoEntrypoint
        return current

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop.

        :raises RuntimeError: before the entrypoint is entered, unless it was given one.
        """
        if self._loop is None:
            raise NotEntered("the entrypoint has no loop before it is entered")
        return self._loop

    @property
    def services(self) -> tuple[Service, ...]:
        """The services that were started and have not been stopped."""
        return () if self._supervisor is None else self._supervisor.services

    async def closing(self) -> None:
        """Wait until the shutdown begins; the task that waits is not cancelled then, and can go on to its end."""
        if self._closing is None:
            raise NotEntered("there is no end to wait for before the entrypoint is entered")
        task = asyncio.current_task()
        self._await_closing.add(task)
        try:
            await self._closing.wait()
        finally:
            # Not before the callbacks of this turn of the loop, of which one may be about to cancel the task.
            self.loop.call_soon(self._await_closing.discard, task)

    async def start_services(self, *services: Service) -> None:
        """Start more services, as entering does: in their order, all of them or none.

        A service that runs already is left alone.

        :raises ValueError, TypeError: before anything is started, if they can't be started as given.
        :raises RuntimeError: if the entrypoint is shutting down.
        :raises BaseException: what a ``start()`` raised, as it is; several as a group.
        """
        supervisor = self._running()
        await self.pre_start.call(entrypoint=self, services=services)
        await supervisor.start(services)
        try:
            await self.post_start.call(entrypoint=self, services=services)
        except BaseException as error:
            with suppress(Exception):  # logged, and not what went wrong first
                await supervisor.stop(services, error)
            raise

    async def stop_services(self, *services: Service, exc: BaseException | None = None) -> None:
        """Stop services, as leaving does: in their order, first those that depend on them.

        :param exc: passed to their ``stop()``.
        :raises BaseException: what a ``stop()`` raised, as it is; several as a group.
        """
        supervisor = self._running()
        errors = await self._call_hook(self.pre_stop, services)
        try:
            await supervisor.stop(services, exc)
        except Exception as error:  # noqa: BLE001 - raised below, together with what hooks raised
            errors.append(error)
        errors += await self._call_hook(self.post_stop, services)
        raise_together("services failed to stop", errors)

    async def graceful_shutdown(self, exception: BaseException | None = None) -> None:
        """Begin the shutdown, unless it has begun, and wait until all services are stopped.

        :param exception: passed to their ``stop()``.
        """
        self._running()
        await asyncio.shield(self._shut_down(exception))

    # Entering.

    def __enter__(self) -> asyncio.AbstractEventLoop:
        if running_loop() is not None:
            raise NotEntered("a loop runs in this thread already; write `async with entrypoint(...)`")
        self._begin()
        try:
            loop = self._make_loop() if self._loop is None else self._loop
            self._set_up(loop)
            try:
                self._drive(self._enter(), cancel=True)
            except BaseException as error:
                self._drive(self._finish(_unless_cancelled(error)), cancel=False)
                raise self._start_error(error) from error.__cause__
            self._watch_running(loop)
        except BaseException:
            self._end()
            raise
        return loop

    async def __aenter__(self) -> Entrypoint:
        self._begin()
        try:
            self._is_async = True
            self._loop = asyncio.get_running_loop()
            self._set_up(self._loop)
            try:
                await self._enter()
            except BaseException as error:
                await join(self._finishing(_unless_cancelled(error)))
                raise self._start_error(error) from error.__cause__
        except BaseException:
            self._end()
            raise
        self._body = asyncio.current_task()
        return self

    def _begin(self) -> None:
        if self._phase is not Phase.NEW:
            raise NotEntered("an entrypoint can be entered once; make another one")
        self._phase = Phase.ENTERING

    def _make_loop(self) -> asyncio.AbstractEventLoop:
        loop = self._loop = _new_loop() if self._loop_factory is None else self._loop_factory()
        self._owns_loop = True
        self._undo.callback(loop.close)
        loop.set_debug(self._debug)
        asyncio.set_event_loop(loop)
        self._undo.callback(asyncio.set_event_loop, None)
        return loop

    def _set_up(self, loop: asyncio.AbstractEventLoop) -> None:
        """Put everything in place that services may rely on; `_undo` takes it away again, in reverse."""
        if self._log_options is not None:
            self._log_session = basic_config(loop=loop, **self._log_options)
            self._undo.callback(self._close_log)
        if self._owns_loop or self._pool_size is not None:
            self._install_pool(loop)
        self.ctx = Context(loop)
        self._undo.callback(self.ctx.close)
        self._undo.callback(_reset_current, _current.set(self))
        _by_loop.add(loop, self)
        self._undo.callback(_by_loop.discard, loop, self)

        self._closing = asyncio.Event()
        self._supervisor = Supervisor(
            loop,
            start_timeout=self._start_timeout,
            stop_timeout=self._shutdown_timeout,
            on_fatal=self._on_crash,
        )
        self._guard = Guard(loop, self._flush_log)
        self._undo.callback(self._guard.release)
        interrupts = Interrupts(
            loop,
            self._signals_to_catch(),
            self._guard,
            on_caught=self._on_caught,
            on_first=self._on_signal,
            on_insist=self._on_insist,
            in_body=self._in_body,
        )
        self._undo.callback(interrupts.restore)
        interrupts.install()

    def _install_pool(self, loop: asyncio.AbstractEventLoop) -> None:
        from svcrun.thread_pool.executor import ThreadPoolExecutor  # noqa: PLC0415 - asyncio loads that late as well

        self._pool = ThreadPoolExecutor(self._pool_size)
        if self._owns_loop:
            loop.set_default_executor(self._pool)
        else:
            self._pool.attach(loop)

    def _signals_to_catch(self) -> tuple[int, ...]:
        if self._signals is not None:
            return self._signals
        in_main_thread = threading.current_thread() is threading.main_thread()
        return (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()

    async def _enter(self) -> None:
        """Start the services, in a task that a signal can cancel."""
        for hook in (self.pre_start, self.post_start, self.pre_stop, self.post_stop):
            hook.freeze()
        self._entering = start_eagerly(self.start_services(*self._given), self.loop, name="start of the entrypoint")
        try:
            await self._entering
        finally:
            self._entering = None
        self._phase = Phase.BODY

    def _start_error(self, error: BaseException) -> BaseException:
        """Tell what to raise for a start that ended with `error`."""
        if self._is_closing() and isinstance(error, asyncio.CancelledError):
            crashes = self._running().errors
            if crashes:
                return crashes[0] if len(crashes) == 1 else BaseExceptionGroup("services failed", crashes)
            if self._signal is not None:
                return self._exit_by_signal()
        return error

    # While the block runs.

    def _watch_running(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have ``loop.run_until_complete()`` tell what it runs, so that a signal can cancel just that."""
        self._run_until_complete = loop.run_until_complete
        with suppress(AttributeError):  # of a loop with slots; a signal stops it whatever it runs
            loop.run_until_complete = self._run_body  # type: ignore[method-assign]

    def _unwatch_running(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._run_until_complete is not None:
            with suppress(AttributeError):
                del loop.run_until_complete
            if loop.run_until_complete != self._run_until_complete:
                loop.run_until_complete = self._run_until_complete  # type: ignore[method-assign]

    def _run_body(self, future: Awaitable[T]) -> T:
        is_new = not asyncio.isfuture(future)
        task = asyncio.ensure_future(future, loop=self._loop)
        self._body = task  # type: ignore[assignment] - or a future, which is cancelled just so
        if self._is_closing():
            self.loop.call_soon(self._interrupt)
        try:
            return self._run_until_complete(task)  # type: ignore[misc, no-any-return] - it is set
        except BaseException:
            if is_new and task.done() and not task.cancelled():
                task.exception()  # it comes out here; asyncio need not complain that nobody saw it
            raise
        finally:
            self._body = None

    def _in_body(self) -> bool:
        return self._phase is Phase.BODY

    def _is_closing(self) -> bool:
        return self._closing is not None and self._closing.is_set()

    def _on_caught(self) -> None:
        """React to the first signal, in its handler."""
        if self._guard is not None:
            self._guard.watch(self._shutdown_timeout, GUARD_GRACE, in_thread=True)

    def _on_signal(self, signum: int) -> None:
        """React to the first signal, in the loop."""
        log.info("%s received, shutting down", signal.Signals(signum).name)
        self._signal = signum
        self._close()
        self._interrupt()

    def _on_insist(self) -> None:
        """React to somebody who does not want to wait."""
        log.warning("interrupted again, cutting everything short")
        self._deadline = self.loop.time()
        self._running().hurry()
        if self._hook is not None:
            self._hook.cancel()
        if self._in_body():
            self._give_up()

    def _on_crash(self, error: BaseException) -> None:
        log.error("shutting down because of %r", error)
        self._close()
        self._interrupt()

    def _interrupt(self) -> None:
        """End what the start or the block runs."""
        if self._phase is Phase.ENTERING and self._entering is not None:
            self._entering.cancel()
        elif self._phase is Phase.BODY:
            if self._body is not None and self._body not in self._await_closing:
                self._cancelled_body = self._body.cancel()
            elif self._body is None:
                self.loop.stop()
            self.loop.call_at(self._deadline, self._give_up)

    def _give_up(self) -> None:
        """Wait no longer for a block that goes on although it was cancelled."""
        if self._phase is not Phase.BODY:
            return
        if self._body is not None:
            self._hung = True
            log.error("the block does not end; it waits at\n%s", format_stack(self._body))
        self._gave_up = True
        if self._is_async and self._guard is not None:
            self._guard.die("the body of `async with entrypoint()` goes on although it was cancelled")
        self.loop.stop()

    # Leaving.

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        loop = self.loop
        self._phase = Phase.LEAVING
        self._unwatch_running(loop)
        try:
            if loop.is_closed():
                log.error("the event loop was closed inside the block, so %r can't be stopped", self.services)
            else:
                self._drive(self._finish(self._cause(exc)), cancel=False)
        finally:
            self._end()
        return self._conclude(exc)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._phase = Phase.LEAVING
        body, self._body = self._body, None
        try:
            await join(self._finishing(self._cause(exc)))
        except asyncio.CancelledError:
            # Ours may come as late as that.
            if not self._cancelled_body:
                raise
        finally:
            self._end()
        # A cancellation that is not only ours has to go on.
        foreign = self._cancelled_body and body is not None and body.uncancel() > 0
        return self._conclude(exc) and not foreign

    def _is_interruption(self, exc: BaseException | None) -> bool:
        """Whether `exc`, which ended the block, is only our own way to end it."""
        return (
            exc is None
            or isinstance(exc, BodyInterrupted)
            or (self._cancelled_body and isinstance(exc, asyncio.CancelledError))
            or (self._gave_up and isinstance(exc, RuntimeError))
        )

    def _cause(self, exc: BaseException | None) -> BaseException | None:
        if not self._is_interruption(exc):
            return exc
        crashes = self._running().errors
        return crashes[0] if crashes else None

    def _conclude(self, exc: BaseException | None) -> bool:
        """Raise what is to come out of the block, or tell whether `exc` is to be swallowed."""
        supervisor = self._running()
        errors = [*self._errors, *supervisor.errors]
        late = next((error for error in errors if isinstance(error, StopTimeout)), None)
        ours = self._is_interruption(exc)
        if self._hung or supervisor.hung or (late is not None and ours):
            raise SystemExit(EXIT_HUNG) from (late if ours else exc)
        if not ours:
            return False
        raise_together("services failed", errors)
        if self._signal is not None and self._raise_signal and exc is not None:
            raise self._exit_by_signal()
        return exc is not None

    def _exit_by_signal(self) -> BaseException:
        if not self._raise_signal:
            return SystemExit(0)
        return KeyboardInterrupt() if self._signal == signal.SIGINT else SystemExit(128 + (self._signal or 0))

    # The shutdown.

    def _close(self) -> None:
        """Begin the shutdown: tell everybody, and set its time limit."""
        if self._closing is None or self._closing.is_set():
            return
        self._closing.set()
        self._deadline = self.loop.time() + self._shutdown_timeout
        if self._guard is not None:
            self._guard.watch(self._shutdown_timeout, GUARD_GRACE, in_thread=False)

    def _shut_down(self, exception: BaseException | None) -> asyncio.Task[None]:
        """Stop everything, once; everybody who wants it waits for the same task."""
        if self._shutdown is None:
            self._close()
            self._shutdown = start_eagerly(self._stop_all(exception), self.loop, name="shutdown")
        return self._shutdown

    async def _stop_all(self, exception: BaseException | None) -> None:
        supervisor = self._running()
        services = self.services
        self._errors += await self._call_hook(self.pre_stop, services)
        await supervisor.close(exception, self._time_left())
        self._errors += await self._call_hook(self.post_stop, services)

    def _finishing(self, exception: BaseException | None) -> asyncio.Task[None]:
        return start_eagerly(self._finish(exception), self.loop, name="end of the entrypoint")

    async def _finish(self, exception: BaseException | None) -> None:
        """Stop everything, then end what is left in a loop of our own and in our threads."""
        await self._shut_down(exception)
        if self._owns_loop and not await end_tasks(self.loop, self._time_left()):
            self._hung = True
        if self._pool is not None and not await end_threads(self._pool, self._time_left()):
            self._hung = True

    def _time_left(self) -> float:
        """Seconds until the time limit; past it still a moment, for what was cancelled to clean up."""
        return max(self._deadline - self.loop.time(), GRACE / 2)

    async def _call_hook(self, hook: Signal, services: tuple[Service, ...]) -> list[BaseException]:
        """Call the receivers of `hook` and return what they raised; in a shutdown not for longer than that may take."""
        if not hook:
            return []
        task = start_eagerly(hook.call(entrypoint=self, services=services), self.loop, name="hook")
        if self._is_closing() and not task.done():
            self._hook = task
            await asyncio.wait((task,), timeout=self._time_left())
            self._hook = None
            if not task.done():
                self._hung = True
                log.error("a hook hangs and is cancelled; it waits at\n%s", format_stack(task))
                task.cancel()
                await asyncio.wait((task,), timeout=GRACE)
                return []
        try:
            await task
        except Exception as error:  # noqa: BLE001 - it does not keep services from being stopped
            log.exception("a hook failed")
            return [error]
        return []

    def _running(self) -> Supervisor:
        if self._supervisor is None:
            raise NotEntered("the entrypoint is not entered; use it inside its `with` block")
        return self._supervisor

    # What is done whatever happens.

    def _drive(self, coro: Coroutine[Any, Any, None], *, cancel: bool) -> None:
        """Run `coro` to its end, also when the loop is stopped or an exception comes out of it meanwhile.

        :param cancel: whether to cancel `coro` then.
        """
        loop = self.loop
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

    def _end(self) -> None:
        """Take away all that was put in place."""
        self._phase = Phase.LEFT
        self._undo.close()

    def _close_log(self) -> None:
        if self._log_session is not None:
            self._log_session.close(timeout=max(self._time_left() if self._deadline else 0.0, GRACE))

    def _flush_log(self) -> None:
        if self._log_session is not None:
            self._log_session.flush(timeout=GRACE)


entrypoint = Entrypoint


def run(main: Awaitable[T], *services: Service, **kwargs: Any) -> T:
    """Run `main` while `services` run, and return its result.

    :param main: a coroutine, usually.
    :param kwargs: options of :class:`Entrypoint`.

    :raises KeyboardInterrupt: if SIGINT ended it.
    :raises SystemExit: if SIGTERM did, with the code 143.

    >>> import svcrun
    >>> async def main():
    ...     return "done"
    >>> svcrun.run(main(), log_config=False)
    'done'
    """
    try:
        ep = Entrypoint(*services, **kwargs)
        ep._raise_signal = True
        with ep as loop:
            result = loop.run_until_complete(main)
        return result
    finally:
        if inspect.iscoroutine(main):
            main.close()  # in case it did not come to run


def _new_loop() -> asyncio.AbstractEventLoop:
    if environment.read_bool("USE_UVLOOP", default=True):
        try:
            import uvloop  # noqa: PLC0415 - optional
        except ImportError:
            pass
        else:
            return uvloop.new_event_loop()
    return asyncio.new_event_loop()


def _unless_cancelled(error: BaseException) -> BaseException | None:
    return None if isinstance(error, asyncio.CancelledError) else error


def _reset_current(token: Token[Entrypoint | None]) -> None:
    # A fixture may leave in another context than it entered; what is left there is known to be over.
    with suppress(ValueError):
        _current.reset(token)
