"""Handlers that nobody but their session closes."""

from __future__ import annotations

import logging

__all__ = ("SessionHandler",)


class SessionHandler(logging.Handler):
    """A handler whose ``close()`` is to do nothing as long as it is in use.

    ``logging.config`` closes every handler of the process before it makes new ones, those too
    that stay with their loggers.

    :ivar in_use: whether a session uses the handler.
    """

    in_use = False
