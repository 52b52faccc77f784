"""Laws of restarts, in virtual time."""

import asyncio

import pytest

from svcrun import Restart, Service
from svcrun.supervisor import Supervisor
from tests.support_clock import VirtualClockLoop


class Crashing(Service):
    """Crashes after a second, and never gets ready again."""

    starts = 0

    async def start(self) -> None:
        self.starts += 1
        if self.starts > 1:
            await asyncio.Event().wait()
        self.start_event.set()
        await asyncio.sleep(1)
        raise ValueError("crashed")


def test_a_shutdown_ends_a_start_that_is_tried_again_for_good(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = VirtualClockLoop()
    service = Crashing(on_crash=Restart(delay=20, jitter=0))
    supervisor = Supervisor(loop, on_fatal=lambda _: None)

    async def main() -> float:
        await supervisor.start([service])
        await asyncio.sleep(45)
        assert service.starts == 2
        began = loop.time()
        await supervisor.close(None, 10)
        return loop.time() - began

    assert loop.run_until_complete(main()) == 0
    assert service.starts == 2
    assert not supervisor.errors
    assert "could not be started again" not in caplog.text
    loop.close()
