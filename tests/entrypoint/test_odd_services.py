"""A service that is written in an odd way fails alone and disturbs no other service."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import svcrun
from svcrun import Restart, Service, ServiceState, entrypoint
from svcrun.errors import StartCancelled, StartTimeout
from tests.entrypoint.actors import Asking, Brief, Failing, Hanging, Log, Server
from tests.entrypoint.forms import Form


def make(cls: Callable[..., Any], **parameters: Any) -> Any:
    """Make a service with parameters that type checkers do not know of."""
    return cls(**parameters)


async def forever(_: entrypoint) -> None:
    await asyncio.Event().wait()


# Names, comparisons, representations.


def test_services_of_the_same_name_and_class_are_distinguished(live: Form) -> None:
    log: Log = []
    services = [Server(log=log, name="twin") for _ in range(2)]

    async def body(ep: entrypoint) -> None:
        assert list(ep.services) == services
        await ep.stop_services(services[0])
        assert list(ep.services) == services[1:]

    live(*services, body=body)
    assert log == ["twin starts"] * 2 + ["twin stops", "twin is cancelled"] * 2


def test_a_service_is_never_compared_hashed_counted_or_iterated(live: Form) -> None:
    class Prickly(Server):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise LookupError

        def __bool__(self) -> bool:
            raise LookupError

        def __len__(self) -> int:
            raise LookupError

        def __iter__(self) -> Any:
            raise LookupError

    log: Log = []
    first = Prickly(log=log, name="first")
    second = Prickly(log=log, name="second", depends_on=first)

    async def body(ep: entrypoint) -> None:
        await ep.stop_services(second)

    live(first, second, body=body)
    assert log == [
        *("first starts", "second starts", "second stops", "second is cancelled"),
        *("first stops", "first is cancelled"),
    ]


def test_services_that_compare_equal_are_distinguished(live: Form) -> None:
    class Same(Brief):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return True

    async def hook(entrypoint: Any, services: Any) -> None:
        if len(services) == 1:
            raise ValueError("hook")

    log: Log = []
    services = [Same(log=log, name=name) for name in ("a", "b")]
    late = Same(log=log, name="late", depends_on=services[1])

    async def body(ep: entrypoint) -> None:
        assert [service.name for service in ep.services] == ["a", "b"]
        with pytest.raises(ValueError, match="hook"):
            await ep.start_services(late)
        assert [service.name for service in ep.services] == ["a", "b"]

    entrypoint.POST_START.connect(hook)
    try:
        live(*services, body=body)
    finally:
        entrypoint.POST_START.disconnect(hook)
    assert log == ["a starts", "b starts", "late starts", "late stops", "a stops", "b stops"]


class Unspeakable:
    """A part of services that can't be shown."""

    def __repr__(self) -> str:
        raise LookupError("from __repr__()")


class UnspeakableFailing(Unspeakable, Failing):
    pass


class UnspeakableHanging(Unspeakable, Hanging):
    pass


@pytest.mark.parametrize("on_crash", ["shutdown", Restart(limit=1, delay=0)])
def test_the_crash_of_a_service_without_a_working_repr_is_logged(
    live: Form, on_crash: Any, caplog: pytest.LogCaptureFixture
) -> None:
    error = ValueError("crash")
    with pytest.raises(ValueError, match="crash") as caught:
        live(UnspeakableFailing(log=[], error=error, phase="run", on_crash=on_crash), body=forever)
    assert caught.value is error
    assert "UnspeakableFailing" in caplog.text
    assert "crashed" in caplog.text


def test_the_start_time_limit_applies_to_a_service_without_a_working_repr(
    live: Form,
) -> None:
    with pytest.raises(StartTimeout, match=r"UnspeakableHanging.* did not start within 0\.05 s"):
        live(UnspeakableHanging(log=[]), start_timeout=0.05)


def test_the_stop_time_limit_applies_to_a_service_without_a_working_repr(
    live: Form, caplog: pytest.LogCaptureFixture
) -> None:
    class Stuck(Unspeakable, Server):
        async def stop(self, exception: BaseException | None = None) -> None:
            await asyncio.Event().wait()

    log: Log = []
    with pytest.raises(SystemExit) as caught:
        live(Stuck(log=log, name="stuck", stop_timeout=0.05), Server(log=log))
    assert caught.value.code == 70
    assert "Stuck" in caplog.text
    assert log[2:] == ["server stops", "stuck is cancelled", "server is cancelled"]


def test_the_start_of_a_service_without_a_working_repr_can_be_cancelled(
    live: Form,
) -> None:
    class Giving(Unspeakable, Server):
        async def start(self) -> None:
            await asyncio.sleep(0)
            raise asyncio.CancelledError

    with pytest.raises(StartCancelled, match="Giving"):
        live(Giving(log=[]))


# Methods.


