"""Which service is at work."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar

from svcrun._util.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svcrun.service.base import Service

__all__ = ("current_name", "current_service", "name_of", "on_behalf_of")

current_service: ContextVar[Service | None] = ContextVar("current_service", default=None)
"""The service whose ``start()`` or ``stop()`` runs, or has begun what runs, such as a task.

None outside of services. An entrypoint sets it; ``start()`` that is called directly runs for whom
its caller does.

.. code-block:: python

    from svcrun import current_service

    service = current_service.get()
"""


def current_name() -> str | None:
    """Return what the service at work is called: its ``name``, else that of its class."""
    service = current_service.get()
    return None if service is None else name_of(service)


def name_of(service: Service) -> str:
    """Return the ``name`` of a service, or that of its class if it has none."""
    try:
        name: object = getattr(service, "name", None)
        if not name or callable(name):  # a subclass may have a method `name`
            return type(service).__qualname__
        return name if type(name) is str else str(name)
    except Exception:  # noqa: BLE001 - a property of the user's may raise anything
        return type(service).__qualname__


@contextmanager
def on_behalf_of(service: Service | None) -> Iterator[None]:
    """Let `service` be the one at work within a block, as what is logged there concerns it."""
    token = current_service.set(service)
    try:
        yield
    finally:
        current_service.reset(token)
