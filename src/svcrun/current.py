"""Which service is at work."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svcrun.service.base import Service

__all__ = ("current_name", "current_service")

current_service: ContextVar[Service | None] = ContextVar("current_service", default=None)
"""The service whose ``start()`` or ``stop()`` runs, or began what runs: a task, a call, a connection.

None outside of services.

.. code-block:: python

    from svcrun import current_service

    service = current_service.get()
"""


def current_name() -> str | None:
    """Return what the service at work is called: its ``name``, else that of its class."""
    service = current_service.get()
    return None if service is None else service.name or type(service).__qualname__
