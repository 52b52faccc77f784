"""Laws of restarts, in virtual time (C14)."""

import asyncio
import math

import pytest

from svcrun import Restart, Service
from svcrun._lifecycle.supervisor import Supervisor
from svcrun.errors import DependencyDown
from svcrun.state import ServiceState
from tests.lifecycle.plain import Log, Plain, now, supervisor
from tests.support_clock import VirtualClockLoop

RUNNING, STOPPED, FAILED = ServiceState.RUNNING, ServiceState.STOPPED, ServiceState.FAILED
AFTER_TEN = Restart(limit=2, window=1000, delay=10, factor=3, jitter=0, max_delay=1000)


class Fleeting(Plain):
    """A service whose runs have given durations; the last run is endless."""

    lives: tuple[float, ...] = ()

    async def start(self) -> None:
        self.crashes_in, *rest = *self.lives, math.inf
        self.lives = tuple(rest[:-1])
        await super().start()


async def started(*services: Plain, fatal: list[BaseException] | None = None) -> Supervisor:
    sup = supervisor(on_fatal=([] if fatal is None else fatal).append)
    await sup.start(services)
    return sup


async def test_each_restart_is_a_stop_a_growing_delay_and_a_start() -> None:
    log: Log = []
    service = Fleeting(log=log, name="it", lives=(1, 2), stops_in=1, on_crash=AFTER_TEN)
    sup = await started(service)
    await asyncio.sleep(100)
    assert log == [
        *("0 it starts", "1 it crashes", "1 it stops because of crash of it"),
        *("12 it starts", "14 it crashes", "14 it stops because of crash of it"),
        "45 it starts",
    ]
    assert service.state is RUNNING
    await sup.close(None, None)


async def test_one_crash_too_many_is_fatal_and_stops_nothing_by_itself() -> None:
    fatal: list[BaseException] = []
    log: Log = []
    service = Fleeting(log=log, name="it", lives=(1, 1, 1), on_crash=AFTER_TEN)
    other = Plain(log=log, name="other")
    sup = await started(service, other, fatal=fatal)
    await asyncio.sleep(100)
    assert [str(error) for error in fatal] == ["crash of it"]
    assert sup.errors == fatal
    assert (service.state, other.state) == (FAILED, RUNNING)
    assert set(sup.services) == {service, other}
    await sup.close(fatal[0], None)
    assert log.count(f"{now():g} it stops because of crash of it") == 1


async def test_a_restart_that_fails_is_tried_again_and_counts_as_a_crash() -> None:
    fatal: list[BaseException] = []
    log: Log = []
    service = Fleeting(log=log, name="it", lives=(1,), on_crash=AFTER_TEN)
    await started(service, fatal=fatal)
    service.fails = "start"
    await asyncio.sleep(100)
    assert log[2:] == ["1 it stops because of crash of it", "11 it starts", "41 it starts"]
    assert [str(error) for error in fatal] == ["start of it"]


async def test_crashes_that_are_older_than_the_window_are_forgiven() -> None:
    log: Log = []
    policy = Restart(limit=1, window=50, delay=10, jitter=0)
    service = Fleeting(log=log, name="it", lives=(60, 60, 60), on_crash=policy)
    fatal: list[BaseException] = []
    sup = await started(service, fatal=fatal)
    await asyncio.sleep(500)
    assert not fatal
    assert [line for line in log if "starts" in line] == [
        *("0 it starts", "70 it starts", "140 it starts", "210 it starts")
    ]
    await sup.close(None, None)


async def test_a_restart_includes_the_dependants_and_no_other_service() -> None:
    log: Log = []
    below = Plain(log=log, name="below")
    service = Fleeting(log=log, name="it", lives=(5,), on_crash=AFTER_TEN, depends_on=below)
    above = Plain(log=log, name="above", depends_on=service, starts_in=2)
    top = Plain(log=log, name="top", depends_on=above)
    sup = await started(below, service, above, top)
    log.clear()
    await asyncio.sleep(100)
    assert [line for line in log if "cancelled" not in line] == [
        *("5 it crashes", "5 top stops because of crash of it"),
        *("5 above stops because of crash of it", "5 it stops because of crash of it"),
        *("15 it starts", "15 above starts", "17 top starts"),
    ]
    await sup.close(None, None)


