"""A handler may be any callable; its result is awaited if it is awaitable (C4)."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import ssl
import types
from typing import TYPE_CHECKING, Any

import pytest

from svcrun import Service, entrypoint, threaded
from svcrun.service import PeriodicService, TCPServer, TLSServer, UDPServer
from tests.support import PATIENCE, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Certificates

Handled = list[tuple[Any, ...]]


class Recorder:
    """A callable object; it is no method, and so gets no service."""

    def __init__(self, handled: Handled) -> None:
        self.handled = handled

    async def __call__(self, *args: Any) -> None:
        self.handled.append(args)


def dropping_the_mark(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap as decorators do that know nothing of functools.wraps."""

    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


def handlers(handled: Handled) -> dict[str, Any]:
    """Return handlers of all kinds, to be attributes of a class."""

    async def handle(self: Any, *args: Any) -> None:
        await asyncio.sleep(0)
        handled.append(args)

    def plain(self: Any, *args: Any) -> None:
        handled.append(args)

    async def alone(*args: Any) -> None:
        await asyncio.sleep(0)
        handled.append(args)

    @threaded
    def in_thread(self: Any, *args: Any) -> None:
        handled.append(args)

    def future(self: Any, *args: Any) -> asyncio.Future[None]:
        return asyncio.ensure_future(alone(*args))

    async def first(self: Any, unit: str, *args: Any) -> None:
        handled.append(args)

    @types.coroutine
    def old(self: Any, *args: Any) -> Any:
        yield
        handled.append(args)

    return {
        "coroutine function": handle,
        "plain function": plain,
        "thread": in_thread,
        "wrapped": dropping_the_mark(handle),
        "wrapped twice": dropping_the_mark(dropping_the_mark(plain)),
        "future": future,
        "static method": staticmethod(alone),
        "class method": classmethod(handle),
        "object": Recorder(handled),
        "partial": staticmethod(functools.partial(alone)),
        "coroutine of a generator": old,
        "partial method": functools.partialmethod(first, "unit"),
    }


KINDS = list(handlers([]))


async def connect(server: Any, **options: Any) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port, **options)
    writer.close()
    await writer.wait_closed()


def make(cls: type, name: str, handler: Any, way: str, **parameters: Any) -> Any:
    """Make a service whose handler is `handler`, by its class or by a keyword."""
    if way == "class":
        return type("Own", (cls,), {name: handler})(**parameters)

    async def replaced(self: Any, *args: Any) -> None:
        raise AssertionError

    own: Any = type("Own", (cls,), {name: replaced})
    bound = getattr(type("Other", (), {name: handler})(), name)
    return own(**{name: bound}, **parameters)


@pytest.mark.parametrize("way", ["class", "keyword"])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_handler_of_a_stream_may_be_any_callable(kind: str, way: str) -> None:
    handled: Handled = []
    place = {"address": "127.0.0.1", "port": 0}
    server = make(TCPServer, "handle_client", handlers(handled)[kind], way, **place)
    async with entrypoint(server, log_config=False), asyncio.timeout(PATIENCE):
        for count in (1, 2):
            await connect(server)
            await eventually(lambda count=count: len(handled) == count)  # type: ignore[misc]
    reader, writer = handled[0]
    assert isinstance(reader, asyncio.StreamReader)
    assert writer.is_closing()


@pytest.mark.parametrize("kind", KINDS)
async def test_the_handler_of_a_tls_stream_may_be_any_callable(
    kind: str, certificates: Certificates
) -> None:
    handled: Handled = []
    files = {"cert": certificates.server_cert, "key": certificates.server_key}
    handler = handlers(handled)[kind]
    server = make(
        TLSServer, "handle_client", handler, "class", address="127.0.0.1", port=0, **files
    )
    context = ssl.create_default_context(cafile=certificates.ca)
    async with entrypoint(server, log_config=False), asyncio.timeout(PATIENCE):
        await connect(server, ssl=context, server_hostname="localhost")
        await eventually(lambda: len(handled) == 1)


@pytest.mark.parametrize("way", ["class", "keyword"])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_handler_of_datagrams_may_be_any_callable(kind: str, way: str) -> None:
    handled: Handled = []
    place = {"address": "127.0.0.1", "port": 0}
    server = make(UDPServer, "handle_datagram", handlers(handled)[kind], way, **place)
    async with entrypoint(server, log_config=False), asyncio.timeout(PATIENCE):
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.sendto(b"one", ("127.0.0.1", server.port))
            await eventually(lambda: handled)
    assert handled[0][0] == b"one"


