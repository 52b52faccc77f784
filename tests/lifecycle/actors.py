"""Services that follow a script, and record the calls of the supervisor."""

# mypy: disable-error-code="misc, arg-type, syntax"

import asyncio
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from svcrun.service._internals import ServiceInternals
from svcrun.service.base import Service
from svcrun.state import ServiceState

if TYPE_CHECKING:
    from tests.lifecycle.stage import Stage

AT_ONCE = -1.0
"""The delay of a part that does not wait; 0.0 waits for the next iteration, None for ever."""

LINGERING = 0.5
"""Seconds that an actor takes to clean up."""


class Boom(Exception):
    """An error out of a script."""


class Doom(BaseException):
    """The same, past ``except Exception``."""


class End(enum.Enum):
    """How a part of a script ends."""

    RETURN = enum.auto()
    FAIL = enum.auto()
    DOOM = enum.auto()
    CANCELLED = enum.auto()  # by itself: it awaited something that was cancelled


class OnCancel(enum.Enum):
    """The reaction of a part of a script to its cancellation."""

    END = enum.auto()
    LINGER = enum.auto()
    FAIL = enum.auto()
    SWALLOW = enum.auto()  # it goes on as if its time had come
    WAIT_ON = enum.auto()  # the first time
    IGNORE = enum.auto()  # every time


@dataclass(frozen=True)
class Ask:
    """A call of the supervisor from inside a service.

    :param whom: distances, in the list of all actors, from the one that asks; 0 is itself.
    """

    kind: str
    whom: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """A part of a script: ask something, wait, end."""

    delay: float | None = AT_ONCE
    end: End = End.RETURN
    on_cancel: OnCancel = OnCancel.END
    ask: Ask | None = None


@dataclass(frozen=True)
class Script:
    """The behaviour of a service from one start to its stop.

    :param prepare: what ``start()`` does until the service is ready.
    :param live: what it does after it has set ``start_event``; without that, it returns.
    :param stop: what ``stop()`` does.
    """

    prepare: Part = Part()
    live: Part | None = None
    stop: Part = Part()


class WatchedRecord(ServiceInternals):
    """A record that reports each move to its actor."""

    actor: "Actor"

    @property
    def state(self) -> ServiceState:
        return self.actor.actual if hasattr(self, "actor") else ServiceState.NEW

    @state.setter
    def state(self, state: ServiceState) -> None:
        if hasattr(self, "actor"):
            self.actor.transition(state)


class Actor(Service):
    """A service that follows one script after another, the last one again and again."""

    number: int
    stage: "Stage"
    scripts: tuple[Script, ...] = (Script(),)

    has_stop = True
    runs = 0
    actual = ServiceState.NEW
    before = ServiceState.NEW
    since = 0.0
    """The time of its last transition."""
    required: frozenset["Actor"] = frozenset()
    """Its dependencies when it was last started."""
    needs_stop = False
    succeeded = False
    """Whether the present ``start()`` has returned or set its event."""
    late = False
    """Whether the start-up had ended before that."""
    starting: asyncio.Task[Any] | None = None
    stopping: asyncio.Task[Any] | None = None
    cancelled = False
    """Whether the running part was cancelled."""
    start_cancelled = False
    """Whether the present ``start()`` was cancelled."""
    cancelled_from_outside = False
    asks = 0
    """The number of its own calls that it waits for; each may pass a cancellation on later."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._svcrun_internals = WatchedRecord()
        self._svcrun_internals.actor = self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.number} {self.actual.name}>"

    def transition(self, state: ServiceState) -> None:
        self.before, self.actual = self.actual, state
        self.stage.saw_move(self)
        self.since = self.stage.loop.time()

    @property
    def script(self) -> Script:
        return self.scripts[min(self.runs, len(self.scripts)) - 1]

    async def start(self) -> None:
        self.runs += 1
        self.succeeded = self.cancelled = self.cancelled_from_outside = False
        self.start_cancelled = False
        self.stopping = None  # a stop() that still runs was abandoned
        task = self.starting = asyncio.current_task()
        script = self.script
        self.stage.saw_start(self)
        try:
            await self._play(script.prepare)
            if self.starting is task:  # otherwise it was abandoned, and another start() runs
                self.succeeded, self.late = True, self.stage.abandons(self)
            if script.live is not None:
                self.start_event.set()
                await self._play(script.live)
        finally:
            if self.starting is task:
                self.starting = None

    async def stop(self, exception: BaseException | None = None) -> None:
        self.cancelled = False
        task = self.stopping = asyncio.current_task()
        self.stage.saw_stop(self)
        try:
            await self._play(self.script.stop)
        finally:
            if self.stopping is task:
                self.stopping = None

    async def _play(self, part: Part) -> None:
        try:
            if part.ask is not None:
                await self.stage.asked(self, part.ask)
            if part.delay != AT_ONCE:
                await self._wait(part.delay)
        except asyncio.CancelledError:
            self.stage.saw_cancel(self)
            await self._react(part)
        if part.end is End.CANCELLED:
            self.cancelled_from_outside = True
            raise asyncio.CancelledError
        if part.end is not End.RETURN:
            raise self.stage.error(self, Doom if part.end is End.DOOM else Boom)

    async def _react(self, part: Part) -> None:
        if part.on_cancel is OnCancel.SWALLOW:
            return
        if part.on_cancel is OnCancel.FAIL:
            raise self.stage.error(self, Boom)
        if part.on_cancel is OnCancel.LINGER:
            await asyncio.sleep(LINGERING)
        elif part.on_cancel is OnCancel.WAIT_ON:
            await self._wait(part.delay)
            return
        elif part.on_cancel is OnCancel.IGNORE:
            while not self.stage.released.done():
                try:
                    await asyncio.wait((self.stage.released,))
                except asyncio.CancelledError:
                    continue
        raise asyncio.CancelledError

    async def _wait(self, delay: float | None) -> None:
        if delay is None:
            await asyncio.wait((self.stage.released,))
        else:
            await asyncio.sleep(delay)


class Alpha(Actor):
    """One class to depend on."""


class Beta(Actor):
    """Another one."""


class Gamma(Alpha):
    """A service without a stop of its own that is an `Alpha`."""

    has_stop = False
    stop = Service.stop


ACTORS: tuple[type[Actor], ...] = (Alpha, Beta, Gamma)
