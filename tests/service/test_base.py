"""The base class of services: configuration, checks and tasks."""

from __future__ import annotations

import asyncio
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from svcrun import Restart, Service, ServiceState
from svcrun.service import PeriodicService, SimpleServer, TaskStoreBase

if TYPE_CHECKING:
    from collections.abc import Callable


def make(cls: Callable[..., Any], **parameters: Any) -> Any:
    """Make a service with parameters that type checkers do not know of."""
    return cls(**parameters)


class Greeter(Service):
    __required__ = ("who", "how")

    greeting: str = "Hello"

    async def start(self) -> None: ...


class Worker(TaskStoreBase):
    async def start(self) -> None: ...


# C3


def test_every_keyword_is_an_attribute_and_class_attributes_are_defaults() -> None:
    service = make(Greeter, who="you", how="loudly", anything=[1])
    assert (service.who, service.greeting, service.anything) == ("you", "Hello", [1])
    assert make(Greeter, who="you", how="softly", greeting="Hi").greeting == "Hi"


def test_one_error_names_all_absent_keywords_and_the_class() -> None:
    with pytest.raises(AttributeError, match=r"Greeter needs how=, who="):
        make(Greeter)


def test_a_single_required_name_may_be_a_plain_string() -> None:
    class One(Service):
        __required__ = "foo"

        async def start(self) -> None: ...

    with pytest.raises(AttributeError, match=r"foo="):
        make(One)
    assert make(One, foo=1).foo == 1


def test_a_subclass_can_set_a_keyword_that_its_base_requires() -> None:
    class Polite(Greeter):
        who = "you"

    with pytest.raises(AttributeError, match=r"Polite needs how=$|Polite needs how= "):
        make(Polite)
    assert make(Polite, how="softly").who == "you"


class Host(Service):
    __required__ = "host"


class Login(Service):
    __required__ = ("user", "password")


class Settled(Service):
    user = "guest"


def required_of(*bases: type, **namespace: object) -> frozenset[str]:
    made: Any = type("Made", bases, namespace)
    return frozenset(made.__required__)


@pytest.mark.parametrize("bases", [(Host, Login), (Login, Host)])
def test_keywords_required_by_several_bases_are_required_in_any_order_of_bases(
    bases: tuple[type, ...],
) -> None:
    assert required_of(*bases) == {"host", "user", "password"}


@pytest.mark.parametrize("bases", [(Settled, Login), (Login, Settled)])
def test_a_keyword_set_by_one_base_is_set_in_any_order_of_bases(bases: tuple[type, ...]) -> None:
    assert required_of(*bases) == {"password"}


def test_a_default_in_the_base_that_requires_a_keyword_does_not_set_it() -> None:
    class Picky(Service):
        __required__ = "host"
        host = "the default of a base that wants another"

    assert required_of(Picky) == {"host"}


@pytest.mark.parametrize(
    "own", ["token", ("token",), ["token"], {"token"}, iter(["token"]), {"token": None}.keys()]
)
def test_required_keywords_of_a_subclass_add_to_those_of_its_bases(own: Any) -> None:
    assert required_of(Host, Login, __required__=own) == {"host", "user", "password", "token"}


def test_a_subclass_without_required_keywords_inherits_those_of_its_bases() -> None:
    assert required_of(Host, Login, __required__=()) == {"host", "user", "password"}


def test_a_subclass_that_requires_and_sets_a_keyword_requires_it() -> None:
    assert required_of(Host, __required__="host", host="default") == {"host"}
    assert required_of(Host, __required__="port", host="default") == {"port"}


class WithToken:
    __required__: Any = "token"


class WithTokenAndKey(WithToken):
    __required__ = ("key",)


@pytest.mark.parametrize("bases", [(WithTokenAndKey, Host), (Host, WithTokenAndKey)])
def test_required_keywords_of_a_mixin_hold_in_any_order_of_bases(
    bases: tuple[type, ...],
) -> None:
    assert required_of(*bases) == {"token", "key", "host"}


def test_a_subclass_of_a_service_of_the_package_has_its_required_keywords() -> None:
    class Alpha(PeriodicService):
        __required__ = ("alpha",)

        async def callback(self) -> None: ...

    with pytest.raises(AttributeError, match=r"Alpha needs alpha=, interval="):
        make(Alpha)
    with pytest.raises(AttributeError, match=r"Alpha needs interval="):
        make(Alpha, alpha=1)
    assert make(Alpha, alpha=1, interval=2).interval == 2


