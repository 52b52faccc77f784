"""Base class of decorated functions and generator functions."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from svcrun._util.callables import describe, is_coroutine_function

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
S = TypeVar("S")

__all__ = ("ThreadedBase", "plain_function")


def plain_function(decorator: str, function: Any) -> Callable[..., Any]:
    """Return the plain function of a function or a static or class method.

    :raises TypeError: if it is not callable, or is asynchronous.
    """
    plain = function.__func__ if isinstance(function, staticmethod | classmethod) else function
    if not callable(plain):
        raise TypeError(f"@{decorator} needs a function, not {function!r}")
    if is_coroutine_function(plain) or inspect.isasyncgenfunction(plain):
        raise TypeError(
            f"@{decorator} needs a function that blocks, but {describe(plain)} is asynchronous; "
            "call it without a thread"
        )
    return plain


class ThreadedBase(Generic[P, T]):
    """A wrapper of a function that is bound like a method.

    :param func: a function, a static or class method, or another callable object.
    """

    def __init__(self, func: Callable[P, T]) -> None:
        wrapper: Any = self  # update_wrapper() expects a function
        functools.update_wrapper(wrapper, plain_function(type(self).__name__, func))
        self.func = func

    def sync_call(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function in this thread."""
        return self.func(*args, **kwargs)

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: type | None = None) -> Self: ...
        @overload
        def __get__(
            self: ThreadedBase[Concatenate[S, Q], T], instance: S, owner: type | None = None
        ) -> ThreadedBase[Q, T]: ...

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if not hasattr(type(self.func), "__get__"):
            return self  # a callable object is not bound
        bound = object.__new__(type(self))
        bound.__dict__.update(self.__dict__, func=self.func.__get__(instance, owner))
        return bound

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {describe(self.func)}>"
