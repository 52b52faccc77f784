"""A parameter that takes several things takes them in any iterable, and keeps them."""

from __future__ import annotations

import asyncio
import logging
import pickle
import signal
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from svcrun import PeriodicCallback, Service, bind_socket, entrypoint
from svcrun.service import MemoryTracer, PeriodicService, TCPServer, TLSServer, UDPServer
from tests.service.bases import find_base
from tests.support import PATIENCE, eventually, refuses

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Certificates

IN: dict[str, Callable[[list[Any]], Any]] = {
    "generator": lambda items: (item for item in items),
    "filter": lambda items: filter(None, items),
    "map": lambda items: map(next, [iter([item]) for item in items]),
    "iterator": iter,
    "reversed": reversed,
    "keys": lambda items: dict.fromkeys(items).keys(),
    "values": lambda items: dict(enumerate(items)).values(),
    "zip": lambda items: (item for (item,) in zip(items, strict=True)),
    "tuple": tuple,
    "list": list,
    "set": set,
}
ITERABLES = pytest.mark.parametrize("iterable", IN.values(), ids=IN)

PLACE = {"address": "127.0.0.1", "port": 0}
OPTION = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


class Plain(Service):
    async def start(self) -> None: ...


class Echo(TCPServer):
    async def handle_client(self, reader: Any, writer: Any) -> None: ...


class Datagrams(UDPServer):
    async def handle_datagram(self, data: bytes, addr: Any) -> None: ...


class Secure(TLSServer):
    async def handle_client(self, reader: Any, writer: Any) -> None: ...


class Failing(PeriodicService):
    async def callback(self) -> None:
        raise KeyError


def make(cls: Callable[..., Any], *args: Any, **parameters: Any) -> Any:
    return cls(*args, **parameters)


async def starts(service: Any) -> None:
    async with entrypoint(service, log_config=False):
        pass


@ITERABLES
async def test_dependencies_start_first_each_time(iterable: Callable[[list[Any]], Any]) -> None:
    order: list[Any] = []

    class Noting(Service):
        async def start(self) -> None:
            order.append(self)

    first, second = make(Noting), make(Noting)
    last = make(Noting, depends_on=iterable([first, second]))
    for _ in range(2):
        order.clear()
        async with entrypoint(last, first, second, log_config=False):
            assert set(order[:2]) == {first, second}
            assert order[2] is last
    assert set(last.depends_on) == {first, second}


async def test_an_iterator_that_is_set_after_the_service_was_made_is_kept() -> None:
    first, last = Plain(), Plain()
    last.depends_on = iter([first])
    for _ in range(2):
        async with entrypoint(last, first, log_config=False):
            pass
    kept: Any = last.depends_on
    assert kept == (first,)


async def test_a_property_may_yield_dependencies_anew() -> None:
    first = Plain()

    last: Any = type("Last", (Plain,), {"depends_on": property(lambda self: iter([first]))})
    for _ in range(2):
        async with entrypoint(last(), first, log_config=False):
            pass


def test_an_iterator_as_class_attribute_holds_for_all_instances() -> None:
    first = Plain()
    cls: Any = type("Own", (Plain,), {"depends_on": iter([first])})
    assert cls().depends_on == cls().depends_on == (first,)
    server: Any = type("Server", (Echo,), {"options": iter([OPTION])})
    assert server(**PLACE).options == server(**PLACE).options == (OPTION,)


@ITERABLES
@pytest.mark.parametrize("cls", [Echo, Datagrams])
async def test_socket_options_are_set_at_each_start_and_pickled(
    cls: Any, iterable: Callable[[list[Any]], Any]
) -> None:
    by_position = make(cls, "127.0.0.1", 0, iterable([OPTION]))
    by_keyword = make(cls, **PLACE, options=iterable([OPTION]))
    for service in (by_position, by_keyword, pickle.loads(pickle.dumps(by_keyword))):  # noqa: S301
        for _ in range(2):
            async with entrypoint(service, log_config=False):
                assert service.socket.getsockopt(*OPTION[:2])
        assert set(service.options) == {OPTION}


@ITERABLES
def test_bind_socket_sets_each_option(iterable: Callable[[list[Any]], Any]) -> None:
    with bind_socket(address="127.0.0.1", options=iterable([OPTION])) as sock:
        assert sock.getsockopt(*OPTION[:2])


@ITERABLES
async def test_ciphers_hold_for_each_start(
    iterable: Callable[[list[Any]], Any], certificates: Certificates
) -> None:
    name = "ECDHE-RSA-AES128-GCM-SHA256"
    service = make(
        Secure,
        **PLACE,
        cert=certificates.server_cert,
        key=certificates.server_key,
        minimum_version=ssl.TLSVersion.TLSv1_2,
        ciphers=iterable([name]),
    )
    for _ in range(2):
        async with entrypoint(service, log_config=False):
            found = {one["name"] for one in service.ssl_context.get_ciphers()}
            assert {one for one in found if not one.startswith("TLS_")} == {name}


