"""The dependency graph of services, and its traversal in the order of starts or of stops."""

from __future__ import annotations

from collections import deque

from svcrun._util.hints import TYPE_CHECKING
from svcrun.errors import DependencyCycle, UnknownDependency
from svcrun.service.base import Service, dependencies

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection, Iterable

    from svcrun._lifecycle.service_record import ServiceRecord, TraversalInProgress

__all__ = ("Traversal", "in_start_order", "link", "unlink", "with_dependants")


def link(records: Iterable[ServiceRecord], running: Collection[ServiceRecord]) -> None:
    """Connect each record with the records of its dependencies, among `records` and `running`.

    :raises UnknownDependency: if a dependency is in neither of them.
    :raises DependencyCycle: if there is no order in which all services could start.
    """
    dependent = [
        record for record in records if record.service.depends_on is not Service.depends_on
    ]
    if not dependent:
        return

    known = {id(record.service): record for record in (*running, *records)}
    by_class: dict[type, list[ServiceRecord]] = {}
    for record in dependent:
        found: dict[int, ServiceRecord] = {}
        for dependency in dependencies(record.service):
            if isinstance(dependency, type):
                if dependency not in by_class:
                    by_class[dependency] = [
                        other for other in known.values() if isinstance(other.service, dependency)
                    ]
                matches = [other for other in by_class[dependency] if other is not record]
            else:
                match = known.get(id(dependency))
                matches = [] if match is None else [match]
            if not matches:
                raise UnknownDependency(record.service, dependency)
            found.update((id(other), other) for other in matches)
        record.requires = list(found.values())

    _check_for_cycles(dependent)
    for record in dependent:
        for required in record.requires:
            required.dependants[record] = None


def _check_for_cycles(records: Iterable[ServiceRecord]) -> None:
    from graphlib import CycleError, TopologicalSorter  # most programs have no dependencies

    try:
        TopologicalSorter({record: record.requires for record in records}).prepare()
    except CycleError as error:
        # Each record of the cycle is a dependency of the next one.
        cycle = [record.service for record in reversed(error.args[1])]
    else:
        return
    raise DependencyCycle(cycle)


def unlink(record: ServiceRecord) -> None:
    """Remove `record` from the dependants of its dependencies."""
    for required in record.requires:
        required.dependants.pop(record, None)
    record.requires = ()


def with_dependants(records: Iterable[ServiceRecord]) -> list[ServiceRecord]:
    """Return `records` and all records that depend on them, directly or not."""
    found = dict.fromkeys(records)
    queue = deque(found)
    while queue:
        for dependant in queue.popleft().dependants:
            if dependant not in found:
                found[dependant] = None
                queue.append(dependant)
    return list(found)


def in_start_order(records: Iterable[ServiceRecord]) -> list[ServiceRecord]:
    """Return `records` with each after those that it requires, which are included."""
    ordered: dict[ServiceRecord, None] = {}
    stack = list(records)[::-1]
    while stack:
        if waits_for := [other for other in stack[-1].requires if other not in ordered]:
            stack += reversed(waits_for)
        else:
            ordered[stack.pop()] = None
    return list(ordered)


