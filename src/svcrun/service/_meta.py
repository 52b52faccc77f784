"""The metaclass of services: what a class may say, and what is looked at when it is made."""

from __future__ import annotations

import functools
import inspect
from abc import ABCMeta
from collections.abc import Iterator, MappingView

import svcrun.hints as typing
from svcrun.callables import is_coroutine_function, is_generator_function
from svcrun.errors import MissingMethod
from svcrun.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ("Keywords", "ServiceMeta", "is_own", "kept", "near_method", "parameter")


def parameter(*, default: typing.Any = None, kw_only: bool = True, init: bool = True) -> typing.Any:
    """Declare an attribute of a service to type checkers; at run time it is just the default.

    :param default: the value of the class attribute.
    :param kw_only: whether the parameter can't be given by position.
    :param init: whether it can be given at all. ``client: Client = parameter(init=False)`` is
        an attribute that :meth:`Service.start` sets, and no keyword.
    """
    del kw_only, init
    return default


class Keywords:
    """The keywords that instances of one class were given so far.

    :attr:`known` holds those that need no further look, :attr:`undeclared` those that the class
    does not declare, until they were compared with the ones that it does.
    """

    __slots__ = ("known", "undeclared")

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.undeclared: dict[str, frozenset[str]] = {}


@typing.dataclass_transform(kw_only_default=True, field_specifiers=(parameter,))
class ServiceMeta(ABCMeta):
    """Check a service class when it is made.

    :raises TypeError: if a method that ``__async_required__`` names is no coroutine function, if
        a handler is a generator or can't be called, or if a name of the class is one that its base
        keeps for itself.
    """

    # What a class says, in any form; of a class that is made, it is a frozenset.
    __async_required__: Collection[str]
    __required__: Collection[str]
    _svcrun_handlers: frozenset[str]
    """The methods that a base class calls and that may be any callable."""
    _svcrun_several: frozenset[str]
    """The parameters that take several things, in any iterable."""
    _svcrun_keywords: Keywords
    _svcrun_stop_takes_exception: bool
    """Whether ``stop()`` has a parameter for the exception; not every subclass declares it."""

    # The registry of virtual subclasses is not used here; without it a check is eight times as
    # quick.
    __instancecheck__ = type.__instancecheck__
    __subclasscheck__ = type.__subclasscheck__

    def __new__(
        mcs,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, typing.Any],
        **kwargs: typing.Any,
    ) -> ServiceMeta:
        """Make the class `name`."""
        cls = super().__new__(mcs, name, bases, namespace, **kwargs)
        for merged in ("__async_required__", "_svcrun_handlers", "_svcrun_several"):
            inherited = (_names(getattr(base, merged, ())) for base in bases)
            setattr(cls, merged, _names(namespace.get(merged, ())).union(*inherited))
        cls.__required__ = _required(cls, namespace)
        for several in cls._svcrun_several & namespace.keys():
            setattr(cls, several, kept(namespace[several]))
        cls._svcrun_keywords = Keywords()
        cls._svcrun_stop_takes_exception = _takes_argument(getattr(cls, "stop", None))

        wrong = sorted(
            method for method in cls.__async_required__ if not _is_coroutine_method(cls, method)
        )
        if wrong:
            found = ", ".join(f"{name}.{method}" for method in wrong)
            msg = f"must be coroutine functions (async def): {found}"
            raise TypeError(msg)
        if not is_own(cls):
            _check_handlers(cls)
            _check_set_loop(cls)
            _check_private_names(cls, namespace)
            if cls.__abstractmethods__:
                _explain_absence(cls)
        return cls


def kept(value: typing.Any) -> typing.Any:
    """Return what can be gone through again, and pickled, for an iterator or a view."""
    if isinstance(value, Iterator | MappingView) and not isinstance(type(value), ServiceMeta):
        return tuple(typing.cast("Iterable[object]", value))
    return value


def is_own(cls: type) -> bool:
    """Whether `cls` is one of the package's own bases."""
    return cls.__module__.startswith("svcrun.")


def near_method(cls: type, meant: str) -> str | None:
    """Return the name of a method that is probably `meant` misspelt, of classes of the user's."""
    from svcrun.misspelling import is_misspelling  # few programs need it

    for base in cls.__mro__[:-1]:
        if not is_own(base):
            for name, value in vars(base).items():
                if (
                    (callable(value) or hasattr(value, "__func__"))
                    and not name.startswith("_")
                    and is_misspelling(name, meant)
                ):
                    return name
    return None