@pytest.mark.parametrize("value", [5, None, [5], [b"name"]])
def test_ciphers_that_are_no_names_are_refused(value: Any, certificates: Certificates) -> None:
    files = {"cert": certificates.server_cert, "key": certificates.server_key}
    with pytest.raises(TypeError, match="ciphers must be"):
        make(Secure, **PLACE, **files, ciphers=value)


@ITERABLES
async def test_keywords_of_the_runner_hold_for_each_start(
    iterable: Callable[[list[Any]], Any],
) -> None:
    cls = find_base("aiohttp:AIOHTTPService")
    service = make(cls, **PLACE, runner_kwargs=iterable([("keepalive_timeout", 3.5)]))
    for _ in range(2):
        async with entrypoint(service, log_config=False):
            assert service._svcrun_runner_kwargs() == {"keepalive_timeout": 3.5}


@ITERABLES
async def test_headers_of_uvicorn_hold_for_each_start(
    iterable: Callable[[list[Any]], Any],
) -> None:
    cls = find_base("uvicorn:UvicornService")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise NotImplementedError

    trusted = iterable(["10.0.0.1"])
    service = make(
        cls, **PLACE, app=app, headers=iterable([("X-One", "1")]), forwarded_allow_ips=trusted
    )
    for _ in range(2):
        async with entrypoint(service, log_config=False):
            assert (b"x-one", b"1") in service.server.config.encoded_headers
            assert service.server.config.forwarded_allow_ips == ["10.0.0.1"]


@ITERABLES
async def test_suppressed_exceptions_are_not_logged_in_any_run(
    iterable: Callable[[list[Any]], Any], caplog: pytest.LogCaptureFixture
) -> None:
    service = make(Failing, interval=0.01, suppress_exceptions=iterable([KeyError, ValueError]))
    for count in (2, 4):
        async with entrypoint(service, log_config=False), asyncio.timeout(PATIENCE):
            await eventually(lambda count=count: service.periodic.failures >= count)  # type: ignore[misc]
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


@ITERABLES
async def test_suppressed_exceptions_of_a_callback_are_not_logged(
    iterable: Callable[[list[Any]], Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise KeyError

    callback = PeriodicCallback(fail)
    callback.start(0.01, suppress_exceptions=iterable([KeyError]))
    await eventually(lambda: callback.failures >= 2)
    await callback.stop(return_exceptions=True)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


@ITERABLES
async def test_suppressed_exceptions_of_a_cron_line_are_kept(
    iterable: Callable[[list[Any]], Any],
) -> None:
    service = find_base("cron:CronService")()

    async def job() -> None: ...

    service.register(job, "* * * * *", suppress_exceptions=iterable([KeyError]))
    await starts(service)
    await starts(service)


@pytest.mark.parametrize("value", ["KeyError", 5, [5], ["KeyError"], None])
def test_suppressed_exceptions_that_are_no_classes_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="suppress_exceptions must be"):
        make(Failing, interval=1, suppress_exceptions=value)


@ITERABLES
def test_filters_of_the_tracer_are_kept(iterable: Callable[[list[Any]], Any]) -> None:
    assert list(make(MemoryTracer, filters=iterable(["*.py"])).filters) == ["*.py"]


@ITERABLES
def test_filters_and_options_of_a_sender_are_kept(iterable: Callable[[list[Any]], Any]) -> None:
    def keep(record: logging.LogRecord) -> bool:
        return True

    dsn = "http://key@127.0.0.1:9/1"
    for base in ("sentry:SentrySender", "raven:RavenSender"):
        sender = make(
            find_base(base),
            sentry_dsn=dsn,
            filters=iterable([keep]),
            client_options=iterable([("environment", "test")]),
        )
        assert sender.filters == (keep,)
        assert sender.client_options == {"environment": "test"}


@ITERABLES
def test_an_entrypoint_keeps_signals_and_handlers(iterable: Callable[[list[Any]], Any]) -> None:
    records: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handlers, signals = iterable([Handler()]), iterable([signal.SIGUSR2])
    before = signal.getsignal(signal.SIGUSR2)
    with entrypoint(catch_signals=signals, log_handlers=handlers):
        assert signal.getsignal(signal.SIGUSR2) != before
        logging.getLogger("test").warning("here")
    assert [r.getMessage() for r in records if r.name == "test"] == ["here"]


@pytest.mark.parametrize("name", ["depends_on", "options", "filters"])
def test_a_string_in_place_of_a_collection_is_refused_or_counts_as_one_item(name: str) -> None:
    if name == "filters":
        assert make(MemoryTracer, filters="*.py").filters == "*.py"
        return
    with pytest.raises((TypeError, ValueError)) as caught:
        make(Echo, **PLACE, **{name: "text"})
    assert refuses(caught.value, f"{name}='t")
