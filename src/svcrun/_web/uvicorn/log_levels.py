"""The level of uvicorn's loggers while a service runs."""

from __future__ import annotations

import logging
from typing import Final

from uvicorn.config import LOG_LEVELS

__all__ = ("LogLevels",)

_LOGGERS: Final = ("uvicorn.error", "uvicorn.access", "uvicorn.asgi")


class LogLevels:
    """The levels that uvicorn's loggers had before."""

    def __init__(self) -> None:
        self._previous: list[tuple[logging.Logger, int]] = []

    def set(self, level: str | int | None) -> None:
        """Set the level; None leaves the levels unchanged.

        :param level: a number, or one of uvicorn's names.
        """
        if level is None:
            return
        for logger in map(logging.getLogger, _LOGGERS):
            self._previous.append((logger, logger.level))
            logger.setLevel(LOG_LEVELS[level.lower()] if isinstance(level, str) else level)

    def restore(self) -> None:
        """Set the previous levels again."""
        for logger, level in self._previous:
            logger.setLevel(level)
        self._previous.clear()
