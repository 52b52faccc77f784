"""Check the keywords of a service."""

from __future__ import annotations

import inspect
import logging
from types import MappingProxyType

from svcrun._util.callables import is_generator_function
from svcrun._util.current_service import on_behalf_of
from svcrun._util.hints import TYPE_CHECKING, Any, Final
from svcrun.errors import MissingParameters, ParameterTypeError
from svcrun.service._meta import check_reserved
from svcrun.service._parameters import annotated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from svcrun.service._meta import ServiceMeta

__all__ = (
    "check_methods",
    "check_present",
    "parameters_of",
    "warn_of_misspellings",
)

log = logging.getLogger("svcrun.service.base")

# Names that other libraries use for parameters of this one.
_WORDS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "addr": ("address",),
        "after": ("depends_on",),
        "application": ("app",),
        "bind": ("address",),
        "cafile": ("ca",),
        "cert_file": ("cert",),
        "certfile": ("cert",),
        "certificate": ("cert",),
        "cipher": ("ciphers",),
        "dependencies": ("depends_on",),
        "depends": ("depends_on",),
        "dsn": ("sentry_dsn",),
        "every": ("interval",),
        "host": ("address",),
        "hostname": ("address",),
        "key_file": ("key",),
        "keyfile": ("key",),
        "period": ("interval",),
        "requires": ("depends_on",),
        "seconds": ("interval",),
        "socket": ("sock",),
        "tz": ("timezone",),
        "unix_path": ("path",),
        "unix_socket": ("path",),
    }
)


def check_methods(service: Any, given: Mapping[str, Any]) -> None:
    """Check keywords that replace a method, and record undeclared keywords.

    :raises TypeError: naming the service, the method and the value.
    """
    cls: Any = type(service)
    keywords = cls._svcrun_keywords
    check_reserved(cls.__qualname__, given)
    for name in given.keys() - keywords.known:
        if name in cls.__async_required__ or name in cls._svcrun_handlers:
            if not callable(given[name]) or is_generator_function(given[name]):
                accepted = "a function that is not a generator"
                raise ParameterTypeError(cls.__qualname__, name, given[name], accepted)
        elif name not in cls._svcrun_checks:  # the values of those are checked for each instance
            keywords.known.add(name)
            if not hasattr(cls, name):
                keywords.undeclared[name] = frozenset(given)


def check_present(service: Any) -> None:
    """Check whether a service has all required parameters.

    A base calls this when it first needs its parameters: the ``__init__`` of a subclass need not
    call that of its base, which checks them otherwise.

    :raises AttributeError: naming the missing parameters, and the class.
    """
    cls: Any = type(service)
    absent = [name for name in cls.__required__ if not hasattr(service, name)]
    if absent:
        raise MissingParameters(cls.__qualname__, absent)


def warn_of_misspellings(service: Any) -> None:
    """Log undeclared keywords of the class that are probably misspelt, once per class."""
    cls: Any = type(service)
    undeclared, cls._svcrun_keywords.undeclared = cls._svcrun_keywords.undeclared, {}
    declared = frozenset(_declared(cls))
    for name, given in undeclared.items():
        if name in declared or name.startswith("_"):
            continue
        meant = _meant(name, declared, given)
        if meant is not None:
            with on_behalf_of(service):
                log.warning(
                    "%s has no parameter %s=, it was set as an attribute; did you mean %s=?",
                    cls.__qualname__,
                    name,
                    meant,
                )


def _meant(name: str, declared: frozenset[str], given: frozenset[str]) -> str | None:
    from svcrun._util.misspelling import near_miss  # few programs need it

    for word in _WORDS.get(name, ()):
        if word in declared and word not in given:
            return word
    return near_miss(name, declared)


def _declared(cls: ServiceMeta) -> Iterator[str]:
    yield from cls.__required__
    for base in cls.__mro__[:-1]:
        names = {*annotated(base), *(n for n, value in vars(base).items() if _is_value(value))}
        names.update(parameters_of(vars(base).get("__init__")))
        yield from (name for name in names if not (name.startswith("_") or name.isupper()))


def parameters_of(init: Callable[..., None] | None) -> tuple[str, ...]:
    """Return the names of the parameters of an ``__init__``."""
    if init is None:
        return ()
    parameters = tuple(inspect.signature(init).parameters.values())[1:]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(one.name for one in parameters if one.kind not in variadic)


def _is_value(value: object) -> bool:
    """Return whether a class attribute is a default value, not a method or descriptor."""
    return not hasattr(type(value), "__get__")
