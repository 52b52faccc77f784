"""Laws of the four hooks (C16)."""

import asyncio
from typing import Any

import pytest

import svcrun
from svcrun import Signal, entrypoint
from svcrun.errors import NotACoroutineFunction, ShuttingDown
from tests.entrypoint.actors import Brief, Failing, Log, Server
from tests.entrypoint.forms import Form
from tests.support import LoopFactory

POINTS = ("PRE_START", "POST_START", "PRE_STOP", "POST_STOP")


@pytest.fixture(autouse=True)
def _restore_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    for point in POINTS:
        monkeypatch.setattr(entrypoint, point, Signal())


def test_the_four_hooks_are_called_before_and_after_start_and_stop_with_the_services(
    live: Form,
) -> None:
    log: Log = []
    service = Server(log=log)

    for point in POINTS:

        @svcrun.receiver(getattr(entrypoint, point))
        async def hook(entrypoint: Any, services: Any, point: str = point) -> None:
            assert services == (service,)
            assert svcrun.entrypoint.get_current() is entrypoint
            log.append(point)

    async def body(_: entrypoint) -> None:
        log.append("block")

    live(service, body=body)
    assert log == [
        *("PRE_START", "server starts", "POST_START", "block"),
        *("PRE_STOP", "server stops", "server is cancelled", "POST_STOP"),
    ]


def test_hooks_of_one_entrypoint_are_not_called_for_another(loop_factory: LoopFactory) -> None:
    log: Log = []

    async def hook(**_: Any) -> None:
        log.append("called")

    ep = entrypoint(loop_factory=loop_factory, log_config=False)
    for signal in (ep.pre_start, ep.post_start, ep.pre_stop, ep.post_stop):
        signal.connect(hook)
    with entrypoint(loop_factory=loop_factory, log_config=False):
        assert not log
    with ep:
        assert len(log) == 2
    assert len(log) == 4


def test_hooks_are_called_for_services_that_start_and_stop_at_run_time(live: Form) -> None:
    log: Log = []
    late = Brief(log=[])

    for point in POINTS:

        @svcrun.receiver(getattr(entrypoint, point))
        async def hook(entrypoint: Any, services: Any, point: str = point) -> None:
            if services == (late,):
                log.append(point)

    async def body(ep: entrypoint) -> None:
        await ep.start_services(late)
        assert log == ["PRE_START", "POST_START"]
        await ep.stop_services(late)
        assert log == list(POINTS)

    live(body=body)
    assert log == list(POINTS)


ERRORS = [ValueError("hook"), SystemExit(3), KeyboardInterrupt()]


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("point", POINTS)
def test_a_hook_that_fails_does_not_keep_services_from_being_stopped(
    live: Form, point: str, error: BaseException, waits: bool
) -> None:
    log: Log = []

    @svcrun.receiver(getattr(entrypoint, point))
    async def hook(**_: Any) -> None:
        if waits:
            await asyncio.sleep(0)
        raise error

    async def body(_: entrypoint) -> None:
        log.append("block")

    with pytest.raises(type(error)) as caught:
        live(Server(log=log), body=body)
    assert caught.value is error
    stopped = ["server stops", "server is cancelled"]
    if point == "PRE_START":
        assert log == []
    elif point == "POST_START":
        assert log == ["server starts", *stopped]
    else:
        assert log == ["server starts", "block", *stopped]


@pytest.mark.parametrize("point", ["PRE_STOP", "POST_STOP"])
def test_a_hook_that_is_cancelled_by_itself_does_not_keep_services_from_being_stopped(
    live: Form, point: str
) -> None:
    log: Log = []

    @svcrun.receiver(getattr(entrypoint, point))
    async def hook(**_: Any) -> None:
        raise asyncio.CancelledError

    live(Server(log=log))
    assert log == ["server starts", "server stops", "server is cancelled"]


