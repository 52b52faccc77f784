"""The life of an application: its start before the first request, its end after the last one."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, Literal

from svcrun._util.tasks import cancel_and_wait, format_stack
from svcrun.errors import ApplicationStartFailed, ApplicationStopFailed, UnexpectedMessage, show

if TYPE_CHECKING:
    from aiohttp_asgi.resource import ASGIApplicationType

    from svcrun._web.asgi.exchange import Message

__all__ = ("Lifespan", "Mode")

log = logging.getLogger("svcrun.service.asgi")

Mode = Literal["auto", "on", "off"]

# Seconds that an application which is cancelled has to clean up.
GRACE: Final = 1.0


class Lifespan:
    """Tells an application of its start and of its end.

    :param owner: the service.
    :param app: the application.
    :param mode: ``"auto"``: an application that raises or returns at its call for a lifespan does
        without; ``"on"``: that is a failed start; ``"off"``: none is called for it.
    :param stop_timeout: seconds that the application may take for its end, one at least.
    """

    def __init__(
        self, owner: object, app: ASGIApplicationType, mode: Mode, stop_timeout: float
    ) -> None:
        self._owner = owner
        self._app = app
        self._mode = mode
        self._stop_timeout = max(stop_timeout, GRACE)
        # What the application has for its requests.
        self.state: dict[str, Any] = {}
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._answer: asyncio.Future[Message] | None = None
        self._expected = ""
        self._is_told = False  # whether the application has asked what to do
        self._is_refused = False  # whether it sent what makes no sense here
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Tell the application to start, and wait until it has.

        :raises ApplicationStartFailed: if it says that it can't.
        :raises Exception: what it raised, if a lifespan is asked for.
        """
        if self._mode == "off":
            return
        self._task = asyncio.get_running_loop().create_task(self._run(), name="ASGI lifespan")
        try:
            answer = await self._ask("startup")
        except BaseException:
            await self._end_task()
            raise
        if answer is None:
            self._do_without(self._task)
            self._task = None
        elif answer["type"] == "lifespan.startup.failed":
            await self._end_task()
            raise ApplicationStartFailed(self._owner, str(answer.get("message", "")))
        else:
            self._task.add_done_callback(self._log_early_end)

    async def stop(self) -> None:
        """Tell the application that its end has come, and wait for it.

        :raises ApplicationStopFailed: if it says that something went wrong, or takes too long.
        """
        task = self._task
        if task is None:
            return
        task.remove_done_callback(self._log_early_end)
        try:
            async with asyncio.timeout(self._stop_timeout):
                answer = None if task.done() else await self._ask("shutdown")
                if not task.done():
                    await asyncio.wait((task,))
        except TimeoutError:
            stack = format_stack(task)
            reason = f"no end within {self._stop_timeout:g} s; it was waiting at\n{stack}"
            raise ApplicationStopFailed(self._owner, reason) from None
        finally:
            await self._end_task()
        if answer is not None and answer["type"] == "lifespan.shutdown.failed":
            raise ApplicationStopFailed(self._owner, str(answer.get("message", "")))
        if not task.cancelled() and (error := task.exception()) is not None:
            raise ApplicationStopFailed(self._owner, f"{type(error).__name__}: {error}") from error

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        await self._app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        self._is_told = True
        return await self._inbox.get()

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        answer = self._answer
        answers = {f"{self._expected}.complete", f"{self._expected}.failed"}
        if answer is None or answer.done() or kind not in answers:
            self._is_refused = True
            raise UnexpectedMessage(kind, "during its lifespan")
        answer.set_result(message)

    async def _ask(self, what: str) -> Message | None:
        """Have the application do something; return what it answers, None if it ends instead."""
        self._expected = f"lifespan.{what}"
        self._answer = asyncio.get_running_loop().create_future()
        self._inbox.put_nowait({"type": self._expected})
        if self._task is not None:
            await asyncio.wait((self._answer, self._task), return_when=asyncio.FIRST_COMPLETED)
        return self._answer.result() if self._answer.done() else None

    def _do_without(self, task: asyncio.Task[None]) -> None:
        """See what to make of an application that ended instead of starting."""
        error = None if task.cancelled() else task.exception()
        if self._mode == "on":
            if error is not None:
                raise error
            raise ApplicationStartFailed(self._owner, "it returned from its lifespan at once")
        if error is None or self._is_refused or not self._is_told:
            log.info("%s: the application has no lifespan", show(self._owner))
            return
        log.warning(
            "%s: the application failed in its lifespan and does without; "
            "with lifespan='on' it would not start",
            show(self._owner),
            exc_info=error,
        )

    def _log_early_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error(
                "%s: the lifespan of the application failed", show(self._owner), exc_info=error
            )

    async def _end_task(self) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        for hung in await cancel_and_wait({task}, GRACE):
            log.error(
                "%s: the lifespan of the application ignores that it was cancelled; at\n%s",
                show(self._owner),
                format_stack(hung),  # type: ignore[arg-type]  # it is the task
            )
        if task.done() and not task.cancelled():
            task.exception()  # which was told, or followed from what was
