"""Laws of the texts of errors."""

from typing import Any

import pytest

from svcrun import Service, errors
from svcrun._util.raising import raise_together
from svcrun.errors import show
from svcrun.state import ServiceState


class Nothing(Service):
    async def start(self) -> None: ...


class Unspeakable(Nothing):
    def __repr__(self) -> str:
        raise LookupError("from __repr__()")


class Endless(Nothing):
    def __repr__(self) -> str:
        return repr(self)


ABOUT_SERVICES: dict[str, tuple[Any, ...]] = {
    "IllegalTransition": (ServiceState.NEW, ServiceState.STOPPED),
    "ServiceInUse": (),
    "UnknownDependency": (Nothing,),
    "DependencyDown": (Nothing(name="other"),),
    "StartTimeout": (0.5, "the stack"),
    "StopTimeout": (0.5, "the stack"),
    "StartCancelled": (),
    "StartDuringStop": (),
    "ApplicationStartFailed": ("why",),
    "ApplicationStopFailed": ("",),
    "ServerEnded": ("why",),
}


def test_a_service_is_shown_by_its_own_representation() -> None:
    assert show(Nothing(name="it")) == "<Nothing name='it' NEW>"


@pytest.mark.parametrize("service", [Unspeakable(), Endless()], ids=lambda it: type(it).__name__)
def test_a_service_whose_representation_fails_is_shown_by_its_class(service: Service) -> None:
    assert show(service).startswith(f"<{type(service).__qualname__}, without a representation")


@pytest.mark.parametrize("name", ABOUT_SERVICES)
def test_an_error_about_a_service_names_it_even_if_its_representation_fails(name: str) -> None:
    kind = getattr(errors, name)
    assert "'it'" in str(kind(Nothing(name="it"), *ABOUT_SERVICES[name]))
    assert "Unspeakable" in str(kind(Unspeakable(), *ABOUT_SERVICES[name]))


@pytest.mark.parametrize("kind", [errors.ShuttingDown, errors.LoopClosed, errors.DependencyCycle])
def test_an_error_about_several_services_names_them_all(kind: Any) -> None:
    text = str(kind([Nothing(name="first"), Unspeakable(), Nothing(name="last")]))
    for part in ("first", "Unspeakable", "last"):
        assert part in text


def test_a_single_error_is_raised_as_it_is_and_several_as_a_group() -> None:
    raise_together("nothing", [])
    error = ValueError("one")
    with pytest.raises(ValueError, match="one") as caught:
        raise_together("one", [error])
    assert caught.value is error
    with pytest.raises(ExceptionGroup, match="several") as several:
        raise_together("several", [error, LookupError("two")])
    assert several.value.exceptions[0] is error
    with pytest.raises(BaseExceptionGroup, match="past Exception"):
        raise_together("past Exception", [error, KeyboardInterrupt()])
