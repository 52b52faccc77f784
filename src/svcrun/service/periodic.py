"""A service that does something every so many seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from svcrun.current import name_of
from svcrun.periodic import PeriodicCallback, check_period
from svcrun.series import check_call_options
from svcrun.service.base import Service, parameter

if TYPE_CHECKING:
    from svcrun.clock import Clock
    from svcrun.series import ExceptionsType, Overlap

__all__ = ("PeriodicService",)


class PeriodicService(Service):
    """Call :meth:`callback` every `interval` seconds; override it.

    The moments are `interval` seconds apart, however long calls and the loop take. Calls never
    overlap. One that fails is logged, and the next one comes all the same. The stop of the service
    waits for a call under way.

    :param interval: seconds between the starts of two calls.
    :param delay: seconds until the first call; 0 by default.
    :param jitter: seconds by which each call is late at most, at random; 0 by default.
    :param overlap: what to do when a call is due while another is under way: ``"skip"`` it (the
        default), ``"queue"`` it, or ``"cancel"`` the other.
    :param suppress_exceptions: are not logged when :meth:`callback` raises them.

    :attr:`periodic` counts the calls: ``service.periodic.calls``, ``.failures``, ``.skipped``,
    ``.last_start``, ``.last_duration``, ``.next_due`` (see :class:`svcrun.PeriodicCallback`).

    :raises ValueError, TypeError: naming a parameter that has a wrong value.

    >>> from svcrun.service.periodic import PeriodicService
    >>> class Cleaner(PeriodicService):
    ...     async def callback(self):
    ...         print("clean")
    >>> print(Cleaner(interval=3600))
    Cleaner(interval=3600,delay=0)
    """

    __required__ = ("interval",)

    interval: float
    delay: float = 0
    jitter: float = 0
    overlap: Overlap = "skip"
    suppress_exceptions: ExceptionsType = ()
    clock: Clock | None = parameter(default=None)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not _CHECKED.isdisjoint(kwargs):
            check_period(self, self.interval, self.delay, self.jitter)
            check_call_options(self, self.overlap, self.suppress_exceptions)
        self.periodic = PeriodicCallback(self.callback, name=name_of(self))

    async def start(self) -> None:
        """Begin to call."""
        self.periodic.start(
            self.interval,
            delay=self.delay,
            loop=self.loop,
            suppress_exceptions=self.suppress_exceptions,
            jitter=self.jitter,
            overlap=self.overlap,
            clock=self.clock,
        )

    async def stop(self, exception: BaseException | None = None) -> None:
        """End the calls, and wait for the one under way.

        A call may stop the service itself, and is not waited for then.
        """
        await self.periodic.finish()
        await super().stop(exception)

    async def callback(self) -> Any:
        """Do what is to be done each time."""
        msg = f"{type(self).__qualname__} has no callback(): override it, as a coroutine method"
        raise NotImplementedError(msg)

    def __str__(self) -> str:
        return f"{type(self).__name__}(interval={self.interval},delay={self.delay})"


_CHECKED = frozenset({"interval", "delay", "jitter", "overlap", "suppress_exceptions"})
