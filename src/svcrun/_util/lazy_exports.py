"""Names of a module that are imported from other modules on first use."""

from __future__ import annotations

import sys
from importlib import import_module

from svcrun._util.hints import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ("lazy_exports",)


def lazy_exports(module: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for `module` that imports each name of `homes` from its module.

    >>> find = lazy_exports("svcrun._util.lazy_exports", {"inf": "math"})
    >>> find("inf")
    inf
    """

    def find(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = getattr(import_module(home), name)
        setattr(sys.modules[module], name, value)
        return value

    return find
