"""Laws of the service that calls functions at the times of cron expressions (C30, C31)."""

import asyncio
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import svcrun
from svcrun import entrypoint
from svcrun._schedule.clock import Clock
from svcrun.service.cron import CronService, cron
from tests.support_clock import Wall


def make_clock() -> Clock:
    loop = asyncio.get_running_loop()
    return Clock(loop, Wall(loop, datetime(2026, 1, 1, 12, tzinfo=UTC)))


async def job() -> None:
    pass


class Jobs(CronService):
    @cron("* * * * * *")
    async def each_second(self) -> None:
        pass

    @cron("* * * * * */10")
    @cron("* * * * * */15", timezone="Europe/Berlin")
    async def now_and_then(self) -> None:
        pass


async def test_registered_functions_are_called_while_it_runs() -> None:
    service = CronService(clock=make_clock())
    callback = service.register(job, "* * * * * *")
    async with entrypoint(service):
        await asyncio.sleep(3.5)
    assert callback.calls == 3
    await asyncio.sleep(3)
    assert callback.calls == 3


async def test_decorated_methods_are_registered() -> None:
    service = Jobs(clock=make_clock())
    assert {callback.name for callback in service.callbacks} == {
        "Jobs.each_second at * * * * * *",
        "Jobs.now_and_then at * * * * * */10",
        "Jobs.now_and_then at * * * * * */15",
    }
    async with entrypoint(service):
        await asyncio.sleep(30.5)
    assert sorted(callback.calls for callback in service.callbacks) == [2, 3, 30]


async def test_an_overriding_method_is_called_if_it_is_decorated() -> None:
    class Others(Jobs):
        async def now_and_then(self) -> None:
            pass

        @cron("0 0 * * *")
        async def each_second(self) -> None:
            pass

    (callback,) = Others().callbacks
    assert callback.name.endswith("each_second at 0 0 * * *")


async def test_a_subclass_may_register_in_its_start() -> None:
    class Late(CronService):
        calls = 0

        async def callback(self) -> None:
            self.calls += 1

        async def start(self) -> None:
            self.register(self.callback, "* * * * * *")
            await super().start()

    service = Late(clock=make_clock())
    for life in range(1, 4):
        async with entrypoint(service):
            await asyncio.sleep(2.5)
        assert service.calls == 2 * life  # each life registers anew, and none twice
        await asyncio.sleep(0.5)


@pytest.mark.parametrize("by", ["entrypoint", "hand"])
async def test_a_function_registered_before_the_start_is_called_in_every_run(by: str) -> None:
    service = CronService(clock=make_clock())
    callback = service.register(job, "* * * * * *")
    for life in range(1, 4):
        if by == "hand":
            await service.start()
            await asyncio.sleep(2.5)
            await service.stop()
        else:
            async with entrypoint(service):
                await asyncio.sleep(2.5)
        assert callback.calls == 2 * life
        await asyncio.sleep(0.5)
    assert service.callbacks == (callback,)


async def test_a_function_registered_while_the_service_runs_is_called_until_the_stop() -> None:
    service = CronService(clock=make_clock())
    async with entrypoint(service):
        await asyncio.sleep(0.5)
        callback = service.register(job, "* * * * * *")
        await asyncio.sleep(2)
        assert callback.calls == 2
    assert service.callbacks == ()


async def test_a_call_may_register_another() -> None:
    class Breeding(CronService):
        @cron("* * * * * *")
        async def breed(self) -> None:
            self.register(job, "* * * * * *")

    service = Breeding(clock=make_clock())
    async with entrypoint(service):
        await asyncio.sleep(3.5)
        first, second = service.callbacks
        assert (first.calls, second.calls) == (3, 2)


async def test_the_same_function_with_the_same_expression_is_registered_once() -> None:
    service = CronService()
    first = service.register(job, "0 0 * * *")
    assert service.register(job, "0 0 * * *") is first
    assert service.register(job, "0 1 * * *") is not first
    assert service.register(job, "0 0 * * *", timezone="Europe/Berlin") is not first
    assert len(service.callbacks) == 3


async def test_the_stop_waits_for_calls_in_flight() -> None:
    ended: list[int] = []

    class Slow(CronService):
        @cron("* * * * * *")
        async def first(self) -> None:
            await asyncio.sleep(2)
            ended.append(1)

        @cron("* * * * * *")
        async def second(self) -> None:
            await asyncio.sleep(3)
            ended.append(2)

    service = Slow(clock=make_clock())
    async with entrypoint(service):
        await asyncio.sleep(1.5)
    assert ended == [1, 2]


