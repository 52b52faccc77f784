"""Declared parameters of services: required, positional, checked, and shown."""

from __future__ import annotations

import copy
import importlib
import inspect
import re
from typing import TYPE_CHECKING, Any

import pytest

import svcrun.service
from svcrun import Service, parameter
from svcrun._util.validation import number
from svcrun.errors import MissingParameters, ParameterError
from svcrun.service import PeriodicService, ServiceMeta, TCPServer
from svcrun.service._parameters import several

if TYPE_CHECKING:
    from collections.abc import Iterator


class Heating(Service):
    room: str = parameter(kw_only=False)
    power: float = parameter(default=50, check=number(low=0, high=100), kw_only=False)
    windows: Any = parameter(default=(), check=several)
    valve: object = parameter(init=False)

    async def start(self) -> None: ...


UNCHECKED: Any = Heating


def test_a_parameter_without_a_default_is_required() -> None:
    with pytest.raises(MissingParameters, match="Heating needs room="):
        UNCHECKED()
    assert not hasattr(Heating, "room")


def test_a_default_is_a_plain_class_attribute_and_a_value_one_of_the_instance() -> None:
    assert vars(Heating)["power"] == 50
    assert vars(Heating("kitchen"))["room"] == "kitchen"
    assert "power" not in vars(Heating("kitchen"))


def test_an_attribute_that_is_no_parameter_is_none_until_it_is_set() -> None:
    assert Heating("kitchen").valve is None


def test_positional_parameters_have_the_order_of_their_declarations() -> None:
    service = Heating("kitchen", 70)
    assert (service.room, service.power) == ("kitchen", 70)


def test_none_by_position_stands_for_the_default_of_the_subclass() -> None:
    class Warm(Heating):
        power = 90

    assert UNCHECKED("kitchen", None).power == 50
    assert Warm("kitchen", None).power == 90  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        (("kitchen", 1, 2), {}, "Heating takes 2 positional arguments, not 3"),
        (("kitchen",), {"room": "hall"}, "Heating got two values for room"),
    ],
)
def test_wrong_positional_arguments_are_refused(
    args: tuple[Any, ...], kwargs: dict[str, Any], text: str
) -> None:
    with pytest.raises(TypeError, match=text):
        UNCHECKED(*args, **kwargs)


def test_a_service_without_positional_parameters_takes_keywords_only() -> None:
    class Plain(Service):
        async def start(self) -> None: ...

    unchecked: Any = Plain
    with pytest.raises(TypeError, match="takes keyword arguments only, not 1"):
        unchecked(1)


def test_a_keyword_is_checked_at_the_creation() -> None:
    with pytest.raises(ParameterError, match="Heating: power must be between 0 and 100, not 101"):
        Heating("kitchen", power=101)


def test_the_default_of_a_subclass_is_checked_at_the_creation() -> None:
    class Hot(Heating):
        power = 101

    with pytest.raises(ParameterError, match="Hot: power must be between 0 and 100, not 101"):
        Hot("kitchen")
    assert Hot("kitchen", power=1).power == 1


def test_a_property_of_a_subclass_is_not_read_at_the_creation() -> None:
    class Lazy(Heating):
        @property  # type: ignore[misc]
        def power(self) -> float:  # type: ignore[override]
            raise AssertionError

    Lazy("kitchen")


def test_a_declaration_without_a_check_keeps_that_of_its_base() -> None:
    class Narrow(Heating):
        power: float = parameter(default=10)

    assert Narrow("kitchen").power == 10
    with pytest.raises(ParameterError, match="power must be between 0 and 100"):
        Narrow("kitchen", power=-1)


def test_an_iterator_is_kept_as_a_tuple_also_as_a_default_and_in_a_copy() -> None:
    def find_windows() -> Iterator[str]:
        yield from ("north", "east")

    class Open(Heating):
        windows: Any = find_windows()

    service = Heating("kitchen", windows=find_windows())
    assert service.windows == ("north", "east")
    assert copy.copy(service).windows == ("north", "east")
    assert Open.windows == Open("kitchen").windows == ("north", "east")


def test_the_signature_shows_parameters_with_types_and_defaults() -> None:
    shown = inspect.signature(PeriodicService).parameters
    assert shown["interval"].default is inspect.Parameter.empty
    assert shown["delay"].default == 0
    assert shown["overlap"].annotation == "Overlap"
    assert [*inspect.signature(Heating).parameters] == ["room", "power", "kwargs"]


def test_an_init_of_a_subclass_makes_the_signature() -> None:
    class Own(TCPServer):
        def __init__(self, size: int) -> None: ...

    assert str(inspect.signature(Own)) == "(size: 'int') -> 'None'"


@pytest.mark.parametrize("name", svcrun.service.__all__)
def test_every_checked_parameter_is_documented(name: str) -> None:
    cls = getattr(svcrun.service, name)
    if cls is ServiceMeta:
        return
    text = "\n".join(base.__doc__ or "" for base in (*cls.__mro__, TCPServer))
    documented = set(re.findall(r":param (\w+):", text))
    assert cls._svcrun_checks.keys() <= documented


@pytest.mark.parametrize("name", svcrun.service.__all__)
def test_every_base_class_of_the_package_is_marked(name: str) -> None:
    cls = getattr(svcrun.service, name)
    if cls is ServiceMeta:
        return
    for base in cls.__mro__:
        assert ("_svcrun_is_base" in vars(base)) == base.__module__.startswith("svcrun.")


@pytest.mark.parametrize("extra", sorted(svcrun.service._EXTRAS))
def test_a_service_of_an_extra_is_found_or_its_extra_is_named(extra: str) -> None:
    text = ""
    try:
        assert issubclass(getattr(svcrun.service, extra), Service)
    except ImportError as error:
        text = str(error)
    assert not text or "pip install 'svcrun[" in text
    assert extra not in svcrun.service.__all__


async def test_a_method_that_returns_no_application_is_named() -> None:
    for library in ("aiohttp_asgi", "uvicorn"):
        pytest.importorskip(library)
    module = importlib.import_module("svcrun.service.asgi")

    async def create(self: object) -> None: ...

    for base, method in (
        (module.AIOHTTPService, "create_application"),
        (module.ASGIHTTPService, "create_asgi_app"),
        (svcrun.service.UvicornService, "create_application"),
    ):
        service = type("Own", (base,), {method: create})(address="127.0.0.1", port=0)
        with pytest.raises(TypeError, match=rf"Own: the result of {method}\(\) must be .*not None"):
            await service.start()
