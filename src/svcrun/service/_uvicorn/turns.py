"""Applications whose messages are looked after on their way to uvicorn."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from svcrun.service._event_streams import is_event_stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Application = Callable[[Any, Any, Any], Awaitable[None]]

__all__ = ("leave_turns",)


def leave_turns(app: Application, is_stopping: Callable[[], bool]) -> Application:
    """Return an application that does what `app` does, and does not block the loop by it.

    uvicorn drops what is sent to a client that has gone, and does not wait for anything. An
    application that does nothing but send would go on with that for ever, and nothing else would.
    Until the loop turns, uvicorn does not even know that the connection is lost, and asyncio logs a
    warning for each piece of data.

    An event stream that ends in the middle because the server is stopping is completed.

    :param is_stopping: returns whether the server is stopping.
    """

    async def call(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        response = getattr(send, "__self__", None)
        is_closing = getattr(getattr(response, "transport", None), "is_closing", _false)
        head: Any = None

        # A coroutine function: asgiref, and others, look whether it is one.
        async def send_in_turn(message: Any) -> None:
            nonlocal head
            if head is None:
                head = message
            await send(message)
            if getattr(response, "disconnected", False) or is_closing():
                await asyncio.sleep(0)

        await app(scope, receive, send_in_turn)
        if (
            is_stopping()
            and head is not None
            and not getattr(response, "response_complete", True)
            and is_event_stream(head.get("headers", ()))
        ):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return call


def _false() -> bool:
    return False
