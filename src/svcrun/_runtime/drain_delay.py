"""Delay the shutdown after SIGTERM, until load balancers have stopped sending requests.

An orchestrator sends SIGTERM, and at the same time begins to remove the program from its load
balancers. Until they have noticed, they go on to open connections, which a program that stops at
once would refuse. During the delay the program is not ready and serves as before.

Invariant: the signal handler begins and cuts the delay, between any two bytecodes of the main
thread. So both only set attributes, and everything else is done by a callback in the loop.
"""

from __future__ import annotations

import time

from svcrun._util.hints import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from svcrun._runtime.exit_watchdog import ExitWatchdog

__all__ = ("DrainDelay",)


class DrainDelay:
    """The time between SIGTERM and the begin of the shutdown.

    :param seconds: the length of the delay; 0 for none.
    :param watchdog: notices that the loop is blocked when the delay is over.
    :param on_end: called in the loop when the delay is over, and not if it was cancelled.
    :param limit_shutdown: called at the end of the delay in case that the loop is blocked: in the
        signal handler that cuts it, or in any thread when it is over.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seconds: float,
        watchdog: ExitWatchdog,
        *,
        on_end: Callable[[], object],
        limit_shutdown: Callable[[], object],
    ) -> None:
        self.seconds = seconds
        self.is_running = False
        """Whether the shutdown waits for the end of the delay."""
        self._loop = loop
        self._watchdog = watchdog
        self._on_end = on_end
        self._limit_shutdown = limit_shutdown
        self._until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False

    # In the signal handler.

    def begin(self) -> None:
        """Begin the delay; :meth:`schedule_end` has to follow in the loop."""
        self._until = time.monotonic() + self.seconds
        self.is_running = True
        self._watchdog.call_later(self.seconds, self._on_time, at_once=True)

    def cut(self) -> None:
        """End the delay early; :meth:`end` has to follow in the loop."""
        self.is_running = False
        self._watchdog.ping()
        self._limit_shutdown()

    # In the thread of the watchdog, or in the handler of its timer.

    def _on_time(self) -> None:
        # The loop may be blocked, or not run at all, so that its timer does not fire.
        if self.is_running:
            self._watchdog.ping()
            self._limit_shutdown()

    # In the loop.

    def schedule_end(self) -> bool:
        """Schedule the end of the delay, which began with the signal.

        :returns: whether the delay is running. If the loop did not run, it may be over by now.
        """
        left = self._until - time.monotonic()
        if not self.is_running or left <= 0:
            self.cancel()
            return False
        self._timer = self._loop.call_later(left, self.end)
        return True

    def end(self) -> None:
        """End the delay, unless it was cancelled."""
        if not self._is_over:
            self.cancel()
            self._on_end()

    def cancel(self) -> None:
        """Cancel the delay, because the shutdown begins for another reason."""
        self._is_over = True
        self.is_running = False
        if self._timer is not None:
            self._timer.cancel()
