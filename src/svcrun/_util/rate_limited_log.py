"""Log frequent events at a limited rate."""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

__all__ = ("RateLimitedLog",)

#: The least seconds between two lines of one log.
INTERVAL = 10.0


class RateLimitedLog:
    """Count events, and log the first at once and the following at most every ten seconds.

    Peers can cause such events as often as they like, so a line for each would fill the disk.

    :param logger: receives the lines.
    :param level: their level; by default, they are warnings.

    >>> import logging
    >>> dropped = RateLimitedLog(logging.getLogger("example"))
    >>> for _ in range(1000):
    ...     dropped.add("%s is too slow", "192.0.2.1")
    >>> dropped.total
    1000
    """

    __slots__ = ("_last", "_level", "_logged", "_logger", "_quiet_until", "total")

    def __init__(self, logger: logging.Logger, level: int = logging.WARNING) -> None:
        self.total = 0
        self._logged = 0
        self._logger = logger
        self._level = level
        self._quiet_until = 0.0
        self._last: tuple[str, tuple[Any, ...]] = ("", ())

    def add(self, message: str, *args: object, count: int = 1) -> None:
        """Count `count` events, and log them unless a line was logged recently.

        :param message: the message; `args` are its arguments, as for a logger.
        """
        self.total += count
        self._last = (message, args)
        now = monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + INTERVAL
            self._log()

    def close(self) -> None:
        """Log the events since the last line; the next event is logged at once."""
        self._quiet_until = 0.0
        if self._logged != self.total:
            self._log()

    def _log(self) -> None:
        message, args = self._last
        new = self.total - self._logged
        self._logged = self.total
        self._last = ("", ())  # keep no reference to the arguments
        message += " (%d times, %d in all)"
        self._logger.log(self._level, message, *args, new, self.total)
