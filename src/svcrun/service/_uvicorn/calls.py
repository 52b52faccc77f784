"""How an application is called: as a piece of work, that leaves the loop its turns."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from svcrun.tasks import current_work

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Application = Callable[[Any, Any, Any], Awaitable[None]]

__all__ = ("Call", "watched")


class Call:
    """A call of an application for one of its clients: the task, and the client's transport."""

    __slots__ = ("task", "transport")

    def __init__(self, task: asyncio.Task[Any] | None, transport: object) -> None:
        self.task = task
        self.transport = transport


def watched(app: Application) -> Application:
    """Return an application that does what `app` does, call by call.

    What is sent to a client that has gone, uvicorn drops, and does not wait for anything. An
    application that does nothing but send would go on with that for ever, and nothing else would;
    so it has to wait for its turn.
    """

    async def call(scope: Any, receive: Any, send: Any) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await app(scope, receive, send)
            return
        client = getattr(send, "__self__", None)

        async def send_and_wait(message: Any) -> None:
            await send(message)
            if getattr(client, "disconnected", False):
                await asyncio.sleep(0)

        work = Call(asyncio.current_task(), getattr(client, "transport", None))
        token = current_work.set(work)
        try:
            await app(scope, receive, send_and_wait if kind == "http" else send)
        finally:
            current_work.reset(token)  # the task has this context, and would keep itself

    return call
