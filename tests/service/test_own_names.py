"""A service may use any attribute names: its life cycle has a record of its own (C3a)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from svcrun import Service, ServiceState, entrypoint
from svcrun._util.current_service import name_of
from svcrun.service import PeriodicService, TaskStoreBase, TLSServer
from svcrun.service._stream import StreamServer

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = (
    "state",
    "loop",
    "context",
    "start_event",
    "tasks",
    "record",
    "_state",
    "_loop",
    "_context",
    "_crashes",
    "_start_event",
    "_keywords",
    "_stops_last",
    "_record",
    "_tasks",
    "stop_takes_exception",
    "parts",
)


class Steps(TaskStoreBase):
    """A service that waits in start() and records its steps."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps: list[str] = []

    async def start(self) -> None:
        self.steps.append("start")
        _ = self.create_task(asyncio.sleep(3600))
        await asyncio.sleep(0)

    async def stop(self, exception: BaseException | None = None) -> None:
        self.steps.append("stop")
        await super().stop(exception)


def make(cls: Callable[..., Any], **parameters: Any) -> Any:
    """Make a service with parameters that type checkers do not know of."""
    return cls(**parameters)


def by_keyword(name: str) -> Any:
    return make(Steps, **{name: "own"})


def in_init(name: str) -> Any:
    class Own(Steps):
        def __init__(self) -> None:
            setattr(self, name, "own")
            super().__init__()

    return Own()


def in_start(name: str) -> Any:
    class Own(Steps):
        async def start(self) -> None:
            setattr(self, name, "own")
            await super().start()

    return Own()


def in_class(name: str) -> Any:
    return type("Own", (Steps,), {name: "own"})()


WAYS = (by_keyword, in_init, in_start, in_class)


