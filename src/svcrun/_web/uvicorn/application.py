"""A wrapper for applications of uvicorn, for when a client disconnects or the server stops."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.utils import ClientDisconnected

from svcrun._web.disconnections import is_disconnection
from svcrun._web.event_streams import is_event_stream
from svcrun._web.uvicorn.last_response import announce_close, receive_rest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Application = Callable[[Any, Any, Any], Awaitable[None]]

__all__ = ("wrap_application",)


def wrap_application(app: Application, is_stopping: Callable[[], bool]) -> Application:
    """Return an application that calls `app`, and suspends when the client has disconnected.

    uvicorn drops messages to a client that has disconnected, and its ``send()`` does not suspend
    then. An application that only sends would block the event loop for ever. uvicorn learns of the
    lost connection in the next iteration of the loop; until then, asyncio logs a warning for each
    write.

    An event stream that the shutdown of the server has ended is completed. An error that results
    from the disconnection of the client is not a failure; uvicorn would log its traceback.

    :param is_stopping: returns whether the server is stopping.
    """

    async def call(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await _handle_request(app, scope, receive, send, is_stopping)
        else:
            await _handle_web_socket(app, scope, receive, send)

    return call


async def _handle_request(
    app: Application, scope: Any, receive: Any, send: Any, is_stopping: Callable[[], bool]
) -> None:
    response = getattr(send, "__self__", None)
    transport = getattr(response, "transport", None)
    is_closing = getattr(transport, "is_closing", _false)
    start: Any = None
    expects_rest = False  # whether the client may be sending a part of the request

    # Libraries such as asgiref check whether this is a coroutine function.
    async def send_and_suspend(message: Any) -> None:
        nonlocal start, expects_rest
        if start is None:
            # Without ``100 Continue``, the client does not send the body of the request.
            expects_rest = getattr(response, "more_body", False) and not getattr(
                response, "waiting_for_100_continue", True
            )
            if is_stopping() and transport is not None:
                message = await announce_close(message, transport)
            start = message
        elif expects_rest and is_stopping() and not message.get("more_body", False):
            await send({**message, "more_body": True})
            await receive_rest(receive, response)
            message = {"type": message["type"], "body": b"", "more_body": False}
        await send(message)
        if getattr(response, "disconnected", False) or is_closing():
            await asyncio.sleep(0)

    try:
        await app(scope, receive, send_and_suspend)
    except Exception as error:
        if not (getattr(response, "disconnected", False) and is_disconnection(error)):
            raise
        return
    if (
        is_stopping()
        and start is not None
        and not getattr(response, "response_complete", True)
        and is_event_stream(start.get("headers", ()))
    ):
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _handle_web_socket(app: Application, scope: Any, receive: Any, send: Any) -> None:
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    is_closing = getattr(transport, "is_closing", _false)

    async def send_and_suspend(message: Any) -> None:
        await send(message)
        if is_closing():
            await asyncio.sleep(0)

    try:
        await app(scope, receive, send_and_suspend)
    except Exception as error:
        if is_disconnection(error):
            raise ClientDisconnected from error
        raise


def _false() -> bool:
    return False
