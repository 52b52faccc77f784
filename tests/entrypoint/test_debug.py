"""Laws of asyncio's debug mode in a loop of an entrypoint (C9)."""

import asyncio
from collections.abc import Callable

import pytest

from svcrun import entrypoint
from tests.entrypoint.programs import Run, complaints, lines
from tests.support import LoopFactory, Program


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    ("options", "variable", "setting", "argument", "debug"),
    [
        ((), "", "", "None", False),
        (("-X", "dev"), "", "", "None", True),
        ((), "1", "", "None", True),
        (("-E",), "1", "", "None", False),
        (("-X", "dev"), "", "0", "None", False),
        ((), "1", "off", "None", False),
        ((), "", "on", "None", True),
        (("-X", "dev"), "1", "", "False", False),
        ((), "", "0", "True", True),
    ],
)
def test_debug_mode_is_that_of_the_interpreter_by_default(
    run_program: Callable[..., Program],
    loop_name: str,
    options: tuple[str, ...],
    variable: str,
    setting: str,
    argument: str,
    debug: bool,
    given: bool,
) -> None:
    module = "asyncio" if loop_name == "asyncio" else "uvloop"
    source = f"""
import {module}
from svcrun import entrypoint

factory = {module}.new_event_loop if {given} else None
with entrypoint(debug={argument}, loop_factory=factory) as loop:
    print(type(loop).__module__.split(".")[0], loop.get_debug())
"""
    env = {"PYTHONASYNCIODEBUG": variable, "SVCRUN_DEBUG": setting}
    env["SVCRUN_USE_UVLOOP"] = str(int(loop_name == "uvloop"))
    outcome = run_program(source, options=options, env=env).wait()
    assert outcome.stdout == f"{module} {debug}\n", outcome


def test_debug_that_the_factory_has_set_stays(loop_factory: LoopFactory) -> None:
    def factory() -> asyncio.AbstractEventLoop:
        loop = loop_factory()
        loop.set_debug(True)
        return loop

    with entrypoint(loop_factory=factory, log_config=False) as loop:
        assert loop.get_debug()
    with entrypoint(loop_factory=factory, log_config=False, debug=False) as loop:
        assert not loop.get_debug()


@pytest.mark.parametrize("debug", [False, True])
async def test_the_debug_mode_of_a_loop_that_is_given_stays(debug: bool) -> None:
    loop = asyncio.get_running_loop()
    found = loop.get_debug()
    loop.set_debug(debug)
    try:
        async with entrypoint(log_config=False, debug=not debug):
            assert loop.get_debug() is debug
        assert loop.get_debug() is debug
    finally:
        loop.set_debug(found)


def test_a_program_in_debug_mode_is_silent(run: Run) -> None:
    outcome = run(
        """
        with entrypoint(Server()) as loop:
            assert loop.get_debug()
            loop.slow_callback_duration = 60
            loop.call_soon(send)
            loop.run_forever()
        """,
        env={"SVCRUN_DEBUG": ""},
    )
    assert lines(outcome) == ["started", "stopped", "cancelled"]
    assert not complaints(outcome)
    assert outcome.returncode == 0
