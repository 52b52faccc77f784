"""A wrapper for applications of uvicorn, for when a client disconnects or the server stops."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.utils import ClientDisconnected

from svcrun._web.disconnections import is_disconnection
from svcrun._web.event_streams import is_event_stream
from svcrun._web.graceful import ITERATIONS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Application = Callable[[Any, Any, Any], Awaitable[None]]

__all__ = ("is_idle_http", "wrap_application")

_CLOSE = (b"connection", b"close")


def is_idle_http(protocol: Any) -> bool | None:
    """Return whether an HTTP connection has no request under way, None if it is no such one.

    uvicorn has a protocol for each parser of HTTP/1.1, and others for HTTP/2 and web sockets.
    """
    try:
        cycle = protocol.cycle
    except AttributeError:
        return None
    return cycle is None or bool(cycle.response_complete)


def _has_more_requests(protocol: Any) -> bool:
    """Return whether a client has sent another request behind the current one."""
    if getattr(protocol, "pipeline", ()):
        return True
    return bool(getattr(getattr(protocol, "conn", None), "trailing_data", (b"",))[0])


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

    # Libraries such as asgiref check whether this is a coroutine function.
    async def send_and_suspend(message: Any) -> None:
        nonlocal start
        if start is None:
            if is_stopping() and transport is not None:
                message = await _as_last(message, transport)
            start = message
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


async def _as_last(start: Any, transport: asyncio.Transport) -> Any:
    """Return the start of a response that says that the connection closes.

    Without that, the client might send another request while the connection is closed. If it has
    sent one already, the response to that one is the last.
    """
    # Race: the other request may not be read yet.
    for _ in range(ITERATIONS):
        await asyncio.sleep(0)
    protocol = transport.get_protocol()
    if (
        start["type"] != "http.response.start"
        or is_idle_http(protocol) is None
        or _has_more_requests(protocol)
    ):
        return start
    headers = [header for header in start.get("headers", ()) if header[0].lower() != _CLOSE[0]]
    return {**start, "headers": [*headers, _CLOSE]}


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