class Traversal:
    """Visit records in the order of the graph, as many at a time as that order allows.

    A record is visited when all records before it are done. Records before it count only while
    they are part of this traversal, or of another one in the same direction.

    :param records: the records to visit.
    :param visit: called with a record; returns whether the record is done already. If not, the
        owner calls :meth:`done` later.
    :param dependencies_first: whether the dependencies of a record come before it, as in a start;
        otherwise its dependants do, as in a stop.

    Invariant: each record in :attr:`pending` is either ready, or blocked by at least one record, or
    in progress. A record leaves :attr:`pending` once.
    """

    __slots__ = (
        "_blocked",
        "_dependencies_first",
        "_is_advancing",
        "_ready",
        "_visit",
        "_waiter",
        "in_progress",
        "is_stopped",
        "pending",
    )

    def __init__(
        self,
        records: Collection[ServiceRecord],
        visit: Callable[[ServiceRecord], bool],
        *,
        dependencies_first: bool,
    ) -> None:
        self._visit = visit
        self._dependencies_first = dependencies_first
        self._is_advancing = False
        self._waiter: asyncio.Future[None] | None = None
        self.is_stopped = False
        """Whether :meth:`stop` was called, so that no further record becomes ready."""
        self.pending: set[ServiceRecord] = set(records)
        """The records that are not done."""
        self.in_progress: dict[ServiceRecord, None] = {}
        """The records that were visited and are not done, in the order of the visits."""
        self._blocked: dict[ServiceRecord, set[ServiceRecord]] = {}
        self._ready: deque[ServiceRecord] = deque()
        for record in records:
            before = record.requires if dependencies_first else record.dependants
            # Most services have no dependencies: a set for each would cost more than its start.
            blockers = {other for other in before if self._is_unfinished(other)} if before else None
            if blockers:
                self._blocked[record] = blockers
            else:
                self._ready.append(record)
            if dependencies_first:
                record.start_traversal = self
            else:
                record.stop_traversal = self

    def advance(self) -> None:
        """Visit all records that are ready.

        A visit may call :meth:`done` and so this method again, which then returns at once. So a
        chain of thousands of services needs no deep stack.
        """
        if self._is_advancing:
            return
        self._is_advancing = True
        try:
            ready = self._ready
            while ready:
                record = ready.popleft()
                if self._visit(record):
                    self._mark_done(record)
                else:
                    self.in_progress[record] = None
        finally:
            self._is_advancing = False
        if self._waiter is not None and (self.is_stopped or not self.pending):
            self.wake()

    def done(self, record: ServiceRecord) -> None:
        """Record that `record` is done, and visit the records that this makes ready.

        Later calls for the same record have no effect.
        """
        if record in self.pending:
            self.in_progress.pop(record, None)
            self._mark_done(record)
            self.advance()

    def stop(self, *, at_once: bool = False) -> None:
        """Make no further record ready, and end :meth:`wait`.

        :param at_once: whether to skip the records that are ready. Otherwise a call during
            :meth:`advance` still visits them: in the order of the graph, they are independent of
            the record that is the reason for the call.
        """
        if not self.is_stopped:
            self.is_stopped = True
            for record in self.pending:
                self._release_next(record)
        if at_once or not self._is_advancing:
            self._ready.clear()
        self.advance()

    def close(self) -> None:
        """Visit no further record, and break the reference cycle with the owner."""
        self._ready.clear()
        self._visit = bool

    async def wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait until all records are done, or :meth:`stop` is called."""
        while self.pending and not self.is_stopped:
            self._waiter = loop.create_future()
            await self._waiter
            self.advance()

    def wake(self) -> None:
        """Resume :meth:`wait`, which continues the traversal."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def blockers(self, record: ServiceRecord) -> Collection[ServiceRecord]:
        """Return the records that `record` waits for."""
        return self._blocked.get(record, ())

    def unfinished(self) -> Collection[ServiceRecord]:
        """Return the records that block others."""
        return () if self.is_stopped else self.pending

    def release(self, record: ServiceRecord, before: ServiceRecord) -> None:
        """Record that `record` need not wait for `before`, which is done or abandoned."""
        blockers = self._blocked.get(record)
        if blockers is not None:
            blockers.discard(before)
            if not blockers:
                del self._blocked[record]
                self._ready.append(record)

    def _is_unfinished(self, record: ServiceRecord) -> bool:
        """Return whether `record` is not done, here or in another traversal in this direction."""
        if record in self.pending:
            return True
        other = self._traversal_of(record)
        return other is not None and record in other.unfinished()

    def _traversal_of(self, record: ServiceRecord) -> TraversalInProgress | None:
        return record.start_traversal if self._dependencies_first else record.stop_traversal

    def _mark_done(self, record: ServiceRecord) -> None:
        self.pending.discard(record)
        if (record.dependants or record.requires) and not self.is_stopped:
            self._release_next(record)

    def _release_next(self, record: ServiceRecord) -> None:
        for after in record.dependants if self._dependencies_first else record.requires:
            traversal = self._traversal_of(after)
            if traversal is not None:
                traversal.release(after, record)
                if traversal is not self:
                    traversal.wake()
