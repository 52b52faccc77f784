"""Fixtures for the laws of the entrypoint: programs of their own, on each kind of loop."""

from collections.abc import Callable, Iterator

import pytest

from tests.entrypoint.programs import Run
from tests.support import Program, loop_factories


@pytest.fixture(params=list(loop_factories()))
def loop_name(request: pytest.FixtureRequest) -> str:
    """The name of each kind of event loop in turn."""
    name: str = request.param
    return name


@pytest.fixture
def run(loop_name: str, run_program: Callable[..., Program]) -> Iterator[Run]:
    """Run programs on each kind of loop in turn."""
    return Run(run_program, loop_name)
