"""The service that calls a method at an interval (C29, C30)."""

import asyncio
import logging
import pickle
import signal
from collections.abc import Callable
from typing import Any

import pytest

from svcrun import Restart, Service, entrypoint
from svcrun.service.periodic import PeriodicService
from tests.support import Program, eventually, refuses


class Ticks(PeriodicService):
    """A service that records the times of its calls."""

    interval = 0.01

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ticks: list[float] = []

    async def callback(self) -> None:
        self.ticks.append(self.loop.time())


async def test_the_callback_is_called_while_the_service_runs() -> None:
    service = Ticks()
    async with entrypoint(service):
        begin = asyncio.get_running_loop().time()
        await eventually(lambda: len(service.ticks) >= 10)
    calls = service.periodic.calls
    assert calls == len(service.ticks) >= 10
    assert service.ticks[9] - begin > 0.08  # as early as nine intervals allow
    await asyncio.sleep(0.05)
    assert service.periodic.calls == calls


async def test_the_service_is_running_before_the_first_call() -> None:
    service = Ticks(interval=60, delay=60)
    async with entrypoint(service):
        assert not service.ticks
        assert service.periodic.next_due is not None


async def test_a_periodic_service_can_run_again() -> None:
    service = Ticks()
    for life in range(1, 4):
        async with entrypoint(service):
            await eventually(lambda life=life: len(service.ticks) >= life * 3)  # type: ignore[misc]


@pytest.mark.parametrize("how", ["stop", "stop_services", "graceful_shutdown"])
async def test_a_call_may_stop_the_service(how: str) -> None:
    said: list[str] = []
    over = asyncio.Event()

    class Mortal(PeriodicService):
        async def callback(self) -> None:
            current = entrypoint.get_current()
            said.append("begin")
            if how == "stop":
                await self.stop()
            elif how == "stop_services":
                await current.stop_services(self)
            else:
                await current.graceful_shutdown(None)
            said.append("end")
            over.set()

    async with entrypoint(Mortal(interval=0.01)), asyncio.timeout(10):
        await over.wait()
        await asyncio.sleep(0.05)
    assert said == ["begin", "end"]


async def test_the_stop_waits_for_the_call_in_flight() -> None:
    begun = asyncio.Event()
    said: list[str] = []

    class Slow(PeriodicService):
        async def callback(self) -> None:
            begun.set()
            await asyncio.sleep(0.2)
            said.append("end")

    async with entrypoint(Slow(interval=60)):
        await begun.wait()
    assert said == ["end"]


async def test_the_stop_cancels_a_call_at_its_time_limit() -> None:
    begun = asyncio.Event()
    cancelled = asyncio.Event()

    class Hanging(PeriodicService):
        async def callback(self) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

    service = Hanging(interval=60, stop_timeout=0.1)
    with pytest.raises(SystemExit) as raised:
        async with entrypoint(service, log_config=False):
            await begun.wait()
    assert raised.value.code == 70
    assert cancelled.is_set()


async def test_dependants_of_a_periodic_service_are_stopped_before_it() -> None:
    said: list[str] = []

    class Source(PeriodicService):
        async def callback(self) -> None:
            said.append("call")

        async def stop(self, exception: BaseException | None = None) -> None:
            await super().stop(exception)
            said.append("source stopped")

    class User(Service):
        async def start(self) -> None:
            pass

        async def stop(self, exception: BaseException | None = None) -> None:
            said.append("user stopped")

    source = Source(interval=60)
    async with entrypoint(User(depends_on=source), source):
        await eventually(lambda: said)
    assert said == ["call", "user stopped", "source stopped"]


