"""Values that belong to an event loop while an entrypoint runs in it."""

from __future__ import annotations

import asyncio

from svcrun._util.hints import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")

__all__ = ("PerLoop", "running_loop")


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class PerLoop(Generic[T]):
    """A stack of values for each event loop; the newest value of a loop is the current one.

    Several entrypoints can share a loop and end in any order. When one of them discards its value,
    the newest of the remaining values becomes the current one.

    >>> per_loop = PerLoop()
    >>> per_loop.add("loop", 1)
    >>> per_loop.add("loop", 2)
    >>> per_loop.discard("loop", 1)
    >>> per_loop.get("loop")
    2
    """

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[asyncio.AbstractEventLoop, list[T]] = {}

    def add(self, loop: asyncio.AbstractEventLoop, value: T) -> None:
        """Make `value` the current one of `loop`."""
        self._values.setdefault(loop, []).append(value)

    def discard(self, loop: asyncio.AbstractEventLoop, value: T) -> None:
        """Remove `value`, and the loop with its last value."""
        values = self._values.get(loop, [])
        if value in values:
            values.remove(value)
            if not values:
                del self._values[loop]

    def get(self, loop: asyncio.AbstractEventLoop) -> T | None:
        """Return the current value of `loop`, or None."""
        values = self._values.get(loop)
        return values[-1] if values else None

    def __iter__(self) -> Iterator[T]:
        """Iterate over all values; the newest of a loop comes last."""
        # Race: entrypoints in other threads add and discard values, so iterate over copies.
        for values in list(self._values.values()):
            yield from list(values)
