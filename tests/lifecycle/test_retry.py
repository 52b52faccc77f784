"""Laws of the retries of a first start, in virtual time (C13a)."""

import asyncio
import logging
import math
from typing import Any

import pytest

from svcrun import Restart, Service
from svcrun.errors import ShuttingDown, StartCancelled, StartTimeout
from svcrun.service.base import SimpleServer
from svcrun.state import ServiceState
from tests.lifecycle.plain import Log, Plain, now, supervisor

NEW, STARTING, RUNNING, STOPPING, STOPPED, FAILED = ServiceState
AFTER_TEN = Restart(limit=3, window=1000, delay=10, factor=2, jitter=0, max_delay=1000)


class Late(Plain):
    """A service whose start fails a given number of times, and then succeeds."""

    failures: int = 1
    start_retry = AFTER_TEN

    async def start(self) -> None:
        self.failures -= 1
        self.fails = "start" if self.failures >= 0 else ""
        await super().start()


@pytest.mark.parametrize("starts_in", [0.0, 1.0], ids=["at once", "later"])
async def test_a_failed_start_is_retried_after_growing_delays(starts_in: float) -> None:
    log: Log = []
    sup = supervisor()
    service = Late(log=log, name="it", failures=2, starts_in=starts_in)
    await sup.start([service])
    first, second = 10 + starts_in, 30 + 2 * starts_in
    assert log == ["0 it starts", f"{first:g} it starts", f"{second:g} it starts"]
    assert service.state is RUNNING
    await sup.close(None, None)
    assert log[3:] == [f"{now():g} it stops", f"{now():g} it is cancelled"]


async def test_only_dependants_wait_for_a_retry() -> None:
    log: Log = []
    sup = supervisor()
    base = Late(log=log, name="base")
    top = Plain(log=log, name="top", depends_on=base)
    other = Plain(log=log, name="other")
    await sup.start([top, base, other])
    assert log == ["0 base starts", "0 other starts", "10 base starts", "10 top starts"]
    await sup.close(None, None)


async def test_after_the_last_attempt_its_error_is_raised_and_all_services_are_rolled_back() -> (
    None
):
    log: Log = []
    sup = supervisor()
    service = Late(log=log, name="it", failures=9, start_retry=Restart(2, 1000, delay=1, jitter=0))
    other = Plain(log=log, name="other")
    with pytest.raises(ValueError, match="start of it") as caught:
        await sup.start([service, other])
    assert [line for line in log if line.endswith("it starts")] == [
        "0 it starts",
        "1 it starts",
        "3 it starts",
    ]
    assert log[-2:] == ["3 other stops because of start of it", "3 other is cancelled"]
    assert (service.state, other.state) == (FAILED, STOPPED)
    assert caught.value.__context__ is None
    assert not sup.services


async def test_failures_that_are_older_than_the_window_are_forgiven() -> None:
    log: Log = []
    sup = supervisor()
    policy = Restart(limit=1, window=5, delay=10, jitter=0)
    service = Late(log=log, name="it", failures=4, start_retry=policy)
    await sup.start([service])
    assert now() == 40
    await sup.close(None, None)


async def test_the_time_limit_bounds_each_attempt(caplog: pytest.LogCaptureFixture) -> None:
    log: Log = []
    sup = supervisor()

    class Stuck(Late):
        async def start(self) -> None:
            self.starts_in = math.inf if self.failures > 0 else 0
            self.failures -= 1
            await Plain.start(self)

    service = Stuck(log=log, name="it", failures=2, start_timeout=3)
    await sup.start([service])
    assert log == [
        *("0 it starts", "3 it is cancelled", "13 it starts", "16 it is cancelled"),
        "36 it starts",
    ]
    assert service.state is RUNNING
    assert caplog.text.count("did not start within 3 s") >= 2
    await sup.close(None, None)


async def test_the_time_out_of_the_last_attempt_is_raised() -> None:
    sup = supervisor(start_timeout=3)
    policy = Restart(limit=1, window=100, delay=1, jitter=0)
    service = Plain(log=[], name="it", starts_in=math.inf, start_retry=policy)
    with pytest.raises(StartTimeout):
        await sup.start([service])
    assert now() == 7


