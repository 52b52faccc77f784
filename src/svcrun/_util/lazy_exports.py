"""Export names of other modules, which are imported on first use."""

from __future__ import annotations

import sys
from importlib import import_module

from svcrun._util.hints import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ("lazy_exports",)


def lazy_exports(module: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for `module` that imports each name on first use.

    :param modules: by name, the module to import it from.

    >>> find = lazy_exports("svcrun._util.lazy_exports", {"inf": "math"})
    >>> find("inf")
    inf
    """

    def find(name: str) -> Any:
        source = modules.get(name)
        if source is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = getattr(import_module(source), name)
        setattr(sys.modules[module], name, value)
        return value

    return find
