"""An entrypoint, as far as services observe it."""

from __future__ import annotations

from svcrun._util.hints import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection, Sequence

__all__ = ("ObservedEntrypoint", "ObservedSupervisor")


class ObservedSupervisor(Protocol):
    """The supervisor of the services of an entrypoint. Any thread may read the attributes."""

    @property
    def services(self) -> Collection[Any]:
        """The services that were started, and whose stop has not ended."""

    @property
    def running(self) -> Collection[Any]:
        """The services that run."""

    @property
    def restarting(self) -> Collection[Any]:
        """The services that crashed, or depend on one that did, and will be started again."""


class ObservedEntrypoint(Protocol):
    """The entrypoint, as far as observers use it. Any thread may read the attributes."""

    loop: asyncio.AbstractEventLoop
    is_ready: bool
    """Whether the start has ended and nothing has requested a shutdown."""
    services: tuple[Any, ...]
    """The services that the entrypoint was created with."""

    @property
    def supervisor(self) -> ObservedSupervisor:
        """The supervisor of its services."""

    def waiting(self) -> Sequence[str]:
        """Return the names of the services that the start or the stop waits for."""
