"""Whether a service is stopped because the process was asked to terminate."""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ("is_terminating",)

is_terminating: ContextVar[bool] = ContextVar("svcrun_is_terminating", default=False)
"""Whether this code belongs to a shutdown that SIGTERM began. The entrypoint sets it."""
