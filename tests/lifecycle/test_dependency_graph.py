"""Laws of the order of services: who depends on whom, and a walk that respects it."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from svcrun._lifecycle.dependency_graph import Walk, link, unlink, with_dependants
from svcrun._lifecycle.unit import NOBODY, Unit
from svcrun.errors import DependencyCycle, UnknownDependency
from svcrun.service.base import Service


class Nothing(Service):
    async def start(self) -> None: ...


class Other(Nothing):
    pass


class Special(Other):
    pass


def unit(name: str, *depends_on: Any, kind: type[Service] = Nothing) -> Unit:
    """Make a unit whose service depends on the services of other units, or on classes."""
    return Unit(
        kind(
            name=name, depends_on=[it.service if isinstance(it, Unit) else it for it in depends_on]
        )
    )


def names(units: Iterable[Unit]) -> list[str | None]:
    return [it.service.name for it in units]


def chain(length: int) -> list[Unit]:
    """Make units that depend each on the one before, and link them."""
    units = [unit("0")]
    for number in range(1, length):
        units.append(unit(str(number), units[-1]))
    link(units, ())
    return units


def diamond() -> tuple[Unit, Unit, Unit, Unit]:
    """Make a unit, two that depend on it, and one that depends on both; link them."""
    bottom = unit("bottom")
    left, right = unit("left", bottom), unit("right", bottom)
    top = unit("top", left, right)
    link((top, right, left, bottom), ())
    return bottom, left, right, top


# Links.


def test_units_without_dependencies_are_not_linked() -> None:
    first, second = unit("first"), unit("second")
    link([first, second], ())
    assert not first.requires
    assert first.dependants is second.dependants is NOBODY


def test_a_unit_is_linked_in_both_directions() -> None:
    below, above = unit("below"), unit("above")
    above.service.depends_on = below.service
    link([above, below], ())
    assert list(above.requires) == [below]
    assert list(below.dependants) == [above]
    assert not NOBODY


def test_a_class_stands_for_all_its_instances_but_the_one_that_names_it() -> None:
    plain, other, special = unit("plain"), unit("other", kind=Other), unit("special", kind=Special)
    asking = unit("asking", Other, kind=Other)
    link([asking, plain, other, special], ())
    assert list(asking.requires) == [other, special]


def test_what_is_named_twice_is_required_once() -> None:
    below = unit("below", kind=Other)
    above = unit("above", below, below, Other)
    link([above, below], ())
    assert list(above.requires) == [below]


def test_what_runs_already_can_be_depended_on() -> None:
    running = unit("running", kind=Other)
    by_instance, by_class = unit("by instance", running), unit("by class", Other)
    link([by_instance, by_class], [running])
    assert list(running.dependants) == [by_instance, by_class]


@pytest.mark.parametrize("missing", [Special, unit("missing")], ids=["class", "instance"])
def test_a_dependency_that_is_nowhere_is_refused_and_nothing_is_linked(missing: Any) -> None:
    below = unit("below")
    above, lonely = unit("above", below), unit("lonely", missing)
    with pytest.raises(UnknownDependency, match="lonely") as caught:
        link([below, above, lonely], ())
    assert caught.value.service is lonely.service
    assert caught.value.dependency is getattr(missing, "service", missing)
    assert below.dependants is NOBODY


@pytest.mark.parametrize("length", [1, 2, 3, 5000])
def test_a_circle_is_refused_as_it_is_found_and_nothing_is_linked(length: int) -> None:
    outside = unit("outside")
    units = [unit("0")]
    for number in range(1, length):
        units.append(unit(str(number), units[-1]))
    units[0].service.depends_on = [outside.service, units[-1].service]
    with pytest.raises(DependencyCycle) as caught:
        link([outside, *units], ())
    circle = caught.value.circle
    assert circle[0] is circle[-1]
    assert {id(service) for service in circle} == {id(it.service) for it in units}
    assert all(it.dependants is NOBODY for it in (outside, *units))


def test_two_ways_to_the_same_unit_are_no_circle() -> None:
    bottom, left, right, top = diamond()
    assert list(top.requires) == [left, right]
    assert set(bottom.dependants) == {left, right}


def test_an_unlinked_unit_is_in_no_list_any_more() -> None:
    bottom, left, right, top = diamond()
    unlink(left)
    assert list(bottom.dependants) == [right]
    assert not left.requires
    assert list(left.dependants) == [top]  # which those above undo themselves


def test_dependants_are_found_however_far_away_and_once_each() -> None:
    bottom, left, right, top = diamond()
    assert set(with_dependants([bottom])) == {bottom, left, right, top}
    assert names(with_dependants([left])) == ["left", "top"]
    assert names(with_dependants([top, left, top])) == ["top", "left"]
    assert with_dependants([]) == []
    assert len(with_dependants(chain(5000)[:1])) == 5000


# Walks.


class Visits:
    """Notes who is visited; `at_once`, or everybody, is done then."""

    def __init__(self, *at_once: Unit, everybody: bool = False) -> None:
        self.at_once = at_once
        self.everybody = everybody
        self.names: list[str | None] = []

    def __call__(self, visited: Unit) -> bool:
        self.names.append(visited.service.name)
        return self.everybody or visited in self.at_once


def walk(units: Sequence[Unit], visits: Visits, *, upwards: bool = True) -> Walk:
    made = Walk(units, visits, upwards=upwards)
    made.go()
    return made


@pytest.mark.parametrize("upwards", [True, False])
def test_a_chain_of_units_that_are_done_at_once_is_walked_in_one_go(upwards: bool) -> None:
    units = chain(5000)
    visits = Visits(everybody=True)
    made = walk(units, visits, upwards=upwards)
    assert visits.names == names(units if upwards else reversed(units))
    assert not made.pending


def test_a_unit_is_visited_when_all_before_it_are_done() -> None:
    bottom, left, right, top = diamond()
    visits = Visits()
    made = walk((top, right, left, bottom), visits)
    assert visits.names == ["bottom"]
    made.done(bottom)
    assert visits.names[1:] == ["right", "left"] or visits.names[1:] == ["left", "right"]
    made.done(right)
    assert "top" not in visits.names
    made.done(left)
    assert visits.names[-1] == "top"
    assert list(made.busy) == [top]
    made.done(top)
    assert not made.pending


def test_downwards_dependants_come_first() -> None:
    bottom, left, right, top = diamond()
    visits = Visits(top)
    made = walk((bottom, left, right, top), visits, upwards=False)
    assert visits.names[0] == "top"
    assert set(visits.names[1:]) == {"left", "right"}
    made.done(left)
    made.done(right)
    assert visits.names[-1] == "bottom"


def test_units_that_are_not_part_of_the_walk_hold_nobody_back() -> None:
    _, left, right, top = diamond()
    visits = Visits()
    walk((top, left, right), visits)
    assert set(visits.names) == {"left", "right"}


def test_done_counts_once_and_only_for_units_of_the_walk() -> None:
    bottom, left, right, top = diamond()
    visits = Visits()
    made = walk((bottom, left), visits)
    made.done(top)
    made.done(right)
    assert visits.names == ["bottom"]
    made.done(bottom)
    made.done(bottom)
    assert visits.names == ["bottom", "left"]


def test_after_a_stop_nothing_becomes_ready_any_more() -> None:
    bottom, left, right, top = diamond()
    visits = Visits()
    made = walk((bottom, left, right, top), visits)
    made.stop()
    made.done(bottom)
    assert visits.names == ["bottom"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_stop_during_the_walk_leaves_out_what_is_ready_only_if_that_is_wanted(
    at_once: bool,
) -> None:
    units = [unit("first"), unit("second"), unit("third")]
    visited: list[str | None] = []

    def visit(it: Unit) -> bool:
        visited.append(it.service.name)
        if len(visited) == 1:
            made.stop(at_once=at_once)
        return False

    made = Walk(units, visit, upwards=True)
    made.go()
    assert visited == (["first"] if at_once else ["first", "second", "third"])


def test_who_waits_goes_on_when_all_are_done() -> None:
    async def main() -> None:
        units = chain(2)
        made = walk(units, Visits())
        waiting = asyncio.ensure_future(made.wait(asyncio.get_running_loop()))
        for it in units:
            await asyncio.sleep(0)
            assert not waiting.done()
            made.done(it)
        await asyncio.wait_for(waiting, 1)

    asyncio.run(main())


def test_who_waits_goes_on_when_the_walk_is_stopped() -> None:
    async def main() -> None:
        made = walk(chain(2), Visits())
        waiting = asyncio.ensure_future(made.wait(asyncio.get_running_loop()))
        await asyncio.sleep(0)
        made.stop()
        await asyncio.wait_for(waiting, 1)
        await made.wait(asyncio.get_running_loop())

    asyncio.run(main())


# Several walks.


def test_a_unit_waits_for_those_before_it_in_another_walk_of_the_same_direction() -> None:
    below, above = chain(2)
    first, second = Visits(), Visits()
    walk_below, walk_above = walk([below], first), walk([above], second)
    assert second.names == []
    walk_below.done(below)
    walk_above.go()
    assert second.names == ["1"]


def test_a_walk_in_the_other_direction_holds_nobody_back() -> None:
    below, above = chain(2)
    walk([below], Visits(), upwards=False)
    visits = Visits()
    walk([above], visits)
    assert visits.names == ["1"]


def test_a_walk_that_is_stopped_holds_nobody_back_any_more() -> None:
    below, above = chain(2)
    visits = Visits()
    walk_below, walk_above = walk([below], Visits()), walk([above], visits)
    walk_below.stop()
    walk_above.go()
    assert visits.names == ["1"]
    visits = Visits()
    walk([above], visits)
    assert visits.names == ["1"]


def test_who_waits_for_a_walk_goes_on_when_another_one_lets_it() -> None:
    async def main() -> None:
        below, above = chain(2)
        visits = Visits(above)
        walk_below, walk_above = walk([below], Visits()), walk([above], visits)
        waiting = asyncio.ensure_future(walk_above.wait(asyncio.get_running_loop()))
        await asyncio.sleep(0)
        walk_below.done(below)
        assert visits.names == []  # it goes on in the context of who waits
        await asyncio.wait_for(waiting, 1)
        assert visits.names == ["1"]

    asyncio.run(main())
