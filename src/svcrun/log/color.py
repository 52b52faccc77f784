"""The ``color`` format, by colorlog."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from colorlog import ColoredFormatter
except ImportError as error:
    raise ImportError(
        "svcrun.log format 'color' needs colorlog: pip install 'svcrun[color]'"
    ) from error

if TYPE_CHECKING:
    import logging

__all__ = ("create_formatter",)

_LEVEL_COLORS = {
    "DEBUG": "cyan",
    "INFO": "green",
    "WARNING": "yellow",
    "ERROR": "red",
    "CRITICAL": "bold_white,bg_red",
}


def create_formatter(
    text: str, date_format: str | None, options: dict[str, Any]
) -> logging.Formatter:
    """Return a formatter that shows the level in its colour, unless ``NO_COLOR`` is set.

    :param text: the format without colours; its first two fields are the level and the logger.
    """
    head, colon, message = text.rpartition(":")
    text = f"%(log_color)s{head}%(reset)s{colon}{message}"
    if date_format:
        text = f"%(thin)s%(asctime)s%(reset)s {text}"
    defaults: dict[str, Any] = {"log_colors": _LEVEL_COLORS, "datefmt": date_format}
    return ColoredFormatter(text, **(defaults | options))
