"""A time limit for every call of a coroutine function."""

from __future__ import annotations

import asyncio
import functools
from math import inf
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from svcrun._util.callables import describe, is_coroutine_function
from svcrun._util.validation import number
from svcrun.errors import NotACoroutineFunction

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

P = ParamSpec("P")
T = TypeVar("T")

__all__ = ("timeout",)


def timeout(
    value: float,
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """Limit the time that each call of the decorated coroutine function may take.

    A call that takes longer is cancelled and raises a :class:`TimeoutError` that names the
    function and the limit. An error of its own comes out as it is.

    :param value: the limit in seconds, 0 or more; ``math.inf`` for none.

    :raises ValueError: if the limit is negative or not a number.
    :raises TypeError: if it is of another type, or if no coroutine function is decorated.

    >>> import asyncio
    >>> @timeout(0.01)
    ... async def answer():
    ...     await asyncio.sleep(60)
    >>> asyncio.run(answer())
    Traceback (most recent call last):
    TimeoutError: svcrun.timeout.answer took longer than its limit of 0.01 s
    """
    number(low=0, high=inf, unit="seconds")("timeout()", "value", value)

    def decorate(
        function: Callable[P, Coroutine[Any, Any, T]],
    ) -> Callable[P, Coroutine[Any, Any, T]]:
        if not is_coroutine_function(function):
            raise NotACoroutineFunction("what @timeout decorates", function)

        @functools.wraps(function)
        async def limited(*args: P.args, **kwargs: P.kwargs) -> T:
            scope = asyncio.timeout(value)
            try:
                async with scope:
                    return await function(*args, **kwargs)
            except TimeoutError as error:
                # One with a text comes from the function, though the limit passed meanwhile.
                if not scope.expired() or error.args:
                    raise
                raise TimeoutError(
                    f"{describe(function)} took longer than its limit of {value:g} s"
                ) from error.__cause__

        return limited

    return decorate