async def test_a_start_that_ignores_its_cancellation_is_not_retried() -> None:
    log: Log = []
    sup = supervisor(stop_timeout=5)
    service = Plain(
        log=log, name="it", starts_in=math.inf, stubborn=100, start_timeout=1, start_retry=AFTER_TEN
    )
    with pytest.raises(StartTimeout):
        await sup.start([service])
    assert sup.hung
    assert log.count("0 it starts") == sum(line.endswith("starts") for line in log) == 1
    await asyncio.sleep(100)


async def test_a_start_that_succeeds_in_spite_of_its_cancellation_is_stopped_and_retried() -> None:
    log: Log = []
    sup = supervisor()

    class Deaf(Plain):
        async def start(self) -> None:
            self.note("starts")
            if len(log) == 1:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.note("goes on")
            self.start_event.set()

    service = Deaf(log=log, name="it", start_timeout=1, start_retry=AFTER_TEN)
    await sup.start([service])
    assert log[:2] == ["0 it starts", "1 it goes on"]
    assert log[2].startswith("1 it stops because of")
    assert log[3:] == ["11 it starts"]
    await sup.close(None, None)


@pytest.mark.parametrize("how", ["cancelled", "closed", "stopped", "failed"])
async def test_the_end_of_the_start_up_ends_the_delay_at_once(how: str) -> None:
    log: Log = []
    sup = supervisor()
    service = Late(log=log, name="it")
    partner = Plain(log=log, name="partner", starts_in=5, fails="start" if how == "failed" else "")
    task = asyncio.create_task(sup.start([service, partner]))
    await asyncio.sleep(5 if how == "failed" else 6)
    if how == "cancelled":
        task.cancel()
    elif how == "closed":
        await sup.close(None, None)
    elif how == "stopped":
        await sup.stop([service], None)
    kind: Any = {
        "cancelled": asyncio.CancelledError,
        "closed": ShuttingDown,
        "stopped": StartCancelled,
        "failed": ValueError,
    }[how]
    with pytest.raises(kind):
        await task
    assert now() == (5 if how == "failed" else 6)
    await asyncio.sleep(50)
    assert log.count("0 it starts") == sum(line.endswith("it starts") for line in log)
    assert service.state is FAILED
    assert not sup.services


async def test_a_failed_attempt_is_rolled_back_before_the_next_one() -> None:
    closed: list[float] = []

    class Listener:
        def is_serving(self) -> bool:
            return True

        def close(self) -> None:
            closed.append(now())

    class Server(SimpleServer):
        attempts = 0
        start_retry = AFTER_TEN
        states: list[ServiceState]

        async def start(self) -> None:
            self.states.append(self.state)
            assert not self.start_event.is_set()
            assert not self.tasks
            self.attempts += 1
            self.server = Listener()  # type: ignore[assignment]
            self.task = self.create_task(asyncio.sleep(1000))
            if self.attempts < 3:
                raise OSError("down")

        async def stop(self, exception: BaseException | None = None) -> None:
            self.states.append(self.state)
            await super().stop(exception)

    sup = supervisor()
    server = Server(states=[])
    await sup.start([server])
    assert closed == [0, 10]
    assert server.states == [STARTING] * 3  # its own stop() is owed to a service that has started
    await sup.close(None, None)
    assert server.states[3:] == [STOPPING]


async def test_a_retried_service_moves_from_failed_to_starting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "svcrun.lifecycle")
    sup = supervisor()
    await sup.start([Late(log=[], name="it")])
    moves = [record.getMessage() for record in caplog.records if "was" in record.msg]
    assert [move.removeprefix("<Late name='it' ") for move in moves] == [
        *("STARTING>: was NEW", "FAILED>: was STARTING"),
        *("STARTING>: was FAILED", "RUNNING>: was STARTING"),
    ]
    await sup.close(None, None)


async def test_the_policy_of_the_entrypoint_applies_to_services_without_one() -> None:
    class Without(Late):
        start_retry: Restart | None = None  # type: ignore[assignment]

    sup = supervisor(start_retry=AFTER_TEN)
    await sup.start([Without(log=[], name="it")])
    assert now() == 10
    await sup.close(None, None)


@pytest.mark.parametrize("value", [5, "often", False, lambda _: None])
async def test_a_start_retry_that_is_no_policy_is_left_alone(value: Any) -> None:
    class Own(Late):
        start_retry = value

    sup = supervisor(start_retry=AFTER_TEN)
    with pytest.raises(ValueError, match="start of it"):
        await sup.start([Own(log=[], name="it")])
    assert now() == 0


