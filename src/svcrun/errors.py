"""Every exception class of the package.

Each derives from the built-in exception for its kind of mistake, so a caller can handle it without
knowing it. Each builds its own text and has its data as attributes.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` is not imported: see `svcrun._util.hints`

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from svcrun.state import ServiceState


def show(service: object) -> str:
    """Return the representation of `service`, also if its ``__repr__`` fails.

    A message about a service must not depend on the code of that service.
    """
    try:
        return repr(service)
    except Exception as error:  # noqa: BLE001 - of the user's code
        return f"<{type(service).__qualname__}, without a representation: {type(error).__name__}>"


def title(owner: object) -> str:
    """Return a name for `owner`: its class, and the name that tells it apart from others."""
    if isinstance(owner, str):
        return owner
    name = getattr(owner, "name", None)
    kind = type(owner).__qualname__
    return f"{kind} {name!r}" if isinstance(name, str) else kind


class _WrongParameter(Exception):
    def __init__(self, owner: object, name: str, value: object, accepted: str) -> None:
        super().__init__(f"{title(owner)}: {name} must be {accepted}, not {value!r}")
        self.owner = owner
        self.name = name
        self.value = value
        self.accepted = accepted


class ParameterError(_WrongParameter, ValueError):
    """A parameter has a value that is not accepted.

    :param owner: the object that has the parameter, or its name.
    :param name: the parameter.
    :param value: the value found.
    :param accepted: the values accepted, as the complement of "must be".

    >>> raise ParameterError("Echo", "port", 70000, "between 0 and 65535")
    Traceback (most recent call last):
    svcrun.errors.ParameterError: Echo: port must be between 0 and 65535, not 70000
    """


class ParameterTypeError(_WrongParameter, TypeError):
    """A parameter has a value of a wrong type (parameters as of :class:`ParameterError`)."""


class MissingParameters(AttributeError):
    """A service was made without parameters that its ``__required__`` names."""

    def __init__(self, owner: str, names: Iterable[str]) -> None:
        self.owner = owner
        self.names = tuple(sorted(names))
        listed = ", ".join(f"{name}=" for name in self.names)
        super().__init__(f"{owner} needs {listed} among its keyword arguments")


class MissingMethod(TypeError):
    """A service was created without a method that its base class requires.

    :param found: a method that is probably a misspelling of it, or None.
    """

    def __init__(self, owner: str, name: str, found: str | None = None) -> None:
        hint = "" if found is None else f"; {found}() is probably a misspelling of it"
        super().__init__(f"{owner} needs {name}(), which its base class leaves to it{hint}")
        self.owner = owner
        self.name = name
        self.found = found


class NotAService(TypeError):
    """An object that is not a service was passed to an entrypoint."""

    def __init__(self, found: object) -> None:
        if isinstance(found, type):
            text = f"{found.__name__} is a class; pass an instance: {found.__name__}(...)"
        elif isinstance(found, list | tuple | set | frozenset):
            text = f"{found!r} is not a svcrun.Service; pass each service: entrypoint(*services)"
        else:
            text = f"{found!r} is not a svcrun.Service instance"
        super().__init__(text)
        self.found = found


class IllegalTransition(RuntimeError):
    """The state of a service does not allow a transition."""

    def __init__(self, owner: object, old: ServiceState, new: ServiceState) -> None:
        super().__init__(f"{show(owner)} can't go from {old.name} to {new.name}")
        self.owner = owner
        self.old = old
        self.new = new


class ServiceInUse(ValueError):
    """A service was given to an entrypoint while another one runs it."""

    def __init__(self, service: object) -> None:
        remedy = "stop it there, or create a second instance"
        super().__init__(f"{show(service)} is run by another entrypoint; {remedy}")
        self.service = service


class UnknownDependency(ValueError):
    """A service depends on one that is neither given nor running."""

    def __init__(self, service: object, dependency: object) -> None:
        name = dependency.__name__ if isinstance(dependency, type) else show(dependency)
        problem = "which is neither given to the entrypoint nor running"
        super().__init__(f"{show(service)} depends on {name}, {problem}")
        self.service = service
        self.dependency = dependency


class DependencyCycle(ValueError):
    """Services depend on each other in a circle."""

    def __init__(self, circle: Sequence[object]) -> None:
        path = " -> ".join(map(show, circle))
        super().__init__(f"these services depend on each other, so none can be the first: {path}")
        self.circle = tuple(circle)


class DependencyDown(RuntimeError):
    """A service can't start because one it depends on does not run."""

    def __init__(self, service: object, dependency: object) -> None:
        problem = f"it depends on {show(dependency)}, which is not running"
        super().__init__(f"{show(service)} can't start: {problem}")
        self.service = service
        self.dependency = dependency


