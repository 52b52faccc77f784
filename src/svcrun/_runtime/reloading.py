"""Call ``reload()`` of services on SIGHUP, and by :meth:`svcrun.Entrypoint.reload`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from contextlib import suppress
from contextvars import copy_context

from svcrun._util.callables import optional_method
from svcrun._util.current_service import on_behalf_of
from svcrun._util.eager import start_eagerly
from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.progress import Progress
from svcrun._util.tasks import format_stack, mark_retrieved
from svcrun.errors import show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

    from svcrun.service.base import Service

log = logging.getLogger("svcrun.entrypoint")

__all__ = ("Reloading",)

PATIENCE = 10.0
"""Seconds after which a reload in progress is logged for the first time."""

_SIGHUP: int | None = getattr(signal, "SIGHUP", None)


class Reloading:
    """Reload services one after the other, in rounds that do not overlap.

    :param running: returns the running services, dependencies first.
    :param on_begin: called at the begin of each round.
    :param on_end: called at the end of each round.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        running: Callable[[], Iterable[Service]],
        on_begin: Callable[[], object],
        on_end: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._running = running
        self._on_begin = on_begin
        self._on_end = on_end
        self._is_open = False  # whether the start has ended and the shutdown has not begun
        self._is_wanted = False  # whether another round has to follow
        self._task: asyncio.Task[None] | None = None
        self._errors: list[BaseException] = []
        self._previous: Any = None  # the handler of SIGHUP that is replaced
        self._is_installed = False
        self._pid = os.getpid()
        # The handler runs in the context of the code that it interrupts. A reload must not.
        self._context = copy_context()

    def watch(self, services: Iterable[Service]) -> None:
        """Handle SIGHUP from now on, if any of `services` has a ``reload()``.

        A handler of the program stays in place: the program decides what SIGHUP means.
        """
        if self._is_installed or _SIGHUP is None:
            return
        if not any(reload_method(one) for one in services if hasattr(type(one), "reload")):
            return
        if threading.current_thread() is not threading.main_thread():
            return
        previous = signal.getsignal(_SIGHUP)
        if previous not in (signal.SIG_DFL, signal.SIG_IGN):
            log.debug("SIGHUP has a handler of the program, so it does not reload services")
            return
        # loop.add_signal_handler() would not do: uvloop loses a signal while it does not run.
        signal.signal(_SIGHUP, self._on_signal)
        self._previous = previous
        self._is_installed = True

    def open(self) -> None:
        """Begin with the rounds: all services have started."""
        self._is_open = True
        if self._is_wanted:
            self._ensure_round()

    def request(self) -> None:
        """Reload all services, after the round in progress if there is one."""
        log.info("SIGHUP received, reloading services")
        self._is_wanted = True
        if self._is_open:
            self._ensure_round()

    async def reload(self) -> list[BaseException]:
        """Reload all services, and return the errors of the last round."""
        self._is_wanted = True
        if self._is_open:
            self._ensure_round()
        if self._task is not None:
            await asyncio.wait((self._task,))
        return self._errors

    def close(self) -> None:
        """Cancel the round in progress, because the shutdown begins."""
        self._is_open = False
        self._is_wanted = False
        if self._task is not None and self._task is not asyncio.current_task(self._loop):
            self._task.cancel()

    def restore(self) -> None:
        """Restore the handler of SIGHUP, unless other code has replaced it."""
        if not self._is_installed or _SIGHUP is None:
            return
        self._is_installed = False
        if signal.getsignal(_SIGHUP) == self._on_signal:
            signal.signal(_SIGHUP, self._previous)

    def _on_signal(self, _: int, __: FrameType | None) -> None:
        # The handler acquires no lock, because the code that it interrupts may hold it. A forked
        # child shares the descriptor that wakes the loop, and must not write to it.
        if os.getpid() != self._pid:
            return
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.request, context=self._context)

    def _ensure_round(self) -> None:
        if self._task is None or self._task.done():
            self._task = start_eagerly(self._run(), self._loop, name="reload of services")
            self._task.add_done_callback(mark_retrieved)

    async def _run(self) -> None:
        while self._is_wanted:
            self._is_wanted = False
            self._errors = []
            self._on_begin()
            try:
                for service in tuple(self._running()):
                    if reload_method(service) is not None:
                        await self._reload(service)
            finally:
                if self._is_open:
                    self._on_end()

    async def _reload(self, service: Service) -> None:
        task = asyncio.current_task()

        def report(seconds: float) -> None:
            if task is not None:
                stack = format_stack(task)
                log.warning(
                    "%s: reload() still running after %.0f s; it is waiting at\n%s",
                    show(service),
                    seconds,
                    stack,
                )

        progress = Progress(self._loop, PATIENCE, report)
        reload = reload_method(service)
        try:
            with on_behalf_of(service):
                await reload()
        except Exception as error:
            self._errors.append(error)
            log.exception("%s failed to reload", show(service))
        else:
            log.info("%s reloaded", show(service))
        finally:
            progress.cancel()


def reload_method(service: Service) -> Any:
    """Return the ``reload()`` of `service`, a coroutine method without parameters, or None."""
    own = optional_method(service, "reload", "SIGHUP does not call it")
    return service._svcrun_reload() if own is None else own  # noqa: SLF001