@pytest.mark.parametrize("point", ["PRE_STOP", "POST_STOP"])
def test_the_error_of_a_hook_does_not_hide_that_of_the_block(live: Form, point: str) -> None:
    @svcrun.receiver(getattr(entrypoint, point))
    async def hook(**_: Any) -> None:
        raise ValueError("hook")

    async def body(_: entrypoint) -> None:
        raise LookupError("block")

    with pytest.raises(LookupError):
        live(body=body)


def test_errors_of_hooks_and_of_services_are_raised_as_one_group(live: Form) -> None:
    @svcrun.receiver(entrypoint.PRE_STOP)
    @svcrun.receiver(entrypoint.POST_STOP)
    async def hook(**_: Any) -> None:
        raise ValueError("hook")

    with pytest.raises(ExceptionGroup) as caught:
        live(Failing(log=[], error=LookupError("stop"), phase="stop"))
    assert sorted(str(error) for error in caught.value.exceptions) == ["hook", "hook", "stop"]


def test_a_hook_that_fails_after_a_late_start_stops_only_the_services_of_that_start(
    live: Form,
) -> None:
    log: Log = []
    before, late = Server(log=log, name="before"), Brief(log=log, name="late")

    @svcrun.receiver(entrypoint.POST_START)
    async def hook(entrypoint: Any, services: Any) -> None:
        if late in services:
            raise ValueError("hook")

    async def body(ep: entrypoint) -> None:
        with pytest.raises(ValueError, match="hook"):
            await ep.start_services(before, late)
        assert ep.services == (before,)

    live(before, body=body)
    assert log == [
        *("before starts", "late starts", "late stops", "before stops", "before is cancelled")
    ]


def test_no_hook_is_called_for_a_late_start_that_is_refused(live: Form) -> None:
    called: list[Any] = []

    @svcrun.receiver(entrypoint.PRE_START)
    async def hook(entrypoint: Any, services: Any) -> None:
        called.append(services)

    async def body(ep: entrypoint) -> None:
        await ep.graceful_shutdown()
        with pytest.raises(ShuttingDown):
            await ep.start_services(Brief(log=[]))

    live(body=body)
    assert called == [()]


def test_a_hook_that_fails_at_a_late_stop_does_not_keep_the_service_running(live: Form) -> None:
    service = Brief(log=[])

    @svcrun.receiver(entrypoint.PRE_STOP)
    async def hook(entrypoint: Any, services: Any) -> None:
        if services == (service,):
            raise ValueError("hook")

    async def body(ep: entrypoint) -> None:
        await ep.start_services(service)
        with pytest.raises(ValueError, match="hook"):
            await ep.stop_services(service)
        assert ep.services == ()

    live(body=body)


def test_the_wait_for_a_hook_at_a_late_stop_can_be_cancelled(live: Form) -> None:
    log: Log = []

    @svcrun.receiver(entrypoint.PRE_STOP)
    async def hook(entrypoint: Any, services: Any) -> None:
        if not log:
            try:
                await asyncio.Event().wait()
            finally:
                log.append("hook is cancelled")

    service = Brief(log=[])

    async def body(ep: entrypoint) -> None:
        await ep.start_services(service)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ep.stop_services(service), 0.01)
        log.append("block ends")

    live(body=body)
    assert log == ["hook is cancelled", "block ends"]


def test_a_hook_that_is_no_coroutine_function_is_refused_by_name() -> None:
    def plain(**_: Any) -> None: ...

    with pytest.raises(NotACoroutineFunction, match="plain"):
        entrypoint.PRE_START.connect(plain)  # type: ignore[arg-type]


def test_the_hooks_of_an_entrypoint_can_not_be_changed_once_it_is_entered(
    loop_factory: LoopFactory,
) -> None:
    async def hook(**_: Any) -> None: ...

    with entrypoint(loop_factory=loop_factory, log_config=False) as _:
        current = svcrun.entrypoint.get_current()
        with pytest.raises(RuntimeError, match="hook"):
            current.pre_stop.connect(hook)
    entrypoint.PRE_STOP.connect(hook)  # for those to come
