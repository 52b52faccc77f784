"""The dependency graph of services, and its traversal in the order of starts or of stops."""

from __future__ import annotations

from collections import deque

from svcrun._lifecycle.service_record import NO_DEPENDANTS
from svcrun._util.hints import TYPE_CHECKING
from svcrun.errors import DependencyCycle, UnknownDependency
from svcrun.service.base import Service, dependencies

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection, Iterable

    from svcrun._lifecycle.service_record import ServiceRecord

__all__ = ("Traversal", "link", "unlink", "with_dependants")


def link(records: Iterable[ServiceRecord], running: Collection[ServiceRecord]) -> None:
    """Connect `records` with those that they depend on, among themselves and `running`.

    :raises UnknownDependency: if one depends on a service that is in neither.
    :raises DependencyCycle: if there is no order in which all could start.
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
                        u for u in known.values() if isinstance(u.service, dependency)
                    ]
                matches = [u for u in by_class[dependency] if u is not record]
            else:
                match = known.get(id(dependency))
                matches = [] if match is None else [match]
            if not matches:
                raise UnknownDependency(record.service, dependency)
            found.update((id(u), u) for u in matches)
        record.requires = list(found.values())

    _refuse_cycles(dependent)
    for record in dependent:
        for required in record.requires:
            if required.dependants is NO_DEPENDANTS:
                required.dependants = {}
            required.dependants[record] = None


def _refuse_cycles(records: Iterable[ServiceRecord]) -> None:
    settled: set[ServiceRecord] = set()
    for first in records:
        # Depth first, without recursion: a chain may be longer than the interpreter's stack.
        path: dict[ServiceRecord, None] = {}
        steps = [(first, iter(first.requires))]
        path[first] = None
        while steps:
            record, rest = steps[-1]
            required = next((u for u in rest if u not in settled), None)
            if required is None:
                steps.pop()
                path.pop(record)
                settled.add(record)
            elif required in path:
                circle = list(path)[list(path).index(required) :]
                raise DependencyCycle([u.service for u in (*circle, required)])
            else:
                path[required] = None
                steps.append((required, iter(required.requires)))


def unlink(record: ServiceRecord) -> None:
    """Take `record` out of the lists of those it depends on."""
    for required in record.requires:
        required.dependants.pop(record, None)
    record.requires = ()


def with_dependants(records: Iterable[ServiceRecord]) -> list[ServiceRecord]:
    """List `records` and all that depend on them, directly or not."""
    found = dict.fromkeys(records)
    queue = deque(found)
    while queue:
        for dependant in queue.popleft().dependants:
            if dependant not in found:
                found[dependant] = None
                queue.append(dependant)
    return list(found)


class Traversal:
    """Visit records, each when those before it are done, as many at a time as that allows.

    :param records: what to visit.
    :param visit: called with a record; returns whether the record is done already. If not, the
        visitor calls :meth:`done` later.
    :param upwards: whether those that a record depends on come before it (as in starting); else its
        dependants do.

    Units before it also count while another traversal in the same direction visits them.

    The loop is flat, so a chain of thousands of records that are done at once needs no deep stack.
    """

    __slots__ = (
        "_blocked",
        "_is_advancing",
        "_ready",
        "_stopped",
        "_upwards",
        "_visit",
        "_waiting",
        "busy",
        "pending",
    )

    def __init__(
        self,
        records: Collection[ServiceRecord],
        visit: Callable[[ServiceRecord], bool],
        *,
        upwards: bool,
    ) -> None:
        self._visit = visit
        self._upwards = upwards
        self._stopped = False
        self._is_advancing = False
        self._waiting: asyncio.Future[None] | None = None
        self.pending: set[ServiceRecord] = set(records)
        """The records that are not done."""
        self.busy: dict[ServiceRecord, None] = {}
        """The records that were visited and are not done."""
        self._blocked: dict[ServiceRecord, set[ServiceRecord]] = {}
        self._ready: deque[ServiceRecord] = deque()
        for record in records:
            before = record.requires if upwards else record.dependants
            blocking = {other for other in before if self._is_visited(other)} if before else None
            if blocking:
                self._blocked[record] = blocking
            else:
                self._ready.append(record)
            if upwards:
                record.start_traversal = self
            else:
                record.stop_traversal = self

    def go(self) -> None:
        """Visit what can be visited now."""
        if self._is_advancing:
            return
        self._is_advancing = True
        try:
            ready = self._ready
            while ready:
                record = ready.popleft()
                if self._visit(record):
                    self._settle(record)
                else:
                    self.busy[record] = None
        finally:
            self._is_advancing = False
        if self._waiting is not None and (self._stopped or not self.pending):
            self.wake()

    @property
    def is_stopped(self) -> bool:
        """Whether the traversal was stopped, so that no further record becomes ready."""
        return self._stopped

    def done(self, record: ServiceRecord) -> None:
        """Say that `record`, visited before, is done now."""
        if record in self.pending:
            self.busy.pop(record, None)
            self._settle(record)
            self.go()

    def stop(self, *, at_once: bool = False) -> None:
        """Let nothing more become ready, and end :meth:`wait`.

        :param at_once: whether to leave out what is ready already. Else that is still visited, if
            we are about to: it is without order to the record that is the reason for stopping.
        """
        if not self._stopped:
            self._stopped = True
            for record in self.pending:
                self._release_those_after(record)
        if at_once or not self._is_advancing:
            self._ready.clear()
        self.go()

    def end(self) -> None:
        """Visit no further record, and break the reference cycle with the owner."""
        self._ready.clear()
        self._visit = bool

    async def wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait until all records are done, or the traversal was stopped."""
        while self.pending and not self._stopped:
            self._waiting = loop.create_future()
            await self._waiting
            self.go()

    def wake(self) -> None:
        """Have whoever is in :meth:`wait` look again."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def blockers(self, record: ServiceRecord) -> Collection[ServiceRecord]:
        """Return the records that `record` has to wait for."""
        return self._blocked.get(record, ())

    def not_done(self) -> Collection[ServiceRecord]:
        """Return the records that still hold back others."""
        return () if self._stopped else self.pending

    def release(self, record: ServiceRecord, before: ServiceRecord) -> None:
        """Record that `record` need not wait for `before`, which is done or abandoned."""
        blocking = self._blocked.get(record)
        if blocking is not None:
            blocking.discard(before)
            if not blocking:
                del self._blocked[record]
                self._ready.append(record)

    def _is_visited(self, record: ServiceRecord) -> bool:
        """Whether `record` is to be done yet, here or in another traversal in this direction."""
        traversal: Traversal | None = (
            record.start_traversal if self._upwards else record.stop_traversal
        )
        return record in self.pending or (traversal is not None and record in traversal.not_done())

    def _settle(self, record: ServiceRecord) -> None:
        self.pending.discard(record)
        if (record.dependants or record.requires) and not self._stopped:
            self._release_those_after(record)

    def _release_those_after(self, record: ServiceRecord) -> None:
        for after in record.dependants if self._upwards else record.requires:
            traversal: Traversal | None = (
                after.start_traversal if self._upwards else after.stop_traversal
            )
            if traversal is not None:
                traversal.release(after, record)
                if traversal is not self:
                    traversal.wake()  # its wait() continues it, in the context of its own caller