async def test_a_start_retry_that_raises_is_no_policy() -> None:
    def raises(_: object) -> Any:
        raise LookupError

    own = type("Own", (Plain,), {"start_retry": property(raises)})
    sup = supervisor(start_retry=AFTER_TEN)
    with pytest.raises(ValueError, match="start of it"):
        await sup.start([own(log=[], name="it", fails="start")])


async def test_an_exit_is_not_retried() -> None:
    class Exiting(Service):
        start_retry = AFTER_TEN

        async def start(self) -> None:
            raise SystemExit(3)

    with pytest.raises(SystemExit):
        await supervisor().start([Exiting()])
    assert now() == 0


async def test_another_start_of_the_service_waits_for_the_next_attempt() -> None:
    log: Log = []
    sup = supervisor()
    service = Late(log=log, name="it")
    task = asyncio.create_task(sup.start([service]))
    await asyncio.sleep(5)
    top = Plain(log=log, name="top", depends_on=service)
    await sup.start([service, top])
    await task
    assert log == ["0 it starts", "10 it starts", "10 top starts"]
    await sup.close(None, None)


async def test_a_later_dependant_waits_for_the_next_attempt() -> None:
    log: Log = []
    sup = supervisor()
    service = Late(log=log, name="it")
    task = asyncio.create_task(sup.start([service]))
    await asyncio.sleep(5)
    await sup.start([Plain(log=log, name="top", depends_on=service)])
    await task
    assert log == ["0 it starts", "10 it starts", "10 top starts"]
    await sup.close(None, None)


async def test_a_late_set_of_an_earlier_event_does_not_start_the_service() -> None:
    events: list[asyncio.Event] = []

    class Leaky(Service):
        start_retry = AFTER_TEN

        async def start(self) -> None:
            events.append(self.start_event)
            if len(events) == 1:
                raise OSError("down")
            await asyncio.sleep(5)

    sup = supervisor()
    task = asyncio.create_task(sup.start([Leaky()]))
    await asyncio.sleep(12)
    events[0].set()
    await task
    assert now() == 15
    await sup.close(None, None)


def failures(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the records about starts that failed."""
    return [record for record in caplog.records if "failed to start" in record.msg]


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[bool]:
    """Return for each record about a start whether it has a traceback."""
    records = failures(caplog)
    assert all("\n" not in record.getMessage() for record in records)
    return [bool(record.exc_info) for record in records]


async def test_each_failed_attempt_is_logged_and_its_traceback_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sup = supervisor()
    await sup.start([Late(log=[], name="it", failures=3)])
    assert tracebacks(caplog) == [True, False, False]
    for delay, record in zip((10, 20, 40), failures(caplog), strict=True):
        assert record.getMessage() == (
            "<Late name='it' STARTING> failed to start: ValueError: start of it; "
            f"restarting in {delay}.0 s"
        )
    await sup.close(None, None)


async def test_an_error_at_another_line_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Changing(Plain):
        errors = iter([OSError("a"), OSError("b"), KeyError("c"), OSError("d")])

        async def start(self) -> None:
            for error in self.errors:
                if isinstance(error, KeyError):
                    raise error
                raise error

    sup = supervisor()
    policy = Restart(limit=9, window=1000, delay=1)
    await sup.start([Changing(log=[], name="it", start_retry=policy)])
    assert tracebacks(caplog) == [True, False, True, False]
    await sup.close(None, None)


async def test_each_failed_restart_is_logged_and_its_traceback_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sup = supervisor()
    policy = Restart(limit=4, window=1000, delay=1)
    service = Plain(log=[], name="it", crashes_in=1, on_crash=policy)
    await sup.start([service])
    service.fails = "start"
    await asyncio.sleep(100)
    records = [record for record in caplog.records if "failed to start" in record.msg]
    assert [bool(record.exc_info) for record in records] == [True, False, False, False]
    assert all("start of it" in record.getMessage() for record in records)
    await sup.close(None, None)


async def test_a_repeated_crash_has_no_second_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sup = supervisor()
    policy = Restart(limit=2, window=1000, delay=1)
    await sup.start([Plain(log=[], name="it", crashes_in=1, on_crash=policy)])
    await asyncio.sleep(100)
    records = [record for record in caplog.records if "crashed" in record.msg]
    assert [bool(record.exc_info) for record in records] == [True, False, False]
    await sup.close(None, None)
