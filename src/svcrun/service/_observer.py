"""The base of services that the entrypoint tells the phases of its life."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from svcrun.service.base import Service

if TYPE_CHECKING:
    from svcrun._util.observed_entrypoint import ObservedEntrypoint

__all__ = ("Observer",)


class Observer(Service, base=True):
    """A service that observes the life of its entrypoint, from before the first start on.

    The entrypoint calls these methods in the event loop. None of them may raise or wait.
    """

    _svcrun_observes: ClassVar[bool] = True

    def _svcrun_entering(self, entrypoint: ObservedEntrypoint) -> None:
        """React to the begin of the start: no service has been started."""

    def _svcrun_joined(self, entrypoint: ObservedEntrypoint) -> None:
        """React to a start of this service in an entrypoint that runs already."""

    def _svcrun_started(self) -> None:
        """React to the end of the start, or of a reload."""

    def _svcrun_reloading(self) -> None:
        """React to the begin of a reload."""

    def _svcrun_closing(self) -> None:
        """React to the begin of the shutdown, or of the delay before it."""

    def _svcrun_left(self) -> None:
        """React to the end: all services and tasks have ended. The loop does not run any more."""
