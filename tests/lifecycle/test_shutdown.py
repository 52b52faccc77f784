"""Laws of a shutdown, in virtual time: the order, the time limits, cancellation, abandoning."""

import asyncio
import math
from collections.abc import Callable

import pytest

from svcrun._lifecycle.supervisor import Supervisor
from svcrun._util.drain import GRACE_PERIOD
from svcrun.errors import StopTimeout
from svcrun.state import ServiceState
from tests.lifecycle.plain import Log, Plain, now, supervisor

STOPPED, FAILED = ServiceState.STOPPED, ServiceState.FAILED


async def started(*services: Plain, stop_timeout: float | None = None) -> Supervisor:
    sup = supervisor(stop_timeout=stop_timeout)
    await sup.start(services)
    return sup


async def test_every_stop_ends_before_the_first_start_is_cancelled_and_dependants_come_first() -> (
    None
):
    log: Log = []
    below = Plain(log=log, name="below", stops_in=2)
    above = Plain(log=log, name="above", stops_in=1, depends_on=below)
    alone = Plain(log=log, name="alone", stops_in=1)
    sup = await started(below, above, alone)
    await sup.close(None, None)
    assert log[3:6] == ["0 above stops", "0 alone stops", "1 below stops"]
    assert sorted(log[6:]) == [f"3 {name} is cancelled" for name in ("above", "alone", "below")]
    assert log.index("3 above is cancelled") < log.index("3 below is cancelled")
    assert sup.errors == []
    assert not sup.hung


async def test_a_stop_includes_the_dependants_and_no_other_service() -> None:
    log: Log = []
    below = Plain(log=log, name="below")
    above = Plain(log=log, name="above", depends_on=Plain)
    other = Plain(log=log, name="other", depends_on=[])
    above.depends_on = below
    sup = await started(below, above, other)
    log.clear()
    await sup.stop([below], None)
    assert log[:2] == ["0 above stops", "0 below stops"]
    assert sup.services == (other,)
    await sup.close(None, None)


async def test_only_the_stop_that_exceeds_its_limit_is_cancelled_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log: Log = []
    late = Plain(log=log, name="late", stops_in=math.inf, stop_timeout=2)
    slow = Plain(log=log, name="slow", stops_in=5)
    sup = await started(late, slow)
    with pytest.raises(StopTimeout, match=r"'late'.* did not stop within 2 s") as caught:
        await sup.stop([late, slow], None)
    assert "await (asyncio.Event().wait()" in caught.value.stack
    assert now() == 5
    assert log[2:5] == ["0 late stops", "0 slow stops", "2 late is cancelled"]
    assert (late.state, slow.state) == (FAILED, STOPPED)
    assert not sup.hung
    (record,) = caplog.records
    assert record.getMessage() == "<Plain name='late' STOPPING> did not stop in time; cancelling it"


async def test_a_stop_that_ignores_its_cancellation_is_abandoned_after_the_grace_period() -> None:
    log: Log = []
    late = Plain(log=log, name="late", stops_in=math.inf, stop_timeout=2, stubborn=9)
    sup = await started(late)
    with pytest.raises(StopTimeout):
        await sup.stop([late], None)
    assert log[2:] == ["2 late is cancelled", "3 late is cancelled"]
    assert now() == 2 + GRACE_PERIOD + 9  # by its start(), which nothing limits here
    assert sup.hung
    assert late.state is FAILED
    await asyncio.sleep(20)


async def test_the_limit_of_a_shutdown_covers_a_whole_chain() -> None:
    log: Log = []
    below = Plain(log=log, name="below", stops_in=math.inf)
    above = Plain(log=log, name="above", stops_in=math.inf, depends_on=below)
    sup = await started(below, above)
    await sup.close(None, 3)
    assert now() == 3
    assert log[2:] == [
        *("0 above stops", "3 above is cancelled", "3 below stops", "3 below is cancelled"),
        *("3 above is cancelled", "3 below is cancelled"),
    ]
    assert sup.hung
    (error,) = sup.errors
    assert isinstance(error, StopTimeout)
    assert error.service is above