@pytest.mark.parametrize("way", ["class", "keyword"])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_callback_of_a_periodic_service_may_be_any_callable(kind: str, way: str) -> None:
    handled: Handled = []
    service = make(PeriodicService, "callback", handlers(handled)[kind], way, interval=0.01)
    async with entrypoint(service, log_config=False), asyncio.timeout(PATIENCE):
        await eventually(lambda: len(handled) >= 2)
    assert handled[0] == ()


async def test_a_plain_handler_that_raises_costs_its_client_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(TCPServer):
        def handle_client(self, reader: Any, writer: Any) -> None:
            raise LookupError("plain")

    server = Failing("127.0.0.1", 0)
    async with entrypoint(server, log_config=False), asyncio.timeout(PATIENCE):
        for count in (1, 2):
            await connect(server)
            await eventually(lambda count=count: len(caplog.records) == count)  # type: ignore[misc]
    assert {r.levelno for r in caplog.records} == {logging.ERROR}
    assert all(r.exc_info and isinstance(r.exc_info[1], LookupError) for r in caplog.records)


@pytest.mark.parametrize(
    ("base", "name"),
    [(TCPServer, "handle_client"), (UDPServer, "handle_datagram"), (PeriodicService, "callback")],
)
def test_a_handler_that_is_a_generator_is_refused(base: type, name: str) -> None:
    async def asynchronous(self: Any, *args: Any) -> Any:
        yield

    def plain(self: Any, *args: Any) -> Any:
        yield

    for handler in (asynchronous, plain, threaded(plain), functools.partial(plain)):
        with pytest.raises(TypeError, match=rf"^Own\.{name} must not be a generator"):
            type("Own", (base,), {name: handler})
        own: Any = type("Own", (base,), {name: lambda self: None})
        with pytest.raises(TypeError, match=rf"^Own: {name} must be .* not a generator"):
            own(address="127.0.0.1", port=0, interval=1, **{name: handler})


@pytest.mark.parametrize("value", [5, None, "handle"])
def test_a_handler_that_is_no_callable_is_refused(value: object) -> None:
    async def handle(self: Any, *args: Any) -> None: ...

    for base, name in ((TCPServer, "handle_client"), (UDPServer, "handle_datagram")):
        own: Any = type("Own", (base,), {name: handle})
        with pytest.raises(TypeError, match=rf"^Own: {name} must be a function"):
            own("127.0.0.1", 0, **{name: value})
        with pytest.raises(TypeError, match=rf"^Own\.{name} must be callable, not {value!r}"):
            type("Own", (base,), {name: value})
    with pytest.raises(TypeError, match=r"^PeriodicService: callback must be"):
        PeriodicService(interval=1, callback=value)  # type: ignore[call-arg]


# Methods that have to be coroutine functions.


def marked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function; functools.wraps copies its attributes to the wrapper."""

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


async def begin(self: Any, *args: Any) -> None:
    self.begun = True


class Method:
    async def __call__(self, *args: Any) -> None: ...


@pytest.mark.parametrize(
    "start",
    [begin, marked(begin), functools.partialmethod(begin), classmethod(begin), Method()],
)
async def test_a_start_may_be_any_coroutine_function(start: Any) -> None:
    service = type("Own", (Service,), {"start": start})()
    async with entrypoint(service, log_config=False):
        pass


async def generate(self: Any) -> Any:
    yield


@pytest.mark.parametrize("name", ["start", "stop"])
@pytest.mark.parametrize(
    "method",
    [
        lambda self: None,
        dropping_the_mark(begin),
        functools.partialmethod(lambda self: None),
        staticmethod(lambda: None),
        property(lambda self: begin),
        generate,
        None,
        5,
    ],
)
def test_a_method_that_is_no_coroutine_function_is_refused_by_its_name(
    name: str, method: Any
) -> None:
    with pytest.raises(TypeError, match=rf"\bOwn\.{name}\b"):
        type("Own", (Service,), {"start": begin, name: method})


def test_a_mixin_can_not_bring_a_plain_method_where_a_coroutine_function_is_needed() -> None:
    class Plain:
        def stop(self) -> None: ...

    with pytest.raises(TypeError, match=r"\bOwn\.stop\b"):
        type("Own", (Plain, PeriodicService), {"callback": begin})
    type("Own", (PeriodicService, Plain), {"callback": begin})