class _ServiceTimeout(TimeoutError):
    _action = ""

    def __init__(self, service: object, timeout: float, stack: str) -> None:
        text = f"did not {self._action} within {timeout:g} s; it was waiting at\n{stack}"
        super().__init__(f"{show(service)} {text}")
        self.service = service
        self.timeout = timeout
        self.stack = stack


class StartTimeout(_ServiceTimeout):
    """A service did not start within its ``start_timeout``.

    :param stack: the stack of the task of its ``start()``.
    """

    _action = "start"


class StopTimeout(_ServiceTimeout):
    """A service did not stop in time (parameters as of :class:`StartTimeout`)."""

    _action = "stop"


class StartCancelled(RuntimeError):
    """``start()`` of a service was cancelled by something other than the entrypoint."""

    def __init__(self, service: object) -> None:
        super().__init__(f"start() of {show(service)} was cancelled from outside")
        self.service = service


class ShuttingDown(RuntimeError):
    """Services were to be started while the entrypoint shuts down, or after its end."""

    def __init__(self, services: Iterable[object]) -> None:
        names = ", ".join(map(show, services))
        super().__init__(f"{names} can't be started: the entrypoint is shutting down")


class StartDuringStop(RuntimeError):
    """A ``stop()`` wanted to start a service that is being stopped together with its own."""

    def __init__(self, service: object) -> None:
        problem = "can't be started by a service that is being stopped together with it"
        super().__init__(f"{show(service)} {problem}; start it when that stop is over")
        self.service = service


class NoEntrypoint(RuntimeError):
    """There is no running entrypoint here."""

    def __init__(self) -> None:
        super().__init__(
            "no entrypoint is running here; use this inside `with entrypoint(...)` or its services"
        )


class LoopClosed(RuntimeError):
    """The event loop was closed while an entrypoint was running in it."""

    def __init__(self, services: Iterable[object]) -> None:
        names = ", ".join(map(show, services)) or "none"
        super().__init__(
            f"the event loop was closed inside the block; what could not be stopped: {names}"
        )


class NotEntered(RuntimeError):
    """An entrypoint was used before it was entered, or entered twice."""


class NoEndpoint(ValueError, RuntimeError):
    """A server was created without an endpoint."""

    def __init__(self, owner: object, missing: str) -> None:
        super().__init__(f"{owner} needs {missing}: give address= and port=, or path=, or sock=")
        self.owner = owner


class NotASocket(ParameterTypeError, ParameterError):
    """The parameter ``sock`` is not a plain socket (see :class:`ParameterError`)."""

    def __init__(self, owner: object, value: object) -> None:
        super().__init__(owner, "sock", value, "a socket.socket instance or 'fd:NAME'")


class PassedSocketError(ParameterError):
    """The parameter ``sock="fd:NAME"`` names no socket that a server can use.

    :param detail: what was found under that name.
    """

    def __init__(self, owner: object, value: object, accepted: str, detail: str) -> None:
        super().__init__(owner, "sock", value, accepted)
        self.args = (f"{self.args[0]} ({detail})",)


