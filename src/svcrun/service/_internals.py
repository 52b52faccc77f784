"""The private state that the package keeps of each service.

Subclasses and instances of a service may use any attribute name: `state`, `loop`, `tasks`,
`server`. So the package keeps its own state of a service in one object, the attribute
`_svcrun_internals`, and the life cycle reads only that. An attribute such as ``service.state``
returns a value of that object, unless the class or the instance redefines it.
"""

from __future__ import annotations

import asyncio

import svcrun._util.hints as typing
from svcrun._util.hints import TYPE_CHECKING
from svcrun.state import ServiceState

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcrun.context import Context

T = typing.TypeVar("T")
P = typing.TypeVar("P")

__all__ = (
    "ServiceInternals",
    "StartEvent",
    "internals_of",
    "loop_of",
    "overridable",
    "part_of",
)


class HasInternals(typing.Protocol):
    """A :class:`svcrun.Service`, as far as this module knows it."""

    _svcrun_internals: ServiceInternals | None


class StartEvent(asyncio.Event):
    """An event that calls a function when it is set, so that no task has to wait for it.

    Race: a thread may set it, so the callback may run in any thread. A callback that is assigned
    later is not called, so code that assigns one checks :meth:`is_set` afterwards.
    """

    callback: Callable[[], object] | None = None
    is_own = False  # whether the subclass assigned it, and keeps it for further starts

    def set(self) -> None:
        """Set the event and call the callback, once."""
        if self.is_set():
            return
        super().set()
        if self.callback is not None:
            self.callback()


class ServiceInternals:
    """The state of a service, and the private state of its base classes.

    :attr:`parts` holds one object for each base class. :func:`part_of` creates it on first use, so
    a service works even if its ``__init__`` does not call that of its base.
    """

    __slots__ = ("_start_event", "context", "loop", "parts", "state")

    def __init__(self) -> None:
        self.state = ServiceState.NEW
        self.loop: asyncio.AbstractEventLoop | None = None
        self.context: Context | None = None
        self.parts: dict[type, typing.Any] | None = None
        self._start_event: StartEvent | None = None

    def __reduce__(self) -> tuple[type[ServiceInternals], tuple[()]]:
        # A subclass's `__getstate__` may return its `__dict__`. The copy was never started, so it
        # gets a new object.
        return ServiceInternals, ()

    def prepare(self, loop: asyncio.AbstractEventLoop) -> None:
        """Prepare for a start in `loop`: drop the context and the event of the last start."""
        self.loop = loop
        self.context = None
        event, self._start_event = self._start_event, None
        if event is not None and event.is_own:
            event.callback = None
            event.clear()

    @property
    def start_event(self) -> StartEvent:
        """The event of the current start."""
        event = self._start_event
        if event is None:
            event = self._start_event = StartEvent()
            if self.state is not ServiceState.NEW and self.state is not ServiceState.STARTING:
                event.set()
        return event

    def adopt(self, event: object) -> StartEvent:
        """Return the event of the current start, which is `event` if a subclass assigned one.

        The class of that event is changed, so that it calls the callback. Other values are ignored.
        """
        present = self._start_event
        if present is not None and event is present:
            return present
        if isinstance(event, asyncio.Event):
            if not isinstance(event, StartEvent):
                kind = type(event)
                own = StartEvent if kind is asyncio.Event else type("Own", (StartEvent, kind), {})
                event.__class__ = own
                typing.cast("StartEvent", event).is_own = True
            self._start_event = typing.cast("StartEvent", event)
        return self.start_event

    def set_start_event(self) -> None:
        """Set the event, if it was created."""
        if self._start_event is not None:
            self._start_event.set()


def internals_of(service: HasInternals) -> ServiceInternals:
    """Return the private state of `service`; create it on first use."""
    internals = service._svcrun_internals
    if internals is None:
        internals = ServiceInternals()
        # A subclass's own `__setattr__` may accept its own names only.
        object.__setattr__(service, "_svcrun_internals", internals)
    return internals


def part_of(service: HasInternals, kind: Callable[[typing.Any], P]) -> P:
    """Return the part of the internals that belongs to `kind`; create it on first use."""
    internals = internals_of(service)
    parts = internals.parts
    if parts is None:
        parts = internals.parts = {}
    part: P | None = parts.get(kind)  # type: ignore[call-overload]
    if part is None:
        part = parts[kind] = kind(service)  # type: ignore[index]
    return part


def loop_of(service: HasInternals) -> asyncio.AbstractEventLoop:
    """Return the event loop that `service` runs in, otherwise the running loop.

    :raises RuntimeError: if the service has no loop and no loop is running.
    """
    internals = service._svcrun_internals
    if internals is None or internals.loop is None:
        return asyncio.get_running_loop()
    return internals.loop


class overridable(typing.Generic[T]):  # noqa: N801 - used as `property` is
    """A property that an attribute of the instance with the same name overrides."""

    def __init__(self, get: Callable[[typing.Any], T]) -> None:
        self._get = get
        self.__doc__ = get.__doc__
        self.__name__ = get.__name__

    if TYPE_CHECKING:

        @typing.overload
        def __get__(self, instance: None, owner: type) -> typing.Self: ...
        @typing.overload
        def __get__(self, instance: object, owner: type | None = None) -> T: ...
        def __get__(self, instance: object, owner: type | None = None) -> typing.Any: ...

        # With this method at run time, an attribute of the instance would not come first.
        def __set__(self, instance: object, value: typing.Any) -> None: ...
    else:

        def __get__(self, instance: object, owner: type | None = None) -> typing.Any:
            return self if instance is None else self._get(instance)
