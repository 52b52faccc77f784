"""Raise exceptions that were caught elsewhere, and describe them in one line."""

from __future__ import annotations

from svcrun.hints import NoReturn

__all__ = ("brief", "raise_together", "raise_unchanged")


def raise_unchanged(error: BaseException) -> NoReturn:
    """Raise `error` with the traceback, the cause and the context that it has.

    A plain ``raise`` sets ``__context__`` to the exception that is being handled, here or in a
    caller, and so the one that `error` came with would be lost.
    """
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context
        # This frame is in the traceback: it must not refer to the exception.
        del error, context


def raise_together(message: str, errors: list[BaseException]) -> None:
    """Raise what is in `errors`: one as it is, several as a group with `message`.

    The list is emptied, so that the frames in the traceback do not refer to the exception.
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


def brief(error: BaseException) -> str:
    """Return the type of `error` and the first line of its message."""
    try:
        message = str(error).partition("\n")[0]
    except Exception:  # noqa: BLE001 - the code of the exception's class
        message = ""
    name = type(error).__qualname__
    return f"{name}: {message}" if message else name