class AlreadyRunning(RuntimeError):
    """A server was started while it runs, or before its stop was done."""

    def __init__(self, server: object) -> None:
        super().__init__(f"{server!r} is running already; await its stop() before the next start()")
        self.server = server


class NotRunning(RuntimeError):
    """A server was asked for something that only a running one can do."""

    def __init__(self, server: object, action: str) -> None:
        super().__init__(
            f"{action} of {server!r} works only after its start() and before its stop() is done"
        )
        self.server = server


class NotACoroutineFunction(TypeError, RuntimeError):
    """A callable was given that does not work with ``await``.

    :param role: the role of the callable, such as "callback".
    """

    def __init__(self, role: str, found: object) -> None:
        super().__init__(f"{role} must be a coroutine function (async def), not {found!r}")
        self.found = found


class ContextClosed(RuntimeError):
    """A value was wanted from, or set in, the context of an entrypoint that has ended."""

    def __init__(self, key: object) -> None:
        super().__init__(f"the context is closed (its entrypoint has ended), no value for {key!r}")
        self.key = key


class PoolClosed(RuntimeError):
    """A thread pool was asked for work after its end, or ended in the middle of it."""


ThreadPoolException = PoolClosed  # its name in aiomisc


class ChannelClosed(RuntimeError):
    """A closed channel was written to, or read after its last item."""

    def __init__(self) -> None:
        super().__init__("the channel is closed")


class ChannelTimeout(TimeoutError):
    """A channel had no item within the time limit."""

    def __init__(self, timeout: float) -> None:
        super().__init__(f"the channel had no item for {timeout:g} s")
        self.timeout = timeout


class ApplicationFailed(RuntimeError):
    """An application of a service failed to start or to stop.

    :param reason: the reason that the application gave, or a description of its fault.
    """

    _what = "run"

    def __init__(self, service: object, reason: str) -> None:
        said = f": {reason}" if reason else ", and does not say why"
        super().__init__(f"the application of {show(service)} failed to {self._what}{said}")
        self.service = service
        self.reason = reason


class ApplicationStartFailed(ApplicationFailed):
    """An application said that it can't start (parameters as of :class:`ApplicationFailed`)."""

    _what = "start"


class ApplicationStopFailed(ApplicationFailed):
    """An application failed to stop (parameters as of :class:`ApplicationFailed`)."""

    _what = "stop"


class ClientDisconnected(ConnectionResetError):
    """An application sent a message after the client disconnected or the web socket closed."""

    def __init__(self) -> None:
        super().__init__("the client has disconnected")


class UnexpectedMessage(RuntimeError):
    """An ASGI application sent something that does not fit."""

    def __init__(self, kind: object, when: str) -> None:
        super().__init__(f"the application sent {kind!r} {when}")
        self.kind = kind


class ServerEnded(RuntimeError):
    """A server that a service hosts ended without a call of ``stop()``.

    :param reason: why it did.
    """

    def __init__(self, service: object, reason: str) -> None:
        super().__init__(f"the server of {show(service)} ended by itself: {reason}")
        self.service = service
        self.reason = reason


class ProcessEnded(RuntimeError):
    """The process of a service ended without a call of ``stop()``.

    :param code: the exit code, or the negative number of the signal that ended the process; None if
        other code has taken it.
    :param description: the same in words.
    """

    def __init__(self, service: object, code: int | None, description: str) -> None:
        super().__init__(f"the process of {show(service)} ended with {description}")
        self.service = service
        self.code = code


class ProfilerActive(RuntimeError):
    """A profiler was to be started where another one, or a debugger, is at work.

    :param found: the other profiler.
    """

    def __init__(self, service: object, found: object) -> None:
        super().__init__(
            f"{show(service)} can't measure: {found!r} is active, and there is room for one only; "
            "end that one first, or leave out one of the two"
        )
        self.service = service
        self.found = found
