"""A service that logs what blocks the event loop."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from svcrun._insight.loop_watch import MIN_INTERVAL, LoopLag, LoopWatch
from svcrun._util.validation import number, optional
from svcrun.errors import AlreadyRunning, ParameterError
from svcrun.service._internals import overridable, part_of
from svcrun.service._parameters import check_parameters, parameter
from svcrun.service.base import Service

log = logging.getLogger(__name__)

__all__ = ("LoopLag", "LoopWatchdog")


class LoopWatchdog(Service, base=True):
    """Log the stack of the code that blocks the event loop, and how long it blocked.

    A thread watches a timer of the loop. When the timer is late by `threshold` seconds, the
    watchdog logs a warning with the stack, the task and the service of the code that runs in the
    loop. It logs another warning when the loop is unblocked. A process that was suspended or got no
    processor time is logged as such, and a process halted in a debugger is not logged.

    :param threshold: seconds by which the timer may be late; 0.5 by default.
    :param interval: seconds between two timers, and so the inaccuracy of a measured lag; by default
        a fifth of the threshold, at least 0.005.
    :param name: names the service in log messages; ``"loop-watchdog"`` by default.

    :raises ValueError, TypeError: naming the parameter that has a wrong value.

    >>> from svcrun.service import LoopWatchdog
    >>> LoopWatchdog(threshold=0.2).lag.incidents
    0
    """

    name: str | None = "loop-watchdog"
    threshold: float = parameter(default=0.5, check=number(above=0, unit="seconds"))
    interval: float | None = parameter(
        default=None, check=optional(number(above=0, unit="seconds"), "a fifth of the threshold")
    )

    def _svcrun_check_together(self) -> None:
        super()._svcrun_check_together()
        if self.interval is not None and self.interval > self.threshold:
            accepted = f"at most threshold ({self.threshold:g})"
            raise ParameterError(self, "interval", self.interval, accepted)

    @overridable
    def lag(self) -> LoopLag:
        """The lag of the loop since the start; any thread may read it, also after the stop."""
        watch = part_of(self, _Watching).watch
        return LoopLag() if watch is None else watch.figures()

    async def start(self) -> None:
        """Start to watch the running loop.

        :raises AlreadyRunning: if it was started and not stopped.
        :raises RuntimeError: if the system has no more threads.
        """
        own = part_of(self, _Watching)
        if own.watch is not None and not own.watch.is_over:
            raise AlreadyRunning(self)
        check_parameters(self)
        self._svcrun_check_together()
        interval = self.interval or max(self.threshold / 5, MIN_INTERVAL)
        watch = LoopWatch(asyncio.get_running_loop(), self.threshold, interval, log)
        watch.start(self.name or "loop-watchdog")
        own.watch = watch

    async def stop(self, exception: Any = None) -> None:
        """End the watch, and wait for its thread."""
        watch = part_of(self, _Watching).watch
        if watch is not None:
            await watch.end()
        await super().stop(exception)


class _Watching:
    """The current or last watch of a service."""

    def __init__(self, _: LoopWatchdog) -> None:
        self.watch: LoopWatch | None = None
