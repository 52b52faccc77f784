"""Limit the time of calls of a coroutine function."""

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
    """Limit the time of each call of the decorated coroutine function.

    A call that takes longer is cancelled, and raises a :class:`TimeoutError` with the name of the
    function and the limit. Errors of the function itself are raised unchanged.

    :param value: the limit in seconds, at least 0; ``math.inf`` for no limit.

    :raises ValueError: if the limit is negative or NaN.
    :raises TypeError: if the limit is not a number, or the function is not a coroutine function.

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
            raise NotACoroutineFunction("the function decorated with @timeout", function)

        @functools.wraps(function)
        async def limited(*args: P.args, **kwargs: P.kwargs) -> T:
            scope = asyncio.timeout(value)
            try:
                async with scope:
                    return await function(*args, **kwargs)
            except TimeoutError as error:
                # Race: the function itself may raise a TimeoutError when the limit has just
                # expired. Unlike that of asyncio.timeout(), it usually has a message.
                if not scope.expired() or error.args:
                    raise
                raise TimeoutError(
                    f"{describe(function)} took longer than its limit of {value:g} s"
                ) from error.__cause__

        return limited

    return decorate
