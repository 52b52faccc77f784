"""The waits of a block after its shutdown began (C21)."""

import pytest

from tests.entrypoint.programs import Run, complaints, lines
from tests.support import Outcome

MAIN = """
async def main():
    send()
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        say("cancelled main")

async def crash():
    await asyncio.sleep(0)
    raise ValueError("crash")

async def shut_down():
    await svcrun.entrypoint.get_current().graceful_shutdown()

class Crashing(Server):
    async def start(self):
        self.start_event.set()
        await asyncio.sleep(0.05)
        raise ValueError("crash")

"""

LEFT = ("stopped", "cancelled", "after")


def assert_orderly(outcome: Outcome, *said: str) -> None:
    assert outcome.returncode == 0, outcome
    assert lines(outcome) == list(said)
    assert not complaints(outcome)


WAITS = {
    "run_forever": "loop.run_forever()",
    "run_forever twice": "loop.run_forever(); loop.run_forever()",
    "a coroutine": "loop.run_until_complete(asyncio.sleep(600))",
    "a future": "loop.run_until_complete(loop.create_future())",
    "a task": "loop.run_until_complete(loop.create_task(asyncio.sleep(600)))",
    "a gathering": "loop.run_until_complete(asyncio.wait([loop.create_task(asyncio.sleep(600))]))",
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_after_main_has_handled_its_cancellation_no_wait_lasts(run: Run, wait: str) -> None:
    outcome = run(
        MAIN
        + f"""
with entrypoint(Server()) as loop:
    loop.run_until_complete(main())
    {wait}
say("after")
"""
    )
    assert_orderly(outcome, "started", "cancelled main", *LEFT)


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_after_run_forever_no_wait_lasts(run: Run, wait: str) -> None:
    outcome = run(
        MAIN
        + f"""
with entrypoint(Server()) as loop:
    loop.call_soon(send)
    loop.run_forever()
    say("ended")
    {wait}
say("after")
"""
    )
    assert_orderly(outcome, "started", "ended", *LEFT)


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_after_a_crash_no_wait_lasts(run: Run, wait: str) -> None:
    outcome = run(
        MAIN
        + f"""
try:
    with entrypoint(Crashing()) as loop:
        loop.run_forever()
        {wait}
except ValueError as error:
    say(error)
"""
    )
    assert lines(outcome) == ["stopped ValueError('crash')", "crash"]
    assert outcome.returncode == 0


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_after_a_graceful_shutdown_no_wait_lasts(run: Run, wait: str) -> None:
    outcome = run(
        MAIN
        + f"""
with entrypoint(Server()) as loop:
    loop.run_until_complete(shut_down())
    {wait}
say("after")
"""
    )
    assert outcome.returncode == 0, outcome
    assert lines(outcome) == ["started", *LEFT]
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize(
    "wait",
    [
        "loop.run_forever()",
        "loop.run_until_complete(asyncio.sleep(0.01))",
        "loop.run_until_complete(asyncio.sleep(600))",
    ],
)
@pytest.mark.parametrize("first", ["loop.call_soon(send)", "loop.run_until_complete(main())"])
def test_a_block_that_waits_again_and_again_is_left(run: Run, first: str, wait: str) -> None:
    outcome = run(
        MAIN
        + f"""
with entrypoint(Server()) as loop:
    {first}
    while True:
        {wait}
say("after")
"""
    )
    assert outcome.returncode == 0, outcome
    assert [line for line in lines(outcome) if line != "cancelled main"] == ["started", *LEFT]


def test_each_of_several_calls_of_run_forever_returns(run: Run) -> None:
    outcome = run(
        """
        with entrypoint(Server()) as loop:
            loop.call_soon(send)
            for number in range(3):
                loop.run_forever()
                loop.call_soon(say, number)
            loop.run_forever()
        say("after")
        """
    )
    assert_orderly(outcome, "started", "0", "1", "2", *LEFT)


def test_the_methods_of_the_loop_are_restored_after_the_block(run: Run) -> None:
    outcome = run(
        MAIN
        + """
loop = asyncio.new_event_loop()
with entrypoint(Server(), loop=loop):
    loop.run_until_complete(main())
say(*{"run_forever", "run_until_complete"} & set(vars(loop)))
loop.call_later(0.01, loop.stop)
loop.run_forever()
loop.run_until_complete(asyncio.sleep(0.01))
loop.close()
say("after")
"""
    )
    assert_orderly(outcome, "started", "cancelled main", "stopped", "cancelled", "", "after")


def test_an_inner_block_that_ended_by_a_signal_does_not_keep_the_outer_one(run: Run) -> None:
    outcome = run(
        MAIN
        + """
with entrypoint(Server()) as loop:
    with entrypoint(Server(), loop=loop):
        loop.run_until_complete(main())
        loop.run_forever()
        say("inner")
    loop.run_forever()
    say("outer")
    loop.run_forever()
say("after")
"""
    )
    inner = ["started", "started", "cancelled main", "inner", "stopped", "cancelled"]
    assert_orderly(outcome, *inner, "outer", *LEFT)
