"""Laws of the exit watchdog; its effect on a process is in tests/entrypoint/test_blocked.py."""

# mypy: disable-error-code="unreachable"
# The asserted values change without the knowledge of the type checker.

import _thread
import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svcrun._runtime import exit_watchdog as watchdog_module
from svcrun._runtime.exit_watchdog import (
    BLOCKED_AFTER,
    SHUTDOWN_THREAD_DELAY,
    THREAD_DELAY,
    ExitWatchdog,
)
from svcrun._util.thread_stacks import MAX_DEPTH, thread_stacks
from tests.support import PATIENCE, LoopFactory, eventually, nothing_left


class Mortal(ExitWatchdog):
    """A watchdog that records its reason to end the process, and does not end it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop, flush_log=lambda: None)
        self.deaths: list[str] = []

    def exit_process(self, reason: str) -> None:
        self.deaths.append(reason)


@pytest.fixture
def watchdog(loop_factory: LoopFactory) -> Iterator[Mortal]:
    with nothing_left():
        loop = loop_factory()
        watchdog = Mortal(loop)
        assert watchdog.start_thread()
        try:
            yield watchdog
        finally:
            watchdog.disarm()
            assert signal.getsignal(signal.SIGVTALRM) is signal.SIG_DFL
            assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
            loop.close()


def number_of_threads() -> int:
    """Return the kernel's count of threads, once the ended ones have left it."""
    time.sleep(0.05)
    return len(set(Path("/proc/self/task").iterdir()))


def descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


def turn(watchdog: ExitWatchdog) -> None:
    watchdog._loop.run_until_complete(asyncio.sleep(0))


def test_a_loop_that_was_not_asked_is_not_blocked(watchdog: Mortal) -> None:
    time.sleep(BLOCKED_AFTER * 1.2)
    assert not watchdog.is_blocked


def test_a_loop_is_blocked_if_a_scheduled_callback_does_not_run_in_time(
    watchdog: Mortal,
) -> None:
    watchdog.ping()
    assert not watchdog.is_blocked
    time.sleep(BLOCKED_AFTER * 1.2)
    assert watchdog.is_blocked
    watchdog.ping()  # does not begin anew
    assert watchdog.is_blocked
    turn(watchdog)
    assert not watchdog.is_blocked


def test_a_closed_loop_is_never_blocked(watchdog: Mortal) -> None:
    watchdog._loop.close()
    watchdog.ping()
    time.sleep(BLOCKED_AFTER * 1.2)
    assert not watchdog.is_blocked


@pytest.mark.parametrize("where", ["main thread", "other thread"])
def test_a_blocked_loop_is_distinguished_from_a_slow_one(watchdog: Mortal, where: str) -> None:
    def watch() -> None:
        watchdog.arm(0.1, 600)

    if where == "main thread":
        watch()
    else:
        thread = threading.Thread(target=watch)
        thread.start()
        thread.join()
    watchdog._loop.run_until_complete(asyncio.sleep(0.1 + BLOCKED_AFTER * 2))
    assert not watchdog.deaths


def test_a_blocked_loop_is_not_waited_for_past_the_time_limit(watchdog: Mortal) -> None:
    watchdog.arm(0.1, 600)
    deadline = time.monotonic() + PATIENCE
    while not watchdog.deaths and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "blocked" in watchdog.deaths[0]


@pytest.mark.parametrize("in_handler", [False, True])
def test_a_shutdown_past_its_deadline_ends_the_process(watchdog: Mortal, in_handler: bool) -> None:
    if in_handler:
        watchdog.arm_in_handler(0.1, 0.2, if_blocked=lambda: None)
    else:
        watchdog.arm(0.1, 0.2)
    watchdog._loop.run_until_complete(eventually(lambda: watchdog.deaths))
    assert watchdog.deaths[0].startswith(
        "the shutdown has not completed 0.2 s after its time limit"
    )


@pytest.mark.parametrize("in_handler", [False, True])
def test_a_watch_that_was_released_in_time_does_nothing(watchdog: Mortal, in_handler: bool) -> None:
    if in_handler:
        watchdog.arm_in_handler(0.05, 0.05, if_blocked=lambda: watchdog.deaths.append("blocked"))
    else:
        watchdog.arm(0.05, 0.05)
    watchdog.disarm()
    time.sleep(0.2 + BLOCKED_AFTER)
    assert not watchdog.deaths


def test_after_the_release_no_watch_begins(watchdog: Mortal) -> None:
    watchdog.disarm()
    threads = number_of_threads()
    watchdog.arm(600, 600)
    watchdog.arm_in_handler(600, 600, if_blocked=lambda: None)
    assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
    assert number_of_threads() == threads
    assert not watchdog._alarms


