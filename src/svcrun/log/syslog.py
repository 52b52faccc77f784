"""The ``syslog`` format."""

from __future__ import annotations

import os
from logging.handlers import SYSLOG_UDP_PORT, SysLogHandler
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import logging

__all__ = ("create_handler",)

_SOCKETS = ("/dev/log", "/var/run/syslog", "/var/run/log")


def create_handler(formatter: logging.Formatter, options: dict[str, Any]) -> logging.Handler:
    """Connect to the daemon of this machine: its socket if there is one, else UDP."""
    local = (path for path in _SOCKETS if os.path.exists(path))
    options.setdefault("address", next(local, ("localhost", SYSLOG_UDP_PORT)))
    handler = SysLogHandler(**options)
    handler.setFormatter(formatter)
    return handler