def test_the_required_keywords_of_an_indirect_base_are_inherited() -> None:
    class Between(Host):
        pass

    assert required_of(Between) == {"host"}
    assert required_of(Between, Login) == {"host", "user", "password"}


def test_name_is_an_ordinary_keyword_of_every_service() -> None:
    assert Worker(name="first").name == "first"
    assert Worker(name=None).name is None


def test_a_service_without_a_name_has_no_such_attribute() -> None:
    """As in aiomisc, whose programs read it by getattr() with a default."""
    assert getattr(Worker(), "name", "anonymous") == "anonymous"
    assert repr(Worker()) == "<Worker NEW>"


# C4


def test_a_method_that_must_be_a_coroutine_function_is_refused_at_class_creation() -> None:
    with pytest.raises(TypeError, match=r"Wrong\.start"):

        class Wrong(Service):
            def start(self) -> None:  # type: ignore[override]
                pass


def test_further_methods_that_a_base_declares_as_asynchronous_are_checked() -> None:
    class Base(Service):
        __async_required__ = ("handle",)

        async def start(self) -> None: ...

        async def handle(self) -> None: ...

    with pytest.raises(TypeError, match=r"Sub\.handle, Sub\.stop"):

        class Sub(Base):
            def handle(self) -> None:  # type: ignore[override]
                pass

            def stop(self, exception: BaseException | None = None) -> None:  # type: ignore[override]
                pass


def test_a_service_without_a_start_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="start"):
        Service()  # type: ignore[abstract]


# C6


def test_a_service_can_be_pickled_before_it_runs() -> None:
    copy = pickle.loads(pickle.dumps(make(Greeter, who="you", how="loudly", name="g")))  # noqa: S301
    assert (copy.who, copy.how, copy.name, copy.state) == ("you", "loudly", "g", ServiceState.NEW)


async def test_the_pickle_of_a_started_service_is_that_of_a_new_one() -> None:
    service = make(Greeter, who="you", how="loudly")
    service.set_loop(asyncio.get_running_loop())
    service.start_event.set()
    copy = pickle.loads(pickle.dumps(service))  # noqa: S301
    assert copy.state is ServiceState.NEW
    assert not copy.start_event.is_set()


def test_the_representation_shows_class_name_and_state() -> None:
    assert repr(Worker()) == "<Worker NEW>"
    assert repr(Worker(name="w")) == "<Worker name='w' NEW>"


# C7, for the parameters of every service


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("start_timeout", 0, ValueError),
        ("start_timeout", "soon", TypeError),
        ("stop_timeout", -1, ValueError),
        ("stop_timeout", True, TypeError),
        ("on_crash", "restart", ValueError),
        ("on_crash", Restart, ValueError),
        ("depends_on", "database", TypeError),
        ("depends_on", int, TypeError),
        ("depends_on", 5, TypeError),
    ],
)
def test_a_wrong_value_is_refused_with_service_parameter_and_value(
    name: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=rf"Worker 'w': {name} must be .*, not "):
        make(Worker, **{"name": "w", name: value})


# loop, start_event, tasks


def test_the_loop_attribute_outside_of_a_running_loop_is_a_runtime_error() -> None:
    with pytest.raises(RuntimeError):
        _ = Worker().loop


async def test_the_loop_of_a_service_that_was_not_started_is_the_running_one() -> None:
    assert Worker().loop is asyncio.get_running_loop()


async def test_stop_cancels_the_tasks_and_waits_for_their_end() -> None:
    service = Worker()
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    task = service.create_task(work())
    await asyncio.sleep(0)
    assert service.tasks == {task}
    await service.stop()
    assert ended == [True]
    assert task.cancelled()
    assert not service.tasks


async def test_a_task_that_stops_its_own_service_is_not_waited_for() -> None:
    service = Worker()
    task = service.create_task(service.stop())
    await asyncio.wait_for(task, timeout=60)


async def test_stop_of_a_simple_server_closes_it() -> None:
    class Server(SimpleServer):
        async def start(self) -> None:
            self.server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)

    service = Server()
    await service.start()
    server = service.server
    assert server is not None
    await service.stop()
    assert not server.is_serving()
