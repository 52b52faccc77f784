"""A name that is probably a misspelt parameter or method is reported (C3a)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from svcrun import Service, entrypoint
from svcrun._util.misspelling import is_misspelling, near_miss
from svcrun.service import PeriodicService, TCPServer, UDPServer
from tests.service.bases import find_base

if TYPE_CHECKING:
    from collections.abc import Callable


def make(cls: Callable[..., Any], **parameters: Any) -> Any:
    """Make a service with parameters that type checkers do not know of."""
    return cls(**parameters)


def make_class(**namespace: Any) -> Any:
    async def start(self: Service) -> None: ...

    return type("Own", (Service,), {"start": start, **namespace})


async def warnings_of(caplog: pytest.LogCaptureFixture, *services: Any) -> list[str]:
    caplog.clear()
    async with entrypoint(*services, log_config=False):
        pass
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("intervall", "interval"),
        ("inteval", "interval"),
        ("adress", "address"),
        ("adresss", "address"),
        ("prot", "port"),
        ("nmae", "name"),
        ("cret", "cert"),
        ("callabck", "callback"),
        ("callBack", "callback"),
        ("handle_clinet", "handle_client"),
        ("create_aplication", "create_application"),
        ("strat", "start"),
        ("prt", "port"),
        ("pport", "port"),
        ("Port", "port"),
        ("rpot", "port"),
        ("onCrash", "on_crash"),
        ("reuseport", "reuse_port"),
        ("imeout", "timeout"),
        ("appp", "app"),
    ],
)
def test_a_name_with_a_few_wrong_letters_is_a_misspelling(name: str, meant: str) -> None:
    assert is_misspelling(name, meant)
    assert near_miss(name, ["something", meant, "other"]) == meant


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("intervals", "interval"),
        ("address", "addresses"),
        ("interval", "interval"),
        ("host", "port"),
        ("code", "cert"),
        ("close", "clock"),
        ("record", "reload"),
        ("started", "start"),
        ("db", "ca"),
        ("database", "depends_on"),
        ("port2", "port"),
        ("timeout2", "timeout"),
        ("api", "app"),
        ("post", "port"),
        ("cost", "host"),
        ("lock", "sock"),
        ("relay", "delay"),
        ("fallback", "callback"),
    ],
)
def test_a_plural_a_numbered_or_another_word_is_none(name: str, other: str) -> None:
    assert not is_misspelling(name, other)


async def test_a_misspelt_keyword_is_set_and_logged_once_per_class(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cls = make_class(retries=3)
    services = [make(cls, retires=5), make(cls, retires=6)]
    assert services[0].retires == 5
    assert not caplog.records
    text = "Own has no parameter retires=, it was set as an attribute; did you mean retries=?"
    assert await warnings_of(caplog, *services) == [text]
    assert await warnings_of(caplog, make(cls, retires=7)) == []
    (other,) = await warnings_of(caplog, make(cls, retriees=7))
    assert "retriees=" in other
    assert len(await warnings_of(caplog, make(make_class(retries=3), retires=5))) == 1


async def test_parameters_are_all_declarations_of_the_class_and_its_bases(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Mixin:
        password = None

    class Declaring(Mixin, Service):
        __required__ = ("token",)
        annotated: int

        def __init__(self, given: int = 0, **kwargs: Any) -> None:
            super().__init__(**kwargs)

        async def start(self) -> None: ...

    keywords = {"pasword": 1, "tokken": 2, "anotated": 3, "givenn": 4, "start_timeuot": 5}
    found = await warnings_of(caplog, make(Declaring, token=1, **keywords))
    meant = {text.rpartition("mean ")[2] for text in found}
    assert meant == {"password=?", "token=?", "annotated=?", "given=?", "start_timeout=?"}


async def test_an_annotated_keyword_without_a_default_is_declared(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Annotated(Service):
        retries: int
        retires: int

        async def start(self) -> None: ...

    assert await warnings_of(caplog, Annotated(retries=1, retires=2)) == []


@pytest.mark.parametrize(
    ("keywords", "meant"),
    [
        ({"application": 1}, "app"),
        ({"host": "::1"}, "address"),
        ({"host": "::1", "address": "::1"}, None),
        ({"tz": "UTC"}, None),
        ({"anything": 1, "url": 2, "addresses": 3, "_adress": 4}, None),
    ],
)
async def test_names_of_other_libraries_are_logged_unless_the_right_one_is_given(
    caplog: pytest.LogCaptureFixture, keywords: dict[str, Any], meant: str | None
) -> None:
    service = make(make_class(app=None, address=None), **keywords)
    found = await warnings_of(caplog, service)
    assert [text.rpartition("mean ")[2] for text in found] == ([f"{meant}=?"] if meant else [])


async def test_a_misspelt_parameter_of_a_service_of_the_package_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Cleaner(PeriodicService):
        async def callback(self) -> None: ...

    (text,) = await warnings_of(caplog, make(Cleaner, interval=3600, dealy=3600))
    assert text.endswith("did you mean delay=?")


async def anything(self: Any, *args: Any) -> None: ...


@pytest.mark.parametrize(
    ("base", "meant", "found", "parameters"),
    [
        (Service, "start", "strat", {}),
        (Service, "start", "satrt", {}),
        (TCPServer, "handle_client", "handle_clinet", {"address": "::1", "port": 0}),
        (TCPServer, "handle_client", "handleclient", {"address": "::1", "port": 0}),
        (UDPServer, "handle_datagram", "handle_datagramm", {"address": "::1", "port": 0}),
    ],
)
def test_a_service_whose_necessary_method_is_misspelt_is_refused_with_the_near_miss(
    base: Any, meant: str, found: str, parameters: dict[str, Any]
) -> None:
    own = type("Own", (base,), {found: anything})
    further = type("Further", (own,), {})
    mixed = type("Mixed", (type("Mixin", (), {found: anything}), base), {})
    for cls in (own, further, mixed):
        with pytest.raises(
            TypeError, match=rf"{meant}\(\).*; {found}\(\) is probably a misspelling"
        ):
            cls(**parameters)
    complete: Any = type("Complete", (own,), {meant: anything})
    assert complete(**parameters, name="it").name == "it"


def test_a_plural_of_a_necessary_method_is_another_method() -> None:
    own = type("Own", (TCPServer,), {"handle_clients": anything})
    with pytest.raises(TypeError, match="abstract"):
        own("::1", 0)


@pytest.mark.parametrize(
    ("base", "meant", "found"),
    [
        ("aiohttp:AIOHTTPService", "create_application", "create_aplication"),
        ("asgi:ASGIHTTPService", "create_asgi_app", "create_agsi_app"),
        ("uvicorn:UvicornService", "create_application", "create_appliction"),
    ],
)
def test_a_web_service_whose_method_is_misspelt_is_refused_unless_it_has_an_application(
    base: str, meant: str, found: str
) -> None:
    own: Any = type("Own", (find_base(base),), {found: anything})
    place = {"address": "127.0.0.1", "port": 0}
    with pytest.raises(TypeError, match=rf"Own needs {meant}\(\).*; {found}\(\) is probably"):
        own(**place)
    assert own(**place, app=anything).app is anything
    further: Any = type("Further", (own,), {meant: anything})
    assert further(**place).app is None
