"""Complete the last response of a connection without a loss, when a uvicorn server stops."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from svcrun._web.graceful import ITERATIONS, LINGER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ("announce_close", "is_idle_http", "receive_rest")

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


async def announce_close(start: Any, transport: asyncio.Transport) -> Any:
    """Return the start of a response that says that the connection closes.

    Without that, the client might send another request while the connection is closed. If it has
    sent one already, the response to that one is the last.
    """
    # Race: the other request may not be read yet.
    for _ in range(ITERATIONS):
        await asyncio.sleep(0)
    protocol = transport.get_protocol()
    is_http = start["type"] == "http.response.start" and is_idle_http(protocol) is not None
    if not is_http or _has_more_requests(protocol):
        return start
    headers = [header for header in start.get("headers", ()) if header[0].lower() != _CLOSE[0]]
    return {**start, "headers": [*headers, _CLOSE]}


def _has_more_requests(protocol: Any) -> bool:
    """Return whether a client has sent another request behind the current one."""
    if getattr(protocol, "pipeline", ()):
        return True
    return bool(getattr(getattr(protocol, "conn", None), "trailing_data", (b"",))[0])


async def receive_rest(receive: Callable[[], Awaitable[Any]], response: Any) -> None:
    """Receive the rest of a request that the application has not received.

    uvicorn closes the connection at the end of the response. If the system had unread input then,
    it would reset the connection, and the client might lose the response. A client that sends
    nothing for :data:`~svcrun._web.graceful.LINGER` seconds is not waited for.
    """
    try:
        while response.more_body and not response.disconnected:
            async with asyncio.timeout(LINGER):
                await receive()
    except TimeoutError:
        pass