def _is_coroutine_method(cls: type, name: str) -> bool:
    method = getattr(cls, name, None)
    if is_coroutine_function(method):
        return True
    found = inspect.getattr_static(cls, name, None)
    return isinstance(found, functools.partialmethod) and is_coroutine_function(found.func)


def _check_handlers(cls: ServiceMeta) -> None:
    """Refuse handlers that can't be called, or whose code a call does not run."""
    for name in cls._svcrun_handlers:
        method = getattr(cls, name, None)
        if is_generator_function(method):
            msg = f"{cls.__qualname__}.{name} must not be a generator: calling it runs none of it"
            raise TypeError(msg)
        if not (callable(method) or hasattr(type(method), "__get__")):
            msg = f"{cls.__qualname__}.{name} must be callable, not {method!r}"
            raise TypeError(msg)


def _check_set_loop(cls: ServiceMeta) -> None:
    method = getattr(cls, "set_loop", None)
    if not callable(method) or not _takes_argument(method):
        msg = (
            f"{cls.__qualname__}.set_loop is reserved for a method with the parameter loop, which "
            "is called before each start; use another name"
        )
        raise TypeError(msg)


def _check_private_names(cls: type, namespace: dict[str, typing.Any]) -> None:
    """Refuse the names that are reserved for the record of a service, and ``__name`` of namesakes.

    Python tells ``__name`` of a class and its bases apart by the names of the classes.
    """
    check_reserved(cls.__qualname__, namespace)
    prefix = f"_{cls.__name__.lstrip('_')}__"
    codes = [code for one in namespace.values() if (code := getattr(one, "__code__", None))]
    used = {*namespace, *(name for code in codes for name in code.co_names)}
    own = [name for name in used if name.startswith(prefix)]
    for base in cls.__mro__[1:] if own else ():
        taken = sorted(vars(base).keys() & set(own)) if is_own(base) else ()
        if taken:
            msg = (
                f"{cls.__qualname__}.{taken[0].removeprefix(prefix[:-2])} is reserved for "
                f"{base.__module__}.{base.__qualname__} itself, as both classes have the same "
                "name: rename the class or the attribute"
            )
            raise TypeError(msg)


def check_reserved(owner: str, names: Iterable[str]) -> None:
    """Refuse names of `owner` that the package keeps for itself."""
    for name in names:
        if name.startswith("_svcrun_"):
            msg = f"{owner}.{name} is reserved for svcrun itself; use another name"
            raise TypeError(msg)


def _explain_absence(cls: ServiceMeta) -> None:
    """Let the error of an abstract class name the method that was probably meant."""
    found = {name: near for name in cls.__abstractmethods__ if (near := near_method(cls, name))}
    if not found:
        return

    def make(made: type, /, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        absent = sorted(found.keys() & getattr(made, "__abstractmethods__", frozenset()))
        if absent:
            raise MissingMethod(made.__qualname__, absent[0], found[absent[0]])
        new: typing.Any = super(cls, made).__new__  # type: ignore[arg-type]
        return new(made) if new is object.__new__ else new(made, *args, **kwargs)

    cls.__new__ = make  # type: ignore[method-assign, assignment]


def _takes_argument(method: object) -> bool:
    while method is not None:  # a decorator passes on what it is given
        code = getattr(method, "__code__", None)
        if not (code is None or code.co_argcount > 1 or code.co_flags & inspect.CO_VARARGS):
            return False
        method = getattr(method, "__wrapped__", None)
    return True


def _names(value: str | Iterable[str]) -> frozenset[str]:
    return frozenset((value,) if isinstance(value, str) else value)


def _required(cls: type, namespace: dict[str, typing.Any]) -> frozenset[str]:
    """Return what must be given: what is declared here, and what the bases ask for.

    An attribute settles what another class asks for, not what its own class does.
    """
    required = set(_names(namespace.get("__required__", ())))
    for base in cls.__mro__[1:]:
        asked = _names(vars(base).get("__required__", ()))
        if asked:
            # What another base has a value for is found there: the order of the bases may be any.
            others = [vars(one) for one in cls.__mro__ if one not in base.__mro__]
            required |= {name for name in asked if not any(name in one for one in others)}
    return frozenset(required)
