"""Raise exceptions that were caught elsewhere, and describe them in one line."""

from __future__ import annotations

from svcrun._util.hints import NoReturn

__all__ = ("one_line", "raise_together", "raise_unchanged")


def raise_unchanged(error: BaseException) -> NoReturn:
    """Raise `error` with the traceback, the cause and the context that it has.

    A plain ``raise`` sets ``__context__`` to the exception that is being handled, here or in a
    caller. That would replace the original context of `error`.
    """
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context
        # The traceback refers to this frame; a local variable would make a reference cycle.
        del error, context


def raise_together(message: str, errors: list[BaseException]) -> None:
    """Raise the exception in `errors`, or several as an exception group with `message`.

    The list is cleared, so that no frame in the traceback refers to the exception.
    """
    if not errors:
        return
    first, *others = errors
    try:
        if others:
            first = BaseExceptionGroup(message, tuple(errors))
        errors.clear()
        raise_unchanged(first)
    finally:
        del first, others


def one_line(error: BaseException) -> str:
    """Return the type of `error` and the first line of its message."""
    try:
        message = str(error).partition("\n")[0]
    except Exception:  # noqa: BLE001 - the code of the exception's class
        message = ""
    name = type(error).__qualname__
    return f"{name}: {message}" if message else name