@pytest.mark.parametrize("stopped", ["it", "above"])
async def test_a_service_that_is_stopped_during_the_delay_is_not_restarted(
    stopped: str,
) -> None:
    log: Log = []
    service = Fleeting(log=log, name="it", lives=(1,), on_crash=AFTER_TEN)
    above = Plain(log=log, name="above", depends_on=service)
    sup = await started(service, above)
    await asyncio.sleep(5)
    assert (service.state, above.state) == (STOPPED, STOPPED)
    await sup.stop([service if stopped == "it" else above], None)
    await asyncio.sleep(100)
    assert sup.services == (() if stopped == "it" else (service,))
    await sup.close(None, None)


async def test_a_service_that_is_being_stopped_at_the_crash_is_not_restarted() -> None:
    log: Log = []
    service = Fleeting(log=log, name="it", lives=(1,), on_crash=AFTER_TEN)
    above = Plain(log=log, name="above", depends_on=service, stops_in=5)
    sup = await started(service, above)
    await sup.stop([above], None)
    await asyncio.sleep(100)
    assert sup.services == (service,)
    assert log[-1] == "15 it starts"
    await sup.close(None, None)


async def test_a_service_that_is_started_during_the_delay_starts_once_and_at_once() -> None:
    log: Log = []
    service = Fleeting(log=log, name="it", lives=(1,), on_crash=AFTER_TEN)
    sup = await started(service)
    await asyncio.sleep(5)
    await sup.start([service])
    await asyncio.sleep(100)
    assert [line for line in log if "starts" in line] == ["0 it starts", "5 it starts"]
    await sup.close(None, None)


async def test_a_shutdown_during_the_delay_ends_the_restart() -> None:
    log: Log = []
    service = Fleeting(log=log, name="it", lives=(1,), on_crash=AFTER_TEN)
    sup = await started(service)
    await asyncio.sleep(5)
    await sup.close(None, 60)
    assert now() == 5
    await asyncio.sleep(100)
    assert log == ["0 it starts", "1 it crashes", "1 it stops because of crash of it"]


async def test_a_crashed_dependant_waits_for_its_crashed_dependency() -> None:
    log: Log = []
    below = Fleeting(log=log, name="below", lives=(2,), on_crash=AFTER_TEN)
    above = Fleeting(
        log=log, name="above", lives=(1,), depends_on=below, on_crash=Restart(delay=5, jitter=0)
    )
    sup = await started(below, above)
    await asyncio.sleep(100)
    starts = [line for line in log if "starts" in line]
    assert starts == ["0 below starts", "0 above starts", "12 below starts", "12 above starts"]
    assert (below.state, above.state) == (RUNNING, RUNNING)
    await sup.close(None, None)


async def test_a_start_in_progress_fails_when_its_dependency_crashes() -> None:
    log: Log = []
    below = Fleeting(log=log, name="below", lives=(1,), on_crash=AFTER_TEN)
    sup = await started(below)
    above = Plain(log=log, name="above", depends_on=below, starts_in=5)
    with pytest.raises(DependencyDown, match=r"'above'.* depends on .*'below'") as caught:
        await sup.start([above])
    assert caught.value.dependency is below
    assert now() == 1
    await asyncio.sleep(100)
    assert sup.services == (below,)
    await sup.close(None, None)


async def test_an_ignored_crash_stops_no_other_service() -> None:
    log: Log = []
    service = Plain(log=log, name="it", crashes_in=1, on_crash="ignore")
    above = Plain(log=log, name="above", depends_on=service)
    fatal: list[BaseException] = []
    sup = await started(service, above, fatal=fatal)
    await asyncio.sleep(100)
    assert not fatal
    assert sup.services == (service, above)
    assert log[2:] == ["1 it crashes"]
    await sup.close(None, None)
    assert log[3:5] == ["100 above stops", "100 it stops"]
    assert sup.errors == []


class Crashing(Service):
    """A service that crashes after a second, and never becomes ready again."""

    starts = 0

    async def start(self) -> None:
        self.starts += 1
        if self.starts > 1:
            await asyncio.Event().wait()
        self.start_event.set()
        await asyncio.sleep(1)
        raise ValueError("crashed")


def test_a_shutdown_ends_a_restart_for_good(
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
    assert "could not be restarted" not in caplog.text
    loop.close()
