"""Handlers that only their session closes."""

from __future__ import annotations

import logging

__all__ = ("SessionHandler",)


class SessionHandler(logging.Handler):
    """A handler whose ``close()`` does nothing while a session uses it.

    ``logging.config`` closes every handler of the process before it creates new ones, even those
    that stay with their loggers.

    :ivar in_use: whether a session uses the handler.
    """

    in_use = False
