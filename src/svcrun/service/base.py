"""The base class of all services, its metaclass, and bases that hold tasks."""

from __future__ import annotations

import asyncio
import inspect
import typing
from abc import ABCMeta, abstractmethod
from math import inf
from types import MappingProxyType

from svcrun.checks import check_number
from svcrun.errors import MissingParameters, ParameterError, ParameterTypeError
from svcrun.restart import Restart
from svcrun.state import ServiceState
from svcrun.tasks import cancel_and_wait

if typing.TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from svcrun.context import Context

T = typing.TypeVar("T")
Dependency: typing.TypeAlias = "Service | type[Service]"

__all__ = ("Service", "ServiceMeta", "SimpleClient", "SimpleServer", "TaskStoreBase", "parameter")


def parameter(*, default: typing.Any = None, kw_only: bool = True, init: bool = True) -> typing.Any:
    """Declare an attribute of a service to type checkers; at run time it is just the default.

    :param default: the value of the class attribute.
    :param kw_only: whether the parameter can't be given by position.
    :param init: whether it can be given at all.
    """
    del kw_only, init
    return default


class StartEvent(asyncio.Event):
    """An event that also calls back, so that nobody needs a task to wait for it."""

    callback: Callable[[], object] | None = None

    def set(self) -> None:
        """Set the event and call back, once."""
        if self.is_set():
            return
        super().set()
        if self.callback is not None:
            self.callback()


@typing.dataclass_transform(kw_only_default=True, field_specifiers=(parameter,))
class ServiceMeta(ABCMeta):
    """Check a service class when it is made.

    :raises TypeError: if a method that ``__async_required__`` names is no coroutine function.
    """

    __async_required__: frozenset[str]
    __required__: frozenset[str]
    stop_takes_exception: bool = True
    """Whether ``stop()`` has a parameter for the exception; not everybody writes it."""

    # Without the registry of virtual subclasses, which nobody needs, a check is eight times as
    # quick.
    __instancecheck__ = type.__instancecheck__
    __subclasscheck__ = type.__subclasscheck__

    def __new__(
        mcs,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, typing.Any],
        **kwargs: typing.Any,
    ) -> ServiceMeta:
        """Make the class `name`."""
        cls = super().__new__(mcs, name, bases, namespace, **kwargs)
        inherited = (getattr(base, "__async_required__", ()) for base in bases)
        own = _names(namespace.get("__async_required__", ()))
        cls.__async_required__ = own.union(*inherited)
        cls.__required__ = _required(cls, namespace)
        cls.stop_takes_exception = _takes_argument(getattr(cls, "stop", None))

        wrong = sorted(
            method
            for method in cls.__async_required__
            if not inspect.iscoroutinefunction(getattr(cls, method, None))
        )
        if wrong:
            found = ", ".join(f"{name}.{method}" for method in wrong)
            msg = f"must be coroutine functions (async def): {found}"
            raise TypeError(msg)
        return cls


def _takes_argument(method: object) -> bool:
    while method is not None:  # a decorator passes on what it is given
        code = getattr(method, "__code__", None)
        if not (code is None or code.co_argcount > 1 or code.co_flags & inspect.CO_VARARGS):
            return False
        method = getattr(method, "__wrapped__", None)
    return True


def _names(value: str | Iterable[str]) -> frozenset[str]:
    return frozenset((value,) if isinstance(value, str) else value)


def _required(cls: type, namespace: dict[str, typing.Any]) -> frozenset[str]:
    """Tell what must be given: as declared here, else what the bases ask for and nobody settles."""
    if "__required__" in namespace:
        return _names(namespace["__required__"])
    required: set[str] = set()
    for base in cls.__bases__:
        # What another base has a value for is found there: the order of the bases may be any.
        others = [vars(one) for one in cls.__mro__ if one not in base.__mro__]
        required.update(
            name
            for name in getattr(base, "__required__", ())
            if not any(name in attributes for attributes in others)
        )
    return frozenset(required)