async def test_stop_timeout_bounds_the_wait_for_a_call() -> None:
    cancelled: list[object] = []

    class Hanging(CronService):
        @cron("* * * * * *")
        async def hang(self) -> None:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                cancelled.append(self)
                raise

    service = Hanging(clock=make_clock(), stop_timeout=1)
    with pytest.raises(SystemExit):
        async with entrypoint(service):
            await asyncio.sleep(1.5)
    assert cancelled == [service]


@pytest.mark.parametrize("how", ["stop", "stop_services", "graceful_shutdown"])
async def test_a_call_may_stop_the_service(how: str) -> None:
    said: list[str] = []

    class Mortal(CronService):
        @cron("* * * * * *")
        async def end(self) -> None:
            current = entrypoint.get_current()
            said.append("begin")
            async with asyncio.timeout(5):
                if how == "stop":
                    await self.stop()
                elif how == "stop_services":
                    await current.stop_services(self)
                else:
                    await current.graceful_shutdown(None)
            said.append("end")

    async with entrypoint(Mortal(clock=make_clock())):
        await asyncio.sleep(5)
    assert said == ["begin", "end"]


async def test_a_failing_call_is_logged_and_the_calls_continue(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(CronService):
        @cron("* * * * * *")
        async def fail(self) -> None:
            raise LookupError("broken")

    service = Failing(clock=make_clock())
    async with entrypoint(service, log_config=False):
        await asyncio.sleep(2.5)
    messages = [record.getMessage() for record in caplog.records if record.exc_info]
    assert len(messages) == 2
    assert messages[0].endswith(".Failing.fail at * * * * * *)> failed")


def test_upcoming_calls_are_in_order_of_time() -> None:
    class Two(CronService):
        timezone = "Europe/Berlin"

        @cron("0 12 * * *")
        async def noon(self) -> None:
            pass

        @cron("30 */6 * * *", timezone="UTC")
        async def quarterly(self) -> None:
            pass

    found = Two().upcoming(4, datetime(2026, 7, 1, tzinfo=UTC))
    assert [f"{it.when:%H:%M%z} {it.callback.name.split()[0][-5:]}" for it in found] == [
        "00:30+0000 terly",
        "06:30+0000 terly",
        "12:00+0200 .noon",
        "12:30+0000 terly",
    ]
    assert str(found[2]).startswith("2026-07-01T12:00:00+02:00 ")


def test_upcoming_begins_now() -> None:
    service = CronService()
    assert service.upcoming(3) == []
    service.register(job, "* * * * *")
    (first, *_) = service.upcoming(3)
    assert first.when - datetime.now(UTC) <= timedelta(minutes=1)


# Bad input.


def test_only_coroutine_functions_can_be_registered() -> None:
    wrong: Any
    for wrong in print, None, 5, job(), "job":
        with pytest.raises(TypeError, match="function must be a coroutine function"):
            CronService().register(wrong, "* * * * *")
        if asyncio.iscoroutine(wrong):
            wrong.close()
    with pytest.raises(TypeError, match="function must be a coroutine function"):
        cron("* * * * *")(print)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spec": "* * * *"}, "5 or 6 fields"),
        ({"spec": "0 0 31 2 *"}, "never matches"),
        ({"timezone": "Mars/Olympus"}, "timezone must be"),
        ({"misfire": "twice"}, "misfire must be"),
        ({"overlap": "wait"}, "overlap must be"),
    ],
)
def test_wrong_values_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    options = {"spec": "* * * * *", **options}
    with pytest.raises(ValueError, match=message):
        CronService().register(job, **options)
    with pytest.raises(ValueError, match=message):
        cron(**options)


def test_a_service_can_be_pickled_before_it_runs() -> None:
    service = Jobs(name="jobs")
    copy = pickle.loads(pickle.dumps(service))  # noqa: S301 - our own
    assert [callback.name for callback in copy.callbacks] == [
        callback.name for callback in service.callbacks
    ]
    assert copy.name == "jobs"


async def test_a_job_may_end_the_program() -> None:
    class Ending(CronService):
        @cron("* * * * * *")
        async def end(self) -> None:
            svcrun.get_context()["over"] = True

    async with entrypoint(Ending(clock=make_clock())):
        assert await svcrun.get_context()["over"] is True


@pytest.mark.parametrize("zone", [3, "Mars/Olympus"])
def test_a_wrong_time_zone_of_the_service_is_refused_when_it_is_created(zone: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"CronService.*timezone.*Europe/Berlin"):
        CronService(timezone=zone)
