"""The states of a service."""

from __future__ import annotations

import asyncio

import pytest

from svcrun._lifecycle.service_record import ServiceRecord
from svcrun._lifecycle.supervisor import Supervisor
from svcrun.errors import IllegalTransition
from svcrun.service.base import Service
from svcrun.state import TRANSITIONS, ServiceState
from tests.support import eventually

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


def test_the_table_lists_the_legal_transitions_and_no_others() -> None:
    assert {(old, new) for old, successors in TRANSITIONS.items() for new in successors} == LEGAL


def test_every_state_knows_its_successors() -> None:
    assert set(TRANSITIONS) == set(ServiceState)
    for state in ServiceState:
        assert state.successors == TRANSITIONS[state]


@pytest.mark.parametrize("old", ServiceState)
@pytest.mark.parametrize("new", ServiceState)
async def test_the_supervisor_accepts_legal_transitions_and_refuses_others(
    old: ServiceState, new: ServiceState
) -> None:
    service = Nothing(name="it")
    record = ServiceRecord(service)
    record.internals.state = old
    supervisor = Supervisor(asyncio.get_running_loop(), on_fatal=lambda _: None)
    if (old, new) in LEGAL:
        supervisor.move(record, new)
        assert service.state is new
    else:
        with pytest.raises(IllegalTransition, match=f"'it' .*{old.name} to {new.name}"):
            supervisor.move(record, new)
        assert service.state is old


class Crashing(Service):
    async def start(self) -> None:
        self.start_event.set()
        await asyncio.sleep(0)
        raise ValueError


async def test_every_transition_is_logged_at_debug_level_with_the_service(
    caplog: pytest.LogCaptureFixture,
) -> None:
    supervisor = Supervisor(asyncio.get_running_loop(), on_fatal=lambda _: None)
    brief, crashing = Nothing(name="it"), Crashing()
    await supervisor.start([brief])
    caplog.set_level("DEBUG", logger="svcrun.lifecycle")  # from now on
    await supervisor.stop([brief], None)
    await supervisor.start([brief, crashing])
    await eventually(lambda: crashing.state is FAILED)
    await supervisor.close(None, None)
    logged = [record for record in caplog.records if record.levelname == "DEBUG"]
    moves = [record.getMessage() for record in logged if record.name == "svcrun.lifecycle"]
    assert [move for move in moves if "Nothing" in move] == [
        "<Nothing name='it' STOPPING>: was RUNNING",
        "<Nothing name='it' STOPPED>: was STOPPING",
        "<Nothing name='it' STARTING>: was STOPPED",
        "<Nothing name='it' RUNNING>: was STARTING",
        "<Nothing name='it' STOPPING>: was RUNNING",
        "<Nothing name='it' STOPPED>: was STOPPING",
    ]
    assert [move for move in moves if "Crashing" in move] == [
        "<Crashing STARTING>: was NEW",
        "<Crashing RUNNING>: was STARTING",
        "<Crashing FAILED>: was RUNNING",
        "<Crashing STOPPING>: was FAILED",
        "<Crashing STOPPED>: was STOPPING",
    ]
