"""Handlers that nobody but their session closes."""

from __future__ import annotations

import logging

__all__ = ("KeptHandler",)


class KeptHandler(logging.Handler):
    """A handler whose ``close()`` is to do nothing as long as it is in use.

    ``logging.config`` closes every handler of the process before it makes new ones, those too
    that stay with their loggers.

    :ivar kept: whether a session uses the handler.
    """

    kept = False
