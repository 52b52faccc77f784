"""Adapt to private names of asyncio's event loops and tasks.

On a loop that lacks a private name, the functions do without it.
``tests/test_private_names.py`` fails when a version of asyncio drops a name.
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
"""Return the done callbacks of a task, among them the callbacks of tasks that wait for it.

It is called for each datagram, so it is not a function written in Python.
"""


if sys.version_info >= (3, 14):

    def current_loop() -> asyncio.AbstractEventLoop | None:
        """Return the running loop, else the loop that is set in this thread, else None."""
        try:
            return asyncio.get_event_loop()
        except RuntimeError:
            return None

else:

    def current_loop() -> asyncio.AbstractEventLoop | None:
        """Return the loop that is set in this thread (see the variant for Python 3.14).

        Up to Python 3.13, :func:`asyncio.get_event_loop` creates a loop or warns if none is set.
        """
        local = getattr(asyncio.get_event_loop_policy(), "_local", None)  # type: ignore[deprecated]
        loop: asyncio.AbstractEventLoop | None = getattr(local, "_loop", None)
        return loop


def wakeup_descriptor(loop: asyncio.AbstractEventLoop) -> int | None:
    """Return the file descriptor that wakes `loop` when a byte is written to it.

    The caller passes it to :func:`signal.set_wakeup_fd`.

    :returns: -1 for uvloop, which sets a descriptor of its own whenever it runs, and None for a
        loop whose descriptor is unknown.
    """
    if type(loop).__module__.partition(".")[0] == "uvloop":
        return -1
    self_pipe = getattr(loop, "_csock", None)
    return None if self_pipe is None else self_pipe.fileno()


def listen_to_signals(
    loop: asyncio.AbstractEventLoop, on_signal: Callable[[int], object]
) -> Callable[[], None] | None:
    """Call `on_signal` in `loop` with each signal that wakes it, even if its handler is foreign.

    :returns: a function that ends this, or None if the loop is not asyncio's own.
    """
    process = getattr(loop, "_process_self_data", None)
    if process is None:
        return None

    def on_bytes(data: bytes) -> None:
        process(data)
        for signum in data:
            # A signal writes its number. asyncio itself writes a zero to wake the loop.
            if signum:
                on_signal(signum)

    try:
        loop._process_self_data = on_bytes  # type: ignore[attr-defined]
    except AttributeError:
        return None
    return lambda: delattr(loop, "_process_self_data")


def propagate_exits(loop: asyncio.AbstractEventLoop) -> None:
    """Raise SystemExit and KeyboardInterrupt out of the copy of `loop` in a forked child.

    asyncio forgets the running loop in a forked child. So since Python 3.14, the step of the task
    that forked ends with a RuntimeError, whose context is the exit. asyncio passes the RuntimeError
    to the exception handler of the loop, and this handler raises the exit again.
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
