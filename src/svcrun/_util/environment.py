"""Read the ``SVCRUN_*`` environment variables."""

from __future__ import annotations

import os

from svcrun.errors import ParameterError

__all__ = ("PREFIX", "Environment", "overridden")

PREFIX = "SVCRUN_"
_PREFIX_AS_BYTES = os.fsencode(PREFIX)
_TRUE = frozenset({"1", "enable", "enabled", "on", "true", "yes"})
_FALSE = frozenset({"0", "disable", "disabled", "off", "false", "no"})


overridden: dict[str, str] = {}
"""Values that replace those of variables in this process, and not in processes that it starts."""


class Environment:
    """The variables as they are now, by their names without ``SVCRUN_``.

    An empty variable counts as absent, because ``NAME= program`` is a usual way to unset one. Each
    method returns None for a variable that is absent.
    """

    def __init__(self) -> None:
        # One pass over all variables costs less than a look-up of each that may be set. The names
        # are compared as bytes, because os.environ decodes each one in Python.
        found = [os.fsdecode(name) for name in os.environb if name.startswith(_PREFIX_AS_BYTES)]
        self._values = {name: value for name in found if (value := os.environ[name].strip())}
        self._values |= overridden

    def __bool__(self) -> bool:
        """Whether any variable is set."""
        return bool(self._values)

    def text(self, name: str) -> str | None:
        """Return a variable as it is."""
        return self._values.get(PREFIX + name)

    def switch(self, name: str) -> bool | None:
        """Return whether a variable is on or off.

        :raises ValueError: naming the variable, if it is neither.
        """
        text = self.text(name)
        if text is None:
            return None
        word = text.lower()
        if word in _TRUE:
            return True
        if word in _FALSE:
            return False
        accepted = "1, on, yes, true, 0, off, no or false"
        raise ParameterError("environment", PREFIX + name, text, accepted)

    def whole_number(self, name: str) -> int | None:
        """Return a variable as a whole number.

        :raises ValueError: naming the variable, if it is none.
        """
        text = self.text(name)
        try:
            return None if text is None else int(text)
        except ValueError:
            raise ParameterError("environment", PREFIX + name, text, "a whole number") from None

    def number(self, name: str) -> float | None:
        """Return a variable as a number.

        :raises ValueError: naming the variable, if it is none.
        """
        text = self.text(name)
        try:
            return None if text is None else float(text)
        except ValueError:
            raise ParameterError("environment", PREFIX + name, text, "a number") from None
