"""A service that calls functions at the times of cron expressions."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

try:
    from svcrun.cron import CronCallback, CronSpec, check_options
except ImportError as error:
    msg = "svcrun.service.cron needs croniter: pip install 'svcrun[cron]'"
    raise ImportError(msg) from error

from svcrun._schedule.local_time import get_zone
from svcrun._util.callables import is_coroutine_function
from svcrun.errors import ParameterTypeError
from svcrun.recurring import measure
from svcrun.service._internals import overridable, part_of
from svcrun.service._parameters import parameter
from svcrun.service.base import Service, state_of
from svcrun.state import ServiceState

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import tzinfo

    from svcrun._schedule.clock import Clock
    from svcrun._schedule.runner import ExceptionsType, Overlap
    from svcrun.cron import Misfire

    F = TypeVar("F", bound=Callable[..., Any])

__all__ = ("CronService", "Upcoming", "cron")

_EXPRESSIONS = "_svcrun_cron_expressions"


def cron(
    spec: str,
    *,
    timezone: str | tzinfo | None = None,
    shield: bool = False,
    suppress_exceptions: ExceptionsType = (),
    misfire: Misfire = "once",
    overlap: Overlap = "skip",
) -> Callable[[F], F]:
    """Call a method of a :class:`CronService` at the times of a cron expression.

    A method may have several of these decorators. The parameters are those of
    :meth:`CronService.register`, and are checked when the class is created.

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
        expressions = getattr(function, _EXPRESSIONS, ())
        setattr(function, _EXPRESSIONS, ((spec, options), *expressions))
        return function

    return mark


class Upcoming(NamedTuple):
    """A future call."""

    when: datetime
    """The time of the call, in the time zone of its cron expression."""
    callback: CronCallback
    """The callback that makes the call."""

    def __str__(self) -> str:
        return f"{self.when.isoformat()} {self.callback.name}"


class Job(NamedTuple):
    """A registered function."""

    function: Callable[..., Any]
    spec: CronSpec
    callback: CronCallback
    options: dict[str, Any]
    is_permanent: bool

    def equals(self, other: Job) -> bool:
        """Return whether the other job calls the same function at the same times."""
        return (
            self.function == other.function
            and self.spec.text == other.spec.text
            and self.spec.zone == other.spec.zone
        )


def _check_zone(owner: object, name: str, value: Any) -> Any:
    del name
    get_zone(owner, value)
    return value


