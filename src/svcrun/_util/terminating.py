"""Why a service is stopped, and until when."""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ("is_terminating", "shutdown_deadline")

is_terminating: ContextVar[bool] = ContextVar("svcrun_is_terminating", default=False)
"""Whether this code belongs to a shutdown that SIGTERM began. The entrypoint sets it."""

shutdown_deadline: ContextVar[float | None] = ContextVar("svcrun_shutdown_deadline", default=None)
"""The end of the shutdown that this code belongs to, as a time of the loop's clock."""
