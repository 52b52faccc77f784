"""The base class of all services, and bases that hold tasks."""

from __future__ import annotations

from abc import abstractmethod
from math import inf
from types import MappingProxyType

import svcrun._util.hints as typing
from svcrun._util.base_classes import is_own
from svcrun._util.hints import TYPE_CHECKING
from svcrun._util.lazy_exports import lazy_exports
from svcrun._util.tasks import cancel_and_wait
from svcrun._util.validation import number, optional
from svcrun.errors import MissingParameters, NotAService, ParameterError, ParameterTypeError
from svcrun.restart import Restart
from svcrun.service._internals import (
    ServiceInternals,
    internals_of,
    loop_of,
    overridable,
    part_of,
)
from svcrun.service._keywords import check_methods, parameters_of, warn_of_misspellings
from svcrun.service._meta import ServiceMeta
from svcrun.service._parameters import check_parameters, kept, parameter
from svcrun.state import ServiceState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping

    from svcrun.context import Context as Context, get_context as get_context
    from svcrun.utils import cancel_tasks as cancel_tasks
else:
    # Names of aiomisc's module, imported late because few programs use them.
    __getattr__ = lazy_exports(
        __name__,
        {
            "Context": "svcrun.context",
            "cancel_tasks": "svcrun.utils",
            "get_context": "svcrun.context",
        },
    )

T = typing.TypeVar("T")
Dependency: typing.TypeAlias = "Service | type[Service]"

__all__ = ("Service", "ServiceMeta", "SimpleClient", "SimpleServer", "TaskStoreBase", "parameter")

# A subclass may have a `__setattr__` of its own, for names of its own.
_set = object.__setattr__


def _check_dependencies(owner: object, name: str, value: typing.Any) -> typing.Any:
    value = kept(value)
    single = isinstance(value, Service | type)
    try:
        found = (value,) if single else tuple(value)
    except TypeError:
        found = (value,)
    for one in found:
        if not (issubclass(one, Service) if isinstance(one, type) else isinstance(one, Service)):
            raise ParameterTypeError(owner, name, one, "services or service classes")
    return value


def _check_reaction(owner: object, name: str, value: object) -> object:
    if value not in ("shutdown", "ignore") and not isinstance(value, Restart):
        raise ParameterError(owner, name, value, "'shutdown', 'ignore' or a svcrun.Restart")
    return value


_time_limit: typing.Final = optional(number(above=0, high=inf, unit="seconds"), "no limit")


def _check_nothing(_: typing.Any) -> None:
    pass


