"""A context variable that raises an exception of its own while it has no value."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Generic, TypeVar

T = TypeVar("T")

__all__ = ("StrictContextVar",)


class StrictContextVar(Generic[T]):
    """A context variable that raises `exc` while it has no value.

    >>> variable = StrictContextVar("user", LookupError("no user is logged in"))
    >>> variable.get()
    Traceback (most recent call last):
    LookupError: no user is logged in
    >>> variable.set("ada")
    >>> variable.get()
    'ada'
    """

    def __init__(self, name: str, exc: Exception) -> None:
        self.exc = exc
        self.context_var: ContextVar[T | None] = ContextVar(name)

    def get(self) -> T:
        """Return the value; raise `exc` if there is none."""
        value = self.context_var.get(None)
        if value is None:
            raise self.exc.with_traceback(None)  # drop the frames of the previous raise
        return value

    def set(self, value: T) -> None:
        """Set the value in the context of the caller."""
        self.context_var.set(value)
