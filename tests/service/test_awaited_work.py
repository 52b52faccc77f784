"""Work that a stop waits for may itself stop its service (C17, C30, C32)."""

import asyncio
from typing import Any

import pytest

from svcrun import entrypoint
from svcrun.service import GracefulService, PeriodicService
from svcrun.service.base import Service


class Work(Service):
    """A service whose work waits until the service is being stopped, and then stops it as well."""

    said: list[str]
    how: str
    begun: asyncio.Event
    stopping: asyncio.Event

    async def work(self) -> None:
        current = entrypoint.get_current()
        self.begun.set()
        await self.stopping.wait()
        self.said.append("begin")
        if self.how == "graceful_shutdown":
            await current.graceful_shutdown(None)
        elif self.how == "stop_services":
            await current.stop_services(self)
        else:
            await self.stop()
        self.said.append("end")

    async def stop(self, exception: BaseException | None = None) -> None:
        asyncio.get_running_loop().call_later(0.01, self.stopping.set)
        await super().stop(exception)


class Periodic(Work, PeriodicService):
    interval = 600

    async def callback(self) -> None:
        await self.work()


class Graceful(Work, GracefulService):
    async def start(self) -> None:
        self.task = self.create_graceful_task(self.work())


@pytest.mark.parametrize("kind", [Periodic, Graceful])
@pytest.mark.parametrize("how", ["graceful_shutdown", "stop_services", "stop"])
@pytest.mark.parametrize("end", ["leave", "graceful_shutdown", "stop_services"])
async def test_work_that_stops_its_service_during_a_stop_does_not_deadlock(
    kind: Any, how: str, end: str
) -> None:
    service = kind(said=[], how=how, begun=asyncio.Event(), stopping=asyncio.Event())
    options: Any = {"log_config": False, "shutdown_timeout": 10}
    async with entrypoint(service, **options) as running:
        await service.begun.wait()
        if end == "graceful_shutdown":
            await running.graceful_shutdown(None)
        elif end == "stop_services":
            await running.stop_services(service)
    assert service.said == ["begin", "end"]
