"""Laws of signals that a program ignores from its beginning, as a background job does (C20)."""

import signal as signals

import pytest

from tests.entrypoint.programs import Run, lines

CAUGHT = pytest.mark.parametrize("number", [signals.SIGINT, signals.SIGTERM])

PROGRAM = """
number = signal.Signals({number:d})
if len(sys.argv) == 1:
    signal.signal(number, signal.SIG_IGN)
    os.execv(sys.executable, [*sys.orig_argv, "ignoring it"])

say("ignored", signal.getsignal(number) is signal.SIG_IGN)
{code}
"""


@CAUGHT
def test_a_signal_that_was_ignored_before_ends_the_program_in_order(
    run: Run, number: signals.Signals
) -> None:
    code = """
with entrypoint(Server()) as loop:
    loop.call_soon(send, number)
    loop.run_forever()
say("ignored", signal.getsignal(number) is signal.SIG_IGN)
"""
    outcome = run(PROGRAM.format(number=number, code=code))
    assert lines(outcome) == ["ignored True", "started", "stopped", "cancelled", "ignored True"]
    assert outcome.returncode == 0


@CAUGHT
def test_a_signal_that_is_not_to_be_caught_stays_ignored(run: Run, number: signals.Signals) -> None:
    code = """
with entrypoint(Server(), catch_signals=()) as loop:
    send(number)
    loop.run_until_complete(asyncio.sleep(0))
    say("went on")
"""
    outcome = run(PROGRAM.format(number=number, code=code))
    assert lines(outcome) == ["ignored True", "started", "went on", "stopped", "cancelled"]
    assert outcome.returncode == 0