class Service(metaclass=ServiceMeta, base=True):
    """The base class of services: a part of a program that starts, runs and stops.

    Every keyword argument becomes an attribute; class attributes are the defaults. Override
    :meth:`start`, and :meth:`stop` if the service has to clean up, and pass an instance
    to :class:`svcrun.entrypoint`.

    :param name: distinguishes instances of one class, above all in logs; a service without one has
        no such attribute.
    :param depends_on: services (instances or classes) that start before this one and stop after it.
    :param start_timeout: seconds that :meth:`start` may take until the service is ready; the
        entrypoint's by default.
    :param stop_timeout: seconds that :meth:`stop` may take; only the whole shutdown is limited by
        default.
    :param start_retry: a :class:`svcrun.Restart` policy for retries of a :meth:`start` that fails
        before the service is ready; the entrypoint's by default. `start_timeout` limits each
        attempt. After the last attempt, the error is raised.
    :param on_crash: what follows when :meth:`start` fails after the service was ready:
        ``"shutdown"`` of the whole entrypoint, ``"ignore"``, or a :class:`svcrun.Restart` policy.

    :raises AttributeError: naming the keywords of ``__required__`` that were not given.
    :raises ValueError, TypeError: naming a parameter above that has a wrong value.

    >>> from svcrun import Service
    >>> class Greeter(Service):
    ...     __required__ = ("who",)
    ...     greeting: str = "Hello"
    ...
    ...     async def start(self):
    ...         print(self.greeting, self.who)
    >>> Greeter(who="World", name="first")
    <Greeter name='first' NEW>
    """

    __async_required__: typing.ClassVar[Collection[str]] = ("start", "stop")
    __required__: typing.ClassVar[Collection[str]] = ()

    if TYPE_CHECKING:
        name: str | None = None
    else:
        name: str | None  # a service without a name has no such attribute, as in aiomisc
    depends_on: Dependency | Iterable[Dependency] = parameter(default=(), check=_check_dependencies)
    start_timeout: float | None = parameter(default=None, check=_time_limit)
    stop_timeout: float | None = parameter(default=None, check=_time_limit)
    # No check: a subclass may use the name for something else, and is not retried then.
    start_retry: Restart | None = parameter(default=None)
    on_crash: typing.Literal["shutdown", "ignore"] | Restart = parameter(
        default="shutdown", check=_check_reaction
    )

    # Whether the service is a server. _svcrun_listens() returns whether it listens.
    _svcrun_is_server: typing.ClassVar[bool] = False
    _svcrun_order: typing.ClassVar[tuple[str, ...]] = ()
    # Whether the service is stopped after all others, to report how they ended.
    _svcrun_stops_last: typing.ClassVar[bool] = False
    # Whether the entrypoint reports its phases to the service: see SDWatchdogService.
    _svcrun_observes: typing.ClassVar[bool] = False
    # The keywords of the instance.
    _svcrun_given: Mapping[str, typing.Any] = parameter(default=MappingProxyType({}), init=False)
    # Created on first use, so that creating a service is fast.
    _svcrun_internals: ServiceInternals | None = parameter(default=None, init=False)

    def __init__(self, *args: typing.Any, **kwargs: typing.Any) -> None:
        cls = type(self)
        if args or cls._svcrun_positional:
            kwargs = self._svcrun_arguments(args, kwargs)
        absent = cls.__required__ - kwargs.keys()
        if absent:
            raise MissingParameters(cls.__qualname__, absent)
        if kwargs:
            _set(self, "_svcrun_given", kwargs)
            for name, value in kwargs.items():
                setattr(self, name, value)
            if not cls._svcrun_keywords.known.issuperset(kwargs):
                check_methods(self, kwargs)
                check_parameters(self, [name for name in kwargs if name in cls._svcrun_checks])
        if cls._svcrun_overridden:
            check_parameters(self, cls._svcrun_overridden)
        if cls._svcrun_check_together is not _check_nothing:
            self._svcrun_check_together()

    def _svcrun_arguments(
        self, args: tuple[typing.Any, ...], kwargs: dict[str, typing.Any]
    ) -> dict[str, typing.Any]:
        """Return all arguments as keywords.

        None stands for the default of a positional parameter, which a subclass may have replaced.
        """
        cls = type(self)
        names = cls._svcrun_positional
        if len(args) > len(names):
            expected = f"{len(names)} positional arguments" if names else "keyword arguments only"
            raise TypeError(f"{cls.__qualname__} takes {expected}, not {len(args)} positional ones")
        for name, value in zip(names, args, strict=False):
            if name in kwargs:
                raise TypeError(f"{cls.__qualname__} got two values for {name}")
            kwargs[name] = value
        for name in names:
            if name in kwargs and kwargs[name] is None:
                del kwargs[name]
        return kwargs

    # Checks parameters that depend on each other; called when all have their values.
    _svcrun_check_together = _check_nothing

    @overridable
    def state(self) -> ServiceState:
        """The :class:`svcrun.ServiceState` of the service."""
        return state_of(self)

    if TYPE_CHECKING:  # type checkers need to see a parameter
        loop: asyncio.AbstractEventLoop = parameter(default=None)
    else:

        @overridable
        def loop(self) -> asyncio.AbstractEventLoop:
            """The event loop that the service runs in.

            :raises RuntimeError: if the service was not started and no loop is running.
            """
            return loop_of(self)

    @overridable
    def start_event(self) -> asyncio.Event:
        """Set this in a :meth:`start` that runs on, as soon as the service is ready.

        A thread that works for the service may do it as well.
        """
        return internals_of(self).start_event

    @overridable
    def context(self) -> Context:
        """The values that services of one entrypoint share: ``await self.context["key"]``."""
        internals = internals_of(self)
        context = internals.context
        if context is None:
            from svcrun.context import get_context  # few services need it

            context = internals.context = get_context(loop_of(self))
        return context

    def set_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Prepare for a start in `loop`."""
        internals_of(self).prepare(loop)

    def _svcrun_reload(self) -> Callable[[], Awaitable[None]] | None:
        """Return the coroutine method for SIGHUP, of a class whose `reload` is something else."""
        return None

    def _svcrun_measure(self) -> dict[str, float]:
        """Return the counters of the service by the names of their metrics; any thread may ask."""
        return {}

    def _svcrun_next_calls(self) -> list[tuple[float, str]]:
        """Return when calls are due, in seconds since the epoch, and their names."""
        return []

    def _svcrun_listens(self) -> bool:
        return False

    @abstractmethod
    async def start(self) -> typing.Any:
        """Start the service.

        The service counts as started when this returns, or sets :attr:`start_event` and runs on.
        """
        raise NotImplementedError

    async def stop(self, exception: typing.Any = None) -> typing.Any:
        """Clean up; called once per start, before a :meth:`start` that still runs is cancelled.

        :param exception: the exception that ended the entrypoint's block, or None. A subclass may
            annotate it more narrowly than :class:`BaseException`.
        """

    def __getstate__(self) -> dict[str, typing.Any]:
        """Return the keywords with their current values, for a pickle or a copy.

        The parameters of a subclass's ``__init__`` are included if there are attributes of the same
        names. Other attributes belong to this instance: locks, sockets, tasks.
        """
        state = dict(self._svcrun_given)
        names = set(state)
        for cls in type(self).__mro__:
            names.update(parameters_of(cls.__dict__.get("__init__")))
        state.update((name, value) for name, value in vars(self).items() if name in names)
        return state

    def __setstate__(self, state: dict[str, typing.Any]) -> None:
        """Initialize a new service with the keywords in `state`.

        The ``__init__`` of a subclass is not called, as usual for pickles: it may bind sockets or
        have other parameters. The ``__init__`` of svcrun's base class is called.
        """
        for cls in type(self).__mro__:
            if is_own(cls) and "__init__" in cls.__dict__:
                cls.__dict__["__init__"](self, **state)
                return

    def __repr__(self) -> str:
        name = getattr(self, "name", None)
        # A subclass may have a method `name`, whose repr() would call this one without end.
        name = "" if name is None or callable(name) else f" name={name!r}"
        return f"<{type(self).__qualname__}{name} {state_of(self).name}>"


def state_of(service: Service) -> ServiceState:
    """Return the state of `service` in its internals; its attribute ``state`` may be redefined."""
    internals = service._svcrun_internals
    return ServiceState.NEW if internals is None else internals.state


def check_service(service: object) -> None:
    """Check an object that is about to be started as a service.

    The parameters of the life cycle are checked once more, because attributes may be assigned until
    the start.

    :raises TypeError: if it is not a service.
    :raises ValueError, TypeError: if a parameter of the life cycle has a value that is not
        accepted.
    """
    if not isinstance(service, Service):
        raise NotAService(service)
    if not (
        service.start_timeout is None
        and service.stop_timeout is None
        and service.on_crash == "shutdown"
        and service.depends_on is Service.depends_on
    ):
        check_parameters(service, ("start_timeout", "stop_timeout", "on_crash", "depends_on"))
    if type(service)._svcrun_keywords.undeclared:
        warn_of_misspellings(service)


def base_stop(service: Service) -> Callable[..., Coroutine[typing.Any, typing.Any, None]] | None:
    """Return that part of ``stop()`` which belongs to the package's own bases of `service`.

    They open sockets and begin tasks in ``start()``. A subclass that extends it may fail after
    that. Its ``stop()`` must not be called then, but theirs must.
    """
    for cls in type(service).__mro__:
        if cls is Service:
            return None
        if is_own(cls) and "stop" in cls.__dict__:
            stop: Callable[..., Coroutine[typing.Any, typing.Any, None]] = cls.__dict__["stop"]
            return stop
    return None


def dependencies(service: Service) -> tuple[Dependency, ...]:
    """Return the dependencies of `service`, which may be one service or several."""
    check_parameters(service, ("depends_on",))
    value = service.depends_on
    return (value,) if isinstance(value, Service | type) else tuple(value)


def tasks_of(service: Service) -> set[asyncio.Task[typing.Any]]:
    """Return the tasks that `service` has created; its attribute ``tasks`` may be redefined."""
    return part_of(service, _no_tasks)


def _no_tasks(_: Service) -> set[asyncio.Task[typing.Any]]:
    return set()


class TaskStoreBase(Service, base=True):
    """A service that keeps tasks and cancels them when it stops."""

    @overridable
    def tasks(self) -> set[asyncio.Task[typing.Any]]:
        """The tasks in progress."""
        return tasks_of(self)

    def create_task(self, coro: Coroutine[typing.Any, typing.Any, T]) -> asyncio.Task[T]:
        """Run `coro` as a task that ends with the service at the latest."""
        task = loop_of(self).create_task(coro)
        tasks = tasks_of(self)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    async def stop(self, exception: typing.Any = None) -> None:
        """Cancel the tasks and wait for their end."""
        try:
            await cancel_and_wait(tasks_of(self))
        finally:
            await super().stop(exception)  # there may be another base


class SimpleServer(TaskStoreBase, base=True):
    """A service with a listening server, which its ``start()`` assigns to `server`."""

    server: asyncio.AbstractServer | None = parameter(default=None, init=False)

    async def stop(self, exception: typing.Any = None) -> None:
        """Close the server, then cancel the tasks and wait for their end."""
        server = self.server
        # A subclass may use the name for an object that is not a server.
        if server is not None and hasattr(server, "is_serving"):
            server.close()
        await super().stop(exception)


class SimpleClient(TaskStoreBase, base=True):
    """A service around a connection that it opens."""