class Service(metaclass=ServiceMeta):
    """Something that is started, runs, and is stopped.

    Every keyword argument becomes an attribute; class attributes are the defaults. Override
    :meth:`start`, and :meth:`stop` where there is something to put in order, and pass an instance
    to :class:`svcrun.entrypoint`.

    :param name: tells instances of one class apart, in logs above all.
    :param depends_on: services (instances or classes) that start before this one and stop after it.
    :param start_timeout: seconds that :meth:`start` may take until the service is ready; the
        entrypoint's by default.
    :param stop_timeout: seconds that :meth:`stop` may take; only the whole shutdown is limited by
        default.
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

    __async_required__: typing.ClassVar[frozenset[str] | tuple[str, ...] | str] = ("start", "stop")
    __required__: typing.ClassVar[frozenset[str] | tuple[str, ...] | str] = ()

    name: str | None = None
    depends_on: Dependency | Iterable[Dependency] = ()
    start_timeout: float | None = None
    stop_timeout: float | None = None
    on_crash: typing.Literal["shutdown", "ignore"] | Restart = "shutdown"

    # Whether the service is stopped after all others, to report how they ended.
    _stops_last: typing.ClassVar[bool] = False

    # Set on the instance when there is something to set, so that making a service costs little.
    _context: Context | None = parameter(default=None, init=False)
    _crashes: deque[float] | None = parameter(default=None, init=False)
    _keywords: Mapping[str, typing.Any] = parameter(default=MappingProxyType({}), init=False)
    _loop: asyncio.AbstractEventLoop | None = parameter(default=None, init=False)
    _start_event: StartEvent | None = parameter(default=None, init=False)
    _state: ServiceState = parameter(default=ServiceState.NEW, init=False)

    def __init__(self, **kwargs: typing.Any) -> None:
        absent = type(self).__required__ - kwargs.keys()
        if absent:
            raise MissingParameters(type(self).__qualname__, absent)
        if kwargs:
            self._keywords = kwargs
        for name, value in kwargs.items():
            setattr(self, name, value)
        if not _CHECKED.isdisjoint(kwargs):
            check_lifecycle_parameters(self)

    @property
    def state(self) -> ServiceState:
        """What the service is doing."""
        return self._state

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that the service runs in.

        :raises RuntimeError: if the service was not started and no loop is running.
        """
        return asyncio.get_running_loop() if self._loop is None else self._loop

    @property
    def start_event(self) -> asyncio.Event:
        """Set this in a :meth:`start` that runs on, as soon as the service is ready.

        A thread that works for the service may do it as well.
        """
        event = self._start_event
        if event is None:
            event = self._start_event = StartEvent()
            if self._state is not ServiceState.NEW and self._state is not ServiceState.STARTING:
                event.set()
        return event

    @property
    def context(self) -> Context:
        """The values that services of one entrypoint share: ``await self.context["key"]``."""
        context = self._context
        if context is None:
            from svcrun.context import get_context  # few services need it

            context = self._context = get_context(self.loop)
        return context

    def set_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Prepare for a start in `loop`."""
        self._loop = loop
        self._start_event = None
        self._context = None

    @abstractmethod
    async def start(self) -> typing.Any:
        """Do what the service is for.

        The service counts as started when this returns, or sets :attr:`start_event` and runs on.
        """
        raise NotImplementedError

    async def stop(self, exception: BaseException | None = None) -> typing.Any:
        """Put things in order; called once, before a :meth:`start` that still runs is cancelled.

        :param exception: what ended the entrypoint's block, if anything did.
        """

    def __getstate__(self) -> dict[str, typing.Any]:
        """Return the keywords with their values of now, for a pickle or a copy.

        The parameters of an ``__init__`` of a subclass are keywords as well, if it sets attributes
        of their names. Other attributes belong to this instance: locks, sockets, tasks.
        """
        state = dict(self._keywords)
        names = set(state)
        for cls in type(self).__mro__:
            names.update(_parameters_of(cls.__dict__.get("__init__")))
        state.update((name, value) for name, value in vars(self).items() if name in names)
        return state

    def __setstate__(self, state: dict[str, typing.Any]) -> None:
        """Become a new service with the keywords in `state`.

        The ``__init__`` of a subclass is not called, as is usual for pickles: it may bind sockets,
        or have other parameters. That of the base is, which the service can't start without.
        """
        for cls in type(self).__mro__:
            if is_own(cls) and "__init__" in cls.__dict__:
                cls.__dict__["__init__"](self, **state)
                return

    def __repr__(self) -> str:
        name = "" if self.name is None else f" name={self.name!r}"
        return f"<{type(self).__qualname__}{name} {self._state.name}>"


_CHECKED = frozenset({"depends_on", "on_crash", "start_timeout", "stop_timeout"})


def check_lifecycle_parameters(service: Service) -> None:
    """Refuse values of the parameters that every service has which can't be used.

    :raises ValueError, TypeError: naming the service, the parameter, the value and what is
        accepted.
    """
    if (
        service.start_timeout is None
        and service.stop_timeout is None
        and service.on_crash == "shutdown"
        and service.depends_on is Service.depends_on
    ):
        return

    for name in ("start_timeout", "stop_timeout"):
        value = getattr(service, name)
        if value is not None:
            accepted = "a number of seconds above 0, or None for no limit"
            check_number(service, name, value, accepted, above=0, high=inf)

    if service.on_crash not in ("shutdown", "ignore") and not isinstance(service.on_crash, Restart):
        raise ParameterError(
            service, "on_crash", service.on_crash, "'shutdown', 'ignore' or a svcrun.Restart(...)"
        )

    for dependency in dependencies(service):
        is_service = (
            issubclass(dependency, Service)
            if isinstance(dependency, type)
            else isinstance(dependency, Service)
        )
        if not is_service:
            raise ParameterTypeError(
                service, "depends_on", dependency, "services, as instances or classes"
            )


def is_own(cls: type) -> bool:
    """Whether `cls` is one of the package's own bases."""
    return cls.__module__.startswith("svcrun.")


