"""The life of an application, as uvicorn tells it, within bounds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from uvicorn.lifespan.on import LifespanOn

from svcrun._util.tasks import cancel_and_wait, format_stack
from svcrun.errors import ApplicationStartFailed, ApplicationStopFailed, show

if TYPE_CHECKING:
    from uvicorn import Config

__all__ = ("GRACE", "Lifespan")

# Seconds that what is cancelled has to clean up.
GRACE: Final = 1.0

# Seconds that an application which has told its end has to come to it.
FAREWELL: Final = 0.1


class Lifespan(LifespanOn):
    """Tells an application of its start and of its end, and keeps the task in which it runs."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.error: BaseException | None = None
        self.reason = ""
        self._task: asyncio.Task[None] | None = None
        self._is_ending = False

    async def startup(self) -> None:
        """Tell the application to start; :attr:`should_exit` tells whether it could not."""
        self.logger.info("Waiting for application startup.")
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self.main(), name="uvicorn lifespan")
        self.receive_queue.put_nowait({"type": "lifespan.startup"})
        await self.startup_event.wait()
        if self.startup_failed or (self.error is not None and self.config.lifespan == "on"):
            self.should_exit = True
        elif self.error is None:
            self.logger.info("Application startup complete.")

    def start_failure(self, owner: object) -> Exception:
        """Return what to raise of an application that could not start."""
        if self.startup_failed or self.error is None:
            return ApplicationStartFailed(owner, self.reason)
        failure = ApplicationStartFailed(owner, f"{type(self.error).__name__}: {self.error}")
        failure.__cause__ = self.error
        return failure

    async def close(self, owner: object, timeout: float) -> None:
        """Tell an application that has started to end, and see to it that it does.

        :param timeout: seconds that it may take.
        :raises ApplicationStopFailed: if it says that it failed, or does, or takes too long.
        """
        task, self._task = self._task, None
        if task is None:
            return
        hung = ""
        told = self.startup_event.is_set() and not self.startup_failed and not task.done()
        self._is_ending = True
        try:
            if told and not await self._tell(timeout):
                hung = f"no end within {timeout:g} s; it was waiting at\n{format_stack(task)}"
            elif told:
                await asyncio.wait((task,), timeout=FAREWELL)
        finally:
            for late in await cancel_and_wait((task,), GRACE):
                self.logger.error(
                    "%s: the lifespan of the application ignores that it was cancelled; at\n%s",
                    show(owner),
                    format_stack(late),  # type: ignore[arg-type]  # it is the task
                )
        if hung or self.shutdown_failed:
            raise ApplicationStopFailed(owner, hung or self.reason)
        if told and self.error is not None and not isinstance(self.error, asyncio.CancelledError):
            reason = f"{type(self.error).__name__}: {self.error}"
            raise ApplicationStopFailed(owner, reason) from self.error
        if told:
            self.logger.info("Application shutdown complete.")

    def abandon(self) -> None:
        """Cancel the application without waiting for it."""
        self._is_ending = True
        if self._task is not None:
            self._task.cancel()

    async def main(self) -> None:
        """Run the application."""
        try:
            scope: Any = {
                "type": "lifespan",
                "asgi": {"version": self.config.asgi_version, "spec_version": "2.0"},
                "state": self.state,
            }
            await self.config.loaded_app(scope, self.receive, self.send)
        except BaseException as error:  # noqa: BLE001 - whatever it is, start() or stop() raises it
            self.error = error
            self._log(error)
        finally:
            self.startup_event.set()
            self.shutdown_event.set()

    async def send(self, message: Any) -> None:
        """Take what the application answers."""
        if message["type"] in {"lifespan.startup.failed", "lifespan.shutdown.failed"}:
            self.reason = str(message.get("message", ""))
            message = {"type": message["type"]}  # it is raised; no need to log it as well
        await super().send(message)

    async def _tell(self, timeout: float) -> bool:
        """Tell whether the application has ended within `timeout` seconds."""
        self.logger.info("Waiting for application shutdown.")
        self.receive_queue.put_nowait({"type": "lifespan.shutdown"})
        try:
            async with asyncio.timeout(timeout):
                await self.shutdown_event.wait()
        except TimeoutError:
            return False
        return True

    def _log(self, error: BaseException) -> None:
        if self.startup_failed or self._is_ending:
            return
        if self.startup_event.is_set():
            self.logger.error("Exception in 'lifespan' protocol\n", exc_info=error)
        elif self.config.lifespan == "auto":
            self.logger.info("ASGI 'lifespan' protocol appears unsupported.")
