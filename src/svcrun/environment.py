"""Read the ``SVCRUN_*`` environment variables."""

from __future__ import annotations

import os

from svcrun.errors import ParameterError

__all__ = ("read_bool", "read_float", "read_int", "read_str")

_TRUE = frozenset({"1", "enable", "enabled", "on", "true", "yes"})
_FALSE = frozenset({"0", "disable", "disabled", "off", "false", "no"})


def _read(name: str) -> tuple[str, str | None]:
    variable = f"SVCRUN_{name}"
    # An empty variable is what is left of one that somebody meant to unset.
    return variable, os.environ.get(variable, "").strip() or None


def read_str(name: str) -> str | None:
    """Return ``SVCRUN_<name>``, None if it is not set."""
    return _read(name)[1]


def read_bool(name: str, default: bool) -> bool:
    """Return ``SVCRUN_<name>`` as a switch.

    :raises ValueError: naming the variable, if it is neither on nor off.
    """
    variable, text = _read(name)
    if text is None:
        return default
    word = text.lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ParameterError("environment", variable, text, "1, on, yes, true or 0, off, no, false")


def read_int(name: str) -> int | None:
    """Return ``SVCRUN_<name>`` as a whole number.

    :raises ValueError: naming the variable, if it is none.
    """
    variable, text = _read(name)
    try:
        return None if text is None else int(text)
    except ValueError:
        raise ParameterError("environment", variable, text, "a whole number") from None


def read_float(name: str) -> float | None:
    """Return ``SVCRUN_<name>`` as a number.

    :raises ValueError: naming the variable, if it is none.
    """
    variable, text = _read(name)
    try:
        return None if text is None else float(text)
    except ValueError:
        raise ParameterError("environment", variable, text, "a number") from None
