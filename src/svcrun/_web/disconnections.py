"""Errors that applications raise when their client has disconnected."""

from __future__ import annotations

from typing import Final

__all__ = ("is_disconnection",)

# The classes that svcrun, uvicorn, and Starlette raise for lost clients, http.disconnect, and
# websocket.disconnect.
_DISCONNECTIONS: Final = frozenset(
    {"ClientDisconnected", "ClientDisconnect", "WebSocketDisconnect"}
)
# The maximum of causes and contexts that are followed from an error.
_DEPTH: Final = 10


def is_disconnection(error: BaseException | None) -> bool:
    """Return whether an error results from the disconnection of the client.

    Frameworks convert the message to errors of their own, which have no common base class.
    """
    for _ in range(_DEPTH):
        if isinstance(error, BaseExceptionGroup):
            return all(map(is_disconnection, error.exceptions))
        if type(error).__name__ in _DISCONNECTIONS:
            return True
        if error is None:
            break
        error = error.__cause__ or error.__context__
    return False
