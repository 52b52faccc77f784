"""Run services: create the event loop, start them, wait for the end, stop them, clean up."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import suppress

from svcrun._runtime.lifetime import (
    Lifetime,
    current_entrypoint,
    entrypoints,
    unless_cancelled,
    wrong_loop,
)
from svcrun._runtime.options import OPTIONS
from svcrun._util.hints import TYPE_CHECKING, Any, ClassVar, TypeVar, final
from svcrun._util.lazy_exports import lazy_exports
from svcrun._util.per_loop import running_loop
from svcrun._util.raising import raise_together
from svcrun._util.tasks import current_work
from svcrun.errors import (
    NoEntrypoint,
    NotAService,
    NotEntered,
    ParameterTypeError,
    ShuttingDown,
)
from svcrun.service.base import Service
from svcrun.signal import Signal

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Callable, Iterable

    from svcrun._runtime.runtime import Runtime
    from svcrun._util.strict_context_var import StrictContextVar
    from svcrun.context import Context as Context, get_context
    from svcrun.log import (
        DateFormat,
        LogFormat as LogFormat,
        LogLevel as LogLevel,
        basic_config as basic_config,
    )
    from svcrun.restart import Restart
    from svcrun.thread_pool import ThreadPoolExecutor as ThreadPoolExecutor
    from svcrun.utils import cancel_tasks as cancel_tasks

    CURRENT_ENTRYPOINT: StrictContextVar[Entrypoint]
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "CURRENT_ENTRYPOINT": "svcrun.context_vars",
            "Context": "svcrun.context",
            "LogFormat": "svcrun.log",
            "LogLevel": "svcrun.log",
            "ThreadPoolExecutor": "svcrun.thread_pool",
            "basic_config": "svcrun.log",
            "cancel_tasks": "svcrun.utils",
            "get_context": "svcrun.context",
        },
    )

T = TypeVar("T")

__all__ = ("CURRENT_ENTRYPOINT", "Entrypoint", "entrypoint", "get_context", "run")


@final
class Entrypoint(Lifetime):
    """Run `services` for as long as a ``with`` block lasts.

    ``with entrypoint(...) as loop`` makes an event loop and owns it; ``async with entrypoint(...)
    as ep`` uses the one that runs. Entering starts the services, leaving stops them, and so does
    SIGINT, SIGTERM or the crash of a service.

    :param services: instances; those that do not depend on each other start and stop at the same
        time.
    :param loop: a loop to use, which is not closed afterwards, instead of a new one.
    :param pool_size: the number of threads of the loop's default executor (``SVCRUN_POOL_SIZE``;
        one for each processor by default, at least 4).
    :param log_level: name or number (``SVCRUN_LOG_LEVEL``; ``info`` by default).
    :param log_format: a name from :class:`svcrun.log.LogFormat` (``SVCRUN_LOG_FORMAT``; by what
        stderr is).
    :param log_buffering: whether a thread writes the log (``SVCRUN_LOG_BUFFERING``; on by default).
    :param log_buffer_size: the number of records that wake it (``SVCRUN_LOG_BUFFER``; 1024 by
        default).
    :param log_date_format: as for :func:`time.strftime` (``SVCRUN_LOG_DATE_FORMAT``).
    :param log_flush_interval: seconds that a record waits at most (``SVCRUN_LOG_FLUSH``; 0.2 by
        default).
    :param log_config: whether to configure logging at all (``SVCRUN_LOG_CONFIG``; on by default).
    :param log_handlers: further handlers, which are written to by a thread as well.
    :param loop_factory: makes the loop; uvloop where installed by default, unless
        ``SVCRUN_USE_UVLOOP`` is off.
    :param debug: the debug mode of a new loop (``SVCRUN_DEBUG``; that of the interpreter,
        ``-X dev`` or ``PYTHONASYNCIODEBUG``, by default).
    :param catch_signals: signals that end the block; SIGINT and SIGTERM by default in the main
        thread, else none.
    :param shutdown_timeout: seconds for all of the shutdown (``SVCRUN_SHUTDOWN_TIMEOUT``; 60 by
        default). Services, tasks and threads that run longer are logged with their stacks, and
        the process ends with exit code 70.
    :param start_timeout: seconds for the start of each service that has no limit of its own; none
        by default.
    :param start_retry: a :class:`svcrun.Restart` policy for retries of a failed ``start()``, for
        services without one of their own; no retries by default.
    :param log_buffer_limit: the number of records past which new ones are dropped (100 000 by
        default).
    :param drain_delay: seconds between SIGTERM and the begin of the shutdown, in which the
        entrypoint is not ready and everything else goes on (``SVCRUN_DRAIN_DELAY``; 0 by default).

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
        log_date_format: str | DateFormat | None = None,
        log_flush_interval: float | None = None,
        log_config: bool | None = None,
        log_handlers: Iterable[logging.Handler] = (),
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
        debug: bool | None = None,
        catch_signals: Iterable[int] | None = None,
        shutdown_timeout: float | None = None,
        start_timeout: float | None = None,
        start_retry: Restart | None = None,
        log_buffer_limit: int | None = None,
        drain_delay: float | None = None,
    ) -> None:
        # locals() has the options by their names, before any other local name is bound.
        options = {name: value for name, value in locals().items() if name in OPTIONS}
        _check(services)
        super().__init__(services, None if loop is None else _check_loop(loop), options)
        # Imported here, to keep ``import svcrun`` fast.
        from svcrun.plugins import load_plugins

        load_plugins()  # plug-ins may connect receivers
        self.pre_start = self.PRE_START.copy()
        self.post_start = self.POST_START.copy()
        self.pre_stop = self.PRE_STOP.copy()
        self.post_stop = self.POST_STOP.copy()

    @staticmethod
    def get_current() -> Entrypoint:
        """Return the entrypoint that runs here: that of the service, or of the running loop.

        :raises RuntimeError: if no entrypoint runs here.
        """
        found: Entrypoint | None = current_entrypoint.get()
        if found is None or found._is_left:  # noqa: SLF001 - the same class
            loop = running_loop()
            found = None if loop is None else entrypoints.get(loop)
        if found is None:
            raise NoEntrypoint
        return found

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
        return () if self._runtime is None else self._runtime.supervisor.services

    @property
    def ctx(self) -> Context | None:
        """The values that the services share; None before the entrypoint is entered."""
        return self._context

    @property
    def is_ready(self) -> bool:
        """Whether all services have started, and the end of the entrypoint was not requested.

        It is False from the first signal on, also during `drain_delay`. Any thread may read it.
        """
        runtime = self._runtime
        return runtime is not None and runtime.is_ready and not self._is_left

    async def closing(self) -> None:
        """Wait until the shutdown begins.

        The shutdown does not interrupt the block while its task waits here, so that the task can
        return in its own way.
        """
        await self._running_here().block.closing()

    async def start_services(self, *services: Service) -> None:
        """Start more services, as entering does: in their order, all of them or none.

        A service that runs already is skipped. If one fails to start, those of this call are
        stopped again.

        :raises ValueError, TypeError: before any service is started, if one of `services` is not
            a service, or its dependencies or parameters are wrong.
        :raises RuntimeError: if the entrypoint is shutting down.
        :raises BaseException: the exception that a ``start()`` raised, unchanged; several as a
            group.
        """
        runtime = self._running_here()
        supervisor = runtime.supervisor
        _check(services)
        if runtime.block.is_closing:
            raise ShuttingDown(services)
        runtime.reloading.watch(services)
        runtime.observers.join(services, runtime)
        running = set(map(id, supervisor.services)) if self.post_start else ()
        if self.pre_start:
            await self.pre_start.call(entrypoint=self, services=services)
        await supervisor.start(services)
        if not self.post_start:
            return
        try:
            await self.post_start.call(entrypoint=self, services=services)
        except BaseException as error:
            started = [service for service in services if id(service) not in running]
            with suppress(Exception):  # logged; `error` was first
                await supervisor.stop(started, unless_cancelled(error))
            raise

    async def stop_services(self, *services: Service, exc: BaseException | None = None) -> None:
        """Stop services, as leaving does: in their order, first those that depend on them.

        A call of a periodic or cron service and a graceful task do not wait for services that
        another caller is stopping already, because these may be waiting for them.

        :param exc: passed to their ``stop()``.
        :raises BaseException: the exception that a ``stop()`` or a hook raised, unchanged; several
            as a group.
        """
        runtime = self._running_here()
        errors = await runtime.hooks.errors("pre_stop", services)
        try:
            await runtime.supervisor.stop(services, exc)
        except Exception as error:  # noqa: BLE001 - raised below, with errors of hooks
            errors.append(error)
        errors += await runtime.hooks.errors("post_stop", services)
        raise_together("services failed to stop", errors)

    async def reload(self) -> None:
        """Call ``reload()`` of every running service that has one, as SIGHUP does.

        The services are reloaded one after the other, dependencies first. A reload in progress is
        waited for, and followed by another one. While services start, the reload follows the start,
        and this does not wait for it.

        :raises BaseException: the exception that a ``reload()`` raised; several as a group. All
            services are reloaded before.
        """
        errors = await self._running_here().reloading.reload()
        raise_together("services failed to reload", [*errors])

    async def graceful_shutdown(self, exception: BaseException | None = None) -> None:
        """Begin the shutdown, unless it has begun, and wait until all services are stopped.

        It interrupts the start or the block as a signal does, unless the code of the block calls
        it. It returns at once where the shutdown may be waiting for the caller: in a ``stop()`` or
        a hook, and, once a service is being stopped, in a call of a periodic or cron service and
        in a graceful task.

        :param exception: passed to their ``stop()``.
        """
        runtime = self._running_here()
        is_awaited = runtime.is_stopping and current_work.get() is not None
        shutdown = runtime.shut_down(exception)
        current = asyncio.current_task()
        if current is not runtime.block.task:
            runtime.interrupt()
        if is_awaited or runtime.waits_for(current):
            await asyncio.sleep(0)  # a start() is cancelled here
        else:
            await asyncio.shield(shutdown)

    def _running_here(self) -> Runtime:
        runtime = self._running()
        if running_loop() is not self._loop:
            raise RuntimeError(
                f"the entrypoint runs on {self._loop!r}, which is not the loop that runs here; "
                "from another thread, use asyncio.run_coroutine_threadsafe(..., entrypoint.loop)"
            )
        return runtime


entrypoint = Entrypoint


def run(coro: Awaitable[T], *services: Service, **kwargs: Any) -> T:
    """Run `coro` while `services` run, and return its result.

    :param coro: a coroutine, usually; anything that can be awaited.
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
        if not inspect.isawaitable(coro):
            raise ParameterTypeError("run", "coro", coro, "a coroutine, as in run(main())")
        ep = Entrypoint(*services, **kwargs)
        ep._raises_signals = True  # noqa: SLF001 - the same module
        with ep as loop:
            result = loop.run_until_complete(coro)
        return result  # noqa: RET504 - in the block, type checkers would see a way around it
    finally:
        if inspect.iscoroutine(coro) and inspect.getcoroutinestate(coro) == inspect.CORO_CREATED:
            coro.close()


def _check(services: tuple[Service, ...]) -> None:
    for service in services:
        if not isinstance(service, Service):
            raise NotAService(service)


def _check_loop(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    if not isinstance(loop, asyncio.AbstractEventLoop):
        raise ParameterTypeError("entrypoint", "loop", loop, "an event loop")
    if loop.is_closed():
        raise wrong_loop(loop)
    return loop
