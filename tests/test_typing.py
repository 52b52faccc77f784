"""The types of services and entrypoints: mypy checks this file, and the tests run it (C5).

Each ``type: ignore`` stands for an error that mypy must report: an unused one is an error itself.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, assert_type

import pytest

import svcrun
from svcrun import Context, Restart, Service, ServiceState, entrypoint
from svcrun.service import (
    GracefulService,
    PeriodicService,
    TaskStoreBase,
    TCPServer,
    TLSServer,
    UDPServer,
)
from tests.conftest import Certificates


class Base(Service):
    port: int
    host: str = "localhost"

    async def start(self) -> None: ...


class Derived(Base):
    retries: int = 3


class Own(Service):
    def __init__(self, first: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.first = first

    async def start(self) -> None: ...


class Tasks(TaskStoreBase):
    async def start(self) -> None: ...


class Client:
    """Something that a service makes in its start."""


class Connected(Service):
    """Declares an attribute that its start sets, which is no keyword."""

    url: str
    client: Client = svcrun.parameter(init=False)

    async def start(self) -> None:
        self.client = Client()
        self.loop = asyncio.get_running_loop()
        self.state = "connected"

    async def stop(self, exception: Exception | None = None) -> None:
        await super().stop(exception)


class Plain(TCPServer):
    """Has handlers that are no coroutine functions, and a stop() with a narrower parameter."""

    def handle_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None: ...

    async def stop(self, exception: Exception | None = None) -> None:
        await super().stop(exception)


class Datagrams(UDPServer):
    def handle_datagram(self, data: bytes, addr: tuple[str, int]) -> None: ...

    async def stop(self, exception: Exception | None = None) -> None:
        await super().stop(exception)


class Periodic(PeriodicService):
    def callback(self) -> int:
        return 1

    async def stop(self, exception: Exception | None = None) -> None:
        await super().stop(exception)


class Graceful(GracefulService):
    async def start(self) -> None: ...

    async def stop(self, exception: RuntimeError | None = None) -> None:
        await super().stop(exception)


# Entrypoints.


def test_a_with_block_gets_the_loop() -> None:
    with entrypoint(log_config=False) as loop:
        assert_type(loop, asyncio.AbstractEventLoop)
        assert_type(loop.run_until_complete(asyncio.sleep(0, 42)), int)


async def test_an_async_with_block_gets_the_entrypoint() -> None:
    async with entrypoint(log_config=False) as ep:
        assert_type(ep, entrypoint)
        assert_type(ep.loop, asyncio.AbstractEventLoop)
        assert_type(ep.services, tuple[Service, ...])
        assert_type(ep.ctx, Context | None)
        assert_type(svcrun.entrypoint.get_current(), entrypoint)
        assert_type(svcrun.Entrypoint.get_current(), entrypoint)


def test_run_returns_the_result_of_the_coroutine() -> None:
    assert_type(svcrun.run(asyncio.sleep(0, "result"), Derived(port=1), log_config=False), str)


def test_code_after_a_block_can_be_reached() -> None:
    reached = False
    with entrypoint(log_config=False):
        reached = True
    assert reached  # of a block that may swallow errors, a type checker would doubt this


def test_the_options_of_an_entrypoint_are_known_to_type_checkers() -> None:
    with pytest.raises(TypeError, match="poolsize"):
        entrypoint(poolsize=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="pool_size"):
        entrypoint(pool_size="3")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is a class"):
        entrypoint(Base)  # type: ignore[arg-type]


def test_a_hook_keeps_its_type() -> None:
    @svcrun.receiver(svcrun.Signal())
    async def hook(entrypoint: entrypoint, services: tuple[Service, ...]) -> int:
        return len(services)

    with entrypoint(log_config=False) as loop:
        ep = svcrun.entrypoint.get_current()
        assert_type(loop.run_until_complete(hook(ep, ep.services)), int)


# Services.


def test_the_annotations_of_a_service_are_its_keywords() -> None:
    service = Derived(port=1, retries=5)
    assert_type(service.port, int)
    assert_type(service.host, str)
    assert_type(service.retries, int)


def test_the_keywords_that_every_service_has_are_known() -> None:
    service = Derived(
        port=1,
        name="it",
        depends_on=[Base, Own(1)],
        start_timeout=1,
        stop_timeout=0.5,
        on_crash=Restart(limit=3),
    )
    assert_type(service.name, str | None)
    assert_type(service.state, ServiceState)
    assert_type(service.start_event, asyncio.Event)
    Base(port=1, on_crash="ignore", depends_on=Derived)


def test_an_undeclared_keyword_is_an_error_to_type_checkers_only() -> None:
    service = Derived(port=1, prot=2)  # type: ignore[call-arg]
    assert vars(service)["prot"] == 2


def test_a_keyword_without_a_default_is_mandatory_to_type_checkers_only() -> None:
    Derived()  # type: ignore[call-arg]


def test_a_keyword_of_the_wrong_type_is_an_error_to_type_checkers() -> None:
    Derived(port="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on_crash"):
        Derived(port=1, on_crash="explode")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="depends_on"):
        Derived(port=1, depends_on="Base")  # type: ignore[arg-type]


def test_a_private_attribute_is_no_keyword() -> None:
    with pytest.raises(TypeError):
        Derived(1)  # type: ignore[arg-type, call-arg]
    Derived(port=1, _state=ServiceState.STOPPED)  # type: ignore[call-arg]


def test_an_attribute_that_the_start_sets_is_no_keyword() -> None:
    assert vars(Connected)["client"] is None
    Connected()  # type: ignore[call-arg]
    Connected(url="here", client=Client())  # type: ignore[call-arg]


async def test_a_loop_and_a_state_may_be_set() -> None:
    loop = asyncio.get_running_loop()
    assert_type(Connected(url="here", loop=loop).loop, asyncio.AbstractEventLoop)
    async with entrypoint(Connected(url="here"), log_config=False) as ep:
        assert_type(ep.services[0].state, ServiceState)
        assert str(ep.services[0].state) == "connected"


def test_a_stop_may_take_any_kind_of_exception() -> None:
    assert Plain("127.0.0.1", 0).port == 0
    assert Datagrams("127.0.0.1", 0).port == 0
    assert Periodic(interval=1).interval == 1
    assert Graceful(name="it").name == "it"


def test_the_constructor_of_a_service_defines_its_keywords() -> None:
    assert_type(Own(1, name="it", whatever=5).first, int)
    with pytest.raises(TypeError, match="first"):
        Own()  # type: ignore[call-arg]


def test_an_attribute_of_a_running_service_is_no_keyword(certificates: Certificates) -> None:
    class Secure(TLSServer):
        async def handle_client(self, reader: Any, writer: Any) -> None: ...

    server = Secure("localhost", 0, cert=certificates.server_cert, key=certificates.server_key)
    assert_type(server.socket, socket.socket | None)


def test_the_parameters_of_the_aiohttp_services_are_known(certificates: Certificates) -> None:
    pytest.importorskip("aiohttp")
    from aiohttp import web

    from svcrun.service.aiohttp import AIOHTTPService, AIOHTTPSSLService

    service = AIOHTTPService("127.0.0.1", 0, app=web.Application, name="it", depends_on=Base)
    assert_type(service.shutdown_timeout, float)
    assert_type(service.runner, web.BaseRunner | None)
    assert_type(service.site, web.BaseSite | None)
    assert_type(service.socket, socket.socket | None)
    with pytest.raises(TypeError, match="port"):
        AIOHTTPService("127.0.0.1", "8080")  # type: ignore[arg-type]

    class REST(AIOHTTPService): ...

    REST("127.0.0.1", 0, None, 0.5, True, {"access_log": None})
    cert, key = certificates.server_cert, certificates.server_key
    assert_type(AIOHTTPSSLService(cert, key, port=0).reload_certificates, Callable[[], None])


def test_the_parameters_of_the_asgi_services_are_known() -> None:
    pytest.importorskip("aiohttp_asgi")
    from svcrun.service.asgi import ASGIApplicationType, ASGIHTTPService, ASGIScopeType

    async def app(scope: ASGIScopeType, receive: Any, send: Any) -> None: ...

    class REST(ASGIHTTPService):
        async def create_asgi_app(self) -> ASGIApplicationType:
            return app

    assert_type(REST("::", 0, lifespan="on").ws_ping_interval, float | None)
    with pytest.raises(TypeError, match="shutdown_timeout"):
        REST(port=0, shutdown_timeout="5")  # type: ignore[arg-type]


def test_required_parameters_may_be_named_in_any_collection_in_subclasses_of_all_services() -> None:
    class Several(PeriodicService):
        __required__ = ("alpha", "beta")

        def callback(self) -> None: ...

    class Listed(TCPServer):
        __required__ = ["alpha"]  # noqa: RUF012 - another form

    class Single(Service):
        __required__ = "alpha"
        __async_required__ = {"work"}  # noqa: RUF012 - another form

        async def start(self) -> None: ...
        async def work(self) -> None: ...

    assert set(Several.__required__) == {"alpha", "beta", "interval"}
    assert set(Listed.__required__) == set(Single.__required__) == {"alpha"}
    assert set(Single.__async_required__) == {"start", "stop", "work"}


async def test_the_tasks_of_a_service_have_the_type_of_their_results() -> None:
    service = Tasks()
    assert_type(await service.create_task(asyncio.sleep(0, 42)), int)
    assert_type(service.tasks, set[asyncio.Task[Any]])


def test_the_class_is_abstract_until_it_has_a_start() -> None:
    with pytest.raises(TypeError, match="start"):
        Service()  # type: ignore[abstract]


def test_submodules_that_need_no_import_are_known_to_type_checkers() -> None:
    assert svcrun.log.LogFormat.json in svcrun.log.LogFormat
    assert issubclass(svcrun.service.TCPServer, svcrun.Service)