@pytest.mark.parametrize("act", [lambda sup: None, Supervisor.force], ids=["limit", "force"])
async def test_the_dependencies_of_an_abandoned_service_are_still_stopped(
    act: Callable[[Supervisor], None], caplog: pytest.LogCaptureFixture
) -> None:
    log: Log = []
    stuck = Plain(log=log, name="stuck", stops_in=math.inf, stubborn=50)
    good = Plain(log=log, name="good", stops_in=1)
    sup = await started(stuck, good)
    closing = asyncio.create_task(sup.close(None, 0.5 if act is not Supervisor.force else None))
    await asyncio.sleep(0.5)
    act(sup)
    await closing
    assert now() == 0.5 + 2 * GRACE_PERIOD
    assert sup.hung
    assert "'stuck' STOPPING> ignored cancellation" in caplog.text
    assert "'good' STOPPING> does not end" not in caplog.text
    assert stuck.state is FAILED
    assert f"{0.5 + GRACE_PERIOD:g} good is cancelled" in log
    await asyncio.sleep(100)


async def test_a_forced_shutdown_cancels_every_wait_and_no_service_counts_as_hung() -> None:
    log: Log = []
    below = Plain(log=log, name="below", stops_in=9)
    above = Plain(log=log, name="above", stops_in=9, depends_on=below)
    sup = await started(below, above)
    closing = asyncio.create_task(sup.close(None, 60))
    await asyncio.sleep(2)
    sup.force()
    sup.force()
    await closing
    assert now() == 2
    assert log[2:6] == [
        *("0 above stops", "2 above is cancelled", "2 below stops", "2 below is cancelled")
    ]
    assert not sup.hung
    assert sup.errors == []
    assert (below.state, above.state) == (STOPPED, STOPPED)


async def test_a_stop_that_begins_during_a_forced_shutdown_is_cancelled_as_well() -> None:
    log: Log = []
    sup = await started(Plain(log=log, name="it", stops_in=9))
    sup.force()
    await sup.close(None, 60)
    assert now() == 0
    assert log[1:] == ["0 it stops", "0 it is cancelled", "0 it is cancelled"]


async def test_a_time_limit_has_no_effect_on_a_forced_stop() -> None:
    service = Plain(log=[], name="it", stops_in=9, stubborn=GRACE_PERIOD / 4)
    sup = await started(service)
    closing = asyncio.create_task(sup.close(None, 2 + GRACE_PERIOD / 8))
    await asyncio.sleep(2)
    sup.force()
    await closing
    assert not sup.hung
    assert sup.errors == []


async def test_several_errors_are_raised_as_a_group_and_the_services_can_start_again() -> None:
    log: Log = []
    services = [Plain(log=log, name=name, fails="stop") for name in ("a", "b")]
    sup = await started(*services)
    with pytest.raises(ExceptionGroup) as caught:
        await sup.stop(services, None)
    assert [str(error) for error in caught.value.exceptions] == ["stop of a", "stop of b"]
    assert [service.state for service in services] == [FAILED, FAILED]
    await sup.start(services)
    with pytest.raises(ExceptionGroup):
        await sup.stop(services, None)


async def test_the_error_of_a_start_that_fails_during_its_stop_is_raised() -> None:
    service = Plain(log=[], name="it", crashes_in=1, stops_in=2)
    sup = await started(service)
    with pytest.raises(ValueError, match="crash of it"):
        await sup.stop([service], None)
    assert service.state is FAILED


async def test_two_concurrent_stops_call_stop_once_and_both_wait_for_it() -> None:
    log: Log = []
    service = Plain(log=log, name="it", stops_in=3)
    sup = await started(service)
    first = asyncio.create_task(sup.stop([service], None))
    await asyncio.sleep(1)
    await sup.stop([service], None)
    assert now() == 3
    await first
    await sup.stop([service], None)
    assert log == ["0 it starts", "0 it stops", "3 it is cancelled"]


