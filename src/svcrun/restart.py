"""The policy that restarts a crashed service."""

from __future__ import annotations

import os
from math import inf

from svcrun._util.hints import TYPE_CHECKING
from svcrun._util.validation import number

if TYPE_CHECKING:
    from collections import deque

__all__ = ("Restart",)


_at_least_one = number(low=1, high=inf)
_seconds = number(low=0, high=inf, unit="seconds")


class Restart:
    """Restart a crashed service with a growing delay, until it crashes too often.

    Use it as ``on_crash`` of a service, or as ``start_retry`` for starts that fail.

    :param limit: the number of restarts within `window`; the next crash shuts the entrypoint down.
    :param window: the time in which crashes count, in seconds.
    :param delay: seconds before the first restart.
    :param factor: the factor by which each further delay within `window` is longer.
    :param max_delay: the longest delay, in seconds.
    :param jitter: the random part of each delay, from 0 to 1, so that many processes do not restart
        at the same moment.

    :raises ValueError: if a number is out of its range.

    >>> from svcrun import Restart, Service
    >>> class Consumer(Service):
    ...     on_crash = Restart(limit=3, window=60, delay=0.5)
    ...
    ...     async def start(self): ...
    """

    __slots__ = ("delay", "factor", "jitter", "limit", "max_delay", "window")

    def __init__(
        self,
        limit: int = 5,
        window: float = 60.0,
        *,
        delay: float = 1.0,
        factor: float = 2.0,
        max_delay: float = 30.0,
        jitter: float = 0.1,
    ) -> None:
        for name, value, check in (
            ("limit", limit, _at_least_one),
            ("window", window, _seconds),
            ("delay", delay, _seconds),
            ("factor", factor, _at_least_one),
            ("max_delay", max_delay, _seconds),
            ("jitter", jitter, number(low=0, high=1)),
        ):
            check("Restart", name, value)
        self.limit = limit
        self.window = window
        self.delay = delay
        self.factor = factor
        self.max_delay = max_delay
        self.jitter = jitter

    def __repr__(self) -> str:
        parameters = ", ".join(f"{name}={getattr(self, name):g}" for name in self.__slots__)
        return f"Restart({parameters})"

    def next_delay(self, crashes: deque[float], now: float) -> float | None:
        """Count a crash at the time `now`, and return the seconds until the restart.

        :param crashes: the times of earlier crashes of the same service; updated.
        :returns: None if the service has crashed too often.
        """
        while crashes and crashes[0] <= now - self.window:
            crashes.popleft()
        crashes.append(now)
        return None if len(crashes) > self.limit else self.delay_after(len(crashes))

    def delay_after(self, failures: int) -> float:
        """Return the seconds from the last of `failures` failures in a row to the next attempt."""
        # The module `random` takes long to import, which may fail without a descriptor.
        fraction = int.from_bytes(os.urandom(4)) / (1 << 32)
        # A large exponent would overflow. The delay has reached `max_delay` long before that.
        delay = min(self.max_delay, self.delay * self.factor ** min(failures - 1, 64))
        return delay * (1 - self.jitter * fraction)
