"""Services that record their starts, stops and cancellations."""

import asyncio
from typing import Any

from svcrun import Service

Log = list[str]


class Server(Service):
    """A service that runs until it is cancelled."""

    log: Log
    name: str | None = "server"

    async def start(self) -> None:
        self.log.append(f"{self.name} starts")
        self.start_event.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.log.append(f"{self.name} is cancelled")

    async def stop(self, exception: BaseException | None = None) -> None:
        self.log.append(f"{self.name} stops")


class Brief(Server):
    """A service whose start returns."""

    async def start(self) -> None:
        self.log.append(f"{self.name} starts")


class Failing(Server):
    """A service that fails in the given phase, after an iteration of the loop.

    In the phase "run", it waits until the block has begun, if it is given an event for that.
    """

    error: BaseException
    phase: str = "start"
    begun: asyncio.Event | None = None

    async def start(self) -> None:
        if self.phase == "start":
            await asyncio.sleep(0)
            raise self.error
        if self.phase == "run":
            self.start_event.set()
            if self.begun is not None:
                await self.begun.wait()
            await asyncio.sleep(0.01)
            raise self.error
        await super().start()

    async def stop(self, exception: BaseException | None = None) -> None:
        await super().stop(exception)
        if self.phase == "stop":
            await asyncio.sleep(0)
            raise self.error


class Hanging(Server):
    """Never becomes ready."""

    async def start(self) -> None:
        self.log.append(f"{self.name} starts")
        try:
            await asyncio.Event().wait()
        finally:
            self.log.append(f"{self.name} is cancelled")


class Asking(Brief):
    """Calls a function in its start, and another one in its stop."""

    in_start: Any = None
    in_stop: Any = None

    async def start(self) -> None:
        if self.in_start is not None:
            await self.in_start()
        await super().start()

    async def stop(self, exception: BaseException | None = None) -> None:
        await super().stop(exception)
        if self.in_stop is not None:
            await self.in_stop()
