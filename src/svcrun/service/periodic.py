"""A service that calls a method at a fixed interval."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

from svcrun._schedule.runner import check_call_options
from svcrun._util.base_classes import near_method
from svcrun._util.current_service import name_of
from svcrun._util.validation import number, one_of
from svcrun.errors import MissingMethod, show
from svcrun.periodic import PeriodicCallback, check_jitter
from svcrun.recurring import measure
from svcrun.service._internals import overridable, part_of
from svcrun.service._keywords import check_present
from svcrun.service._parameters import REQUIRED, kept, parameter
from svcrun.service.base import Service

if TYPE_CHECKING:
    from svcrun._schedule.clock import Clock
    from svcrun._schedule.runner import ExceptionsType, Overlap

__all__ = ("PeriodicService",)

log = logging.getLogger(__name__)


def _check_exceptions(owner: object, name: str, value: Any) -> Any:
    del name
    value = kept(value)
    check_call_options(owner, "skip", value)
    return value


class PeriodicService(Service, base=True):
    """Call the method :meth:`callback`, which a subclass overrides, every `interval` seconds.

    Calls are due `interval` seconds apart, however long a call takes and however late the event
    loop is. Calls never overlap. A call that fails is logged, and the calls go on. The stop of the
    service waits for the call in flight.

    :param interval: seconds between the starts of two calls.
    :param delay: seconds until the first call; 0 by default.
    :param jitter: the maximum number of seconds by which a call is late, at random; 0 by default.
    :param overlap: what happens when a call is due while another one is in flight: ``"skip"`` it
        (the default), ``"queue"`` it, or ``"cancel"`` the one in flight.
    :param suppress_exceptions: exceptions of :meth:`callback` that are not logged.

    :attr:`periodic` counts the calls: ``service.periodic.calls``, ``.failures``, ``.skipped``,
    ``.last_start``, ``.last_duration``, ``.next_due`` (see :class:`svcrun.PeriodicCallback`).

    :raises ValueError, TypeError: naming the parameter that has a wrong value.
    :raises TypeError: if the class has no method :meth:`callback`. If it has one of a similar name,
        the service can be created and started; it logs an error and makes no calls.

    >>> from svcrun.service.periodic import PeriodicService
    >>> class Cleaner(PeriodicService):
    ...     async def callback(self):
    ...         print("clean")
    >>> print(Cleaner(interval=3600))
    Cleaner(interval=3600,delay=0)
    """

    _svcrun_handlers: ClassVar[Any] = ("callback",)

    interval: float = parameter(default=REQUIRED, check=number(above=0, unit="seconds"))
    delay: float = parameter(default=0, check=number(low=0, unit="seconds"))
    jitter: float = parameter(default=0, check=number(low=0, unit="seconds"))
    overlap: Overlap = parameter(default="skip", check=one_of("skip", "queue", "cancel"))
    suppress_exceptions: ExceptionsType = parameter(default=(), check=_check_exceptions)
    clock: Clock | None = parameter(default=None)

    def _svcrun_check_together(self) -> None:
        super()._svcrun_check_together()
        part_of(self, _Calls)
        if self.jitter:
            check_jitter(self, self.interval, self.jitter)

    @overridable
    def periodic(self) -> PeriodicCallback:
        """The :class:`svcrun.PeriodicCallback` that makes and counts the calls."""
        return part_of(self, _Calls).periodic

    def _svcrun_measure(self) -> dict[str, float]:
        return measure([part_of(self, _Calls).periodic])

    def _svcrun_next_calls(self) -> list[tuple[float, str]]:
        due = part_of(self, _Calls).periodic.next_due
        return [] if due is None else [(due, "")]

    async def start(self) -> None:
        """Start the calls."""
        calls = part_of(self, _Calls)
        if calls.misspelt is not None:
            _log_misspelt(self, calls.misspelt)
            return
        calls.periodic.start(
            self.interval,
            delay=self.delay,
            loop=asyncio.get_running_loop(),
            suppress_exceptions=self.suppress_exceptions,
            jitter=self.jitter,
            overlap=self.overlap,
            clock=self.clock,
        )

    async def stop(self, exception: Any = None) -> None:
        """Begin no more calls, and wait for the call in flight.

        A call may stop its own service. The stop does not wait for that call.
        """
        await part_of(self, _Calls).periodic.finish()
        await super().stop(exception)

    def callback(self) -> Any:
        """Run one call of the schedule. Override it by a coroutine function or a plain function."""
        raise MissingMethod(type(self).__qualname__, "callback")

    def __str__(self) -> str:
        return f"{type(self).__name__}(interval={self.interval},delay={self.delay})"


class _Calls:
    """The calls of a service."""

    misspelt: str | None = None
    """The method that is probably a misspelling of ``callback()``, if the class lacks that."""

    def __init__(self, service: PeriodicService) -> None:
        check_present(service)
        if getattr(service.callback, "__func__", None) is PeriodicService.callback:
            self.misspelt = near_method(type(service), "callback")
            if self.misspelt is None:
                raise MissingMethod(type(service).__qualname__, "callback")
        self.periodic = PeriodicCallback(service.callback, name=name_of(service))


# The classes whose misspelt method was logged.
_warned: WeakSet[type] = WeakSet()


def _log_misspelt(service: PeriodicService, misspelt: str) -> None:
    name = type(service).__qualname__
    if type(service) not in _warned:
        _warned.add(type(service))
        log.warning("%s.%s() is never called; did you mean callback()?", name, misspelt)
    log.error("%s has no callback(); %s makes no calls", name, show(service))
