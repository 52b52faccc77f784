"""The adapter for the unpublished parts of event loops works on every version and loop."""

from __future__ import annotations

import asyncio
import signal
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from svcrun._util.loop_internals import current_loop, listen_to_signals, wakeup_descriptor
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support import LoopFactory, Program

T = TypeVar("T")


async def test_asyncio_and_uvloop_have_a_wakeup_descriptor() -> None:
    descriptor = wakeup_descriptor(asyncio.get_running_loop())
    assert descriptor is not None


def test_the_descriptor_of_an_unknown_loop_is_none() -> None:
    class Loop: ...

    loop: Any = Loop()
    assert wakeup_descriptor(loop) is None


def in_a_thread(function: Callable[[], T]) -> T:
    """Return the current loop of a fresh thread, in which no loop is set."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_the_current_loop_is_none_where_no_loop_is_set_and_none_is_created() -> None:
    assert in_a_thread(current_loop) is None


def test_there_is_no_current_loop_in_a_fresh_process(
    run_program: Callable[..., Program],
) -> None:
    source = """
        from svcrun._util.loop_internals import current_loop
        assert current_loop() is None
        import asyncio
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        assert current_loop() is loop
        asyncio.set_event_loop(None)
        assert current_loop() is None
        loop.close()
        print("as expected")
    """
    program = run_program(textwrap.dedent(source))
    outcome = program.wait()
    assert (outcome.stdout, outcome.stderr) == ("as expected\n", "")


def test_the_loop_that_is_set_is_the_current_one(loop_factory: LoopFactory) -> None:
    def look() -> tuple[bool, bool]:
        loop = loop_factory()
        asyncio.set_event_loop(loop)
        is_set = current_loop() is loop
        asyncio.set_event_loop(None)
        is_unset = current_loop() is None
        loop.close()
        return is_set, is_unset

    assert in_a_thread(look) == (True, True)


async def test_signals_that_wake_the_stock_loop_are_reported_for_any_handler() -> None:
    loop = asyncio.get_running_loop()
    heard: list[int] = []
    undo = listen_to_signals(loop, heard.append)
    if type(loop).__module__.startswith("uvloop"):
        assert undo is None
        return
    assert undo is not None
    descriptor = wakeup_descriptor(loop)
    assert descriptor is not None
    found = signal.signal(signal.SIGUSR1, lambda *_: None)
    before = signal.set_wakeup_fd(descriptor)
    try:
        signal.raise_signal(signal.SIGUSR1)
        await eventually(lambda: heard)
        undo()
        signal.raise_signal(signal.SIGUSR1)
        await asyncio.sleep(0.01)
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGUSR1, found)
    assert heard == [signal.SIGUSR1]
    assert "_process_self_data" not in vars(loop)
