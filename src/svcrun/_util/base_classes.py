"""The base classes of the package, and the methods that subclasses of users add to them."""

from __future__ import annotations

__all__ = ("is_own", "near_method")


def is_own(cls: type) -> bool:
    """Return whether `cls` is one of the package's own base classes.

    The package marks each of them: ``class Echo(Service, base=True)``.
    """
    return "_svcrun_is_base" in vars(cls)


def near_method(cls: type, meant: str) -> str | None:
    """Return the name of a method of the user's classes that is probably `meant`, misspelt."""
    from svcrun._util.misspelling import is_misspelling  # few programs need it

    for base in cls.__mro__[:-1]:
        if not is_own(base):
            for name, value in vars(base).items():
                if (
                    (callable(value) or hasattr(value, "__func__"))
                    and not name.startswith("_")
                    and is_misspelling(name, meant)
                ):
                    return name
    return None
