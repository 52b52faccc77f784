"""An entrypoint, as far as services observe it."""

from __future__ import annotations

from svcrun._util.hints import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection, Sequence

__all__ = ("ObservedEntrypoint", "ObservedSupervisor")


class ObservedServiceHistory(Protocol):
    """The history of a service, see :class:`svcrun._lifecycle.history.ServiceHistory`."""

    since: float | None
    crashes: int
    restarts: int
    start_seconds: float | None
    stop_seconds: float | None
    last_error: str | None


class ObservedHistory(Protocol):
    """The histories of services. Any thread may ask."""

    def of(self, service: Any) -> ObservedServiceHistory | None:
        """Return the history of `service`, None if it has none."""

    def services(self) -> Collection[Any]:
        """Return the services that have a history and still exist."""


class ObservedSupervisor(Protocol):
    """The supervisor of the services of an entrypoint. Any thread may read the attributes."""

    @property
    def services(self) -> Collection[Any]:
        """The services that were started, and whose stop has not ended."""

    @property
    def running(self) -> Collection[Any]:
        """The services that run."""

    record_history: Callable[[], ObservedHistory]
    """Return the history of the services, which begins with the first call."""

    @property
    def restarting(self) -> Collection[Any]:
        """The services that crashed, or depend on one that did, and will be started again."""


class ObservedPool(Protocol):
    """A thread pool, see :class:`svcrun.ThreadPoolExecutor`. Any thread may read the attributes."""

    @property
    def busy(self) -> int:
        """The number of threads that run a job."""

    @property
    def size(self) -> int:
        """The maximum number of threads."""

    @property
    def waiting(self) -> int:
        """The number of jobs that wait for a thread."""


class ObservedFacilities(Protocol):
    """The log and the thread pool of an entrypoint."""

    @property
    def pool(self) -> ObservedPool | None:
        """The thread pool, if the entrypoint has one."""


class ObservedEntrypoint(Protocol):
    """The entrypoint, as far as observers use it. Any thread may read the attributes."""

    loop: asyncio.AbstractEventLoop
    is_ready: bool
    """Whether the start has ended and nothing has requested a shutdown."""
    services: tuple[Any, ...]
    """The services that the entrypoint was created with."""

    @property
    def facilities(self) -> ObservedFacilities:
        """Its thread pool."""

    @property
    def supervisor(self) -> ObservedSupervisor:
        """The supervisor of its services."""

    def waiting(self) -> Sequence[str]:
        """Return the names of the services that the start or the stop waits for."""