async def test_a_stop_continues_when_its_caller_is_cancelled() -> None:
    log: Log = []
    service = Plain(log=log, name="it", stops_in=3)
    sup = await started(service)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(sup.stop([service], None), 1)
    await sup.close(None, None)
    assert log == ["0 it starts", "0 it stops", "3 it is cancelled"]


async def test_the_limit_of_the_shutdown_applies_to_stops_in_progress() -> None:
    service = Plain(log=[], name="it", stops_in=math.inf)
    sup = await started(service)
    stopping = asyncio.create_task(sup.stop([service], None))
    await asyncio.sleep(1)
    await sup.close(None, 2)
    assert now() == 3
    assert sup.hung
    with pytest.raises(StopTimeout):
        await stopping


async def test_a_stop_that_other_code_cancels_is_no_failure() -> None:
    class Elsewhere(Plain):
        async def stop(self, exception: BaseException | None = None) -> None:
            raise asyncio.CancelledError

    service = Elsewhere(log=[], name="it")
    sup = await started(service)
    await sup.stop([service], None)
    assert service.state is STOPPED


async def test_the_error_of_an_abandoned_stop_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Bitter(Plain):
        async def stop(self, exception: BaseException | None = None) -> None:
            try:
                await self._wait(math.inf)
            finally:
                raise LookupError("after all")

    sup = await started(Bitter(log=[], name="it", stubborn=9))
    await sup.close(None, 1)
    assert "after all" not in caplog.text
    await asyncio.sleep(20)
    assert "Bitter name='it' FAILED> failed after it was abandoned" in caplog.text
    assert "LookupError: after all" in caplog.text


class Reporter(Plain): ...


Reporter._svcrun_stops_last = True  # which a class of a user may not have


async def test_a_reporter_is_stopped_after_all_other_services() -> None:
    log: Log = []
    reporter = Reporter(log=log, name="reporter")
    slow = Plain(log=log, name="slow", stops_in=3)
    quick = Plain(log=log, name="quick")
    sup = await started(reporter, slow, quick)
    log.clear()
    await sup.close(None, None)
    assert log[:2] == ["0 slow stops", "0 quick stops"]
    assert set(log[2:4]) == {"3 slow is cancelled", "3 quick is cancelled"}
    assert log[4:] == ["3 reporter stops", "3 reporter is cancelled"]
    assert reporter.state is STOPPED


async def test_the_dependencies_of_a_reporter_are_stopped_after_it() -> None:
    log: Log = []
    tunnel = Plain(log=log, name="tunnel")
    reporter = Reporter(log=log, name="reporter", depends_on=tunnel, stops_in=1)
    other = Plain(log=log, name="other", stops_in=2)
    sup = await started(tunnel, reporter, other)
    log.clear()
    await sup.close(None, None)
    stops = [line for line in log if line.endswith("stops")]
    assert stops == ["0 other stops", "2 reporter stops", "3 tunnel stops"]


async def test_a_reporter_runs_until_the_others_are_abandoned_and_is_then_cancelled() -> None:
    log: Log = []
    reporter = Reporter(log=log, name="reporter", stops_in=GRACE_PERIOD / 2)
    hung = Plain(log=log, name="hung", stops_in=math.inf, stubborn=10)
    sup = await started(reporter, hung)
    log.clear()
    await sup.close(None, 5)
    moment = f"{5 + 2 * GRACE_PERIOD:g}"  # first its stop(), then its start() is abandoned
    assert [line for line in log if " reporter " in line][:2] == [
        f"{moment} reporter stops",
        f"{moment} reporter is cancelled",
    ]
    assert sup.hung
    assert reporter.state is STOPPED
    await asyncio.sleep(20)  # for the other to end


async def test_a_reporter_alone_is_stopped_at_once() -> None:
    log: Log = []
    sup = await started(Reporter(log=log, name="reporter"))
    await sup.close(None, None)
    assert "0 reporter stops" in log
