"""Count what strangers can make happen as often as they like, and log it only now and then."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import logging

__all__ = ("RateLimitedLog",)

#: Seconds between two log lines of one tally.
INTERVAL = 10.0


class RateLimitedLog:
    """A counter that logs its first event at once, then one line in some seconds at most.

    :param logger: where the lines go, as warnings.

    >>> import logging
    >>> tally = RateLimitedLog(logging.getLogger("example"))
    >>> for _ in range(1000):
    ...     tally.add("%s was too slow", "somebody")
    >>> tally.total
    1000
    """

    __slots__ = ("_last", "_logged", "_logger", "_quiet_until", "total")

    def __init__(self, logger: logging.Logger) -> None:
        self.total = 0
        self._logged = 0
        self._logger = logger
        self._quiet_until = 0.0
        self._last: tuple[str, tuple[Any, ...]] = ("", ())

    def add(self, message: str, *args: object, count: int = 1) -> None:
        """Count an event, or `count` of them; `message` and `args` are as for a logger."""
        self.total += count
        self._last = (message, args)
        now = monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + INTERVAL
            self._log()

    def close(self) -> None:
        """Log what was counted since the last line, and start afresh with the next event."""
        self._quiet_until = 0.0
        if self._logged != self.total:
            self._log()

    def _log(self) -> None:
        message, args = self._last
        new = self.total - self._logged
        self._logged = self.total
        self._last = ("", ())
        self._logger.warning(message + " (%d times, %d in all)", *args, new, self.total)  # noqa: G003 - it joins formats
