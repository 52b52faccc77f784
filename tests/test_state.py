"""The states of a service."""

from __future__ import annotations

import pytest

from svcrun.errors import IllegalTransition
from svcrun.service.base import Service
from svcrun.state import TRANSITIONS, ServiceState
from svcrun.unit import Unit

NEW, STARTING, RUNNING, STOPPING, STOPPED, FAILED = ServiceState

LEGAL = {
    (NEW, STARTING),
    (STARTING, RUNNING),
    (STARTING, STOPPED),
    (STARTING, FAILED),
    (RUNNING, STOPPING),
    (RUNNING, FAILED),
    (STOPPING, STOPPED),
    (STOPPING, FAILED),
    (STOPPED, STARTING),
    (FAILED, STARTING),
    (FAILED, STOPPING),
}


class Nothing(Service):
    async def start(self) -> None: ...


def test_the_table_lists_the_legal_moves_and_no_others() -> None:
    assert {(old, new) for old, successors in TRANSITIONS.items() for new in successors} == LEGAL


def test_every_state_has_its_row_of_the_table() -> None:
    assert set(TRANSITIONS) == set(ServiceState)
    for state in ServiceState:
        assert state.successors == TRANSITIONS[state]


@pytest.mark.parametrize("old", ServiceState)
@pytest.mark.parametrize("new", ServiceState)
def test_a_unit_makes_legal_moves_and_refuses_others(old: ServiceState, new: ServiceState) -> None:
    service = Nothing(name="it")
    service._state = old
    unit = Unit(service)
    if (old, new) in LEGAL:
        unit.move(new)
        assert service.state is new
    else:
        with pytest.raises(IllegalTransition, match=f"'it' .*{old.name} to {new.name}"):
            unit.move(new)
        assert service.state is old


def test_every_move_is_logged_at_debug_level_with_the_service(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", logger="svcrun")
    Unit(Nothing(name="it")).move(STARTING)
    [record] = caplog.records
    assert record.levelname == "DEBUG"
    assert "<Nothing name='it' STARTING>" in record.getMessage()
    assert "NEW" in record.getMessage()