def passing(function: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """A wrapper that passes all arguments on, as decorators do."""

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> None:
        await function(*args, **kwargs)

    return wrapper


def dropping(function: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """A wrapper that passes no argument on."""

    @functools.wraps(function)
    async def wrapper(self: Any) -> None:
        await function(self)

    return wrapper


ERROR = ValueError("the reason")


class Stops:
    """The ways to write ``stop()``, by the argument that each receives."""

    async def all(self, *args: Any) -> None:
        TOLD.append(args)

    async def by_another_name(self, reason: Any) -> None:
        TOLD.append((reason,))

    async def nothing(self) -> None:
        TOLD.append(())

    @passing
    async def nothing_decorated(self) -> None:
        TOLD.append(())

    @svcrun.timeout(600)
    async def one_decorated(self, exception: Any) -> None:
        TOLD.append((exception,))

    @dropping
    async def one_but_dropped(self, exception: Any = None) -> None:
        TOLD.append(() if exception is None else (exception,))

    async def keywords(self, **kwargs: Any) -> None:
        TOLD.append(tuple(kwargs.values()))

    @classmethod
    async def of_the_class(cls, exception: Any) -> None:
        TOLD.append((exception,))


TOLD: list[tuple[Any, ...]] = []
SILENT = {"nothing", "nothing_decorated", "one_but_dropped", "keywords"}


@pytest.mark.parametrize("way", [name for name in vars(Stops) if name[0] != "_"])
def test_a_stop_receives_the_error_if_it_has_a_parameter(live: Form, way: str) -> None:
    class Odd(Brief):
        stop = vars(Stops)[way]

    async def body(_: entrypoint) -> None:
        raise ERROR

    TOLD.clear()
    with pytest.raises(ValueError, match="the reason"):
        live(Odd(log=[]), body=body)
    assert [() if way in SILENT else (ERROR,)] == TOLD


def test_a_stop_that_can_not_be_called_is_a_failure_of_that_service_alone(live: Form) -> None:
    class Greedy(Brief):
        async def stop(self, one: Any, two: Any) -> None:  # type: ignore[override]
            raise AssertionError

    log: Log = []
    service = Greedy(log=log, name="greedy")
    with pytest.raises(TypeError, match="two"):
        live(Server(log=log), service)
    assert log[2:] == ["server stops", "server is cancelled"]
    assert service.state is ServiceState.FAILED


def test_methods_given_to_the_instance_are_called(live: Form) -> None:
    log: Log = []

    async def start() -> None:
        log.append("starts")

    async def stop(exception: BaseException | None) -> None:
        log.append("stops")

    class Plain(Service):
        async def start(self) -> None:
            raise AssertionError

    live(make(Plain, start=start, stop=stop))
    assert log == ["starts", "stops"]


async def generate() -> Any:
    yield


@pytest.mark.parametrize("start", [lambda: None, lambda: 5, lambda: generate()])  # noqa: PLW0108
def test_a_start_that_makes_no_coroutine_fails_the_start(live: Form, start: Any) -> None:
    log: Log = []
    service = make(Brief, log=log, name="odd", start=start)
    with pytest.raises(TypeError):
        live(Server(log=log), service)
    assert log == ["server starts", "server stops", "server is cancelled"]
    assert service.state is ServiceState.FAILED


def test_a_start_that_is_a_generator_is_refused_at_construction() -> None:
    with pytest.raises(
        TypeError, match=r"Brief: start must be .* not a generator, not <function generate at"
    ):
        make(Brief, log=[], name="odd", start=generate)


# Attributes.


@pytest.mark.parametrize("name", ["depends_on", "start_timeout", "stop_timeout", "on_crash"])
def test_a_parameter_that_can_not_be_read_fails_the_start_before_anything_is_started(
    live: Form, name: str
) -> None:
    def fail(self: Any) -> None:
        raise LookupError(f"no {name} today")

    log: Log = []
    odd: Any = type("Odd", (Brief,), {name: property(fail)})
    with pytest.raises(LookupError, match=name):
        live(Server(log=log), odd(log=log))
    assert log == []


def test_a_stop_timeout_that_became_invalid_cuts_no_stop_short(
    live: Form, caplog: pytest.LogCaptureFixture
) -> None:
    log: Log = []

    async def slowly() -> None:
        await asyncio.sleep(0.01)
        log.append("stopped")

    service: Any = Asking(log=log, name="odd", in_stop=slowly)

    async def body(_: entrypoint) -> None:
        service.stop_timeout = "soon"

    with pytest.raises(TypeError):
        live(Server(log=log), service, body=body)
    assert log[2:] == ["server stops", "odd stops", "stopped", "server is cancelled"]
    assert "stop_timeout of <Asking name='odd'" in caplog.text


def test_an_on_crash_that_became_invalid_shuts_down(live: Form) -> None:
    service: Any = Failing(log=[], error=ValueError("crash"), phase="run")

    async def body(_: entrypoint) -> None:
        service.on_crash = "explode"
        await asyncio.Event().wait()

    with pytest.raises(ValueError, match="crash"):
        live(service, body=body)


def test_a_set_loop_that_fails_fails_the_start(live: Form) -> None:
    class Odd(Brief):
        def set_loop(self, loop: asyncio.AbstractEventLoop) -> None:
            raise LookupError("set_loop")

    log: Log = []
    with pytest.raises(LookupError, match="set_loop"):
        live(Server(log=log), Odd(log=log))
    assert log == ["server starts", "server stops", "server is cancelled"]


def test_a_service_that_does_not_call_its_base_class_runs(live: Form) -> None:
    class Own(Service):
        def __init__(self, log: Log) -> None:
            self.log = log

        async def start(self) -> None:
            self.log.append("starts")

    log: Log = []
    live(Own(log))
    assert log == ["starts"]