class CronService(Service, base=True):
    """Call functions at the times of cron expressions.

    Pass functions to :meth:`register`, or decorate methods of a subclass with :func:`cron`. Calls
    of one function never overlap. A call that fails is logged, and the calls go on. The stop of the
    service waits for the calls in flight.

    :param timezone: the time zone of expressions without one of their own, a name or a ``tzinfo``;
        UTC by default.

    :raises ValueError, TypeError: if there is no such time zone.

    >>> from svcrun.service.cron import CronService
    >>> async def backup():
    ...     print("backup")
    >>> service = CronService(timezone="Europe/Berlin")
    >>> callback = service.register(backup, "30 3 * * *")
    >>> callback.calls
    0
    """

    timezone: str | tzinfo = parameter(default="UTC", check=_check_zone)
    clock: Clock | None = parameter(default=None)

    def _svcrun_check_together(self) -> None:
        super()._svcrun_check_together()
        _jobs_of(self)

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
        """Call `function` at the times of a cron expression, and return its counters.

        A function that is registered before the start is called in every run of the service. One
        that is registered in :meth:`start` or later is called until the stop. The same function
        with the same expression is registered once.

        :param function: a coroutine function without parameters.
        :param spec: the cron expression, see :class:`svcrun.cron.CronSpec`.
        :param shield: whether a call in flight goes on when the callback is cancelled.
        :param suppress_exceptions: exceptions of the function that are not logged.
        :param timezone: the time zone of the expression; that of the service by default.
        :param misfire: ``"once"`` or ``"skip"``, see :meth:`svcrun.cron.CronCallback.start`.
        :param overlap: ``"skip"``, ``"queue"`` or ``"cancel"``, see there as well.
        :param name: names the callback in log messages; by default the function and the expression.

        :raises ValueError, TypeError: naming the parameter that has a wrong value.
        """
        if not is_coroutine_function(function):
            raise ParameterTypeError(self, "function", function, "a coroutine function")
        jobs = _jobs_of(self)
        suppress_exceptions = check_options(self, misfire, overlap, suppress_exceptions)
        parsed = CronSpec(spec, self.timezone if timezone is None else timezone)
        shown = name or f"{getattr(function, '__qualname__', function)} at {spec}"
        job = Job(
            function,
            parsed,
            CronCallback(function, name=shown),
            {
                "shield": shield,
                "suppress_exceptions": suppress_exceptions,
                "misfire": misfire,
                "overlap": overlap,
            },
            is_permanent=not jobs.are_running and state_of(self) in _NOT_RUNNING,
        )
        for known in jobs.jobs:
            if known.equals(job):
                return known.callback
        jobs.jobs.append(job)
        if jobs.are_running:
            self.__start(job)
        return job.callback

    @overridable
    def callbacks(self) -> tuple[CronCallback, ...]:
        """The registered callbacks, each with the counters of its calls."""
        return tuple(job.callback for job in _jobs_of(self).jobs)

    def upcoming(self, n: int, after: datetime | None = None) -> list[Upcoming]:
        """Return the next `n` calls past `after`, in order of time; `after` is now by default."""
        after = after or datetime.now(UTC)
        calls = (
            Upcoming(when, job.callback)
            for job in _jobs_of(self).jobs
            for when in job.spec.upcoming(n, after)
        )
        return sorted(calls, key=lambda call: call.when)[:n]

    def _svcrun_measure(self) -> dict[str, float]:
        jobs = _jobs_of(self)
        past, present = jobs.past, jobs.jobs
        return _add(past, measure(job.callback for job in present))

    def _svcrun_next_calls(self) -> list[tuple[float, str]]:
        found = [(job.callback.next_due, job.callback.name) for job in _jobs_of(self).jobs]
        return [(due, name) for due, name in found if due is not None]

    def __getstate__(self) -> dict[str, Any]:
        expressions = []
        for job in _jobs_of(self).jobs:
            if job.is_permanent:
                # Store the name of a method, so that a copy calls its own method.
                is_method = getattr(job.function, "__self__", None) is self
                function = job.function.__name__ if is_method else job.function
                options = {
                    "spec": job.spec.text,
                    "timezone": job.spec.zone,
                    "name": job.callback.name,
                }
                expressions.append((function, options | job.options))
        return {**super().__getstate__(), _EXPRESSIONS: expressions}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({name: value for name, value in state.items() if name != _EXPRESSIONS})
        for function, options in state.get(_EXPRESSIONS, ()):
            CronService.register(
                self, getattr(self, function) if isinstance(function, str) else function, **options
            )

    def __start(self, job: Job) -> None:
        loop = asyncio.get_running_loop()
        job.callback.start(job.spec, loop, clock=self.clock, **job.options)

    async def start(self) -> None:
        """Start the calls."""
        jobs = _jobs_of(self)
        jobs.are_running = True
        for job in jobs.jobs:
            self.__start(job)

    async def stop(self, exception: Any = None) -> None:
        """Begin no more calls, and wait for the calls in flight.

        A call may stop its own service. The stop does not wait for that call.
        """
        jobs = _jobs_of(self)
        jobs.are_running = False
        try:
            await asyncio.gather(*(job.callback.finish() for job in jobs.jobs))
        finally:
            past = measure(job.callback for job in jobs.jobs if not job.is_permanent)
            rest = [job for job in jobs.jobs if job.is_permanent]
            # Together: between the two, another thread would count the past calls twice, or not.
            jobs.past, jobs.jobs = _add(jobs.past, past), rest
        await super().stop(exception)


def _add(some: dict[str, float], others: dict[str, float]) -> dict[str, float]:
    return {name: value + others[name] for name, value in some.items()}


class _Jobs:
    """The jobs of a service."""

    def __init__(self, _: CronService) -> None:
        self.jobs: list[Job] = []
        self.past = measure(())  # the calls of functions that are not registered any more
        self.are_running = False  # whether the service was started and not stopped since
        self.has_methods = False  # whether the methods decorated with `cron` are registered


def _jobs_of(service: CronService) -> _Jobs:
    jobs = part_of(service, _Jobs)
    if not jobs.has_methods:
        jobs.has_methods = True
        for name in dir(type(service)):
            for spec, options in getattr(getattr(type(service), name, None), _EXPRESSIONS, ()):
                # A subclass may use the name `register` for something else.
                CronService.register(service, getattr(service, name), spec, **options)
    return jobs


_NOT_RUNNING = frozenset({ServiceState.NEW, ServiceState.STOPPED, ServiceState.FAILED})
