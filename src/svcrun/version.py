"""The version of the package; the build reads it from here."""

__all__ = ("__version__", "version_info")

__version__ = "0.1.0"

version_info: tuple[int, int, int] = (0, 1, 0)
"""The same as numbers, for comparisons.

>>> version_info >= (0, 1)
True
"""