def test_a_second_watch_does_not_move_the_time_limit(watchdog: Mortal) -> None:
    watchdog.arm(600, 600)
    watchdog.arm(0.001, 0.001)
    time.sleep(0.1)
    assert not watchdog.deaths
    assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] > 500


@pytest.mark.parametrize("busy", [False, True])
def test_a_block_that_does_not_come_to_the_loop_is_nudged_once_before_the_time_limit(
    watchdog: Mortal, busy: bool
) -> None:
    nudged: list[object] = []
    watchdog.ping()
    watchdog.arm_in_handler(600, 600, if_blocked=lambda: nudged.append(None))
    deadline = time.monotonic() + PATIENCE
    while not nudged and time.monotonic() < deadline:
        if not busy:
            time.sleep(0.01)
    assert len(nudged) == 1


def test_a_watch_begins_no_thread_and_opens_no_descriptor(watchdog: Mortal) -> None:
    threads = number_of_threads()
    opened = descriptors()
    watchdog.arm_in_handler(600, 600, if_blocked=lambda: None)
    watchdog.arm(600, 600)
    assert number_of_threads() == threads
    assert descriptors() == opened


def test_without_a_thread_to_be_had_the_watch_does_no_harm(loop_factory: LoopFactory) -> None:
    with nothing_left():
        loop = loop_factory()
        watchdog = Mortal(loop)  # whose thread could not be started
        watchdog.stop_for_fork()
        watchdog.restart_after_fork()
        watchdog.arm_in_handler(600, 600, if_blocked=lambda: None)
        watchdog.disarm()
        loop.close()


def test_the_thread_does_not_run_during_a_fork(watchdog: Mortal) -> None:
    threads = number_of_threads()
    watchdog.stop_for_fork()
    assert number_of_threads() == threads - 1
    watchdog.restart_after_fork()
    assert number_of_threads() == threads
    watchdog.arm(0.1, 600)
    deadline = time.monotonic() + PATIENCE
    while not watchdog.deaths and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "blocked" in watchdog.deaths[0]


@contextlib.contextmanager
def no_timer() -> Iterator[None]:
    """Take away the timer that limits the time of a test."""
    found = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    left = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, found)
        signal.setitimer(signal.ITIMER_REAL, *left)


@pytest.fixture
def later(loop_factory: LoopFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mortal]:
    """A watchdog of an entrypoint that is not the first of the process."""
    monkeypatch.setattr(watchdog_module, "_process", os.getpid())
    with nothing_left(), no_timer():
        loop = loop_factory()
        watchdog = Mortal(loop)
        watchdog.start(lambda: watchdog.deaths.append("no thread"))
        try:
            yield watchdog
        finally:
            watchdog.disarm()
            for signum in (signal.SIGVTALRM, signal.SIGALRM):
                assert signal.getsignal(signum) is signal.SIG_DFL
            for timer in (signal.ITIMER_VIRTUAL, signal.ITIMER_REAL):
                assert signal.getitimer(timer)[0] == 0
            loop.close()


def refuse_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog_module, "_start_thread", lambda *_: False)


def wait_for_death(watchdog: Mortal) -> str:
    deadline = time.monotonic() + PATIENCE
    while not watchdog.deaths and time.monotonic() < deadline:
        time.sleep(0.01)
    return watchdog.deaths[0]


def test_the_first_life_of_a_process_has_a_thread_from_its_beginning(
    loop_factory: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog_module, "_process", os.getppid())  # as in a child of a fork
    loop = loop_factory()
    watchdog = Mortal(loop)
    threads = number_of_threads()
    watchdog.start(lambda: watchdog.deaths.append("no thread"))
    assert number_of_threads() == threads + 1
    watchdog.disarm()
    loop.close()
    assert not watchdog.deaths


def test_a_later_entrypoint_of_a_process_has_a_watchdog_thread_when_it_lasts(later: Mortal) -> None:
    threads = number_of_threads()
    later._loop.run_until_complete(asyncio.sleep(THREAD_DELAY * 1.5))
    assert number_of_threads() == threads + 1
    later.arm(600, 600)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_a_later_entrypoint_has_a_watchdog_thread_when_its_shutdown_comes_late(
    later: Mortal,
) -> None:
    time.sleep(THREAD_DELAY * 1.2)  # in which the loop did not run
    threads = number_of_threads()
    later.arm(600, 600)
    assert number_of_threads() == threads + 1


