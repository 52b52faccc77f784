"""The services that observe the life of the entrypoint."""

from __future__ import annotations

from svcrun._util.hints import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from svcrun.service.base import Service

__all__ = ("Observers",)


class Observers:
    """The observers among `services`, see :class:`svcrun.service._observer.Observer`."""

    def __init__(self, services: Iterable[Service]) -> None:
        self._observers: list[Any] = _observers(services)

    def __contains__(self, service: object) -> bool:
        return any(service is observer for observer in self._observers)

    def notify(self, phase: str, *args: object) -> None:
        """Call the method of all observers for `phase`."""
        for observer in self._observers:
            getattr(observer, f"_svcrun_{phase}")(*args)

    def join(self, services: Iterable[Service], entrypoint: object) -> None:
        """Add the observers among `services`, which are about to be started in `entrypoint`."""
        for observer in _observers(services):
            if observer not in self:
                self._observers.append(observer)
                observer._svcrun_joined(entrypoint)  # noqa: SLF001


def _observers(services: Iterable[Service]) -> list[Any]:
    return [service for service in services if service._svcrun_observes]  # noqa: SLF001
