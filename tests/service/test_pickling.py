"""C6: a pickle or a copy of a service has its keywords, and nothing that is the instance's."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import pickle
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from svcrun import Service, ServiceState, entrypoint
from svcrun.service.periodic import PeriodicService
from svcrun.service.tcp import TCPServer
from tests.service.bases import BASES, find_base, keywords_of
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Certificates


def unpickled(service: Any, protocol: int = pickle.DEFAULT_PROTOCOL) -> Any:
    return pickle.loads(pickle.dumps(service, protocol))  # noqa: S301 - our own


WAYS: list[Callable[[Any], Any]] = [
    *(partial(unpickled, protocol=number) for number in range(pickle.HIGHEST_PROTOCOL + 1)),
    copy.copy,
    copy.deepcopy,
]


class Holding:
    """Mixed into a base, has parameters of its own and sets attributes that can't be pickled."""

    def __init__(self, dsn: str, *, retries: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dsn = dsn
        self.retries = retries
        self.lock = threading.Lock()
        self.function = lambda: self

    async def start(self) -> None:
        self.opened = threading.Lock()
        base: Any = super()
        if not getattr(base.start, "__isabstractmethod__", False):
            await base.start()

    async def callback(self) -> None: ...

    async def handle_client(self, reader: object, writer: object) -> None: ...

    async def handle_datagram(self, data: bytes, addr: object) -> None: ...


def subclass(base: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a subclass that pickle finds in this module."""
    found = find_base(base)
    made = type(found)("Subclass", (Holding, found), {"__module__": __name__})
    monkeypatch.setitem(globals(), "Subclass", made)
    return made


@pytest.mark.parametrize("base", BASES)
async def test_a_pickle_or_a_copy_has_the_keywords_alone_in_every_state(
    base: str, monkeypatch: pytest.MonkeyPatch, certificates: Certificates
) -> None:
    keywords = {**keywords_of(base, certificates), "name": "one", "undeclared": [1]}
    service = subclass(base, monkeypatch)(dsn="there", **keywords)
    keywords["undeclared"] = service.undeclared = [2]

    def check() -> Any:
        for way in WAYS:
            made = way(service)
            assert {name: getattr(made, name) for name in keywords} == keywords
            assert (made.dsn, made.retries, made.state) == ("there", 3, ServiceState.NEW)
            assert not vars(made).keys() & {"lock", "function", "opened"}
        return made

    check()
    async with entrypoint(service, log_config=False):
        made = check()
    check()

    async with entrypoint(made, log_config=False):  # beside nothing that the first one holds
        assert made.state is ServiceState.RUNNING


class Ticks(PeriodicService):
    async def callback(self) -> None:
        CALLED.append(self)


CALLED: list[Ticks] = []


async def test_a_copy_of_a_periodic_service_calls_its_own_method() -> None:
    ticks = Ticks(interval=60)
    for way in WAYS:
        made = way(ticks)
        async with entrypoint(made, log_config=False):
            await eventually(lambda: CALLED)
        assert CALLED.pop() is made


class Parent(Service):
    child: Service

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.itself = self
        self.lock = threading.Lock()

    async def start(self) -> None: ...


def test_a_service_in_several_keywords_stays_one_service_in_a_pickle() -> None:
    ticks = Ticks(interval=60)
    parent, child = unpickled((Parent(child=ticks, depends_on=[ticks]), ticks))
    assert parent.child is child
    assert parent.depends_on == [child]


class Stateful(Service):
    async def start(self) -> None: ...

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "count": self.count}

    count = 0


def test_a_subclass_may_add_to_its_pickle() -> None:
    service = Stateful(name="it")
    service.count = 5
    made = unpickled(service)
    assert (made.name, made.count) == ("it", 5)


class Careless(Service):
    def __init__(self) -> None:
        """Leave the base out."""

    async def start(self) -> None: ...


def test_a_service_that_does_not_call_the_init_of_its_base_can_be_pickled() -> None:
    assert unpickled(Careless()).state is ServiceState.NEW


class Server(TCPServer):
    async def handle_client(self, reader: Any, writer: Any) -> None: ...


def listen(service: Server, found: Any) -> None:
    async def main() -> None:
        async with entrypoint(service, log_config=False):
            found.put((service.name, service.port))

    asyncio.run(main())


async def test_a_running_server_can_be_handed_to_a_spawned_process() -> None:
    """The child binds the port that was configured, a free one here, not the one in use."""
    context = multiprocessing.get_context("spawn")
    found: Any = context.SimpleQueue()
    async with entrypoint(Server("127.0.0.1", 0, name="it"), log_config=False) as ep:
        (service,) = ep.services
        child = context.Process(target=listen, args=(service, found))
        child.start()
        await asyncio.to_thread(child.join, 60)
        assert child.exitcode == 0
        name, port = found.get()
        found.close()
        child.close()
        assert name == "it"
        assert port not in (0, service.port)  # type: ignore[attr-defined]


class Described(Service):
    @property
    def colour(self) -> str:
        return self._colour

    @colour.setter
    def colour(self, value: str) -> None:
        self._colour = value

    async def start(self) -> None: ...


def test_a_keyword_that_sets_a_property_is_in_the_pickle() -> None:
    made = unpickled(Described(colour="red"))  # type: ignore[call-arg]
    assert made.colour == "red"


class Dumping(TCPServer):
    """A service that pickles its `__dict__` without a lock, as in Python's manual."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.lock = threading.Lock()

    def handle_client(self, reader: object, writer: object) -> None: ...


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
async def test_a_state_of_the_subclass_s_own_makes_a_new_service(protocol: int) -> None:
    service = Dumping(address="127.0.0.1", port=0)
    for _ in ("new", "stopped"):
        other = unpickled(service, protocol)
        assert other.state is ServiceState.NEW
        async with entrypoint(service, other, log_config=False):
            assert unpickled(service, protocol).state is ServiceState.NEW
            assert other.port not in (0, service.port)
