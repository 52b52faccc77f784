"""The declared parameters of services: their defaults, checks and order."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, MappingView

import svcrun._util.hints as typing
from svcrun._util.base_classes import is_own
from svcrun._util.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from svcrun._util.validation import Check

__all__ = (
    "REQUIRED",
    "Parameter",
    "annotated",
    "check_parameters",
    "check_value",
    "collect",
    "kept",
    "overridden",
    "parameter",
    "several",
    "signature",
)

# The default of a required parameter. Given explicitly, it makes type checkers accept an instance
# without a value, because a subclass may have set one without an annotation: ``interval = 5``.
REQUIRED: typing.Final = object()


class Parameter:
    """A declared parameter. When its class is created, its default takes its place.

    So values live in instances and defaults in classes, as users of a service may assign both, and
    reading an attribute costs nothing.
    """

    __slots__ = ("check", "default", "is_keyword", "is_positional")

    def __init__(
        self, default: typing.Any, check: Check | None, *, is_positional: bool, is_keyword: bool
    ) -> None:
        self.default = None if default is REQUIRED and not is_keyword else default
        self.check = check
        self.is_positional = is_positional
        self.is_keyword = is_keyword

    @property
    def is_required(self) -> bool:
        """Whether the parameter has no default."""
        return self.default is REQUIRED

    def __set_name__(self, owner: type, name: str) -> None:
        if self.is_required:
            delattr(owner, name)
        else:
            setattr(owner, name, self.default)

    def inherit(self, base: Parameter | None) -> Parameter:
        """Return the parameter with the check of `base`, unless it has one of its own."""
        if self.check is not None or base is None or base.check is None:
            return self
        return Parameter(
            self.default,
            base.check,
            is_positional=self.is_positional,
            is_keyword=self.is_keyword,
        )


def parameter(
    *,
    default: typing.Any = REQUIRED,
    check: Check | None = None,
    kw_only: bool = True,
    init: bool = True,
) -> typing.Any:
    """Declare a parameter of a service.

    An annotated attribute of a service is a parameter anyway. Declare it by this function to make
    it required, to check its values, or to accept it by position. Subclasses and instances assign
    other values as to any attribute.

    :param default: the value of the class attribute. A parameter without a default is required.
    :param check: a function of the service, the name and the value. It returns the value to keep,
        and raises :class:`ValueError` or :class:`TypeError` for a value that it does not accept. It
        is called for each value given to a new service, and for the default of a subclass.
    :param kw_only: whether the parameter is keyword-only. The others are positional in the order of
        their declarations.
    :param init: whether the attribute is a parameter at all. ``client: Client =
        parameter(init=False)`` is an attribute that :meth:`Service.start` sets; it is None before.

    >>> from svcrun import Service, parameter
    >>> def percentage(service, name, value):
    ...     if not 0 <= value <= 100:
    ...         raise ValueError(f"{name} must be between 0 and 100, not {value}")
    ...     return value
    >>> class Heating(Service):
    ...     room: str = parameter(kw_only=False)
    ...     power: float = parameter(default=50, check=percentage)
    ...
    ...     async def start(self):
    ...         print(f"heating the {self.room} by {self.power} %")
    >>> Heating("kitchen", power=70).power
    70
    >>> Heating("kitchen", power=170)
    Traceback (most recent call last):
    ValueError: power must be between 0 and 100, not 170
    """
    return Parameter(default, check, is_positional=not kw_only, is_keyword=init)


def collect(
    cls: type, namespace: Mapping[str, object]
) -> tuple[dict[str, Parameter], dict[str, Parameter]]:
    """Return the parameters that `cls` declares, and all of its parameters in their order."""
    merged: dict[str, Parameter] = {}
    for base in reversed(cls.__mro__[1:]):
        merged.update(vars(base).get("_svcrun_declared", {}))
    declared = {
        name: value.inherit(merged.get(name))
        for name, value in namespace.items()
        if isinstance(value, Parameter)
    }
    return declared, {**merged, **declared}


def overridden(cls: type, names: Iterable[str]) -> tuple[str, ...]:
    """Return the parameters whose default a subclass has replaced by another value.

    Properties are left out, because they may need what a subclass's ``__init__`` sets later.
    """
    found = []
    for name in names:
        base = next((base for base in cls.__mro__ if name in vars(base)), None)
        if base is None or name in vars(base).get("_svcrun_declared", ()):
            continue
        if not hasattr(type(vars(base)[name]), "__get__"):
            found.append(name)
    return tuple(found)


def kept(value: typing.Any) -> typing.Any:
    """Return a tuple for an iterator or a view, and any other value unchanged.

    A tuple can be iterated again, and pickled.
    """
    # A service may be an iterator as well.
    if isinstance(value, Iterator | MappingView) and not hasattr(type(value), "_svcrun_parameters"):
        return tuple(typing.cast("Iterable[object]", value))
    return value


def several(owner: object, name: str, value: typing.Any) -> typing.Any:
    """Keep the values of a parameter that accepts any iterable."""
    del owner, name
    return kept(value)


def check_parameters(service: typing.Any, names: Iterable[str] | None = None) -> None:
    """Check the current values of parameters, and keep the values that the checks return.

    :param names: the parameters; by default, all that have a check.
    """
    checks = type(service)._svcrun_checks
    for name in checks if names is None else names:
        value = getattr(service, name, REQUIRED)
        if value is not REQUIRED:
            check_value(service, name, checks[name], value)


def check_value(service: typing.Any, name: str, check: Check, value: typing.Any) -> None:
    """Check the value of one parameter, and keep the value that the check returns."""
    result = check(service, name, value)
    # A property of a subclass may return a new object for each access.
    if result is value or isinstance(getattr(type(service), name, None), property):
        return
    setattr(service, name, result)
    if name in service._svcrun_given:
        given = {**service._svcrun_given, name: result}
        object.__setattr__(service, "_svcrun_given", given)


def signature(cls: typing.Any) -> inspect.Signature:
    """Return the signature that the parameters of a class make.

    A class that accepts parameters by position shows these alone, as in aiomisc.

    :raises AttributeError: if the class has an ``__init__`` of its own.
    """
    owner = next(base for base in cls.__mro__ if "__init__" in vars(base))
    if not is_own(owner):
        raise AttributeError("__signature__")
    hints: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        hints.update(annotated(base))
    positional = cls._svcrun_positional
    names = positional or tuple(hints)
    kind = inspect.Parameter
    found = [
        kind(
            name,
            kind.POSITIONAL_OR_KEYWORD if name in positional else kind.KEYWORD_ONLY,
            default=getattr(cls, name, kind.empty if name in cls.__required__ else None),
            annotation=hints.get(name, kind.empty),
        )
        for name in names
        if _is_keyword(cls, name, hints.get(name, ""))
    ]
    return inspect.Signature([*found, kind("kwargs", kind.VAR_KEYWORD)])


def _is_keyword(cls: typing.Any, name: str, hint: str) -> bool:
    declared = cls._svcrun_parameters.get(name)
    if declared is not None:
        return bool(declared.is_keyword)
    return not (name.startswith("_") or "ClassVar" in hint)


def annotated(cls: type) -> dict[str, str]:
    """Return the annotations of a class itself as text."""
    if sys.version_info >= (3, 14):
        from annotationlib import Format, get_annotations

        return get_annotations(cls, format=Format.STRING)
    return {name: str(hint) for name, hint in inspect.get_annotations(cls).items()}
