"""A service that crashes while others run is handled as its `on_crash` says (C14)."""

import asyncio
import logging
from typing import Any

import pytest

from svcrun import Restart, ServiceState, entrypoint
from svcrun.errors import DependencyDown
from tests.entrypoint.actors import Asking, Brief, Log, Server
from tests.entrypoint.forms import Form
from tests.entrypoint.programs import Run, lines
from tests.support import eventually

AT_ONCE = Restart(limit=3, window=600, delay=0, jitter=0)


class Crashing(Server):
    """A service that crashes on request, in a given number of its runs."""

    crashes = 1
    on_crash = AT_ONCE

    def __init__(self, **kwargs: Any) -> None:
        self.crash = asyncio.Event()
        self.told: list[BaseException | None] = []
        super().__init__(**kwargs)

    async def start(self) -> None:
        self.log.append(f"{self.name} starts")
        self.start_event.set()
        await self.crash.wait()
        if self.crashes:
            self.crashes -= 1
            raise ValueError(f"crash of {self.name}")
        await asyncio.Event().wait()

    async def stop(self, exception: BaseException | None = None) -> None:
        self.told.append(exception)
        await super().stop(exception)


async def crash(service: Crashing) -> None:
    """Crash a service, and wait until it runs again."""
    service.crash.set()
    await eventually(lambda: service.told and service.state is ServiceState.RUNNING)


def test_a_restart_goes_through_stop_and_start_of_the_service_and_those_that_depend_on_it(
    live: Form,
) -> None:
    log: Log = []
    below = Server(log=log, name="below")
    middle = Crashing(log=log, name="middle", depends_on=below)
    above = Brief(log=log, name="above", depends_on=middle)

    async def body(ep: entrypoint) -> None:
        log.clear()
        await crash(middle)
        await eventually(lambda: above.state is ServiceState.RUNNING)
        assert log == ["above stops", "middle stops", "middle starts", "above starts"]
        assert set(ep.services) == {below, middle, above}
        log.clear()

    live(below, middle, above, body=body)
    assert log == ["above stops", "middle stops", "below stops", "below is cancelled"]


def test_the_stop_before_a_restart_receives_the_crash_and_the_final_stop_does_not(
    live: Form,
) -> None:
    service = Crashing(log=[], name="it")

    async def body(_: entrypoint) -> None:
        await crash(service)

    live(service, body=body)
    first, last = service.told
    assert str(first) == "crash of it"
    assert last is None


def test_every_crash_is_logged_with_its_service_and_traceback(
    live: Form, caplog: pytest.LogCaptureFixture
) -> None:
    service = Crashing(log=[], name="it")

    async def body(_: entrypoint) -> None:
        await crash(service)

    live(service, body=body)
    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert "Crashing name='it'" in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "crash of it"


def test_past_the_limit_of_restarts_the_block_ends_with_the_last_error(live: Form) -> None:
    log: Log = []
    service = Crashing(log=log, name="it", crashes=10)

    async def body(_: entrypoint) -> None:
        service.crash.set()
        await asyncio.Event().wait()

    with pytest.raises(ValueError, match="crash of it"):
        live(service, Server(log=log), body=body)
    assert log.count("it starts") == log.count("it stops") == 1 + AT_ONCE.limit
    assert log[-3:] in (
        ["server stops", "it stops", "server is cancelled"],
        ["it stops", "server stops", "server is cancelled"],
    )


def test_a_pending_restart_does_not_delay_the_shutdown(live: Form) -> None:
    log: Log = []
    service = Crashing(log=log, name="it", on_crash=Restart(delay=600, max_delay=600, jitter=0))

    async def body(_: entrypoint) -> None:
        service.crash.set()
        await eventually(lambda: service.state is ServiceState.STOPPED)

    live(service, body=body)
    assert log == ["it starts", "it stops"]


def test_an_ignored_crash_affects_no_other_service_and_the_service_is_stopped_at_the_end(
    live: Form,
) -> None:
    log: Log = []
    service = Crashing(log=log, name="it", on_crash="ignore")
    above = Brief(log=log, name="above", depends_on=service)

    async def body(ep: entrypoint) -> None:
        service.crash.set()
        await eventually(lambda: service.state is ServiceState.FAILED)
        assert ep.services == (service, above)
        assert log == ["it starts", "above starts"]

    live(service, above, body=body)
    assert log[2:] == ["above stops", "it stops"]
    assert service.told == [None]


def test_the_error_of_a_start_whose_dependency_crashed_names_the_dependency(live: Form) -> None:
    log: Log = []
    below = Crashing(log=log, name="below")

    async def let_it_crash() -> None:
        below.crash.set()
        await asyncio.Event().wait()

    above = Asking(log=log, name="above", depends_on=below, in_start=let_it_crash)
    with pytest.raises(DependencyDown, match=r"above.* depends on .*below") as caught:
        live(below, above)
    assert caught.value.dependency is below
    assert log == ["below starts", "below stops"]


def test_a_crash_makes_the_program_exit_with_an_error(run: Run) -> None:
    outcome = run(
        """
        class Crashing(Server):
            async def start(self):
                self.start_event.set()
                await asyncio.sleep(0.01)
                raise LookupError("the reason")

        with entrypoint(Server(), Crashing(name="culprit")) as loop:
            loop.run_forever()
        say("never")
        """
    )
    assert outcome.returncode == 1
    assert lines(outcome)[1:] == ["stopped LookupError('the reason')"] * 2 + ["cancelled"]
    assert "ERROR:svcrun.lifecycle:<Crashing name='culprit' FAILED> crashed\nTraceback" in (
        outcome.stderr
    )
