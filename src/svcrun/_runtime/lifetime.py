"""Enter and leave an entrypoint, as ``with entrypoint(...)`` and as ``async with entrypoint(...)``.

Entering sets up, in this order, the event loop, the entrypoint as the current one, and the runtime;
then it starts the services. Leaving stops the services and takes down the rest in reverse order.
Signal handlers are restored last, so that a signal that arrives meanwhile can't end the process.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from contextvars import ContextVar, Token

from svcrun._runtime.options import Options
from svcrun._util.hints import TYPE_CHECKING, Any, Self
from svcrun._util.loop_internals import current_loop
from svcrun._util.per_loop import PerLoop, running_loop
from svcrun._util.raising import raise_unchanged
from svcrun.errors import LoopClosed, NotEntered, ParameterError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from types import TracebackType

    from svcrun._runtime.block import Block
    from svcrun._runtime.runtime import Runtime
    from svcrun.context import Context
    from svcrun.service.base import Service
    from svcrun.signal import Signal

__all__ = ("Lifetime", "current_entrypoint", "entrypoints", "unless_cancelled", "wrong_loop")

# A service finds its entrypoint by the context that its start() was called in.
current_entrypoint: ContextVar[Any] = ContextVar("svcrun_entrypoint", default=None)
entrypoints: PerLoop[Any] = PerLoop()
"""The entrypoints that are entered, by their loops."""


class Lifetime(Options):
    """The context managers of an entrypoint."""

    pre_start: Signal
    post_start: Signal
    pre_stop: Signal
    post_stop: Signal

    def __init__(
        self,
        services: tuple[Service, ...],
        loop: asyncio.AbstractEventLoop | None,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__(options)
        self._services = services
        self._loop = loop
        self._is_entered = False
        self._is_left = False
        self._runtime: Runtime | None = None
        self._context: Context | None = None
        self._raises_signals = False
        # The loop that entering made, and the one that was set in this thread before.
        self._made_loop: asyncio.AbstractEventLoop | None = None
        self._previous_loop: asyncio.AbstractEventLoop | None = None
        self._token: Token[Any] | None = None

    async def start_services(self, *services: Service) -> None:
        """Start services."""
        raise NotImplementedError

    if not TYPE_CHECKING:  # type checkers would take it that an entrypoint has any attribute

        def __getattr__(self, name: str) -> Any:
            """Raise AttributeError, with the remedy if `name` is a method of the event loop."""
            if not hasattr(asyncio.AbstractEventLoop, name) or name.startswith("_"):
                hint = ""
            elif name.startswith("run_"):
                hint = (
                    "; `async with entrypoint(...) as ep` yields the entrypoint, and its loop runs "
                    "already: `await ep.closing()` waits until the shutdown begins"
                )
            else:
                hint = f"; it is a method of the event loop, which is ep.loop: ep.loop.{name}(...)"
            raise AttributeError(
                f"an entrypoint has no attribute {name!r}{hint}", name=name, obj=self
            )

    def __enter__(self) -> asyncio.AbstractEventLoop:
        if running_loop() is not None:
            raise NotEntered(
                "a loop runs in this thread already; write `async with entrypoint(...)`"
            )
        self._freeze()
        # Loaded here, so that a program that runs no entrypoint imports the package faster.
        from svcrun._runtime.block import LoopBlock
        from svcrun._runtime.event_loop import drive, make_loop

        try:
            loop = self._loop
            if loop is None:
                self._previous_loop = current_loop()
                self._loop = self._made_loop = loop = make_loop(self)
            if loop.is_running():
                raise wrong_loop(loop)
            runtime = self._set_up(loop, LoopBlock(loop))
            start = self.start_services(*self._services)
            error = drive(loop, runtime.enter(start), cancel=True)
            if error is not None:
                try:
                    if not self._is_left:  # otherwise this is a child process that start() forked
                        self._finish(runtime, unless_cancelled(error))
                        error = runtime.start_error(error, self._exit_by_signal)
                    raise_unchanged(error)
                finally:
                    del error  # its traceback refers to this frame
            runtime.begin_block()
        except BaseException:
            self._take_down()
            raise
        return loop

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._is_left:
            return False
        runtime = self._running()
        runtime.end_block()
        try:
            if not runtime.loop.is_closed():
                self._finish(runtime, runtime.outcome.exception_for_services(exc))
            elif services := runtime.supervisor.services:
                runtime.outcome.add(LoopClosed(services))
        finally:
            self._take_down()
        return self._conclude(runtime, exc)

    @staticmethod
    def _finish(runtime: Runtime, exception: BaseException | None) -> None:
        from svcrun._runtime.event_loop import drive

        runtime.block.spare.free()
        error = drive(runtime.loop, runtime.finish(exception), cancel=False)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            runtime.outcome.add(error)
        elif error is not None:
            raise_unchanged(error)

    async def __aenter__(self) -> Self:
        self._freeze()
        from svcrun._runtime.block import TaskBlock

        try:
            loop = asyncio.get_running_loop()
            if self._loop is not None and self._loop is not loop:
                raise wrong_loop(self._loop)
            self._loop = loop
            runtime = self._set_up(loop, TaskBlock(loop))
            error = await runtime.enter_in_task(self.start_services(*self._services))
            if error is not None:
                try:
                    if not self._is_left:  # otherwise this is a child process that start() forked
                        await runtime.finish_in_task(unless_cancelled(error))
                        error = runtime.start_error(error, self._exit_by_signal)
                    raise_unchanged(error)
                finally:
                    del error  # its traceback refers to this frame
            runtime.begin_block()
        except BaseException:
            self._take_down()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._is_left:
            return False
        runtime = self._running()
        runtime.end_block()
        cancelled: asyncio.CancelledError | None = None
        try:
            await runtime.finish_in_task(runtime.outcome.exception_for_services(exc))
        except asyncio.CancelledError as error:  # a late one of ours, or one of the program
            cancelled = error
        finally:
            self._take_down()
        by_program = runtime.block.uncancel()
        is_suppressed = self._conclude(runtime, exc)
        if cancelled is not None and by_program:
            raise cancelled
        return is_suppressed and not (by_program and isinstance(exc, asyncio.CancelledError))

    def _freeze(self) -> None:
        if self._is_entered:
            raise NotEntered("an entrypoint can be entered once; make another one")
        self._is_entered = True
        for hook in (self.pre_start, self.post_start, self.pre_stop, self.post_stop):
            hook.freeze()

    def _set_up(self, loop: asyncio.AbstractEventLoop, block: Block) -> Runtime:
        from svcrun._runtime.runtime import Runtime
        from svcrun.plugins import report_plugins

        entrypoints.add(loop, self)
        self._token = current_entrypoint.set(self)
        self._runtime = runtime = Runtime(
            self,
            loop,
            block,
            owns_loop=self._made_loop is not None,
            services=self._services,
            call_hook=self._call_hook,
            on_forked=self._leave_in_child,
        )
        self._context = runtime.context
        runtime.set_up()
        report_plugins()
        return runtime

    def _take_down(self) -> None:
        """Undo what entering has set up so far; each step runs even if the one before raises."""
        runtime, self._runtime = self._runtime, None
        loop, self._made_loop = self._made_loop, None
        is_first, self._is_left = not self._is_left, True
        self._services = ()
        if not is_first:
            return
        try:
            if runtime is not None:
                runtime.dispose()
        finally:
            try:
                self._reset_current()
                if loop is not None:
                    asyncio.set_event_loop(self._previous_loop)
                    loop.close()
            finally:
                if runtime is not None:
                    runtime.restore_signals()

    def _reset_current(self) -> None:
        if self._token is not None and self._loop is not None:
            entrypoints.discard(self._loop, self)
            with suppress(ValueError):  # a fixture may leave in another context than it entered
                current_entrypoint.reset(self._token)
            self._token = None

    def _leave_in_child(self) -> None:
        """Leave this entrypoint in a forked child: it belongs to the parent."""
        self._is_left = True
        if self._runtime is not None:
            self._runtime.reloading.restore()
        if self._loop is not None:
            entrypoints.discard(self._loop, self)
        if current_entrypoint.get() is self:
            current_entrypoint.set(None)

    def _conclude(self, runtime: Runtime, error: BaseException | None) -> bool:
        # A coroutine that handled its cancellation has returned early, without its whole result.
        was_cut = error is None and runtime.signal is not None and runtime.block.was_cancelled
        is_suppressed = runtime.conclude(error)
        if self._raises_signals and (is_suppressed or was_cut):
            raise self._exit_by_signal(runtime.signal)
        return is_suppressed

    def _exit_by_signal(self, signum: int | None) -> BaseException:
        if not self._raises_signals or signum is None:
            return SystemExit(0)
        return KeyboardInterrupt() if signum == signal.SIGINT else SystemExit(128 + signum)

    def _call_hook(
        self, name: str, services: tuple[Service, ...]
    ) -> Coroutine[Any, Any, None] | None:
        hook: Signal = getattr(self, name)
        return hook.call(entrypoint=self, services=services) if hook else None

    def _running(self) -> Runtime:
        if self._is_left:
            raise NotEntered("the entrypoint has been left; use it inside its `with` block")
        if self._runtime is None:
            raise NotEntered("the entrypoint is not entered; use it inside its `with` block")
        return self._runtime


def wrong_loop(loop: asyncio.AbstractEventLoop) -> ParameterError:
    """Return the error for a loop that an entrypoint can't use."""
    accepted = "an open loop that does not run (in `async with`: None)"
    return ParameterError("entrypoint", "loop", loop, accepted)


def unless_cancelled(error: BaseException) -> BaseException | None:
    """Return the exception to call ``stop()`` with after a start that ended with `error`."""
    return None if isinstance(error, asyncio.CancelledError) else error
