"""The service for which the current code runs."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar

from svcrun._util.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("current_name", "current_service", "name_of", "on_behalf_of")

# Modules below `svcrun.service` use this, so a service is only an object here. `svcrun` declares
# its type to users: `ContextVar[Service | None]`.
current_service: ContextVar[object] = ContextVar("current_service", default=None)
"""The service whose ``start()`` or ``stop()`` runs, or created the task or callback that runs.

None outside of services. An entrypoint sets it; a ``start()`` that is called directly runs for the
service of its caller.

.. code-block:: python

    from svcrun import current_service

    service = current_service.get()
"""


def current_name() -> str | None:
    """Return the name of the current service (see :func:`name_of`), None without one."""
    service = current_service.get()
    return None if service is None else name_of(service)


def name_of(service: object) -> str:
    """Return the ``name`` of a service, or that of its class if it has none."""
    try:
        name: object = getattr(service, "name", None)
        if not name or callable(name):  # a subclass may have a method `name`
            return type(service).__qualname__
        return name if type(name) is str else str(name)
    except Exception:  # noqa: BLE001 - a property of a subclass may raise anything
        return type(service).__qualname__


@contextmanager
def on_behalf_of(service: object) -> Iterator[None]:
    """Make `service` the current one within a block, so that log records of the block name it."""
    token = current_service.set(service)
    try:
        yield
    finally:
        current_service.reset(token)
