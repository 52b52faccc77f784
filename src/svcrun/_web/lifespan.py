"""Start and shut down an application by the lifespan protocol of ASGI."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from svcrun._util.drain import GRACE_PERIOD, cancel_or_abandon
from svcrun._util.raising import one_line
from svcrun._util.tasks import format_stack
from svcrun.errors import ApplicationStartFailed, ApplicationStopFailed, UnexpectedMessage, show

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Callable, MutableMapping

    Message = MutableMapping[str, Any]
    Application = Callable[[Any, Any, Any], Awaitable[None]]

__all__ = ("Lifespan", "Mode")

Mode = Literal["auto", "on", "off"]


class Lifespan:
    """Run the lifespan of an application in a task, from its start-up to its shutdown.

    :meth:`startup` is called once, before the first request; :meth:`shutdown` once, after the last
    one. A lifespan is not used again: each start of a service makes a new one.

    :param owner: the service, named in messages.
    :param app: the application.
    :param mode: ``"auto"``: an application that returns or raises an error instead of starting up
        has no lifespan; ``"on"``: its start has failed; ``"off"``: the application is not called.
    :param shutdown_timeout: seconds that the application has for its shutdown, at least
        :data:`~svcrun._util.drain.GRACE_PERIOD`.
    :param log: the logger of the service.
    :param asgi_version: the version of ASGI that the application supports.
    """

    def __init__(
        self,
        owner: object,
        app: Application,
        mode: Mode,
        shutdown_timeout: float,
        log: logging.Logger,
        asgi_version: str = "3.0",
    ) -> None:
        self._owner = owner
        self._app = app
        self._mode = mode
        self._shutdown_timeout = max(shutdown_timeout, GRACE_PERIOD)
        self._log = log
        self._asgi_version = asgi_version
        # Set by the application, and copied into the scope of each request.
        self.state: dict[str, Any] = {}
        self._task: asyncio.Task[None] | None = None
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        # The last event that was sent to the application, and the reply to it.
        self._event = ""
        self._reply: asyncio.Future[Message] | None = None
        self._has_started = False
        # Set when the application waits for an event after the shutdown: there is none.
        self._has_ended = asyncio.Event()
        self._has_received = False
        self._has_misreplied = False

    @property
    def is_running(self) -> bool:
        """Whether the application has a lifespan that has not been shut down."""
        return self._task is not None

    async def startup(self) -> None:
        """Start the application, and wait until it has started.

        :raises ApplicationStartFailed: if the application replies that its start failed.
        :raises Exception: the error that the application raised, with ``mode="on"``.
        """
        if self._mode == "off":
            return
        task = asyncio.get_running_loop().create_task(self._run(), name="ASGI lifespan")
        self._task = task
        try:
            reply = await self._send_event("lifespan.startup", task)
        except BaseException:
            await self._end_task(task)
            raise
        if not self.is_running:
            return  # race: shutdown() was called meanwhile, and has cancelled the task
        if reply is None:
            self._task = None
            self._check_optional(task)
        elif reply["type"] == "lifespan.startup.failed":
            await self._end_task(task)
            raise ApplicationStartFailed(self._owner, str(reply.get("message", "")))
        else:
            self._has_started = True
            task.add_done_callback(self._log_failure)

    async def shutdown(self) -> None:
        """Shut down the application, and wait until it has ended.

        A start-up that is not complete is cancelled.

        :raises ApplicationStopFailed: if the application replies that its shutdown failed, raises
            an error, or exceeds its time limit.
        """
        task, self._task = self._task, None
        if task is None:
            return
        if not self._has_started:
            await self._end_task(task)
            return
        task.remove_done_callback(self._log_failure)
        try:
            async with asyncio.timeout(self._shutdown_timeout):
                reply = await self._shut_down(task)
        except TimeoutError:
            limit, stack = self._shutdown_timeout, format_stack(task)
            reason = f"it did not end within {limit:g} s; it is waiting at\n{stack}"
            raise ApplicationStopFailed(self._owner, reason) from None
        finally:
            await self._end_task(task)
        if reply is not None and reply["type"] == "lifespan.shutdown.failed":
            raise ApplicationStopFailed(self._owner, str(reply.get("message", "")))
        if not task.cancelled() and task.done() and (error := task.exception()) is not None:
            raise ApplicationStopFailed(self._owner, one_line(error)) from error

    def cancel(self) -> None:
        """Cancel the application without waiting for its end."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": self._asgi_version, "spec_version": "2.0"},
            "state": self.state,
        }
        await self._app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        self._has_received = True
        if self._event == "lifespan.shutdown" and self._events.empty():
            self._has_ended.set()
        return await self._events.get()

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        reply = self._reply
        if reply is None or reply.done() or kind not in _replies(self._event):
            self._has_misreplied = True
            raise UnexpectedMessage(kind, "during its lifespan")
        reply.set_result(message)

    async def _send_event(self, event: str, task: asyncio.Task[None]) -> Message | None:
        """Send an event, and return the reply; return None if the application ends without one."""
        self._event = event
        reply = self._reply = asyncio.get_running_loop().create_future()
        self._events.put_nowait({"type": event})
        await asyncio.wait((reply, task), return_when=asyncio.FIRST_COMPLETED)
        return reply.result() if reply.done() else None

    async def _shut_down(self, task: asyncio.Task[None]) -> Message | None:
        if task.done():
            return None
        reply = await self._send_event("lifespan.shutdown", task)
        # Many applications receive in an endless loop. They wait for another event instead of
        # returning, so their end is the next call of receive().
        has_ended = asyncio.ensure_future(self._has_ended.wait())
        try:
            await asyncio.wait((has_ended, task), return_when=asyncio.FIRST_COMPLETED)
        finally:
            has_ended.cancel()
        return reply

    def _check_optional(self, task: asyncio.Task[None]) -> None:
        """Check whether an application that ended instead of starting up may run all the same."""
        error = None if task.cancelled() else task.exception()
        if self._mode == "on":
            if error is not None:
                raise error
            raise ApplicationStartFailed(self._owner, "it returned from its lifespan at once")
        if error is None or self._has_misreplied or not self._has_received:
            self._log.info("%s: the application has no lifespan", show(self._owner))
            return
        self._log.warning(
            "%s: the application failed in its lifespan, and runs without one; "
            "lifespan='on' makes that a failed start",
            show(self._owner),
            exc_info=error,
        )

    def _log_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error(
                "%s: the lifespan of the application failed", show(self._owner), exc_info=error
            )

    async def _end_task(self, task: asyncio.Task[None]) -> None:
        self._task = None
        name = f"{show(self._owner)}: the lifespan of the application"
        await cancel_or_abandon(task, self._log, name)
        if task.done() and not task.cancelled():
            task.exception()  # mark it as retrieved: it was raised, or results from what was


def _replies(event: str) -> tuple[str, str]:
    return f"{event}.complete", f"{event}.failed"
