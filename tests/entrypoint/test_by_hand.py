"""Laws of an entrypoint that is entered by hand: it ends as a ``with`` block does (C21)."""

import pytest

from tests.entrypoint.programs import Run, complaints, lines
from tests.support import Outcome

ENTER = """
def new_loop():
    if os.environ["SVCRUN_USE_UVLOOP"] == "1":
        import uvloop

        loop = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    loop.set_debug(False)  # else it tells of calls that a busy machine takes long for
    return loop

loop = new_loop()
ep = entrypoint(Server())

async def main():
    send()
    try:
        await asyncio.sleep(600)
    finally:
        await asyncio.sleep(0.05)
        say("main ends")

"""


def assert_orderly(outcome: Outcome, *said: str) -> None:
    assert outcome.returncode == 0, outcome
    assert lines(outcome) == list(said)
    assert not complaints(outcome)


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("leaves", [True, False])
def test_a_signal_ends_run_forever_when_the_services_are_stopped(
    run: Run, signal: str, leaves: bool
) -> None:
    outcome = run(
        ENTER
        + f"""
loop.run_until_complete(ep.__aenter__())
loop.call_later(0.05, send)
loop.run_forever()
say("returned")
if {leaves}:
    assert not loop.run_until_complete(ep.__aexit__(None, None, None))
    say(signal.getsignal(signal.{signal}) in (signal.SIG_DFL, signal.default_int_handler))
loop.close()
""",
        signal=signal,
    )
    said = ["started", "stopped", "cancelled", "returned"]
    assert_orderly(outcome, *said, *(["True"] if leaves else []))


@pytest.mark.parametrize("leaves", [True, False])
def test_a_signal_cancels_main_and_the_services_are_stopped_after_it(
    run: Run, leaves: bool
) -> None:
    outcome = run(
        ENTER
        + f"""
loop.run_until_complete(ep.__aenter__())
try:
    loop.run_until_complete(main())
except asyncio.CancelledError:
    say("cancelled main")
loop.run_forever()
if {leaves}:
    loop.run_until_complete(ep.__aexit__(None, None, None))
loop.close()
"""
    )
    assert_orderly(outcome, "started", "main ends", "stopped", "cancelled", "cancelled main")


def test_without_a_signal_run_forever_runs_until_the_loop_is_stopped(run: Run) -> None:
    outcome = run(
        ENTER
        + """
loop.run_until_complete(ep.__aenter__())
loop.run_until_complete(asyncio.sleep(0.01))
loop.call_later(0.05, loop.stop)
loop.run_forever()
say("returned")
loop.run_until_complete(ep.__aexit__(None, None, None))
say("left", *{"run_forever", "run_until_complete"} & set(vars(loop)))
loop.close()
"""
    )
    assert_orderly(outcome, "started", "returned", "stopped", "cancelled", "left")


def test_a_crash_ends_run_forever_and_is_raised_by_aexit(run: Run) -> None:
    outcome = run(
        ENTER
        + """
class Crashing(Server):
    async def start(self):
        self.start_event.set()
        await asyncio.sleep(0.05)
        raise ValueError("crash")

ep = entrypoint(Crashing())
loop.run_until_complete(ep.__aenter__())
loop.run_forever()
say("returned")
try:
    loop.run_until_complete(ep.__aexit__(None, None, None))
except ValueError as error:
    say(error)
loop.close()
"""
    )
    assert lines(outcome) == ["stopped ValueError('crash')", "returned", "crash"]
    assert outcome.returncode == 0


def test_a_runner_may_enter_and_leave_an_entrypoint_in_separate_runs(run: Run) -> None:
    outcome = run(
        ENTER
        + """
loop.close()
with asyncio.Runner(loop_factory=new_loop, debug=False) as runner:
    runner.run(ep.__aenter__())
    try:
        runner.run(main())
    except asyncio.CancelledError:
        say("cancelled main")
    runner.run(ep.__aexit__(None, None, None))
say("after")
"""
    )
    end = ["stopped", "cancelled", "cancelled main", "after"]
    assert_orderly(outcome, "started", "main ends", *end)


def test_a_with_block_may_be_entered_by_hand(run: Run) -> None:
    outcome = run(
        ENTER
        + """
loop.close()
loop = ep.__enter__()
loop.call_later(0.05, send)
loop.run_forever()
say("returned")
ep.__exit__(None, None, None)
say("after")
"""
    )
    assert_orderly(outcome, "started", "returned", "stopped", "cancelled", "after")


def test_a_signal_ends_a_program_whose_entering_task_has_returned(run: Run) -> None:
    outcome = run(
        ENTER
        + """
async def program():
    await asyncio.create_task(ep.__aenter__())
    asyncio.get_running_loop().call_later(0.05, send)
    await asyncio.sleep(600)
    say("never")

try:
    loop.run_until_complete(program())
except RuntimeError:
    say("stopped the loop")
os._exit(0)
"""
    )
    assert_orderly(outcome, "started", "stopped", "cancelled", "stopped the loop")


def test_a_main_that_ignores_cancellation_is_abandoned_at_the_time_limit(run: Run) -> None:
    outcome = run(
        ENTER
        + """
async def stubborn():
    send()
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            say("no")

ep = entrypoint(Server(), shutdown_timeout=0.3)
loop.run_until_complete(ep.__aenter__())
try:
    loop.run_until_complete(stubborn())
except RuntimeError:
    say("given up")
loop.run_until_complete(ep.__aexit__(None, None, None))
"""
    )
    assert outcome.returncode == 70, outcome
    assert lines(outcome)[:5] == ["started", "no", "stopped", "cancelled", "given up"]


def test_the_program_may_continue_after_the_services_have_stopped(run: Run) -> None:
    outcome = run(
        ENTER
        + """
ep = entrypoint(Server(), shutdown_timeout=0.1)
loop.run_until_complete(ep.__aenter__())
loop.call_later(0.05, send)
loop.run_forever()
time.sleep(0.5)
asyncio.run(asyncio.sleep(0.5), debug=False)
say("returned")
loop.close()
"""
    )
    assert_orderly(outcome, "started", "stopped", "cancelled", "returned")
