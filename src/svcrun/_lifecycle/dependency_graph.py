"""The order in which services start and stop: what depends on what, and a walk that respects it."""

from __future__ import annotations

from collections import deque

from svcrun._lifecycle.unit import NOBODY
from svcrun._util.hints import TYPE_CHECKING
from svcrun.errors import DependencyCycle, UnknownDependency
from svcrun.service.base import Service, dependencies

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection, Iterable

    from svcrun._lifecycle.unit import Unit

__all__ = ("Walk", "link", "unlink", "with_dependants")


def link(units: Iterable[Unit], running: Collection[Unit]) -> None:
    """Connect `units` with those that they depend on, among themselves and `running`.

    :raises UnknownDependency: if one depends on a service that is in neither.
    :raises DependencyCycle: if there is no order in which all could start.
    """
    dependent = [unit for unit in units if unit.service.depends_on is not Service.depends_on]
    if not dependent:
        return

    known = {id(unit.service): unit for unit in (*running, *units)}
    by_class: dict[type, list[Unit]] = {}
    for unit in dependent:
        found: dict[int, Unit] = {}
        for dependency in dependencies(unit.service):
            if isinstance(dependency, type):
                if dependency not in by_class:
                    by_class[dependency] = [
                        u for u in known.values() if isinstance(u.service, dependency)
                    ]
                matches = [u for u in by_class[dependency] if u is not unit]
            else:
                match = known.get(id(dependency))
                matches = [] if match is None else [match]
            if not matches:
                raise UnknownDependency(unit.service, dependency)
            found.update((id(u), u) for u in matches)
        unit.requires = list(found.values())

    _refuse_cycles(dependent)
    for unit in dependent:
        for required in unit.requires:
            if required.dependants is NOBODY:
                required.dependants = {}
            required.dependants[unit] = None


def _refuse_cycles(units: Iterable[Unit]) -> None:
    settled: set[Unit] = set()
    for first in units:
        # Depth first, without recursion: a chain may be longer than the interpreter's stack.
        path: dict[Unit, None] = {}
        steps = [(first, iter(first.requires))]
        path[first] = None
        while steps:
            unit, rest = steps[-1]
            required = next((u for u in rest if u not in settled), None)
            if required is None:
                steps.pop()
                path.pop(unit)
                settled.add(unit)
            elif required in path:
                circle = list(path)[list(path).index(required) :]
                raise DependencyCycle([u.service for u in (*circle, required)])
            else:
                path[required] = None
                steps.append((required, iter(required.requires)))


def unlink(unit: Unit) -> None:
    """Take `unit` out of the lists of those it depends on."""
    for required in unit.requires:
        required.dependants.pop(unit, None)
    unit.requires = ()


def with_dependants(units: Iterable[Unit]) -> list[Unit]:
    """List `units` and all that depend on them, directly or not."""
    found = dict.fromkeys(units)
    queue = deque(found)
    while queue:
        for dependant in queue.popleft().dependants:
            if dependant not in found:
                found[dependant] = None
                queue.append(dependant)
    return list(found)


class Walk:
    """Visit units, each when those before it are done, as many at a time as that allows.

    :param units: what to visit.
    :param visit: called with a unit; returns whether the unit is done already. If not, :meth:`done`
        is to be called.
    :param upwards: whether those that a unit depends on come before it (as in starting); else its
        dependants do.

    Units before it also count while another walk in the same direction visits them.

    The loop of the walk is flat, so that a chain of thousands of units that are done at once needs
    no deep stack.
    """

    __slots__ = (
        "_blocked",
        "_ready",
        "_stopped",
        "_upwards",
        "_visit",
        "_waiting",
        "_walking",
        "busy",
        "pending",
    )

    def __init__(
        self, units: Collection[Unit], visit: Callable[[Unit], bool], *, upwards: bool
    ) -> None:
        self._visit = visit
        self._upwards = upwards
        self._stopped = False
        self._walking = False
        self._waiting: asyncio.Future[None] | None = None
        self.pending: set[Unit] = set(units)
        """The units that are not done."""
        self.busy: dict[Unit, None] = {}
        """The units that were visited and are not done."""
        self._blocked: dict[Unit, set[Unit]] = {}
        self._ready: deque[Unit] = deque()
        for unit in units:
            before = unit.requires if upwards else unit.dependants
            blocking = {other for other in before if self._is_visited(other)} if before else None
            if blocking:
                self._blocked[unit] = blocking
            else:
                self._ready.append(unit)
            if upwards:
                unit.start_walk = self
            else:
                unit.stop_walk = self

    def go(self) -> None:
        """Visit what can be visited now."""
        if self._walking:
            return
        self._walking = True
        try:
            ready = self._ready
            while ready:
                unit = ready.popleft()
                if self._visit(unit):
                    self._settle(unit)
                else:
                    self.busy[unit] = None
        finally:
            self._walking = False
        if self._waiting is not None and (self._stopped or not self.pending):
            self.wake()

    @property
    def is_stopped(self) -> bool:
        """Whether the walk was stopped, so that no further unit becomes ready."""
        return self._stopped

    def done(self, unit: Unit) -> None:
        """Say that `unit`, visited before, is done now."""
        if unit in self.pending:
            self.busy.pop(unit, None)
            self._settle(unit)
            self.go()

    def stop(self, *, at_once: bool = False) -> None:
        """Let nothing more become ready, and end :meth:`wait`.

        :param at_once: whether to leave out what is ready already. Else that is still visited, if
            we are about to: it is without order to the unit that is the reason for stopping.
        """
        if not self._stopped:
            self._stopped = True
            for unit in self.pending:
                self._release_those_after(unit)
        if at_once or not self._walking:
            self._ready.clear()
        self.go()

    def end(self) -> None:
        """Visit no further unit, and break the reference cycle with the owner of the walk."""
        self._ready.clear()
        self._visit = bool

    async def wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait until all units are done, or the walk was stopped."""
        while self.pending and not self._stopped:
            self._waiting = loop.create_future()
            await self._waiting
            self.go()

    def wake(self) -> None:
        """Have whoever is in :meth:`wait` look again."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def blocking(self, unit: Unit) -> Collection[Unit]:
        """Return the units that `unit` has to wait for."""
        return self._blocked.get(unit, ())

    def holds_back(self) -> Collection[Unit]:
        """Return the units that still hold back others."""
        return () if self._stopped else self.pending

    def release(self, unit: Unit, before: Unit) -> None:
        """Record that `unit` need not wait for `before`, which is done or abandoned."""
        blocking = self._blocked.get(unit)
        if blocking is not None:
            blocking.discard(before)
            if not blocking:
                del self._blocked[unit]
                self._ready.append(unit)

    def _is_visited(self, unit: Unit) -> bool:
        """Whether `unit` is to be done yet, here or in another walk in this direction."""
        walk: Walk | None = unit.start_walk if self._upwards else unit.stop_walk
        return unit in self.pending or (walk is not None and unit in walk.holds_back())

    def _settle(self, unit: Unit) -> None:
        self.pending.discard(unit)
        if (unit.dependants or unit.requires) and not self._stopped:
            self._release_those_after(unit)

    def _release_those_after(self, unit: Unit) -> None:
        for after in unit.dependants if self._upwards else unit.requires:
            walk: Walk | None = after.start_walk if self._upwards else after.stop_walk
            if walk is not None:
                walk.release(after, unit)
                if walk is not self:
                    walk.wake()  # who waits for that walk goes on with it, in his own context
