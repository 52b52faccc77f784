"""Laws of the guard by itself; what it does to a process is in tests/entrypoint/test_blocked.py."""

# mypy: disable-error-code="unreachable"
# What is asserted changes behind the back of the type checker.

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

from svcrun._runtime import exit_watchdog as guard_module
from svcrun._runtime.exit_watchdog import ANSWER_TIME, HASTE, LASTING, Guard
from svcrun._util.thread_stacks import MAX_DEPTH, thread_stacks
from tests.support import PATIENCE, LoopFactory, eventually, nothing_left


class Mortal(Guard):
    """Notes its reason to die, and lives on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop, last_words=lambda: None)
        self.deaths: list[str] = []

    def die(self, reason: str) -> None:
        self.deaths.append(reason)


@pytest.fixture
def guard(loop_factory: LoopFactory) -> Iterator[Mortal]:
    with nothing_left():
        loop = loop_factory()
        guard = Mortal(loop)
        assert guard.start()
        try:
            yield guard
        finally:
            guard.release()
            assert signal.getsignal(signal.SIGVTALRM) is signal.SIG_DFL
            assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
            loop.close()


def number_of_threads() -> int:
    """Count the threads as the kernel does, once those that have ended are gone from its list."""
    time.sleep(0.05)
    return len(set(Path("/proc/self/task").iterdir()))


def descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


def turn(guard: Guard) -> None:
    guard._loop.run_until_complete(asyncio.sleep(0))


def test_a_loop_that_was_not_asked_is_not_blocked(guard: Mortal) -> None:
    time.sleep(ANSWER_TIME * 1.2)
    assert not guard.blocked


def test_a_loop_counts_as_blocked_if_it_does_not_turn_for_a_while_after_being_asked(
    guard: Mortal,
) -> None:
    guard.ask()
    assert not guard.blocked
    time.sleep(ANSWER_TIME * 1.2)
    assert guard.blocked
    guard.ask()  # does not begin anew
    assert guard.blocked
    turn(guard)
    assert not guard.blocked


def test_it_is_of_no_use_to_ask_a_closed_loop(guard: Mortal) -> None:
    guard._loop.close()
    guard.ask()
    time.sleep(ANSWER_TIME * 1.2)
    assert not guard.blocked


@pytest.mark.parametrize("where", ["main thread", "other thread"])
def test_a_blocked_loop_is_told_from_one_that_takes_its_time(guard: Mortal, where: str) -> None:
    def watch() -> None:
        guard.watch(0.1, 600)

    if where == "main thread":
        watch()
    else:
        thread = threading.Thread(target=watch)
        thread.start()
        thread.join()
    guard._loop.run_until_complete(asyncio.sleep(0.1 + ANSWER_TIME * 2))
    assert not guard.deaths


def test_a_blocked_loop_is_not_waited_for_past_the_time_limit(guard: Mortal) -> None:
    guard.watch(0.1, 600)
    deadline = time.monotonic() + PATIENCE
    while not guard.deaths and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "blocked" in guard.deaths[0]


@pytest.mark.parametrize("in_handler", [False, True])
def test_a_shutdown_that_goes_on_and_on_is_ended(guard: Mortal, in_handler: bool) -> None:
    if in_handler:
        guard.watch_from_handler(0.1, 0.2, if_blocked=lambda: None)
    else:
        guard.watch(0.1, 0.2)
    guard._loop.run_until_complete(eventually(lambda: guard.deaths))
    assert guard.deaths[0].startswith("the shutdown has not completed 0.2 s after its time limit")


@pytest.mark.parametrize("in_handler", [False, True])
def test_a_watch_that_was_released_in_time_does_nothing(guard: Mortal, in_handler: bool) -> None:
    if in_handler:
        guard.watch_from_handler(0.05, 0.05, if_blocked=lambda: guard.deaths.append("blocked"))
    else:
        guard.watch(0.05, 0.05)
    guard.release()
    time.sleep(0.2 + ANSWER_TIME)
    assert not guard.deaths


def test_after_the_release_no_watch_begins(guard: Mortal) -> None:
    guard.release()
    threads = number_of_threads()
    guard.watch(600, 600)
    guard.watch_from_handler(600, 600, if_blocked=lambda: None)
    assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
    assert number_of_threads() == threads
    assert not guard._alarms


def test_a_second_watch_does_not_move_the_time_limit(guard: Mortal) -> None:
    guard.watch(600, 600)
    guard.watch(0.001, 0.001)
    time.sleep(0.1)
    assert not guard.deaths
    assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] > 500


@pytest.mark.parametrize("busy", [False, True])
def test_a_block_that_does_not_come_to_the_loop_is_nudged_once_before_the_time_limit(
    guard: Mortal, busy: bool
) -> None:
    nudged: list[object] = []
    guard.ask()
    guard.watch_from_handler(600, 600, if_blocked=lambda: nudged.append(None))
    deadline = time.monotonic() + PATIENCE
    while not nudged and time.monotonic() < deadline:
        if not busy:
            time.sleep(0.01)
    assert len(nudged) == 1


def test_a_watch_begins_no_thread_and_opens_no_descriptor(guard: Mortal) -> None:
    threads = number_of_threads()
    opened = descriptors()
    guard.watch_from_handler(600, 600, if_blocked=lambda: None)
    guard.watch(600, 600)
    assert number_of_threads() == threads
    assert descriptors() == opened


def test_without_a_thread_to_be_had_the_watch_does_no_harm(loop_factory: LoopFactory) -> None:
    with nothing_left():
        loop = loop_factory()
        guard = Mortal(loop)  # whose thread could not be started
        guard.stop_for_fork()
        guard.restart_after_fork()
        guard.watch_from_handler(600, 600, if_blocked=lambda: None)
        guard.release()
        loop.close()


def test_the_thread_is_not_there_during_a_fork(guard: Mortal) -> None:
    threads = number_of_threads()
    guard.stop_for_fork()
    assert number_of_threads() == threads - 1
    guard.restart_after_fork()
    assert number_of_threads() == threads
    guard.watch(0.1, 600)
    deadline = time.monotonic() + PATIENCE
    while not guard.deaths and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "blocked" in guard.deaths[0]


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
    """A guard of an entrypoint that is not the first of the process."""
    monkeypatch.setattr(guard_module, "_process", os.getpid())
    with nothing_left(), no_timer():
        loop = loop_factory()
        guard = Mortal(loop)
        guard.begin(lambda: guard.deaths.append("no thread"))
        try:
            yield guard
        finally:
            guard.release()
            for signum in (signal.SIGVTALRM, signal.SIGALRM):
                assert signal.getsignal(signum) is signal.SIG_DFL
            for timer in (signal.ITIMER_VIRTUAL, signal.ITIMER_REAL):
                assert signal.getitimer(timer)[0] == 0
            loop.close()


def refuse_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "_start_thread", lambda *_: False)


def wait_for_death(guard: Mortal) -> str:
    deadline = time.monotonic() + PATIENCE
    while not guard.deaths and time.monotonic() < deadline:
        time.sleep(0.01)
    return guard.deaths[0]


def test_the_first_life_of_a_process_has_a_thread_from_its_beginning(
    loop_factory: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_module, "_process", os.getppid())  # as in a child of a fork
    loop = loop_factory()
    guard = Mortal(loop)
    threads = number_of_threads()
    guard.begin(lambda: guard.deaths.append("no thread"))
    assert number_of_threads() == threads + 1
    guard.release()
    loop.close()
    assert not guard.deaths


def test_a_later_life_of_a_process_has_a_thread_when_it_lasts(later: Mortal) -> None:
    threads = number_of_threads()
    later._loop.run_until_complete(asyncio.sleep(LASTING * 1.5))
    assert number_of_threads() == threads + 1
    later.watch(600, 600)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_a_later_life_has_a_thread_when_its_shutdown_comes_late(later: Mortal) -> None:
    time.sleep(LASTING * 1.2)  # in which the loop did not run
    threads = number_of_threads()
    later.watch(600, 600)
    assert number_of_threads() == threads + 1


def test_a_shutdown_that_is_over_at_once_has_no_thread(later: Mortal) -> None:
    later.watch(600, 600)
    assert later._ended is None
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 0


def test_a_signal_in_a_later_life_starts_the_thread(later: Mortal) -> None:
    threads = number_of_threads()
    later.watch_from_handler(600, 600, if_blocked=lambda: None)
    assert number_of_threads() == threads + 1


def test_a_shutdown_that_is_blocked_at_its_beginning_gets_its_thread(later: Mortal) -> None:
    later.watch(HASTE * 3, 600)
    assert "blocked" in wait_for_death(later)
    assert later._ended is not None
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_a_timer_that_the_program_uses_is_not_waited_for(later: Mortal) -> None:
    signal.setitimer(signal.ITIMER_REAL, 600)
    try:
        later.watch(600, 600)
        assert later._ended is not None
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 500
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_a_timer_that_the_program_takes_over_at_the_end_is_left_to_it(later: Mortal) -> None:
    later.watch(600, 600)
    signal.alarm(600)
    later.release()
    try:
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
        assert signal.alarm(0) > 500
    finally:
        signal.alarm(0)


def test_the_timer_stands_in_for_a_thread_that_is_not_to_be_had(
    later: Mortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_threads(monkeypatch)
    later._loop.run_until_complete(asyncio.sleep(LASTING * 1.5))
    assert later.deaths.pop() == "no thread"
    later.watch(0.1, 600)
    assert "blocked" in wait_for_death(later)


def test_a_fork_at_the_beginning_of_a_shutdown_finds_no_thread(later: Mortal) -> None:
    threads = number_of_threads()
    later.watch(600, 600)
    later.stop_for_fork()
    time.sleep(HASTE * 2)
    assert number_of_threads() == threads
    later.restart_after_fork()
    time.sleep(HASTE * 2)
    assert number_of_threads() == threads + 1


def test_the_timer_of_the_program_rings_on_while_a_shutdown_is_watched(guard: Mortal) -> None:
    rung: list[int] = []
    found = signal.signal(signal.SIGALRM, lambda signum, frame: rung.append(signum))
    timer = signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        guard.watch_from_handler(600, 600, if_blocked=lambda: None)
        deadline = time.monotonic() + PATIENCE
        while not rung and time.monotonic() < deadline:
            time.sleep(0.01)
        guard.release()
        assert rung == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, found)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def test_a_handler_of_the_program_for_the_timer_of_processor_time_is_left_alone(
    guard: Mortal,
) -> None:
    def theirs(signum: int, frame: object) -> None: ...

    signal.signal(signal.SIGVTALRM, theirs)
    try:
        guard.watch(600, 600)
        assert signal.getsignal(signal.SIGVTALRM) is theirs
        assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
        guard.release()
        assert signal.getsignal(signal.SIGVTALRM) is theirs
    finally:
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)


def test_a_timer_of_processor_time_that_the_program_takes_over_is_left_to_it(
    guard: Mortal,
) -> None:
    def theirs(signum: int, frame: object) -> None: ...

    guard.watch(600, 600)
    signal.signal(signal.SIGVTALRM, theirs)
    signal.setitimer(signal.ITIMER_VIRTUAL, 500)
    try:
        guard.release()
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