async def live(service: Any) -> None:
    async with entrypoint(service, log_config=False):
        assert f"{service!r}" == f"<{type(service).__qualname__} RUNNING>"
    assert f"{service!r}" == f"<{type(service).__qualname__} STOPPED>"
    assert service.steps == ["start", "stop"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", WAYS)
async def test_an_attribute_with_a_name_of_the_life_cycle_keeps_its_value(
    name: str, way: Callable[[str], Any]
) -> None:
    service = way(name)
    await live(service)
    assert getattr(service, name) == "own"
    service.steps.clear()
    await live(service)


@pytest.mark.parametrize("name", [*NAMES, "set", "get", "moved"])
async def test_a_method_or_a_property_may_have_any_of_these_names(name: str) -> None:
    await live(type("Method", (Steps,), {name: lambda self: "own"})())
    await live(type("Property", (Steps,), {name: property(lambda self: "own")})())


async def test_tasks_end_with_a_service_that_has_an_attribute_called_tasks() -> None:
    service: Any = in_init("tasks")
    async with entrypoint(service, log_config=False):
        (task,) = (task for task in asyncio.all_tasks() if "sleep" in repr(task.get_coro()))
    assert task.cancelled()
    assert service.tasks == "own"


async def test_a_start_event_that_the_service_created_itself_marks_it_as_ready() -> None:
    class Own(Service):
        def __init__(self) -> None:
            self.start_event = asyncio.Event()

        async def start(self) -> None:
            await asyncio.sleep(0)
            self.start_event.set()
            await asyncio.Event().wait()

    class Derived(asyncio.Event): ...

    class OfClass(Own):
        def __init__(self) -> None: ...

        start_event = Derived()

    for service in (Own(), OfClass()):
        for _ in ("start", "restart"):
            async with entrypoint(service, log_config=False, start_timeout=60):
                assert "RUNNING" in repr(service)
            assert "STOPPED" in repr(service)


async def test_the_event_of_an_earlier_start_does_not_mark_a_service_as_ready() -> None:
    class Own(Service):
        def __init__(self) -> None:
            self.start_event = asyncio.Event()
            self.ready = asyncio.Event()

        async def start(self) -> None:
            await self.ready.wait()
            self.start_event.set()
            await asyncio.Event().wait()

    service = Own()
    service.ready.set()
    async with entrypoint(service, log_config=False):
        pass
    service.ready.clear()
    async with entrypoint(log_config=False) as ep:
        starting = asyncio.ensure_future(ep.start_services(service))
        await asyncio.sleep(0)
        assert "STARTING" in repr(service)
        service.ready.set()
        await starting


def test_names_of_the_record_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^Taken\._svcrun_internals is reserved for svcrun"):
        type("Taken", (Steps,), {"_svcrun_internals": 3})
    with pytest.raises(TypeError, match=r"^Steps\._svcrun_given is reserved for svcrun"):
        make(Steps, _svcrun_given=3)


async def test_a_service_may_be_a_dataclass() -> None:
    @dataclass(repr=False)
    class Data(Steps):
        state: str = "idle"  # type: ignore[assignment]
        retries: int = 3

        def __post_init__(self) -> None:
            self.steps = []

    await live(Data(retries=5))


async def test_a_service_may_have_slots() -> None:
    class Slotted(Steps):
        __slots__ = ("_state", "state")

        def __init__(self) -> None:
            super().__init__()
            self.state = self._state = "own"

    await live(Slotted())


async def test_a_service_may_keep_its_attributes_elsewhere() -> None:
    class Elsewhere(Steps):
        def __setattr__(self, name: str, value: Any) -> None:
            self.__dict__.setdefault("elsewhere", {})[name] = value

        def __getattr__(self, name: str) -> Any:
            try:
                return self.__dict__["elsewhere"][name]
            except KeyError:
                raise AttributeError(name) from None

    await live(make(Elsewhere, retries=5))


async def test_a_service_may_refuse_attributes() -> None:
    class Frozen(Service):
        def __setattr__(self, name: str, value: Any) -> None:
            raise TypeError("frozen")

        async def start(self) -> None: ...

    service = Frozen()
    async with entrypoint(service, log_config=False):
        assert service.state is ServiceState.RUNNING


async def test_a_loop_may_be_given_to_a_service_or_kept_by_it() -> None:
    loop = asyncio.get_running_loop()
    given = make(Steps, loop=loop)
    assert given.loop is loop
    await live(given)
    other = in_start("loop")
    await live(other)
    assert other.loop == "own"


@pytest.mark.parametrize("name", ["start", "stop"])
@pytest.mark.parametrize("value", [3, None, "start", ()])
def test_a_keyword_that_replaces_a_method_must_be_a_function(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"^Steps: {name} must be a function"):
        make(Steps, **{name: value})


@pytest.mark.parametrize("value", [3, None, lambda self: None, staticmethod(lambda: None)])
def test_a_class_whose_set_loop_is_no_method_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"^Own\.set_loop must be a method"):
        type("Own", (Steps,), {"set_loop": value})


async def test_a_method_called_name_is_not_the_name_of_the_service() -> None:
    def name(self: Any) -> str:
        return "own"

    service = type("Own", (Steps,), {"name": name})()
    await live(service)
    assert name_of(service) == "Own"


class Attributes:
    """A service whose __init__ sets attributes and calls no other __init__."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


async def handle(self: Any, *args: Any) -> None: ...


@pytest.mark.parametrize(
    ("base", "absent"), [(PeriodicService, "interval="), (TLSServer, "cert=, key=")]
)
async def test_an_init_that_omits_a_required_keyword_fails_the_start_by_its_name(
    base: type, absent: str
) -> None:
    namespace = {"callback": handle, "handle_client": handle}
    own: Any = type("Own", (Attributes, base), namespace)
    with pytest.raises(AttributeError, match=f"Own needs {absent} among"):
        async with entrypoint(own(address="127.0.0.1", port=0), log_config=False):
            pass


def test_a_private_attribute_of_a_class_with_the_name_of_its_base_is_refused_if_that_has_it() -> (
    None
):
    def init(self: Any) -> None:
        self._StreamServer__close_listener = 1

    type("Other", (StreamServer,), {"__init__": init})
    with pytest.raises(TypeError, match=r"^StreamServer\.__close_listener is reserved for svcrun"):
        type("StreamServer", (StreamServer,), {"__init__": init})
