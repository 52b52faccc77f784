"""A service whose doings take seconds of virtual time, and a supervisor for such services."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

from svcrun._lifecycle.supervisor import Supervisor
from svcrun.service.base import Service

Log = list[str]


class Plain(Service):
    """A service that records its starts and stops with their times.

    :param starts_in: seconds until it is ready; ``math.inf`` for never.
    :param crashes_in: seconds from then to its crash.
    :param stops_in: seconds that its ``stop()`` takes.
    :param stubborn: seconds that it goes on when it is cancelled.
    :param fails: ``"start"`` or ``"stop"``, which then raises in the end.
    """

    log: Log
    name: str | None
    starts_in: float = 0.0
    crashes_in: float = math.inf
    stops_in: float = 0.0
    stubborn: float = 0.0
    fails: str = ""

    def note(self, what: str) -> None:
        self.log.append(f"{self.loop.time():g} {self.name} {what}")

    async def start(self) -> None:
        self.note("starts")
        await self._wait(self.starts_in)
        if self.fails == "start":
            raise ValueError(f"start of {self.name}")
        self.start_event.set()
        await self._wait(self.crashes_in)
        self.note("crashes")
        raise ValueError(f"crash of {self.name}")

    async def stop(self, exception: BaseException | None = None) -> None:
        self.note("stops" if exception is None else f"stops because of {exception}")
        await self._wait(self.stops_in)
        if self.fails == "stop":
            raise ValueError(f"stop of {self.name}")

    async def _wait(self, seconds: float) -> None:
        if not seconds:
            return
        try:
            await (asyncio.Event().wait() if seconds == math.inf else asyncio.sleep(seconds))
        except asyncio.CancelledError:
            self.note("is cancelled")
            end = self.loop.time() + self.stubborn
            while (left := end - self.loop.time()) > 0:
                try:
                    await asyncio.sleep(left)
                except asyncio.CancelledError:
                    continue
            raise


def supervisor(
    on_fatal: Callable[[BaseException], object] = lambda _: None, **options: Any
) -> Supervisor:
    """Make a supervisor for the running loop."""
    return Supervisor(asyncio.get_running_loop(), on_fatal=on_fatal, **options)


def now() -> float:
    """Return the virtual time."""
    return asyncio.get_running_loop().time()
