"""An application that a web service hosts, in whichever way it was given."""

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

    from svcrun.service.base import Service

__all__ = ("check_application", "check_import_string", "is_factory", "load")

_ACCEPTED = "'package.module:name' of an application or a factory"
_FORM = re.compile(r"[\w.]+:[\w.]+")


def check_import_string(owner: Service) -> None:
    """Refuse an ``app`` that is a text but can't name anything, or else can't be called.

    :raises ValueError, TypeError: naming the class and the value.
    """
    app = getattr(owner, "app", None)
    if isinstance(app, str):
        if _FORM.fullmatch(app) is None:
            raise ParameterError(type(owner).__qualname__, "app", app, _ACCEPTED)
    elif not (app is None or callable(app)):
        accepted = f"an application, a factory, or {_ACCEPTED}"
        raise ParameterTypeError(type(owner).__qualname__, "app", app, accepted)


def check_application(owner: Service, base: type[Service], method: str) -> None:
    """Raise an error for a service without an application whose `method` is probably misspelt.

    :param base: the class whose `method` creates the application from ``app``.
    :raises TypeError: naming the class and both methods.
    """
    cls = type(owner)
    if getattr(owner, "app", None) is None and getattr(cls, method) is getattr(base, method):
        found = near_method(cls, method)
        if found is not None:
            raise MissingMethod(cls.__qualname__, method, found)


def is_factory(app: Any, arguments: int) -> bool:
    """Tell whether `app` is to be called for an application, and without arguments.

    :param arguments: with how many arguments an application itself is called. What can be called
        in both ways is an application.
    """
    if not callable(app):
        return False
    try:
        signature = inspect.signature(app)
    except (TypeError, ValueError):
        return False
    return _accepts(signature, 0) and not _accepts(signature, arguments)


async def load(owner: Service, app: Any, is_factory: Callable[[Any], bool]) -> Any:
    """Return the application that `app` is, names, or makes.

    :param is_factory: tells whether something has to be called to get an application.
    :raises ImportError: if `app` names something that is not there.
    """
    if isinstance(app, str):
        app = _find(owner, app)
    if not is_factory(app):
        return app
    made = app()
    return await made if inspect.isawaitable(made) else made


def _find(owner: Service, name: str) -> Any:
    module_name, _, attributes = name.partition(":")
    where = f"{type(owner).__qualname__}: app={name!r}"
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # a module that the application needs
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
