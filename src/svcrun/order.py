"""The order in which services start and stop: what depends on what, and a walk that respects it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from svcrun.errors import DependencyCycle, UnknownDependency
from svcrun.service.base import dependencies
from svcrun.unit import NOBODY

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection, Iterable

    from svcrun.unit import Unit

__all__ = ("Walk", "link", "unlink", "with_dependants")


def link(units: Iterable[Unit], running: Collection[Unit]) -> None:
    """Connect `units` with those that they depend on, among themselves and `running`.

    :raises UnknownDependency: if one depends on a service that is in neither.
    :raises DependencyCycle: if there is no order in which all could start.
    """
    dependent = [unit for unit in units if unit.service.depends_on]
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

    The loop of the walk is flat, so that a chain of thousands of units that are done at once needs
    no deep stack.
    """

    __slots__ = (
        "_blocked",
        "_finished",
        "_ready",
        "_stopped",
        "_upwards",
        "_visit",
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
        self._finished: asyncio.Future[None] | None = None
        self.pending: set[Unit] = set(units)
        """The units that are not done."""
        self.busy: dict[Unit, None] = {}
        """The units that were visited and are not done."""
        self._blocked: dict[Unit, int] = {}
        self._ready: deque[Unit] = deque()
        for unit in units:
            before = unit.requires if upwards else unit.dependants
            blocking = sum(1 for other in before if other in self.pending) if before else 0
            if blocking:
                self._blocked[unit] = blocking
            else:
                self._ready.append(unit)

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
        if (
            self._finished is not None
            and not self._finished.done()
            and (self._stopped or not self.pending)
        ):
            self._finished.set_result(None)

    def done(self, unit: Unit) -> None:
        """Say that `unit`, visited before, is done now."""
        if unit in self.pending:
            self._settle(unit)
            self.go()

    def stop(self) -> None:
        """Let nothing more become ready, and end :meth:`wait`.

        What is ready already is still visited: it is without order to the unit that is the reason
        for stopping.
        """
        self._stopped = True
        self.go()

    async def wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait until all units are done, or the walk was stopped."""
        if self.pending and not self._stopped:
            self._finished = loop.create_future()
            await self._finished

    def _settle(self, unit: Unit) -> None:
        self.pending.discard(unit)
        self.busy.pop(unit, None)
        if self._stopped or not self._blocked:
            return
        for after in unit.dependants if self._upwards else unit.requires:
            blocking = self._blocked.get(after, 0)
            if blocking > 1:
                self._blocked[after] = blocking - 1
            elif blocking:
                del self._blocked[after]
                self._ready.append(after)
