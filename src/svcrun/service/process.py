"""Services that run a function in a process of its own."""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from math import inf
from typing import TYPE_CHECKING, Any

from svcrun._processes.spawned_process import SpawnedProcess
from svcrun._util.shared_stop import SharedStop
from svcrun._util.validation import number
from svcrun.errors import ProcessEnded
from svcrun.restart import Restart
from svcrun.service._internals import internals_of, overridable, part_of
from svcrun.service.base import Service, parameter

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

__all__ = ("ProcessService", "RespawningProcessService")

_seconds = number(low=0, unit="seconds")


class ProcessService(Service, base=True):
    """Run :meth:`in_process` in a process of its own, as long as the service runs.

    The process is spawned: it is a new interpreter that imports the module of the class. So the
    program needs ``if __name__ == "__main__":`` around its entrypoint, and the keyword arguments of
    the service and of :meth:`get_process_kwargs` are pickled. Log records of the process appear in
    the log of the program.

    The service has started when the new interpreter is about to call :meth:`in_process`. The end of
    the process is a crash of the service, with any exit code, for which ``on_crash`` holds. At the
    stop, the process gets SIGTERM, which raises ``SystemExit(143)`` in its main thread, and SIGKILL
    after `process_stop_timeout`. If the program dies, the process gets both as well. Processes that
    it has forked end with it.

    :param process_stop_timeout: seconds from SIGTERM to SIGKILL; 3 by default.

    .. code-block:: python

        class Worker(ProcessService):
            def in_process(self):
                print("in another process")


        if __name__ == "__main__":
            with entrypoint(Worker(on_crash="ignore")) as loop:
                loop.run_forever()
    """

    process_stop_timeout: float = parameter(default=3, check=_seconds)

    @overridable
    def process(self) -> SpawnProcess | None:
        """The process, None while the service does not run."""
        current = part_of(self, ProcessState).current
        return None if current is None else current.process

    @overridable
    def process_stop_event(self) -> threading.Event:
        """An event that is set when the process has ended."""
        return part_of(self, ProcessState).ended

    def get_process_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments for :meth:`in_process`; none by default."""
        return {}

    @abstractmethod
    def in_process(self, *args: Any, **kwargs: Any) -> Any:
        """Run in the process; called once, with the result of :meth:`get_process_kwargs`.

        `self` is a copy of the service with its keyword arguments.
        """
        raise NotImplementedError

    async def start(self) -> None:
        """Spawn the process, and wait for its end.

        :raises ProcessEnded: a :class:`RuntimeError`, when the process has ended.
        :raises OSError: if no process can be created.
        """
        state = part_of(self, ProcessState)
        state.is_stopping = False
        state.ended.clear()
        kwargs = self.get_process_kwargs()
        name: str | None = getattr(self, "name", None)
        current: SpawnedProcess | None = None
        try:
            state.current = current = SpawnedProcess(self, self.in_process, kwargs, name)
            await current.start()
            await asyncio.wait((current.ready, current.exited), return_when=asyncio.FIRST_COMPLETED)
            if current.ready.done():
                internals_of(self).start_event.set()
            code = await asyncio.shield(current.exited)
            if not state.is_stopping:
                raise ProcessEnded(self, code, current.describe_end(code))
        finally:
            if current is not None and current.is_started:
                await current.stop(0)
            state.current = None
            state.ended.set()

    async def stop(self, exception: Any = None) -> None:
        """End the process."""
        state = part_of(self, ProcessState)
        state.is_stopping = True
        if await state.stop.in_progress():
            return
        with state.stop:
            if state.current is not None and state.current.is_started:
                await state.current.stop(self.process_stop_timeout)
            await super().stop(exception)


class RespawningProcessService(ProcessService, base=True):
    """A :class:`ProcessService` whose process is restarted whenever it ends.

    ``on_crash`` is an endless :class:`svcrun.Restart` policy by default.

    :param process_poll_timeout: the longest delay before a restart, in seconds; 5 by default.
    """

    process_poll_timeout: float = parameter(default=5, check=number(above=0, unit="seconds"))
    on_crash: Any = parameter(default=Restart(limit=inf, max_delay=5))  # type: ignore[arg-type]

    def _svcrun_check_together(self) -> None:
        super()._svcrun_check_together()
        if self.on_crash is RespawningProcessService.on_crash:
            longest = self.process_poll_timeout
            self.on_crash = Restart(
                limit=inf,  # type: ignore[arg-type]
                delay=min(1.0, longest),
                max_delay=longest,
            )


class ProcessState:
    """The private state of a service with a process."""

    def __init__(self, _: ProcessService) -> None:
        self.current: SpawnedProcess | None = None
        self.is_stopping = False
        self.stop = SharedStop()
        self.ended = threading.Event()