def test_a_shutdown_that_is_over_at_once_has_no_thread(later: Mortal) -> None:
    later.arm(600, 600)
    assert later._ended is None
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 0


def test_a_signal_in_a_later_entrypoint_starts_the_watchdog_thread(later: Mortal) -> None:
    threads = number_of_threads()
    later.arm_in_handler(600, 600, if_blocked=lambda: None)
    assert number_of_threads() == threads + 1


def test_a_shutdown_that_is_blocked_at_its_beginning_gets_its_thread(later: Mortal) -> None:
    later.arm(SHUTDOWN_THREAD_DELAY * 3, 600)
    assert "blocked" in wait_for_death(later)
    assert later._ended is not None
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_a_timer_that_the_program_uses_is_not_waited_for(later: Mortal) -> None:
    signal.setitimer(signal.ITIMER_REAL, 600)
    try:
        later.arm(600, 600)
        assert later._ended is not None
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 500
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_a_timer_that_the_program_takes_over_is_not_changed_afterwards(later: Mortal) -> None:
    later.arm(600, 600)
    signal.alarm(600)
    later.disarm()
    try:
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
        assert signal.alarm(0) > 500
    finally:
        signal.alarm(0)


def test_the_timer_stands_in_for_a_thread_that_is_not_to_be_had(
    later: Mortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_threads(monkeypatch)
    later._loop.run_until_complete(asyncio.sleep(THREAD_DELAY * 1.5))
    assert later.deaths.pop() == "no thread"
    later.arm(0.1, 600)
    assert "blocked" in wait_for_death(later)


def test_a_fork_at_the_beginning_of_a_shutdown_finds_no_thread(later: Mortal) -> None:
    threads = number_of_threads()
    later.arm(600, 600)
    later.stop_for_fork()
    time.sleep(SHUTDOWN_THREAD_DELAY * 2)
    assert number_of_threads() == threads
    later.restart_after_fork()
    time.sleep(SHUTDOWN_THREAD_DELAY * 2)
    assert number_of_threads() == threads + 1


def test_the_timer_of_the_program_rings_on_while_a_shutdown_is_watched(watchdog: Mortal) -> None:
    rung: list[int] = []
    found = signal.signal(signal.SIGALRM, lambda signum, frame: rung.append(signum))
    timer = signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        watchdog.arm_in_handler(600, 600, if_blocked=lambda: None)
        deadline = time.monotonic() + PATIENCE
        while not rung and time.monotonic() < deadline:
            time.sleep(0.01)
        watchdog.disarm()
        assert rung == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, found)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def test_a_handler_of_the_program_for_the_timer_of_processor_time_is_left_alone(
    watchdog: Mortal,
) -> None:
    def theirs(signum: int, frame: object) -> None: ...

    signal.signal(signal.SIGVTALRM, theirs)
    try:
        watchdog.arm(600, 600)
        assert signal.getsignal(signal.SIGVTALRM) is theirs
        assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
        watchdog.disarm()
        assert signal.getsignal(signal.SIGVTALRM) is theirs
    finally:
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)


def test_a_processor_timer_that_the_program_takes_over_is_not_changed_afterwards(
    watchdog: Mortal,
) -> None:
    def theirs(signum: int, frame: object) -> None: ...

    watchdog.arm(600, 600)
    signal.signal(signal.SIGVTALRM, theirs)
    signal.setitimer(signal.ITIMER_VIRTUAL, 500)
    try:
        watchdog.disarm()
        assert signal.getsignal(signal.SIGVTALRM) is theirs
        assert signal.setitimer(signal.ITIMER_VIRTUAL, 0)[0] > 400
    finally:
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)


def test_a_thread_that_is_just_being_started_hides_no_stack() -> None:
    for _ in range(20):
        _thread.start_new_thread(time.sleep, (0,))
        assert b"in test_a_thread_that_is_just_being_started" in thread_stacks()


def test_the_stack_of_an_endless_recursion_is_cut_off() -> None:
    def recurse(depth: int) -> bytes:
        return recurse(depth - 1) if depth else thread_stacks()

    stacks = recurse(3 * MAX_DEPTH)
    assert stacks.count(b"in recurse") <= MAX_DEPTH
    assert b"\n  ...\n" in stacks


def test_a_name_of_a_file_that_is_no_text_is_written_as_well() -> None:
    code = compile("found = stacks()", "\udcff.py", "exec")
    namespace: dict[str, Any] = {"stacks": thread_stacks}
    exec(code, namespace)  # noqa: S102 - a file of such a name
    assert b'File "\\udcff.py", line 1 in <module>' in namespace["found"]
