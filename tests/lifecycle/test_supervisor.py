"""Laws of starting, in virtual time: the order, the limits, the roll-back (C10-C13, C15)."""

import asyncio
import math

import pytest

from svcrun.errors import ServiceInUse, StartCancelled, StartDuringStop, StartTimeout
from svcrun.state import ServiceState
from tests.lifecycle.plain import Log, Plain, now, supervisor

RUNNING, STOPPED, FAILED = ServiceState.RUNNING, ServiceState.STOPPED, ServiceState.FAILED


async def test_a_service_starts_as_soon_as_its_dependencies_are_ready() -> None:
    log: Log = []
    first = Plain(log=log, name="first", starts_in=2)
    second = Plain(log=log, name="second", starts_in=3, depends_on=first)
    alone = Plain(log=log, name="alone", starts_in=1)
    sup = supervisor()
    await sup.start([second, alone, first])
    assert log == ["0 alone starts", "0 first starts", "2 second starts"]
    assert now() == 5
    assert sup.services == (second, alone, first)
    await sup.close(None, None)


async def test_a_start_that_exceeds_its_limit_fails_the_whole_start_up() -> None:
    log: Log = []
    ready = Plain(log=log, name="ready")
    slow = Plain(log=log, name="slow", starts_in=9)
    never = Plain(log=log, name="never", depends_on=slow)
    sup = supervisor(start_timeout=4)
    with pytest.raises(StartTimeout) as caught:
        await sup.start([ready, slow, never])
    assert now() == 4
    assert caught.value.service is slow
    assert "in Plain.start" in caught.value.stack
    assert log[:2] == ["0 ready starts", "0 slow starts"]
    assert log[2].startswith("4 ready stops because of ")
    assert sorted(log[3:]) == ["4 ready is cancelled", "4 slow is cancelled"]
    assert sup.services == ()
    assert [ready.state, slow.state, never.state] == [STOPPED, STOPPED, ServiceState.NEW]


async def test_the_limit_of_a_service_overrides_the_common_one() -> None:
    patient = Plain(log=[], name="patient", starts_in=9, start_timeout=10)
    hasty = Plain(log=[], name="hasty", starts_in=9, start_timeout=1)
    sup = supervisor(start_timeout=5)
    await sup.start([patient])
    assert now() == 9
    with pytest.raises(StartTimeout, match="within 1 s"):
        await sup.start([hasty])
    assert now() == 10
    await sup.close(None, None)


async def test_a_roll_back_leaves_services_of_earlier_starts_running() -> None:
    log: Log = []
    before = Plain(log=log, name="before")
    sup = supervisor()
    await sup.start([before])
    with pytest.raises(ValueError, match="start of bad"):
        await sup.start([Plain(log=log, name="bad", fails="start", depends_on=before)])
    assert sup.services == (before,)
    assert log == ["0 before starts", "0 bad starts"]
    await sup.close(None, None)


async def test_two_concurrent_starts_of_a_service_start_it_once() -> None:
    log: Log = []
    service = Plain(log=log, name="it", starts_in=2)
    sup = supervisor()
    await asyncio.gather(sup.start([service]), sup.start([service]))
    assert now() == 2
    await sup.start([service])
    assert log == ["0 it starts"]
    await sup.close(None, None)


async def test_a_start_waits_for_a_dependency_that_another_call_is_starting() -> None:
    log: Log = []
    below = Plain(log=log, name="below", starts_in=3)
    above = Plain(log=log, name="above", depends_on=below)
    sup = supervisor()
    await asyncio.gather(sup.start([below]), sup.start([above]))
    assert log == ["0 below starts", "3 above starts"]
    await sup.close(None, None)


async def test_a_service_that_is_being_stopped_is_started_again_afterwards() -> None:
    log: Log = []
    service = Plain(log=log, name="it", stops_in=3)
    sup = supervisor()
    await sup.start([service])
    stopping = asyncio.create_task(sup.stop([service], None))
    await asyncio.sleep(1)
    await sup.start([service])
    assert stopping.done()
    assert service.state is RUNNING
    assert log == ["0 it starts", "0 it stops", "3 it is cancelled", "3 it starts"]
    await sup.close(None, None)


async def test_a_service_that_crashed_is_stopped_before_it_is_started_again() -> None:
    log: Log = []
    service = Plain(log=log, name="it", crashes_in=1, on_crash="ignore")
    sup = supervisor()
    await sup.start([service])
    await asyncio.sleep(2)
    assert service.state is FAILED
    await sup.start([service])
    assert log[1:] == ["1 it crashes", "2 it stops", "2 it starts"]
    await sup.close(None, None)


async def test_a_start_that_is_cancelled_once_or_twice_waits_for_the_roll_back() -> None:
    log: Log = []
    ready = Plain(log=log, name="ready", stops_in=2)
    sup = supervisor()
    starting = asyncio.create_task(sup.start([ready, Plain(log=log, name="slow", starts_in=9)]))
    await asyncio.sleep(1)
    starting.cancel()
    await asyncio.sleep(1)
    starting.cancel()
    await asyncio.wait((starting,))
    assert starting.cancelled()
    assert now() == 3
    assert ready.state is STOPPED
    assert sup.services == ()


async def test_a_start_fails_when_its_service_is_stopped_meanwhile() -> None:
    log: Log = []
    slow = Plain(log=log, name="slow", starts_in=9)
    sup = supervisor()
    starting = asyncio.create_task(sup.start([slow]))
    await asyncio.sleep(1)
    await sup.stop([slow], None)
    with pytest.raises(StartCancelled, match="slow"):
        await starting
    assert log == ["0 slow starts", "1 slow is cancelled"]
    assert slow.state is STOPPED


async def test_a_service_of_another_supervisor_is_refused() -> None:
    service = Plain(log=[], name="it")
    first, second = supervisor(), supervisor()
    await first.start([service])
    with pytest.raises(ServiceInUse, match="another entrypoint"):
        await second.start([Plain(log=[], name="other"), service])
    assert second.services == ()
    await first.close(None, None)
    await second.start([service])
    await second.close(None, None)


async def test_a_stop_cannot_start_a_service_that_is_being_stopped_with_it() -> None:
    class Contrary(Plain):
        async def stop(self, exception: BaseException | None = None) -> None:
            with pytest.raises(StartDuringStop, match="Contrary"):
                await sup.start([self])
            self.note("was refused")

    log: Log = []
    sup = supervisor()
    service = Contrary(log=log, name="it")
    await sup.start([service])
    await sup.stop([service], None)
    assert log == ["0 it starts", "0 it was refused", "0 it is cancelled"]


async def test_a_start_that_ignores_the_cancellation_of_a_roll_back_is_stopped() -> None:
    log: Log = []

    class Stubborn(Plain):
        async def start(self) -> None:
            self.note("starts")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.note("comes through")

    sup = supervisor()
    with pytest.raises(ValueError, match="start of bad"):
        await sup.start(
            [
                Stubborn(log=log, name="stubborn"),
                Plain(log=log, name="bad", fails="start", starts_in=1),
            ]
        )
    assert log[2:] == [
        "1 stubborn comes through",
        "1 stubborn stops because of start of bad",
    ]
    assert math.isclose(now(), 1)
