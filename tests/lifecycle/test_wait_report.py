"""A start that takes long is reported, in virtual time (C13)."""

import asyncio
import logging
import math

import pytest

from svcrun import Restart, Service
from svcrun.context import Context
from tests.lifecycle.plain import Plain, now, supervisor
from tests.support_clock import VirtualClockLoop


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings about starts in progress."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and "have not started" in record.msg
    ]


async def cancelled_after(seconds: float, *services: Service) -> None:
    task = asyncio.create_task(supervisor().start(services))
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.wait((task,))


async def test_a_start_in_progress_is_reported_at_growing_intervals(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await cancelled_after(100, Plain(log=[], name="it", starts_in=math.inf))
    lines = [message.partition("\n")[0] for message in warnings(caplog)]
    assert lines == [
        f"1 of 1 services have not started after {seconds} s:" for seconds in (10, 20, 40, 80)
    ]


async def test_a_forgotten_start_event_is_named_with_the_line_that_waits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Forgetful(Service):
        async def start(self) -> None:
            for _ in range(1000):
                await asyncio.sleep(1)  # a long day's work

    await cancelled_after(15, Forgetful(name="worker"))
    (message,) = warnings(caplog)
    assert "name='worker' STARTING>: start() has neither returned nor set start_event" in message
    assert "await asyncio.sleep(1)  # a long day's work" in message


async def test_a_key_that_no_service_sets_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class Worker(Service):
        async def start(self) -> None:
            await asyncio.gather(self.context["pool"], self.wait())

        async def wait(self) -> None:
            await self.context["config", 2]

    context = Context(asyncio.get_running_loop())
    await cancelled_after(15, Worker(name="worker"))
    (message,) = warnings(caplog)
    assert "context['pool'], context[('config', 2)], which no service has set" in message
    context.close()


async def test_a_report_does_not_name_the_keys_of_another_service(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Worker(Service):
        key: str

        async def start(self) -> None:
            await self.context[self.key]

    context = Context(asyncio.get_running_loop())
    await cancelled_after(15, Worker(name="a", key="of a"), Worker(name="b", key="of b"))
    (message,) = warnings(caplog)
    lines = [line for line in message.splitlines() if "which no service" in line]
    assert ["'a'" in line and "of a" in line and "of b" not in line for line in lines] == [
        True,
        False,
    ]
    context.close()


async def test_a_report_names_the_dependency_that_a_service_waits_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = Plain(log=[], name="base", starts_in=math.inf)
    top = Plain(log=[], name="top", depends_on=base)
    await cancelled_after(15, top, base)
    (message,) = warnings(caplog)
    assert message.startswith("2 of 2 services")
    assert "name='top' NEW> is waiting for <Plain name='base' STARTING>" in message


async def test_a_report_does_not_name_started_services(caplog: pytest.LogCaptureFixture) -> None:
    stuck = Plain(log=[], name="stuck", starts_in=math.inf)
    await cancelled_after(15, Plain(log=[], name="well"), stuck)
    (message,) = warnings(caplog)
    assert message.startswith("1 of 2 services")
    assert "well" not in message


async def test_a_service_between_two_attempts_is_named(caplog: pytest.LogCaptureFixture) -> None:
    policy = Restart(limit=1, window=1000, delay=100, max_delay=100, jitter=0)
    await cancelled_after(15, Plain(log=[], name="it", fails="start", start_retry=policy))
    (message,) = warnings(caplog)
    assert "is waiting for its next attempt" in message


async def test_a_report_of_a_thousand_services_lists_some_and_counts_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = Plain(log=[], name="base", starts_in=math.inf)
    tops = [Plain(log=[], name=f"top {number}", depends_on=base) for number in range(1000)]
    await cancelled_after(15, *tops, base)
    (message,) = warnings(caplog)
    assert message.splitlines()[-1] == "and 981 more"
    assert message.count("top") == 19
    assert "base' STARTING>: start() has" in message


@pytest.mark.parametrize("starts_in", [0, 1, 9.9])
async def test_a_start_in_time_logs_no_report_and_leaves_no_timer(
    starts_in: float, caplog: pytest.LogCaptureFixture
) -> None:
    sup = supervisor()
    await sup.start([Plain(log=[], name="it", starts_in=starts_in)])
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    assert not loop.timers()
    await asyncio.sleep(100)
    assert not warnings(caplog)
    await sup.close(None, None)
    assert now() == starts_in + 100


async def test_a_restart_in_progress_is_reported_as_well(caplog: pytest.LogCaptureFixture) -> None:
    policy = Restart(limit=3, delay=1, jitter=0)
    service = Plain(log=[], name="it", crashes_in=1, on_crash=policy)
    sup = supervisor()
    await sup.start([service])
    service.starts_in = math.inf
    await asyncio.sleep(15)
    assert len(warnings(caplog)) == 1
    await sup.close(None, None)
