"""Applications that leave the loop its turns when their clients have gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Application = Callable[[Any, Any, Any], Awaitable[None]]

__all__ = ("leave_turns",)


def leave_turns(app: Application) -> Application:
    """Return an application that does what `app` does, and does not block the loop by it.

    What is sent to a client that has gone, uvicorn drops, and does not wait for anything. An
    application that does nothing but send would go on with that for ever, and nothing else would.
    """

    async def call(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        response = getattr(send, "__self__", None)

        def send_in_turn(message: Any) -> Awaitable[None]:
            # No coroutine of its own as long as there is a client: it would cost too much.
            gone = getattr(response, "disconnected", False)
            return _send_and_wait(send, message) if gone else send(message)

        await app(scope, receive, send_in_turn)

    return call


async def _send_and_wait(send: Callable[[Any], Awaitable[None]], message: Any) -> None:
    await send(message)
    await asyncio.sleep(0)