def _parameters_of(init: Callable[..., None] | None) -> tuple[str, ...]:
    if init is None:
        return ()
    parameters = tuple(inspect.signature(init).parameters.values())[1:]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(one.name for one in parameters if one.kind not in variadic)


def own_stop(service: Service) -> Callable[..., Coroutine[typing.Any, typing.Any, None]] | None:
    """Return that part of ``stop()`` which belongs to the package's own bases of `service`.

    They open sockets and begin tasks in ``start()``. A subclass that extends it may fail after
    that, and then it can't be asked to stop, but they can.
    """
    for cls in type(service).__mro__:
        if cls is Service:
            return None
        if is_own(cls) and "stop" in cls.__dict__:
            stop: Callable[..., Coroutine[typing.Any, typing.Any, None]] = cls.__dict__["stop"]
            return stop
    return None


def dependencies(service: Service) -> tuple[Dependency, ...]:
    """Return what `service` depends on, as a tuple whichever way it was written."""
    value = service.depends_on
    if isinstance(value, Service | type):
        return (value,)
    try:
        return tuple(value)
    except TypeError:
        raise ParameterTypeError(
            service, "depends_on", value, "services, as instances or classes"
        ) from None


class TaskStoreBase(Service):
    """A service that keeps tasks and cancels them when it stops."""

    def __init__(self, **kwargs: typing.Any) -> None:
        self.tasks: set[asyncio.Task[typing.Any]] = set()
        super().__init__(**kwargs)

    def create_task(self, coro: Coroutine[typing.Any, typing.Any, T]) -> asyncio.Task[T]:
        """Run `coro` as a task that ends with the service at the latest."""
        task = self.loop.create_task(coro)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def stop(self, exception: BaseException | None = None) -> None:
        """Cancel the tasks and wait for their end."""
        try:
            await cancel_and_wait(self.tasks)
        finally:
            await super().stop(exception)  # of another base, perhaps


class SimpleServer(TaskStoreBase):
    """A service around a listening server."""

    def __init__(self, **kwargs: typing.Any) -> None:
        self.server: asyncio.AbstractServer | None = None
        super().__init__(**kwargs)

    async def stop(self, exception: BaseException | None = None) -> None:
        """Close the server, then cancel the tasks and wait for their end."""
        if self.server is not None:
            self.server.close()
        await super().stop(exception)


class SimpleClient(TaskStoreBase):
    """A service around a connection that it opens."""
