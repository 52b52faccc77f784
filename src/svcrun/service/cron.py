"""A service that does things at the times that cron lines name."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

try:
    from svcrun.cron import CronCallback, CronSpec, check_options
except ImportError as error:
    msg = "svcrun.service.cron needs croniter: pip install 'svcrun[cron]'"
    raise ImportError(msg) from error

from svcrun._util.callables import is_coroutine_function
from svcrun.errors import ParameterTypeError
from svcrun.service._internals import overridable, part_of
from svcrun.service.base import Service, parameter, state_of
from svcrun.state import ServiceState

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import tzinfo

    from svcrun._schedule.clock import Clock
    from svcrun._schedule.runner import ExceptionsType, Overlap
    from svcrun.cron import Misfire

    F = TypeVar("F", bound=Callable[..., Any])

__all__ = ("CronService", "Upcoming", "cron")

_LINES = "_svcrun_cron_lines"


def cron(
    spec: str,
    *,
    timezone: str | tzinfo | None = None,
    shield: bool = False,
    suppress_exceptions: ExceptionsType = (),
    misfire: Misfire = "once",
    overlap: Overlap = "skip",
) -> Callable[[F], F]:
    """Have a method of a :class:`CronService` called at the times that `spec` names.

    A method may have several. The parameters are those of :meth:`CronService.register`, and what
    is wrong with them is told when the class is made.

    >>> from svcrun.service.cron import CronService, cron
    >>> class Reports(CronService):
    ...     @cron("0 6 * * mon-fri", timezone="Europe/Berlin")
    ...     async def mail(self):
    ...         print("mail")
    >>> Reports().callbacks
    (<CronCallback(Reports.mail at 0 6 * * mon-fri)>,)
    """
    CronSpec(spec, timezone or "UTC")
    suppress_exceptions = check_options("cron", misfire, overlap, suppress_exceptions)
    options = {
        "timezone": timezone,
        "shield": shield,
        "suppress_exceptions": suppress_exceptions,
        "misfire": misfire,
        "overlap": overlap,
    }

    def mark(function: F) -> F:
        if not is_coroutine_function(function):
            raise ParameterTypeError("cron", "function", function, "a coroutine function")
        lines = getattr(function, _LINES, ())
        setattr(function, _LINES, ((spec, options), *lines))
        return function

    return mark


class Upcoming(NamedTuple):
    """A call that will come."""

    when: datetime
    """In the zone of its cron line."""
    callback: CronCallback
    """Makes it."""

    def __str__(self) -> str:
        return f"{self.when.isoformat()} {self.callback.name}"


class Job(NamedTuple):
    """A registered function."""

    function: Callable[..., Any]
    spec: CronSpec
    callback: CronCallback
    options: dict[str, Any]
    is_lasting: bool

    def is_like(self, other: Job) -> bool:
        """Tell whether the other one does the same at the same times."""
        return (
            self.function == other.function
            and self.spec.text == other.spec.text
            and self.spec.zone == other.spec.zone
        )


class CronService(Service):
    """Call functions at the times that cron lines name.

    Give them to :meth:`register`, or mark methods of a subclass with :func:`cron`. Calls of one
    function never overlap. One that fails is logged, and the next one comes all the same. The stop
    of the service waits for the calls under way.

    :param timezone: the zone that lines are meant in which do not name another; UTC by default.

    >>> from svcrun.service.cron import CronService
    >>> async def backup():
    ...     print("backup")
    >>> service = CronService(timezone="Europe/Berlin")
    >>> callback = service.register(backup, "30 3 * * *")
    >>> callback.calls
    0
    """

    timezone: str | tzinfo = "UTC"
    clock: Clock | None = parameter(default=None)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _lines_of(self)

    def register(
        self,
        function: Callable[..., Any],
        spec: str,
        shield: bool = False,
        suppress_exceptions: ExceptionsType = (),
        *,
        timezone: str | tzinfo | None = None,
        misfire: Misfire = "once",
        overlap: Overlap = "skip",
        name: str | None = None,
    ) -> CronCallback:
        """Have `function` called at the times that `spec` names, and return what counts the calls.

        What is registered before the start counts for every run of the service; what is registered
        by :meth:`start` or later ends with the run. The same function with the same line is
        registered once.

        :param function: a coroutine function without parameters.
        :param spec: the cron line, see :class:`svcrun.cron.CronSpec`.
        :param shield: let a call under way go on when it would be cancelled.
        :param suppress_exceptions: are not logged when the function raises them.
        :param timezone: the zone that the line is meant in; that of the service by default.
        :param misfire: ``"once"`` or ``"skip"``, see :meth:`svcrun.cron.CronCallback.start`.
        :param overlap: ``"skip"``, ``"queue"`` or ``"cancel"``, see there as well.
        :param name: tells it apart in the log; that of the function by default.

        :raises ValueError, TypeError: naming a parameter that has a wrong value.
        """
        if not is_coroutine_function(function):
            raise ParameterTypeError(self, "function", function, "a coroutine function")
        lines = _lines_of(self)
        suppress_exceptions = check_options(self, misfire, overlap, suppress_exceptions)
        read = CronSpec(spec, self.timezone if timezone is None else timezone)
        shown = name or f"{getattr(function, '__qualname__', function)} at {spec}"
        job = Job(
            function,
            read,
            CronCallback(function, name=shown),
            {
                "shield": shield,
                "suppress_exceptions": suppress_exceptions,
                "misfire": misfire,
                "overlap": overlap,
            },
            is_lasting=not lines.is_calling and state_of(self) in _AT_REST,
        )
        for known in lines.jobs:
            if known.is_like(job):
                return known.callback
        lines.jobs.append(job)
        if lines.is_calling:
            self.__call(job)
        return job.callback

    @overridable
    def callbacks(self) -> tuple[CronCallback, ...]:
        """What was registered; each counts its calls."""
        return tuple(job.callback for job in _lines_of(self).jobs)

    def upcoming(self, n: int, after: datetime | None = None) -> list[Upcoming]:
        """Return the next `n` calls past `after`, now by default, as far as cron lines tell."""
        after = after or datetime.now(UTC)
        calls = (
            Upcoming(when, job.callback)
            for job in _lines_of(self).jobs
            for when in job.spec.upcoming(n, after)
        )
        return sorted(calls, key=lambda call: call.when)[:n]

    def __getstate__(self) -> dict[str, Any]:
        lines = []
        for job in _lines_of(self).jobs:
            if job.is_lasting:
                # Store the name of a method, so that a copy calls its own method.
                is_method = getattr(job.function, "__self__", None) is self
                function = job.function.__name__ if is_method else job.function
                line = {"spec": job.spec.text, "timezone": job.spec.zone, "name": job.callback.name}
                lines.append((function, line | job.options))
        return {**super().__getstate__(), _LINES: lines}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({name: value for name, value in state.items() if name != _LINES})
        for function, line in state.get(_LINES, ()):
            CronService.register(
                self, getattr(self, function) if isinstance(function, str) else function, **line
            )

    def __call(self, job: Job) -> None:
        loop = asyncio.get_running_loop()
        job.callback.start(job.spec, loop, clock=self.clock, **job.options)

    async def start(self) -> None:
        """Begin to call."""
        lines = _lines_of(self)
        lines.is_calling = True
        for job in lines.jobs:
            self.__call(job)

    async def stop(self, exception: Any = None) -> None:
        """End the calls, and wait for those under way.

        A call may stop the service itself, and is not waited for then.
        """
        lines = _lines_of(self)
        lines.is_calling = False
        try:
            await asyncio.gather(*(job.callback.finish() for job in lines.jobs))
        finally:
            lines.jobs = [job for job in lines.jobs if job.is_lasting]
        await super().stop(exception)


class _Lines:
    """The jobs and methods that are registered with a service."""

    def __init__(self, _: CronService) -> None:
        self.jobs: list[Job] = []
        self.is_calling = False  # whether the service was started and not stopped since
        self.has_methods = False  # whether the methods that `cron` marks are registered


def _lines_of(service: CronService) -> _Lines:
    lines = part_of(service, _Lines)
    if not lines.has_methods:
        lines.has_methods = True
        for name in dir(type(service)):
            for spec, options in getattr(getattr(type(service), name, None), _LINES, ()):
                # A subclass may use the name `register` for something else.
                CronService.register(service, getattr(service, name), spec, **options)
    return lines


_AT_REST = frozenset({ServiceState.NEW, ServiceState.STOPPED, ServiceState.FAILED})
