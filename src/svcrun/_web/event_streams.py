"""End event streams when their server stops."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ("ended_event_streams", "is_event_stream")

# Invariant: the flag is restored when the last of the stopping servers has stopped. So count the
# servers that are stopping, and keep the value from before the first of them.
_stopping = 0
_before = False


@contextlib.contextmanager
def ended_event_streams() -> Iterator[None]:
    """End the streams of sse-starlette, if the program uses it, during the block.

    An event stream does not end by itself, so it would delay the stop until its time limit and be
    cancelled then. Sending ``http.disconnect`` would also cut off finite responses. So this sets
    the flag by which sse-starlette ends its streams, as its hook in uvicorn does. Each stream
    checks the flag twice a second, and sends a last event if the application has one.

    The process has one flag, and in releases before 3 an event beside it that open streams wait
    for. sse-starlette never clears them. The last server to stop does so here, so that the
    streams of a server that starts again do not end at once.
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
    # None until the first stream waits; one that begins from now on looks at the flag first.
    event = getattr(status, "should_exit_event", None)
    if event is not None:
        event.set()
    try:
        yield
    finally:
        _stopping -= 1
        if not _stopping:
            status.should_exit = _before
            if event is not None:
                status.should_exit_event = None


def is_event_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether a response with these headers is an event stream.

    An event stream is complete after any event.
    """
    return any(
        name.lower() == b"content-type" and value.lower().startswith(b"text/event-stream")
        for name, value in headers
    )


def _status() -> Any:
    """Return the class with sse-starlette's flag, None if the program does not use the library."""
    return getattr(sys.modules.get("sse_starlette.sse"), "AppStatus", None)
