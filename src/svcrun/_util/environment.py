"""Read the ``SVCRUN_*`` environment variables."""

from __future__ import annotations

import os

from svcrun.errors import ParameterError

__all__ = ("Environment",)

_PREFIX = "SVCRUN_"
_PREFIX_AS_BYTES = os.fsencode(_PREFIX)
_TRUE = frozenset({"1", "enable", "enabled", "on", "true", "yes"})
_FALSE = frozenset({"0", "disable", "disabled", "off", "false", "no"})


class Environment:
    """The variables as they are now, by their names without ``SVCRUN_``.

    An empty variable counts as absent: it is what is left of one that somebody meant to unset.
    """

    def __init__(self) -> None:
        # One pass: to look up one that is not set costs as much as going through some dozens.
        # As bytes, since os.environ decodes each name in Python.
        found = [os.fsdecode(name) for name in os.environb if name.startswith(_PREFIX_AS_BYTES)]
        self._values = {name: value for name in found if (value := os.environ[name].strip())}

    def text(self, name: str) -> str | None:
        """Return a variable as it is, None if it is not set."""
        return self._values.get(_PREFIX + name)

    def switch(self, name: str, *, default: bool) -> bool:
        """Return a variable as something that is on or off.

        :raises ValueError: naming the variable, if it is neither.
        """
        text = self.text(name)
        if text is None:
            return default
        word = text.lower()
        if word in _TRUE:
            return True
        if word in _FALSE:
            return False
        accepted = "1, on, yes, true, 0, off, no or false"
        raise ParameterError("environment", _PREFIX + name, text, accepted)

    def whole_number(self, name: str) -> int | None:
        """Return a variable as a whole number, None if it is not set.

        :raises ValueError: naming the variable, if it is none.
        """
        text = self.text(name)
        try:
            return None if text is None else int(text)
        except ValueError:
            raise ParameterError("environment", _PREFIX + name, text, "a whole number") from None

    def number(self, name: str) -> float | None:
        """Return a variable as a number, None if it is not set.

        :raises ValueError: naming the variable, if it is none.
        """
        text = self.text(name)
        try:
            return None if text is None else float(text)
        except ValueError:
            raise ParameterError("environment", _PREFIX + name, text, "a number") from None
