"""Fixtures for the laws of the entrypoint: the forms it has, and programs of their own."""

from collections.abc import Callable

import pytest

from tests.entrypoint.forms import NAMES, Form
from tests.entrypoint.programs import Run
from tests.support import LoopFactory, Program, loop_factories


@pytest.fixture(params=list(loop_factories()))
def loop_name(request: pytest.FixtureRequest) -> str:
    """The name of each kind of event loop in turn."""
    name: str = request.param
    return name


@pytest.fixture
def run(loop_name: str, run_program: Callable[..., Program]) -> Run:
    """Run programs on each kind of loop in turn."""
    return Run(run_program, loop_name)


@pytest.fixture(params=NAMES)
def live(request: pytest.FixtureRequest, loop_factory: LoopFactory) -> Form:
    """Run services in each of the forms, on each kind of loop."""
    return Form(request.param, loop_factory)
