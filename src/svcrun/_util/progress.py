"""Report an operation that takes long, at growing intervals."""

from __future__ import annotations

from svcrun._util.hints import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ("Progress",)


class Progress:
    """Call `report` after `patience` seconds, again when twice as much has passed, and so on.

    :param report: called in the loop with the seconds that have passed.
    """

    __slots__ = ("_began", "_loop", "_patience", "_report", "_timer")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, patience: float, report: Callable[[float], object]
    ) -> None:
        self._loop = loop
        self._patience = patience
        self._report = report
        self._began = loop.time()
        self._timer = loop.call_later(patience, self._due)

    def _due(self) -> None:
        patience = self._patience
        self._timer = self._loop.call_later(patience, self._due)
        self._patience = 2 * patience
        self._report(self._loop.time() - self._began)

    def cancel(self) -> None:
        """Cancel further reports."""
        self._timer.cancel()
