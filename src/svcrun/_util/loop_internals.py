"""The one adapter for what asyncio knows about its event loops and tasks and does not publish.

Each function returns None, or does without, on a loop that lacks the private name.
``tests/test_private_names.py`` fails when a version of asyncio drops one.
"""

from __future__ import annotations

import asyncio
import sys
from operator import attrgetter

from svcrun._util.hints import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = (
    "callbacks_of",
    "current_loop",
    "listen_to_signals",
    "propagate_exits",
    "wakeup_descriptor",
)

callbacks_of: Callable[[asyncio.Task[Any]], list[Any] | None] = attrgetter("_callbacks")
"""Return the done callbacks of a task, among them those of tasks that wait for it.

Not a function in Python, because this is called for each datagram.
"""


if sys.version_info >= (3, 14):

    def current_loop() -> asyncio.AbstractEventLoop | None:
        """Return the running loop, else the one that is set in this thread, else None."""
        try:
            return asyncio.get_event_loop()
        except RuntimeError:
            return None

else:

    def current_loop() -> asyncio.AbstractEventLoop | None:
        """Return the loop that is set in this thread (see the variant for Python 3.14).

        Up to Python 3.13, :func:`asyncio.get_event_loop` creates a loop if none is set, or warns.
        """
        local = getattr(asyncio.get_event_loop_policy(), "_local", None)  # type: ignore[deprecated]
        loop: asyncio.AbstractEventLoop | None = getattr(local, "_loop", None)
        return loop


def wakeup_descriptor(loop: asyncio.AbstractEventLoop) -> int | None:
    """Return the file descriptor that wakes `loop` when a byte is written to it.

    It is for :func:`signal.set_wakeup_fd`: -1 for uvloop, which sets one whenever it runs, and None
    for a loop whose descriptor is unknown.
    """
    if type(loop).__module__.partition(".")[0] == "uvloop":
        return -1
    self_pipe = getattr(loop, "_csock", None)
    return None if self_pipe is None else self_pipe.fileno()


def listen_to_signals(
    loop: asyncio.AbstractEventLoop, on_signal: Callable[[int], object]
) -> Callable[[], None] | None:
    """Call `on_signal` in `loop` with each signal that wakes it, whatever the handler is.

    Return a function that ends this, or None if the loop is not asyncio's own.
    """
    process = getattr(loop, "_process_self_data", None)
    if process is None:
        return None

    def on_bytes(data: bytes) -> None:
        process(data)
        for signum in data:
            if signum:
                on_signal(signum)

    try:
        loop._process_self_data = on_bytes  # type: ignore[attr-defined]
    except AttributeError:
        return None
    return lambda: delattr(loop, "_process_self_data")


def propagate_exits(loop: asyncio.AbstractEventLoop) -> None:
    """Raise SystemExit and KeyboardInterrupt out of the copy of `loop` in a forked child.

    asyncio forgets the running loop in a forked child. Since Python 3.14, the step of the task that
    forked therefore ends with a RuntimeError, whose context is the SystemExit. asyncio passes the
    RuntimeError to the exception handler of the loop, which raises the SystemExit again.
    """
    found = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if type(error) is RuntimeError and "is not the running loop" in str(error):
            if isinstance(error.__context__, (SystemExit, KeyboardInterrupt)):
                raise error.__context__
        elif found is not None:
            found(loop, context)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)
