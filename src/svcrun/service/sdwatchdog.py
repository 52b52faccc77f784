"""Report the life of an entrypoint to systemd: readiness, reloads, the stop, and a watchdog."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from svcrun._util.notify_socket import VARIABLES, NotifySocket, watchdog_interval
from svcrun._util.validation import number, optional
from svcrun.service._internals import loop_of, part_of
from svcrun.service._observer import Observer
from svcrun.service.base import parameter

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from svcrun._util.observed_entrypoint import ObservedEntrypoint

__all__ = ("SDWatchdogService",)

TICK: Final = 1.0
"""Seconds between two reports of a start or stop in progress."""

EXTENSION: Final = 15.0
"""Seconds that each such report asks systemd to wait for the next one."""

STALL: Final = 60.0
"""Seconds without any progress after which a start without a time limit asks for no more."""

_SHOWN: Final = 10


class SDWatchdogService(Observer, base=True):
    """Report the life of the entrypoint to systemd, which started the program.

    Pass one to the entrypoint, in any position. It reports from before the first service starts
    until after the last one has stopped:

    - ``STATUS`` names the services that the start or the stop waits for, and ``READY=1`` follows
      when all have started.
    - ``EXTEND_TIMEOUT_USEC`` keeps systemd waiting while a start or stop of more than a second
      makes progress: services start, or the time limits of the entrypoint are not over.
    - ``RELOADING=1`` and ``READY=1`` stand around a reload on SIGHUP.
    - ``STOPPING=1`` comes before the first ``stop()``.
    - ``WATCHDOG=1`` comes twice in each `watchdog_interval`, from the event loop. So systemd
      notices a loop that is blocked.

    Outside of systemd it does nothing. While the entrypoint is entered, the variables of systemd
    are absent from the environment, so that child processes do not inherit them.

    :param watchdog_interval: seconds within which systemd expects a sign of life; that of the unit
        (``WatchdogSec=``) by default. Another value is announced to systemd.

    >>> from svcrun import entrypoint
    >>> from svcrun.service.sdwatchdog import SDWatchdogService
    >>> with entrypoint(SDWatchdogService(), log_config=False):
    ...     pass
    """

    name: str = "systemd-watchdog"
    watchdog_interval: float | None = parameter(
        default=None,
        check=optional(number(above=0, unit="seconds"), "that of the unit"),
        kw_only=False,
    )

    def _svcrun_check_together(self) -> None:
        super()._svcrun_check_together()
        if self.watchdog_interval is None:
            self.watchdog_interval = watchdog_interval(os.environ)

    async def start(self) -> None:
        """Report readiness, if the entrypoint has started already."""
        reports = part_of(self, Reports)
        if not reports.is_open:
            reports.open(loop_of(self))
            reports.ready()

    async def stop(self, exception: Any = None) -> None:
        """Close the connection to systemd, unless the entrypoint closes it after all services."""
        await super().stop(exception)
        reports = part_of(self, Reports)
        if reports.entrypoint is None:
            reports.close()

    # Called by the entrypoint.

    def _svcrun_entering(self, entrypoint: ObservedEntrypoint) -> None:
        part_of(self, Reports).enter(entrypoint)

    def _svcrun_started(self) -> None:
        part_of(self, Reports).ready()

    def _svcrun_reloading(self) -> None:
        part_of(self, Reports).reloading()

    def _svcrun_closing(self) -> None:
        part_of(self, Reports).stopping()

    def _svcrun_left(self) -> None:
        part_of(self, Reports).close()


class Reports:
    """The reports of one service to systemd, from :meth:`open` to :meth:`close`."""

    def __init__(self, service: SDWatchdogService) -> None:
        self._service = service
        self.entrypoint: ObservedEntrypoint | None = None
        self.is_open = False
        self._socket: NotifySocket | None = None
        self._removed: dict[str, str] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._sent_status = ""

    def enter(self, entrypoint: ObservedEntrypoint) -> None:
        """Report the begin of the start."""
        self.entrypoint = entrypoint
        self.open(entrypoint.loop)
        self._begin_phase("starting")
        self._send_status()

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Connect, hide the variables from children, and begin with the signs of life."""
        self.is_open = True
        self._loop = loop
        self._phase = "running"
        self._socket = NotifySocket.from_environment(os.environ)
        if self._socket is None:
            return
        self._removed = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
        self._send(f"MAINPID={os.getpid()}")
        interval = self._service.watchdog_interval
        if interval is not None:
            self._send(f"WATCHDOG_USEC={round(interval * 1e6)}")
            self._beat(interval / 2)

    def ready(self) -> None:
        """Report that all services have started, or that a reload has ended."""
        if self.is_open and self._phase != "stopping":
            self._end_phase()
            self._phase = "running"
            self._send_status()
            self._send("READY=1")

    def reloading(self) -> None:
        """Report the begin of a reload."""
        if self.is_open and self._phase == "running":
            self._phase = "reloading"
            # Both in one datagram, as systemd requires.
            self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Report that the shutdown has begun."""
        if self.is_open and self._phase != "stopping":
            self._end_phase()
            self._begin_phase("stopping")
            self._send("STOPPING=1")

    def close(self) -> None:
        """End the reports, and restore the variables."""
        if not self.is_open:
            return
        self.is_open = False
        self.entrypoint = None
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        for name, value in self._removed.items():
            os.environ.setdefault(name, value)
        self._removed = {}

    def _begin_phase(self, phase: str) -> None:
        self._phase = phase
        self._waiting = self._names()
        self._moved_at = self._loop.time()
        self._call_later("tick", TICK, self._tick)

    def _end_phase(self) -> None:
        timer = self._timers.pop("tick", None)
        if timer is not None:
            timer.cancel()

    def _tick(self) -> None:
        """Report a start or a stop in progress."""
        self._call_later("tick", TICK, self._tick)
        before, self._waiting = self._waiting, self._names()
        now = self._loop.time()
        if self._waiting != before:
            self._moved_at = now
        if self._status() != self._sent_status:
            self._send_status()
        # The entrypoint limits the time of a stop. A start may have no limit at all.
        if self._phase == "stopping" or now - self._moved_at < STALL:
            self._send(f"EXTEND_TIMEOUT_USEC={round(EXTENSION * 1e6)}")

    def _beat(self, pause: float) -> None:
        self._call_later("beat", pause, self._beat, pause)
        self._send("WATCHDOG=1", is_transient=True)

    def _names(self) -> Sequence[str]:
        return () if self.entrypoint is None else self.entrypoint.waiting()

    def _send_status(self) -> None:
        self._sent_status = self._status()
        self._send(f"STATUS={self._sent_status}")

    def _status(self) -> str:
        if self._phase == "running":
            return "running"
        names = [name.replace("\n", " ") for name in self._waiting]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return f"{self._phase}, waiting for {', '.join(names[:_SHOWN]) or 'the end'}{more}"

    def _send(self, *assignments: str, is_transient: bool = False) -> None:
        if self._socket is None:
            return
        self._socket.send(*assignments, is_transient=is_transient)
        if self._socket.is_behind:
            self._call_later("retry", TICK / 10, self._retry)

    def _retry(self) -> None:
        if self._socket is not None:
            self._socket.retry()
            if self._socket.is_behind:
                self._call_later("retry", TICK / 10, self._retry)

    def _call_later(self, name: str, seconds: float, function: Any, *args: object) -> None:
        if self._socket is not None:
            self._timers[name] = self._loop.call_later(seconds, function, *args)


def _get_watchdog_interval() -> float | None:
    """Return the interval that the environment sets; a name of aiomisc's module."""
    return watchdog_interval(os.environ)


WATCHDOG_INTERVAL: Final = _get_watchdog_interval()
"""The interval of the environment at the import of this module, as in aiomisc."""
