"""Classify callables, and name them in messages."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import sys

from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun.errors import show

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("describe", "is_coroutine_function", "is_generator_function", "optional_method")

log = logging.getLogger("svcrun.entrypoint")

_is_marked: Callable[[object], bool]
if sys.version_info >= (3, 12):
    _is_marked = inspect.iscoroutinefunction
else:
    # asyncio had a mark of its own; this looks for `async def` as well.
    _is_marked = asyncio.iscoroutinefunction


def is_coroutine_function(function: object) -> bool:
    """Return whether a call of `function` returns a coroutine.

    Sees what :func:`inspect.iscoroutinefunction` sees, marked functions and mocks included, and
    objects whose class has an ``async def __call__``, also through :class:`functools.partial`.

    >>> class Hook:
    ...     async def __call__(self): ...
    >>> is_coroutine_function(Hook()), is_coroutine_function(print)
    (True, False)
    """
    while isinstance(function, functools.partial):
        function = function.func
    if _is_marked(function):
        return True
    call = getattr(type(function), "__call__", None)  # noqa: B004 - what calls do, not whether
    return _is_marked(call)


def is_generator_function(function: object) -> bool:
    """Return whether a call of `function` returns a generator, and so runs none of its code.

    This unwraps :func:`functools.partial` and the decorators that iterate in a thread. A function
    of :func:`types.coroutine` can be awaited, and does not count.
    """
    function = getattr(function, "__func__", function)
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "func", function)
    if inspect.isasyncgenfunction(function):
        return True
    code = getattr(function, "__code__", None)
    awaitable = code is not None and code.co_flags & inspect.CO_ITERABLE_COROUTINE
    return inspect.isgeneratorfunction(function) and not awaitable


def optional_method(service: object, name: str, consequence: str) -> Any:
    """Return the coroutine method `name` of a service if it has no parameters, otherwise None.

    A subclass may use the name for something else, and keeps it; that is logged for debugging.

    :param consequence: what follows for such a name, for the log message.
    """
    if not callable(getattr(type(service), name, None)):
        return None
    bound: Any = getattr(service, name, None)
    if is_coroutine_function(bound) and not inspect.signature(bound).parameters:
        return bound
    log.debug(
        "%s: %s is not a coroutine method without parameters, so %s",
        show(service),
        name,
        consequence,
    )
    return None


def describe(function: object) -> str:
    """Name `function` for a message: module and qualified name, or its representation.

    >>> describe(describe)
    'svcrun._util.callables.describe'
    """
    name = getattr(function, "__qualname__", None)
    module = getattr(function, "__module__", None)
    if name is None:
        return repr(function)
    return f"{module}.{name}" if module else f"{name}"
