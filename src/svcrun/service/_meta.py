"""Check a service class when it is created, by its metaclass.

An error in a class is raised where the class is defined, and not when its service starts.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABCMeta

import svcrun._util.hints as typing
from svcrun._util.base_classes import is_own, near_method
from svcrun._util.callables import is_coroutine_function, is_generator_function
from svcrun._util.hints import TYPE_CHECKING
from svcrun.errors import MissingMethod
from svcrun.service._parameters import collect, kept, overridden, parameter, signature

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from svcrun._util.validation import Check
    from svcrun.service._parameters import Parameter

__all__ = ("Keywords", "ServiceMeta")


class Keywords:
    """The keywords that instances of one class have received so far.

    :attr:`known` holds the keywords that are already checked. :attr:`undeclared` holds the keywords
    that the class does not declare, until they have been compared with the declared ones.
    """

    __slots__ = ("known", "undeclared")

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.undeclared: dict[str, frozenset[str]] = {}


@typing.dataclass_transform(kw_only_default=True, field_specifiers=(parameter,))
class ServiceMeta(ABCMeta):
    """Check a service class when it is created.

    :raises TypeError: if a method that ``__async_required__`` names is not a coroutine function, if
        a handler is a generator or not callable, or if the class uses a private name of its base.
    """

    # A class may assign any collection of names; on a created class, it is a frozenset.
    __async_required__: Collection[str]
    __required__: Collection[str]
    _svcrun_handlers: frozenset[str]
    """The methods that a base class calls and that may be any callable."""
    _svcrun_declared: dict[str, Parameter]
    """The parameters that the class itself declares by :func:`parameter`."""
    _svcrun_parameters: dict[str, Parameter]
    """The parameters that the class and its bases declare by :func:`parameter`."""
    _svcrun_checks: dict[str, Check]
    """The checks of those parameters that have one."""
    _svcrun_overridden: tuple[str, ...]
    """The parameters with a check whose default a subclass has replaced."""
    _svcrun_positional: tuple[str, ...]
    """The parameters that are accepted by position, in their order."""
    _svcrun_order: tuple[str, ...]
    """That order, if it is not the order of the declarations."""
    _svcrun_keywords: Keywords
    _svcrun_stop_takes_exception: bool
    """Whether ``stop()`` has a parameter for the exception; a subclass may omit it."""

    # ABCMeta searches a registry of virtual subclasses, which services do not use. Without that
    # search, isinstance() and issubclass() are eight times as fast.
    __instancecheck__ = type.__instancecheck__
    __subclasscheck__ = type.__subclasscheck__

    @property
    def __signature__(cls) -> inspect.Signature:
        """The signature made of the parameters, for ``help()`` and for documentation tools."""
        return signature(cls)

    def __new__(
        mcs,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, typing.Any],
        *,
        base: bool = False,
        **kwargs: typing.Any,
    ) -> ServiceMeta:
        """Create and check the class `name`.

        :param base: whether the class belongs to the package. A subclass may use any name but
            those of the package, which begin with ``_svcrun_``.
        """
        if base:
            namespace = {**namespace, "_svcrun_is_base": True}
        cls = super().__new__(mcs, name, bases, namespace, **kwargs)
        for merged in ("__async_required__", "_svcrun_handlers"):
            inherited = (_names(getattr(base, merged, ())) for base in bases)
            setattr(cls, merged, _names(namespace.get(merged, ())).union(*inherited))
        declared, cls._svcrun_parameters = collect(cls, namespace)
        cls._svcrun_declared = declared
        cls.__required__ = _required(cls, namespace, declared)
        cls._svcrun_checks = {
            key: one.check for key, one in cls._svcrun_parameters.items() if one.check is not None
        }
        cls._svcrun_positional = cls._svcrun_order or tuple(
            key for key, one in cls._svcrun_parameters.items() if one.is_positional
        )
        cls._svcrun_overridden = overridden(cls, cls._svcrun_checks)
        # All instances share a default, and an iterator can be read only once. So kept() replaces
        # an iterator.
        for key in cls._svcrun_checks.keys() & namespace.keys() - declared.keys():
            setattr(cls, key, kept(namespace[key]))
        cls._svcrun_keywords = Keywords()
        cls._svcrun_stop_takes_exception = _takes_argument(getattr(cls, "stop", None))

        wrong = sorted(
            method for method in cls.__async_required__ if not _is_coroutine_method(cls, method)
        )
        if wrong:
            found = ", ".join(f"{name}.{method}" for method in wrong)
            msg = f"must be coroutine functions (async def): {found}"
            raise TypeError(msg)
        if not base:
            _check_handlers(cls)
            _check_set_loop(cls)
            _check_private_names(cls, namespace)
            if cls.__abstractmethods__:
                _explain_absence(cls)
        return cls


def _is_coroutine_method(cls: type, name: str) -> bool:
    method = getattr(cls, name, None)
    if is_coroutine_function(method):
        return True
    found = inspect.getattr_static(cls, name, None)
    return isinstance(found, functools.partialmethod) and is_coroutine_function(found.func)


def _check_handlers(cls: ServiceMeta) -> None:
    """Raise TypeError for a handler that is not callable, or that is a generator function.

    A call of a generator function runs none of its code.
    """
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
            f"{cls.__qualname__}.set_loop must be a method with the parameter loop, because it is "
            "called before each start; rename the attribute"
        )
        raise TypeError(msg)


def _check_private_names(cls: type, namespace: dict[str, typing.Any]) -> None:
    """Raise TypeError if `cls` uses a name that is reserved for the package.

    Two kinds of names are reserved: those that begin with ``_svcrun_``, and each ``__name`` of a
    base class of the package that has the same class name. Python mangles a ``__name`` with the
    name of its class, so both classes would use one attribute.
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
                f"{base.__module__}.{base.__qualname__}, because both classes have the same name; "
                "rename the class or the attribute"
            )
            raise TypeError(msg)


def check_reserved(owner: str, names: Iterable[str]) -> None:
    """Raise TypeError for names of `owner` that are reserved for the package."""
    for name in names:
        if name.startswith("_svcrun_"):
            msg = f"{owner}.{name} is reserved for svcrun itself; use another name"
            raise TypeError(msg)


def _explain_absence(cls: ServiceMeta) -> None:
    """Replace ``__new__``, so that the error of an abstract class names the misspelt method.

    A subclass may still define the method. So ``__new__`` checks the class of the instance.
    """
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
    # A decorator passes its arguments on, so each function that it wraps must accept them.
    while method is not None:
        code = getattr(method, "__code__", None)
        if not (code is None or code.co_argcount > 1 or code.co_flags & inspect.CO_VARARGS):
            return False
        method = getattr(method, "__wrapped__", None)
    return True


def _names(value: str | Iterable[str]) -> frozenset[str]:
    return frozenset((value,) if isinstance(value, str) else value)


def _required(
    cls: type, namespace: dict[str, typing.Any], declared: dict[str, Parameter]
) -> frozenset[str]:
    """Return the names of the keywords that the class and its bases require.

    A keyword of a base is not required if another class has an attribute of that name. An attribute
    of that base, or of the base's own bases, does not count.
    """
    required = {name for name, one in declared.items() if one.is_required}
    required |= _names(namespace.get("__required__", ()))
    for base in cls.__mro__[1:]:
        asked = _names(vars(base).get("__required__", ()))
        if asked:
            # Check all other classes: a mixin with the attribute may stand anywhere in the order of
            # the bases.
            others = [vars(one) for one in cls.__mro__ if one not in base.__mro__]
            required |= {name for name in asked if not any(name in one for one in others)}
    return frozenset(required)
