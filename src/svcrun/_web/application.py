"""Check, import and create the application that a web service hosts."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import TYPE_CHECKING, Any

from svcrun._util.base_classes import near_method
from svcrun._util.callables import describe
from svcrun.errors import MissingMethod, ParameterError, ParameterTypeError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("check_application", "check_import_string", "is_factory", "load")

_ACCEPTED = "'package.module:name' of an application or a factory"
_FORM = re.compile(r"[\w.]+:[\w.]+")


def check_import_string(owner: object) -> None:
    """Check the parameter ``app``: an import string, or an object that can be called.

    :raises ValueError: if it is a string, but not an import string.
    :raises TypeError: if it is another object that can't be called.
    """
    app = getattr(owner, "app", None)
    if isinstance(app, str):
        if _FORM.fullmatch(app) is None:
            raise ParameterError(type(owner).__qualname__, "app", app, _ACCEPTED)
    elif not (app is None or callable(app)):
        accepted = f"an application, a factory, or {_ACCEPTED}"
        raise ParameterTypeError(type(owner).__qualname__, "app", app, accepted)


def check_application(owner: object, base: type, method: str) -> None:
    """Check whether a service without ``app`` has a method with a name similar to `method`.

    :param base: the class whose `method` creates the application from ``app``.
    :raises TypeError: if it has: the name is probably misspelt.
    """
    cls = type(owner)
    if getattr(owner, "app", None) is None and getattr(cls, method) is getattr(base, method):
        found = near_method(cls, method)
        if found is not None:
            raise MissingMethod(cls.__qualname__, method, found)


def is_factory(app: Any, arguments: int) -> bool:
    """Return whether `app` is a factory: a function without required parameters.

    :param arguments: the number of arguments of a call of an application. An object that accepts
        them as well is an application, not a factory.
    """
    if not callable(app):
        return False
    try:
        signature = inspect.signature(app)
    except (TypeError, ValueError):
        return False
    return _accepts(signature, 0) and not _accepts(signature, arguments)


async def load(owner: object, app: Any, is_factory: Callable[[Any], bool]) -> Any:
    """Return the application.

    :param app: the application, a factory (a function or coroutine function), or an import string
        of either.
    :param is_factory: returns whether an object is a factory.
    :raises ImportError: if the module or the attribute does not exist.
    """
    if isinstance(app, str):
        app = _import(owner, app)
    if not is_factory(app):
        return app
    made = app()
    return await made if inspect.isawaitable(made) else made


def _import(owner: object, name: str) -> Any:
    module_name, _, attributes = name.partition(":")
    where = f"{type(owner).__qualname__}: app={name!r}"
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists, and imports another one that does not
        text = f"{where}: there is no module {error.name!r} on sys.path"
        raise ModuleNotFoundError(text, name=error.name) from error
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError as error:
            text = f"{where}: {describe(found)} has no {attribute!r}"
            raise ImportError(text, name=module_name) from error
    return found


def _accepts(signature: inspect.Signature, arguments: int) -> bool:
    try:
        signature.bind(*(None,) * arguments)
    except TypeError:
        return False
    return True