async def test_a_failing_call_is_logged_with_the_name_of_the_service(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(PeriodicService):
        async def callback(self) -> None:
            raise LookupError("broken")

    service = Failing(interval=0.01, name="crawler", on_crash=Restart())
    async with entrypoint(service, log_config=False):
        await eventually(lambda: service.periodic.failures >= 2)
    failures = [it for it in caplog.records if it.levelno == logging.ERROR]
    assert "crawler" in failures[0].getMessage()
    assert failures[0].exc_info is not None
    assert isinstance(failures[0].exc_info[1], LookupError)


async def test_expected_failures_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(PeriodicService):
        suppress_exceptions = (LookupError,)

        async def callback(self) -> None:
            raise LookupError

    service = Failing(interval=0.01)
    async with entrypoint(service, log_config=False):
        await eventually(lambda: service.periodic.failures >= 2)
    # A busy machine may be late for a call, which is a warning.
    assert not [it for it in caplog.records if it.levelno >= logging.ERROR or it.exc_info]


def test_a_service_without_a_callback_is_refused() -> None:
    class Base(PeriodicService):
        async def clean(self) -> None: ...

    class Complete(Base):
        async def callback(self) -> None: ...

    with pytest.raises(TypeError, match=r"Base needs callback\(\)"):
        Base(interval=1)
    assert Complete(interval=1).interval == 1


async def test_a_misspelt_callback_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Misspelled(PeriodicService):
        async def callabck(self) -> None:
            raise AssertionError

    class Further(Misspelled): ...

    for cls in (Misspelled, Further):
        caplog.clear()
        service = cls(interval=0.01, name="it")
        again = cls(interval=0.01, name="again", depends_on=service)
        async with entrypoint(service, again, Ticks(interval=0.01), log_config=False):
            await asyncio.sleep(0.05)
        name = cls.__qualname__
        # A busy machine makes the event loop late, which is logged by another logger.
        records = [it for it in caplog.records if it.name == "svcrun.service.periodic"]
        assert [(r.levelname, r.getMessage()) for r in records if r.levelno > 20] == [
            ("WARNING", f"{name}.callabck() is never called; did you mean callback()?"),
            ("ERROR", f"{name} has no callback(); <{name} name='it' STARTING> makes no calls"),
            (
                "ERROR",
                f"{name} has no callback(); <{name} name='again' STARTING> makes no calls",
            ),
        ]
        assert service.periodic.calls == 0


async def test_the_callback_may_be_a_plain_method() -> None:
    called = asyncio.Event()

    class Plain(PeriodicService):
        def callback(self) -> None:
            called.set()

    async with entrypoint(Plain(interval=60)), asyncio.timeout(10):
        await called.wait()


async def test_overlap_and_jitter_are_parameters() -> None:
    service = Ticks(interval=0.05, overlap="queue", jitter=0.01)
    async with entrypoint(service):
        await eventually(lambda: len(service.ticks) >= 3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"interval": 0}, ValueError, "interval=0"),
        ({"interval": -1}, ValueError, "interval=-1"),
        ({"interval": float("nan")}, ValueError, "interval=nan"),
        ({"interval": "60"}, TypeError, "interval='60'"),
        ({"interval": None}, TypeError, "interval=None"),
        ({"interval": 1, "delay": -1}, ValueError, "delay=-1"),
        ({"interval": 1, "jitter": 1}, ValueError, "jitter=1"),
        ({"interval": 1, "overlap": "wait"}, ValueError, "overlap='wait'"),
        ({"interval": 1, "suppress_exceptions": 5}, TypeError, "suppress_exceptions=5"),
        ({}, AttributeError, "interval="),
    ],
)
def test_wrong_parameters_are_refused_at_once(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    class Job(PeriodicService):
        async def callback(self) -> None:
            pass

    with pytest.raises(error, match="Job") as raised:
        Job(**options)
    assert refuses(raised.value, message)


async def test_a_parameter_changed_to_a_wrong_value_is_refused_at_the_start() -> None:
    service = Ticks()
    service.interval = 0
    with pytest.raises(ValueError, match="interval must be greater than 0, not 0"):
        async with entrypoint(service, log_config=False):
            pass


def test_str_shows_the_keywords_and_repr_the_name_and_the_state() -> None:
    assert str(Ticks(interval=42, delay=4815162342)) == "Ticks(interval=42,delay=4815162342)"
    assert repr(Ticks(interval=42, name="job")) == "<Ticks name='job' NEW>"


def test_a_periodic_service_can_be_pickled_before_it_runs() -> None:
    copy = pickle.loads(pickle.dumps(Ticks(interval=42, name="job")))  # noqa: S301 - our own
    assert (copy.interval, copy.name, copy.periodic.name) == (42, "job", "job")
    assert copy.periodic.func == copy.callback


PROGRAM = """
import asyncio
import sys
from svcrun import entrypoint
from svcrun.service.periodic import PeriodicService

class Job(PeriodicService):
    async def callback(self):
        print("begin", flush=True)
        await asyncio.sleep(0.5)
        print("end", flush=True)

with entrypoint(Job(interval=60), {options}) as loop:
    loop.run_forever()
print("over", flush=True)
"""

Run = Callable[..., Program]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_call_in_flight_completes_after_a_signal(
    run_program: Run, signum: signal.Signals
) -> None:
    program = run_program(PROGRAM.format(options=""))
    program.wait_for_line("begin")
    program.send_signal(signum)
    outcome = program.wait()
    assert outcome.stdout.splitlines() == ["begin", "end", "over"]
    assert outcome.returncode == 0


def test_a_call_that_hangs_does_not_outlast_the_shutdown(run_program: Run) -> None:
    source = PROGRAM.format(options="shutdown_timeout=0.5").replace("sleep(0.5)", "sleep(600)")
    program = run_program(source)
    program.wait_for_line("begin")
    program.terminate()
    outcome = program.wait()
    assert outcome.returncode == 70
    assert "<Job STOPPING> did not stop in time" in outcome.stderr
    assert "await asyncio.sleep(600)" in outcome.stderr  # where it hangs


def test_sys_exit_in_a_call_ends_the_program_in_order(run_program: Run) -> None:
    source = PROGRAM.format(options="").replace("await asyncio.sleep(0.5)", "sys.exit(3)")
    outcome = run_program(source).wait()
    assert outcome.returncode == 3
    assert outcome.stdout.splitlines() == ["begin"]
    assert "Traceback" not in outcome.stderr
    assert "never retrieved" not in outcome.stderr
