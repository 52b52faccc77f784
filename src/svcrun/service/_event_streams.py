"""The end of event streams when their server stops."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ("ended_event_streams", "is_event_stream")

# How many servers are stopping, and the flag before the first of them.
_stopping = 0
_before = False


@contextlib.contextmanager
def ended_event_streams() -> Iterator[None]:
    """End the streams of sse-starlette, if the program uses it, during the block.

    An event stream has no end of its own, so it would hold the stop for as long as requests may
    take, and be cancelled then. ``http.disconnect`` would cut off finite responses as well. So this
    sets the flag by which sse-starlette ends its streams, as its hook in uvicorn does: each stream
    looks at it twice a second, and says goodbye first if the application wants that.

    The process has one flag, which sse-starlette never clears. Here the last of the servers that
    are stopping clears it, so that the streams of a server that is started again go on.
    """
    global _stopping, _before  # noqa: PLW0603 - the flag is global as well
    status = _status()
    if status is None or not getattr(status, "enable_automatic_graceful_drain", True):
        yield
        return
    if not _stopping:
        _before = status.should_exit
    _stopping += 1
    status.should_exit = True
    try:
        yield
    finally:
        _stopping -= 1
        if not _stopping:
            status.should_exit = _before


def is_event_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether a response with these headers is an event stream, which may end anywhere."""
    return any(
        name.lower() == b"content-type" and value.lower().startswith(b"text/event-stream")
        for name, value in headers
    )


def _status() -> Any:
    """Return what sse-starlette knows of its server, None if it is not in use."""
    return getattr(sys.modules.get("sse_starlette.sse"), "AppStatus", None)
