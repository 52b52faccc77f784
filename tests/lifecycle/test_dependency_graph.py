"""Laws of the dependency graph and of its traversal."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from svcrun._lifecycle.dependency_graph import (
    Traversal,
    in_start_order,
    link,
    unlink,
    with_dependants,
)
from svcrun._lifecycle.service_record import ServiceRecord
from svcrun.errors import DependencyCycle, UnknownDependency
from svcrun.service.base import Service


class Nothing(Service):
    async def start(self) -> None: ...


class Other(Nothing):
    pass


class Special(Other):
    pass


def record(name: str, *depends_on: Any, kind: type[Service] = Nothing) -> ServiceRecord:
    """Make a record whose service depends on the services of other records, or on classes."""
    return ServiceRecord(
        kind(
            name=name,
            depends_on=[it.service if isinstance(it, ServiceRecord) else it for it in depends_on],
        )
    )


def names(records: Iterable[ServiceRecord]) -> list[str | None]:
    return [it.service.name for it in records]


def chain(length: int) -> list[ServiceRecord]:
    """Make records that depend each on the one before, and link them."""
    records = [record("0")]
    for number in range(1, length):
        records.append(record(str(number), records[-1]))
    link(records, ())
    return records


def diamond() -> tuple[ServiceRecord, ServiceRecord, ServiceRecord, ServiceRecord]:
    """Make a record, two that depend on it, and one that depends on both; link them."""
    bottom = record("bottom")
    left, right = record("left", bottom), record("right", bottom)
    top = record("top", left, right)
    link((top, right, left, bottom), ())
    return bottom, left, right, top


# The order of starts.


def test_each_record_comes_after_those_that_it_requires() -> None:
    _, left, right, top = diamond()
    assert names(in_start_order([top, right, left])) == ["bottom", "left", "right", "top"]


def test_records_without_an_order_between_them_keep_theirs() -> None:
    assert names(in_start_order([record("b"), record("a"), record("c")])) == ["b", "a", "c"]


def test_a_chain_longer_than_the_recursion_limit_has_an_order() -> None:
    records = chain(3_000)
    assert in_start_order(records[::-1]) == records


# Links.


def test_records_without_dependencies_are_not_linked() -> None:
    first, second = record("first"), record("second")
    link([first, second], ())
    assert not first.requires
    assert first.dependants is not second.dependants


def test_a_record_is_linked_in_both_directions() -> None:
    below, above = record("below"), record("above")
    above.service.depends_on = below.service
    link([above, below], ())
    assert list(above.requires) == [below]
    assert list(below.dependants) == [above]


def test_a_class_as_dependency_means_all_its_other_instances() -> None:
    plain, other, special = (
        record("plain"),
        record("other", kind=Other),
        record("special", kind=Special),
    )
    asking = record("asking", Other, kind=Other)
    link([asking, plain, other, special], ())
    assert list(asking.requires) == [other, special]


def test_a_dependency_that_is_named_twice_counts_once() -> None:
    below = record("below", kind=Other)
    above = record("above", below, below, Other)
    link([above, below], ())
    assert list(above.requires) == [below]


def test_a_service_can_depend_on_a_running_service() -> None:
    running = record("running", kind=Other)
    by_instance, by_class = record("by instance", running), record("by class", Other)
    link([by_instance, by_class], [running])
    assert list(running.dependants) == [by_instance, by_class]


@pytest.mark.parametrize("missing", [Special, record("missing")], ids=["class", "instance"])
def test_an_unknown_dependency_is_refused_and_nothing_is_linked(missing: Any) -> None:
    below = record("below")
    above, lonely = record("above", below), record("lonely", missing)
    with pytest.raises(UnknownDependency, match="lonely") as caught:
        link([below, above, lonely], ())
    assert caught.value.service is lonely.service
    assert caught.value.dependency is getattr(missing, "service", missing)
    assert not below.dependants


@pytest.mark.parametrize("length", [1, 2, 3, 5000])
def test_a_cycle_is_refused_with_its_services_and_nothing_is_linked(length: int) -> None:
    outside = record("outside")
    records = [record("0")]
    for number in range(1, length):
        records.append(record(str(number), records[-1]))
    records[0].service.depends_on = [outside.service, records[-1].service]
    with pytest.raises(DependencyCycle) as caught:
        link([outside, *records], ())
    circle = caught.value.circle
    assert circle[0] is circle[-1]
    assert {id(service) for service in circle} == {id(it.service) for it in records}
    assert all(not it.dependants for it in (outside, *records))


def test_two_paths_to_the_same_dependency_are_no_cycle() -> None:
    bottom, left, right, top = diamond()
    assert list(top.requires) == [left, right]
    assert set(bottom.dependants) == {left, right}


def test_an_unlinked_record_is_no_dependant_any_more() -> None:
    bottom, left, right, top = diamond()
    unlink(left)
    assert list(bottom.dependants) == [right]
    assert not left.requires
    assert list(left.dependants) == [top]  # which those above undo themselves


def test_indirect_dependants_are_found_once_each() -> None:
    bottom, left, right, top = diamond()
    assert set(with_dependants([bottom])) == {bottom, left, right, top}
    assert names(with_dependants([left])) == ["left", "top"]
    assert names(with_dependants([top, left, top])) == ["top", "left"]
    assert with_dependants([]) == []
    assert len(with_dependants(chain(5000)[:1])) == 5000


# Traversals.


class Visits:
    """Records the visits; the records in `at_once`, or all of them, are done then."""

    def __init__(self, *at_once: ServiceRecord, all_at_once: bool = False) -> None:
        self.at_once = at_once
        self.all_at_once = all_at_once
        self.names: list[str | None] = []

    def __call__(self, visited: ServiceRecord) -> bool:
        self.names.append(visited.service.name)
        return self.all_at_once or visited in self.at_once


def traversal(
    records: Sequence[ServiceRecord], visits: Visits, *, dependencies_first: bool = True
) -> Traversal:
    made = Traversal(records, visits, dependencies_first=dependencies_first)
    made.advance()
    return made


@pytest.mark.parametrize("dependencies_first", [True, False])
def test_a_long_chain_of_records_that_are_done_at_once_needs_one_call(
    dependencies_first: bool,
) -> None:
    records = chain(5000)
    visits = Visits(all_at_once=True)
    made = traversal(records, visits, dependencies_first=dependencies_first)
    assert visits.names == names(records if dependencies_first else reversed(records))
    assert not made.pending


def test_a_record_is_visited_when_all_before_it_are_done() -> None:
    bottom, left, right, top = diamond()
    visits = Visits()
    made = traversal((top, right, left, bottom), visits)
    assert visits.names == ["bottom"]
    made.done(bottom)
    assert visits.names[1:] == ["right", "left"] or visits.names[1:] == ["left", "right"]
    made.done(right)
    assert "top" not in visits.names
    made.done(left)
    assert visits.names[-1] == "top"
    assert list(made.in_progress) == [top]
    made.done(top)
    assert not made.pending


def test_dependants_come_first_when_services_stop() -> None:
    bottom, left, right, top = diamond()
    visits = Visits(top)
    made = traversal((bottom, left, right, top), visits, dependencies_first=False)
    assert visits.names[0] == "top"
    assert set(visits.names[1:]) == {"left", "right"}
    made.done(left)
    made.done(right)
    assert visits.names[-1] == "bottom"


def test_a_dependency_outside_of_the_traversal_blocks_no_record() -> None:
    _, left, right, top = diamond()
    visits = Visits()
    traversal((top, left, right), visits)
    assert set(visits.names) == {"left", "right"}


def test_done_counts_once_and_only_for_records_of_the_traversal() -> None:
    bottom, left, right, top = diamond()
    visits = Visits()
    made = traversal((bottom, left), visits)
    made.done(top)
    made.done(right)
    assert visits.names == ["bottom"]
    made.done(bottom)
    made.done(bottom)
    assert visits.names == ["bottom", "left"]


def test_after_a_stop_no_record_becomes_ready() -> None:
    bottom, left, right, top = diamond()
    visits = Visits()
    made = traversal((bottom, left, right, top), visits)
    made.stop()
    made.done(bottom)
    assert visits.names == ["bottom"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_stop_during_a_visit_skips_ready_records_only_if_it_is_at_once(
    at_once: bool,
) -> None:
    records = [record("first"), record("second"), record("third")]
    visited: list[str | None] = []

    def visit(it: ServiceRecord) -> bool:
        visited.append(it.service.name)
        if len(visited) == 1:
            made.stop(at_once=at_once)
        return False

    made = Traversal(records, visit, dependencies_first=True)
    made.advance()
    assert visited == (["first"] if at_once else ["first", "second", "third"])


def test_wait_returns_when_all_records_are_done() -> None:
    async def main() -> None:
        records = chain(2)
        made = traversal(records, Visits())
        waiting = asyncio.ensure_future(made.wait(asyncio.get_running_loop()))
        for it in records:
            await asyncio.sleep(0)
            assert not waiting.done()
            made.done(it)
        await asyncio.wait_for(waiting, 1)

    asyncio.run(main())


def test_wait_returns_when_the_traversal_is_stopped() -> None:
    async def main() -> None:
        made = traversal(chain(2), Visits())
        waiting = asyncio.ensure_future(made.wait(asyncio.get_running_loop()))
        await asyncio.sleep(0)
        made.stop()
        await asyncio.wait_for(waiting, 1)
        await made.wait(asyncio.get_running_loop())

    asyncio.run(main())


# Several traversals.


def test_a_record_waits_for_records_before_it_in_another_traversal_of_the_same_direction() -> None:
    below, above = chain(2)
    first, second = Visits(), Visits()
    walk_below, walk_above = traversal([below], first), traversal([above], second)
    assert second.names == []
    walk_below.done(below)
    walk_above.advance()
    assert second.names == ["1"]


def test_a_traversal_in_the_other_direction_blocks_no_record() -> None:
    below, above = chain(2)
    traversal([below], Visits(), dependencies_first=False)
    visits = Visits()
    traversal([above], visits)
    assert visits.names == ["1"]


def test_a_stopped_traversal_blocks_no_record() -> None:
    below, above = chain(2)
    visits = Visits()
    walk_below, walk_above = traversal([below], Visits()), traversal([above], visits)
    walk_below.stop()
    walk_above.advance()
    assert visits.names == ["1"]
    visits = Visits()
    traversal([above], visits)
    assert visits.names == ["1"]


def test_wait_returns_when_another_traversal_releases_the_last_record() -> None:
    async def main() -> None:
        below, above = chain(2)
        visits = Visits(above)
        walk_below, walk_above = traversal([below], Visits()), traversal([above], visits)
        waiting = asyncio.ensure_future(walk_above.wait(asyncio.get_running_loop()))
        await asyncio.sleep(0)
        walk_below.done(below)
        assert visits.names == []  # it resumes in the context of the waiting task
        await asyncio.wait_for(waiting, 1)
        assert visits.names == ["1"]

    asyncio.run(main())
