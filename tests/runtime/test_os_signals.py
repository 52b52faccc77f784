"""Laws of catching signals by itself; the rest is in tests/entrypoint/test_signals.py."""

# mypy: disable-error-code="unreachable"
# The asserted values change without the knowledge of the type checker.

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from svcrun._runtime.exit_watchdog import ExitWatchdog
from svcrun._runtime.os_signals import SAME_SIGNAL, BlockInterrupted, OSSignals
from tests.support import LoopFactory, nothing_left


class Stage:
    """A loop and os_signals that record the callbacks they call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.calls: list[object] = []
        self.in_block = False
        self.watchdog = ExitWatchdog(loop, flush_log=lambda: None)
        self.made: list[OSSignals] = []

    def make(self, *signals: int) -> OSSignals:
        os_signals = OSSignals(
            self.loop,
            signals or (signal.SIGUSR1, signal.SIGINT),
            self.watchdog,
            on_caught=lambda: self.calls.append("caught"),
            on_first=lambda signum: self.calls.append(signal.Signals(signum).name),
            on_second_sigint=lambda: self.calls.append("insist"),
            in_block=lambda: self.in_block,
        )
        self.made.append(os_signals)
        return os_signals

    def turn(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))


@pytest.fixture
def stage(loop_factory: LoopFactory) -> Iterator[Stage]:
    with nothing_left():
        loop = loop_factory()
        stage = Stage(loop)
        try:
            yield stage
        finally:
            for os_signals in reversed(stage.made):
                os_signals.restore()
            loop.close()


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Advance the clock of the signal handler."""
    now = time.monotonic
    passed = [0.0]

    class Time:
        @staticmethod
        def monotonic() -> float:
            return now() + passed[0]

    def jump(seconds: float) -> None:
        passed[0] += seconds

    monkeypatch.setattr("svcrun._runtime.os_signals.time", Time)
    return jump


def test_the_first_signal_is_reported_in_the_handler_and_then_in_the_loop(stage: Stage) -> None:
    os_signals = stage.make()
    os_signals.install()
    assert os_signals.first is None
    signal.raise_signal(signal.SIGUSR1)
    assert stage.calls == ["caught"]
    assert os_signals.first == signal.SIGUSR1
    stage.turn()
    assert stage.calls == ["caught", "SIGUSR1"]


def test_within_a_second_any_other_signal_is_the_same_one(stage: Stage) -> None:
    stage.make().install()
    for signum in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGINT):
        signal.raise_signal(signum)
        stage.turn()
    assert stage.calls == ["caught", "SIGUSR1"]


def test_after_a_second_a_sigint_insists_and_nothing_else_does(
    stage: Stage, pass_time: Callable[[float], None]
) -> None:
    stage.make().install()
    signal.raise_signal(signal.SIGUSR1)
    stage.turn()
    pass_time(SAME_SIGNAL * 1.1)
    signal.raise_signal(signal.SIGUSR1)
    stage.turn()
    assert stage.calls == ["caught", "SIGUSR1"]
    signal.raise_signal(signal.SIGINT)
    stage.turn()
    assert stage.calls == ["caught", "SIGUSR1", "insist"]


def test_a_signal_wakes_a_loop_that_sleeps(stage: Stage) -> None:
    stage.make().install()

    async def wait() -> None:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        async with asyncio.timeout(60):
            while "SIGUSR1" not in stage.calls:  # noqa: ASYNC110 - nothing else wakes the loop
                await asyncio.sleep(30)

    begun = time.monotonic()
    task = stage.loop.create_task(wait())
    stage.calls = _Waking(task)
    stage.loop.run_until_complete(asyncio.wait([task]))
    assert time.monotonic() - begun < 25


class _Waking(list[object]):
    """Cancel a task when the loop handles the signal."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        super().__init__()
        self.task = task

    def append(self, call: object) -> None:
        super().append(call)
        if call != "caught":
            self.task.cancel()


def test_everything_is_restored_and_restoring_again_does_nothing(stage: Stage) -> None:
    def theirs(signum: int, frame: object) -> None: ...

    found = signal.signal(signal.SIGUSR1, theirs)
    try:
        os_signals = stage.make()
        os_signals.install()
        assert signal.getsignal(signal.SIGUSR1) is not theirs
        os_signals.restore()
        assert signal.getsignal(signal.SIGUSR1) is theirs
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        os_signals.restore()
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, found)


def test_a_signal_after_the_loop_is_closed_does_no_harm(stage: Stage) -> None:
    os_signals = stage.make()
    os_signals.install()
    os_signals.detach()
    stage.loop.close()
    signal.raise_signal(signal.SIGUSR1)
    assert stage.calls == ["caught"]


def test_handlers_are_restored_even_if_the_loop_was_closed(
    stage: Stage,
) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    os_signals = stage.make()
    os_signals.install()
    stage.loop.close()
    os_signals.restore()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_an_outer_entrypoint_gets_signals_once_the_inner_one_has_ended(stage: Stage) -> None:
    outer, inner = stage.make(), stage.make()
    outer.install()
    inner.install()
    signal.raise_signal(signal.SIGUSR1)
    assert outer.first is None
    inner.restore()
    assert outer.first == signal.SIGUSR1


def test_without_signals_to_catch_no_handler_is_replaced(stage: Stage) -> None:
    os_signals = stage.make()
    os_signals.signals = ()
    before = signal.getsignal(signal.SIGUSR1)
    os_signals.install()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_an_uncatchable_signal_is_refused_and_no_handler_is_replaced(stage: Stage) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(ValueError, match="catch_signals"):
        stage.make(signal.SIGUSR1, signal.SIGKILL).install()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_code_outside_of_the_loop_is_interrupted_once_by_a_repetition(stage: Stage) -> None:
    os_signals = stage.make()
    os_signals.install()
    stage.in_block = True
    signal.raise_signal(signal.SIGUSR1)
    with pytest.raises(BlockInterrupted):
        os_signals.repeat()
    os_signals.repeat()


def test_a_repetition_that_comes_when_the_block_has_ended_does_nothing(stage: Stage) -> None:
    os_signals = stage.make()
    os_signals.repeat()  # nothing to repeat
    os_signals.install()
    signal.raise_signal(signal.SIGUSR1)
    os_signals.repeat()
    assert stage.calls == ["caught"]


def test_repeated_signals_interrupt_clean_up_code_outside_of_the_loop(
    stage: Stage, pass_time: Callable[[float], None]
) -> None:
    stage.make().install()
    stage.in_block = True
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    pass_time(SAME_SIGNAL * 1.1)
    signal.raise_signal(signal.SIGUSR1)
    with pytest.raises(BlockInterrupted):
        signal.raise_signal(signal.SIGINT)


def test_a_loop_without_a_known_wake_up_descriptor_gets_a_pipe(stage: Stage) -> None:
    found = getattr(stage.loop, "_csock", None)
    if found is None:
        pytest.skip("this loop takes care of it itself")
    stage.loop._csock = None  # type: ignore[attr-defined]
    try:
        os_signals = stage.make()
        os_signals.install()
        pipe = os_signals._pipe
    finally:
        stage.loop._csock = found  # type: ignore[attr-defined]
    assert pipe is not None
    assert signal.set_wakeup_fd(pipe[1]) == pipe[1]
    signal.raise_signal(signal.SIGUSR1)
    stage.turn()
    stage.turn()
    assert "SIGUSR1" in stage.calls
    os_signals.restore()
    for descriptor in pipe:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
