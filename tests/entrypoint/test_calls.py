"""The methods of a running entrypoint (C15, C17)."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

import svcrun
from svcrun import ServiceState, Signal, entrypoint, threaded, threaded_separate
from svcrun.context import get_context
from svcrun.errors import NoEntrypoint, ShuttingDown
from tests.entrypoint.actors import Asking, Brief, Failing, Hanging, Log, Server
from tests.entrypoint.forms import Form
from tests.support import PATIENCE, eventually

# Services that come and go.


def test_services_can_be_started_and_stopped_at_run_time(live: Form) -> None:
    log: Log = []
    first, second = Server(log=log, name="first"), Brief(log=log, name="second")

    async def body(ep: entrypoint) -> None:
        assert list(ep.services) == [first]
        await ep.start_services(second)
        assert list(ep.services) == [first, second]
        await ep.stop_services(first)
        assert list(ep.services) == [second]
        log.append("block ends")

    live(first, body=body)
    assert log == [
        *("first starts", "second starts", "first stops", "first is cancelled"),
        *("block ends", "second stops"),
    ]


def test_a_running_service_is_not_started_again(live: Form) -> None:
    log: Log = []
    service = Brief(log=log)

    async def body(ep: entrypoint) -> None:
        await ep.start_services(service)

    live(service, body=body)
    assert log == ["server starts", "server stops"]


def test_a_failed_late_start_rolls_back_only_the_services_of_the_same_call(live: Form) -> None:
    log: Log = []
    before, along = Server(log=log, name="before"), Server(log=log, name="along")

    async def body(ep: entrypoint) -> None:
        with pytest.raises(ValueError, match="boom"):
            await ep.start_services(along, Failing(log=log, error=ValueError("boom")))
        assert ep.services == (before,)
        log.append("block ends")

    live(before, body=body)
    assert log == [
        *("before starts", "along starts", "along stops", "along is cancelled"),
        *("block ends", "before stops", "before is cancelled"),
    ]


def test_stopping_a_service_stops_those_that_depend_on_it_first(live: Form) -> None:
    log: Log = []
    base = Brief(log=log, name="base")
    above = Brief(log=log, name="above", depends_on=base)

    async def body(ep: entrypoint) -> None:
        await ep.stop_services(base)
        assert ep.services == ()

    live(base, above, body=body)
    assert log == ["base starts", "above starts", "above stops", "base stops"]


def test_the_error_of_a_late_stop_is_raised_there_and_not_again_at_the_end(live: Form) -> None:
    service = Failing(log=[], error=ValueError("boom"), phase="stop")

    async def body(ep: entrypoint) -> None:
        with pytest.raises(ValueError, match="boom"):
            await ep.stop_services(service)

    live(service, body=body)
    assert service.state is ServiceState.FAILED


def test_a_service_can_start_and_stop_other_services(live: Form) -> None:
    log: Log = []
    inner = Brief(log=log, name="inner")

    async def come() -> None:
        await svcrun.entrypoint.get_current().start_services(inner)

    async def go() -> None:
        await svcrun.entrypoint.get_current().stop_services(inner)

    live(Asking(log=log, name="outer", in_start=come, in_stop=go))
    assert sorted(log[:2]) == ["inner starts", "outer starts"]
    assert sorted(log[2:]) == ["inner stops", "outer stops"]


def test_a_service_may_stop_itself_from_its_start(live: Form) -> None:
    log: Log = []

    class Leaving(Server):
        async def start(self) -> None:
            self.start_event.set()
            await asyncio.sleep(0)
            try:
                await svcrun.entrypoint.get_current().stop_services(self)
            finally:
                log.append("start ends")

    service = Leaving(log=log)

    async def body(ep: entrypoint) -> None:
        await eventually(lambda: service.state is ServiceState.STOPPED)
        assert ep.services == ()

    live(service, body=body)
    assert log == ["server stops", "start ends"]


def test_services_may_stop_themselves_and_each_other_from_their_stops(live: Form) -> None:
    log: Log = []

    async def stop_all() -> None:
        await svcrun.entrypoint.get_current().stop_services(*services)

    services = [Asking(log=log, name=name, in_stop=stop_all) for name in ("a", "b", "c")]

    async def body(ep: entrypoint) -> None:
        await asyncio.gather(ep.stop_services(services[0]), ep.stop_services(services[1]))
        assert ep.services == ()

    live(*services, body=body, shutdown_timeout=PATIENCE)
    assert sorted(log[3:]) == ["a stops", "b stops", "c stops"]


@pytest.mark.parametrize("depends_on", ["unknown", "itself"])
def test_an_invalid_dependency_of_a_late_service_is_refused_before_any_start(
    live: Form, depends_on: str
) -> None:
    log: Log = []
    late = Brief(log=log, name="late")
    late.depends_on = late if depends_on == "itself" else Hanging

    async def body(ep: entrypoint) -> None:
        with pytest.raises(ValueError, match="late"):
            await ep.start_services(Brief(log=log), late)
        assert ep.services == ()

    live(body=body)
    assert log == []


def test_a_late_service_may_depend_on_one_that_runs(live: Form) -> None:
    log: Log = []

    async def body(ep: entrypoint) -> None:
        await ep.start_services(Brief(log=log, name="late", depends_on=Server))

    live(Server(log=log), body=body)
    assert log == [
        *("server starts", "late starts", "late stops", "server stops", "server is cancelled")
    ]


def test_a_late_start_in_progress_is_rolled_back_by_the_shutdown(live: Form) -> None:
    log: Log = []
    along = Server(log=log, name="along")
    outcome: list[BaseException] = []

    async def start_late() -> None:
        with pytest.raises(ShuttingDown, match="shutting down") as caught:
            await svcrun.entrypoint.get_current().start_services(along, Hanging(log=log, name="h"))
        outcome.append(caught.value)

    async def body(ep: entrypoint) -> None:
        late = asyncio.create_task(start_late())
        while len(log) < 2:  # noqa: ASYNC110 - a list has no event
            await asyncio.sleep(0)
        await ep.graceful_shutdown()
        await late

    live(body=body)
    assert log[:2] == ["along starts", "h starts"]
    assert sorted(log[2:]) == ["along is cancelled", "along stops", "h is cancelled"]
    assert outcome


def test_nothing_is_started_once_the_shutdown_has_begun(live: Form) -> None:
    log: Log = []

    async def come() -> None:
        with pytest.raises(ShuttingDown, match="shutting down"):
            await svcrun.entrypoint.get_current().start_services(Brief(log=log, name="late"))
        log.append("refused")

    live(Asking(log=log, in_stop=come))
    assert log == ["server starts", "server stops", "refused"]


@pytest.mark.parametrize("name", ["start", "stop", "closing", "shutdown"])
def test_a_call_in_another_loop_is_refused_with_the_remedy_and_changes_nothing(
    live: Form, name: str
) -> None:
    log: Log = []
    service, late = Server(log=log), Brief(log=log, name="late")

    async def body(ep: entrypoint) -> None:
        calls: dict[str, Callable[[], Any]] = {
            "start": lambda: ep.start_services(late),
            "stop": lambda: ep.stop_services(service),
            "closing": ep.closing,
            "shutdown": ep.graceful_shutdown,
        }

        def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="run_coroutine_threadsafe"):
                asyncio.run(calls[name]())

        await asyncio.to_thread(elsewhere)
        assert ep.services == (service,)

    live(service, body=body)
    assert log == ["server starts", "server stops", "server is cancelled"]


def test_another_thread_may_call_in_the_loop_of_the_entrypoint(live: Form) -> None:
    log: Log = []
    late = Brief(log=log, name="late")

    async def body(ep: entrypoint) -> None:
        def elsewhere() -> None:
            for call in (ep.start_services(late), ep.stop_services(late)):
                asyncio.run_coroutine_threadsafe(call, ep.loop).result(PATIENCE)

        await asyncio.to_thread(elsewhere)

    live(body=body)
    assert log == ["late starts", "late stops"]


# The shutdown on request.


def test_graceful_shutdown_called_by_the_block_stops_the_services_and_returns_to_the_block(
    live: Form,
) -> None:
    log: Log = []

    async def body(ep: entrypoint) -> str:
        await ep.graceful_shutdown()
        log.append("block goes on")
        await ep.closing()
        await asyncio.sleep(0)
        await ep.graceful_shutdown()
        return "result"

    assert live(Server(log=log), body=body) == "result"
    assert log == ["server starts", "server stops", "server is cancelled", "block goes on"]


def test_graceful_shutdown_passes_its_error_to_each_stop(live: Form) -> None:
    told: list[BaseException | None] = []

    class Curious(Server):
        async def stop(self, exception: BaseException | None = None) -> None:
            told.append(exception)

    error = ValueError("the reason")

    async def body(ep: entrypoint) -> None:
        await ep.graceful_shutdown(error)

    live(Curious(log=[]), body=body)
    assert told == [error]


def test_graceful_shutdown_called_by_a_service_ends_the_block(live: Form) -> None:
    if live.name == "run":
        pytest.skip("entrypoint.run() exits without a result")
    log: Log = []
    begun = asyncio.Event()

    class Ending(Server):
        async def start(self) -> None:
            self.start_event.set()
            await begun.wait()
            await svcrun.entrypoint.get_current().graceful_shutdown()

    async def body(_: entrypoint) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            log.append("block ends")

    live(Ending(log=log, name="ending"), Server(log=log), body=body)
    assert sorted(log) == [
        *("block ends", "ending stops", "server is cancelled", "server starts", "server stops")
    ]


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "later"])
def test_graceful_shutdown_called_by_a_start_ends_the_start_up_in_order(
    live: Form, waits: bool
) -> None:
    log: Log = []

    async def end() -> None:
        if waits:
            await asyncio.sleep(0.001)
        await svcrun.entrypoint.get_current().graceful_shutdown()

    async def body(_: entrypoint) -> None:
        log.append("never")

    with pytest.raises(SystemExit) as caught:
        live(Server(log=log), Asking(log=log, in_start=end), body=body)
    assert caught.value.code == 0
    assert log == ["server starts", "server stops", "server is cancelled"]


@pytest.mark.parametrize("where", ["stop", "late stop", "pre_stop", "post_stop"])
def test_graceful_shutdown_does_not_wait_for_the_task_that_calls_it(live: Form, where: str) -> None:
    if live.name == "run" and where == "late stop":
        pytest.skip("there is no result then")
    log: Log = []

    async def end(**_: Any) -> None:
        await svcrun.entrypoint.get_current().graceful_shutdown()
        log.append("called")

    service = Asking(log=log, in_stop=None if "_" in where else end)

    async def body(ep: entrypoint) -> None:
        if where == "late stop":
            await ep.stop_services(service)

    hook = getattr(entrypoint, where.upper(), Signal())
    hook.connect(end)
    try:
        live(service, Server(log=log, name="other"), body=body, shutdown_timeout=PATIENCE)
    finally:
        hook.disconnect(end)
    assert log.count("called") == 1
    assert {"server stops", "other stops", "other is cancelled"} <= set(log)


def test_run_without_a_result_exits_in_order() -> None:
    class Ending(Server):
        async def start(self) -> None:
            self.start_event.set()
            await asyncio.sleep(0.01)
            await svcrun.entrypoint.get_current().graceful_shutdown()

    with pytest.raises(SystemExit) as caught:
        svcrun.run(asyncio.sleep(600), Ending(log=[]), log_config=False)
    assert caught.value.code == 0


# The news of the end.


@pytest.mark.parametrize("where", ["block", "service", "task"])
def test_closing_is_released_when_the_shutdown_begins(live: Form, where: str) -> None:
    log: Log = []
    tasks: list[asyncio.Task[None]] = []

    async def wait() -> None:
        await svcrun.entrypoint.get_current().closing()
        log.append("closing")

    class Waiting(Server):
        async def start(self) -> None:
            self.start_event.set()
            await wait()

    async def body(ep: entrypoint) -> None:
        if where == "task":
            tasks.append(asyncio.create_task(wait()))
            await asyncio.sleep(0)
        if where == "block":
            asyncio.get_running_loop().call_soon(asyncio.ensure_future, ep.graceful_shutdown())
            await wait()

    async def slowly() -> None:
        await asyncio.sleep(0.01)

    waiting = [Waiting(log=log, name="waiting")] if where == "service" else []
    live(Asking(log=log, in_stop=slowly, name="slow"), *waiting, body=body)
    assert "closing" in log


def test_closing_an_entrypoint_returns_at_once_when_its_shutdown_has_begun(live: Form) -> None:
    log: Log = []

    async def closing() -> None:
        await svcrun.entrypoint.get_current().closing()
        log.append("closed")

    live(Asking(log=log, in_stop=closing))
    assert log == ["server starts", "server stops", "closed"]


def test_waiting_for_the_end_of_an_entrypoint_can_be_cancelled(live: Form) -> None:
    async def body(ep: entrypoint) -> str:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ep.closing(), 0.01)
        return "done"

    assert live(body=body) == "done"


# Which entrypoint is it?


def ask(found: list[Any]) -> None:
    found.append(svcrun.entrypoint.get_current())


@pytest.mark.parametrize("decorator", [threaded, threaded_separate])
def test_a_threaded_function_finds_its_entrypoint(
    live: Form, decorator: Callable[..., Any]
) -> None:
    found: list[Any] = []

    async def body(ep: entrypoint) -> None:
        await decorator(ask)(found)
        assert found == [ep]

    live(body=body)


def test_callbacks_and_tasks_find_their_entrypoint(live: Form) -> None:
    found: list[Any] = []

    async def task() -> None:
        ask(found)

    async def body(ep: entrypoint) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(ask, found)
        await asyncio.create_task(task())
        await asyncio.to_thread(ask, found)
        assert found == [ep] * 3

    live(body=body)


def test_hooks_find_their_entrypoint(live: Form) -> None:
    found: list[Any] = []

    async def hook(entrypoint: Any, services: Any) -> None:
        found.append(svcrun.entrypoint.get_current() is entrypoint)

    points = entrypoint.PRE_START, entrypoint.POST_START, entrypoint.PRE_STOP, entrypoint.POST_STOP
    for point in points:
        point.connect(hook)
    try:
        live()
    finally:
        for point in points:
            point.disconnect(hook)
    assert found == [True] * 4


def test_a_thread_of_the_program_finds_no_entrypoint(live: Form) -> None:
    found: list[Any] = []

    def thread() -> None:
        with pytest.raises(NoEntrypoint):
            ask(found)
        found.append("none")

    async def body(_: entrypoint) -> None:
        await asyncio.get_running_loop().run_in_executor(None, lambda: None)
        other = threading.Thread(target=thread)
        other.start()
        await asyncio.to_thread(other.join)

    live(body=body)
    assert found == ["none"]


def test_there_is_no_entrypoint_after_its_end(live: Form) -> None:
    live(Server(log=[]))
    with pytest.raises(NoEntrypoint, match="no entrypoint"):
        svcrun.entrypoint.get_current()


async def test_a_task_that_outlives_an_entrypoint_finds_no_current_entrypoint() -> None:
    ended = asyncio.Event()

    async def outlive() -> None:
        svcrun.entrypoint.get_current()
        await ended.wait()
        with pytest.raises(NoEntrypoint):
            svcrun.entrypoint.get_current()

    async with entrypoint(log_config=False):
        task = asyncio.create_task(outlive())
        await asyncio.sleep(0)
    ended.set()
    await task


async def test_each_of_nested_entrypoints_is_the_current_one_where_it_was_entered() -> None:
    async with entrypoint(log_config=False) as outer:
        assert svcrun.entrypoint.get_current() is outer
        async with entrypoint(log_config=False) as inner:
            assert svcrun.entrypoint.get_current() is inner
        assert svcrun.entrypoint.get_current() is outer


async def test_each_task_finds_its_own_of_two_entrypoints_on_one_loop() -> None:
    entered = asyncio.Barrier(2)

    async def program(log: Log) -> None:
        async def note() -> None:
            names.append(svcrun.entrypoint.get_current().services)

        names: list[Any] = []
        service = Asking(log=log, in_stop=note)
        async with entrypoint(service, log_config=False, catch_signals=()) as ep:
            await entered.wait()
            assert svcrun.entrypoint.get_current() is ep
            await asyncio.create_task(note())
            await entered.wait()
        assert names[0] == (service,)

    logs: list[Log] = [[], []]
    await asyncio.gather(*map(program, logs))
    assert logs == [["server starts", "server stops"]] * 2


# The shared context of the services.


def test_services_share_a_context_that_lasts_as_long_as_the_entrypoint(live: Form) -> None:
    log: Log = []

    class Giving(Brief):
        async def start(self) -> None:
            await asyncio.sleep(0.01)
            self.context["key"] = "value"

    class Taking(Brief):
        async def start(self) -> None:
            log.append(await self.context["key"])

    async def body(ep: entrypoint) -> None:
        assert ep.ctx is not None
        assert await ep.ctx["key"] == "value"
        assert get_context() is ep.ctx

    live(Taking(log=[]), Giving(log=[]), body=body)
    assert log == ["value"]
    with pytest.raises(RuntimeError):
        get_context()


def test_waiting_for_a_context_value_that_is_never_set_does_not_delay_the_shutdown(
    live: Form,
) -> None:
    class Taking(Hanging):
        async def start(self) -> None:
            self.start_event.set()
            await self.context["never"]

    service = Taking(log=[])
    live(service)
    assert service.state is ServiceState.STOPPED
