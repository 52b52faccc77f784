"""Laws of the guard by itself; what it does to a process is in tests/entrypoint/test_blocked.py."""

# mypy: disable-error-code="unreachable"
# What is asserted changes behind the back of the type checker.

import _thread
import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from svcrun.guard import ANSWER_TIME, MAX_DEPTH, Guard, _stacks
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
        found = signal.getsignal(signal.SIGALRM)
        timer = signal.getitimer(signal.ITIMER_REAL)
        signal.setitimer(signal.ITIMER_REAL, 0)  # that of pytest-timeout
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        guard = Mortal(loop)
        try:
            yield guard
        finally:
            guard.release()
            assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
            assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
            signal.signal(signal.SIGALRM, found)
            signal.setitimer(signal.ITIMER_REAL, *timer)
            loop.close()


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
    assert guard.deaths[0].startswith("the shutdown is not over 0.2 s past its time limit")


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
    threads = threading.active_count()
    guard.release()
    guard.watch(600, 600)
    guard.watch_from_handler(600, 600, if_blocked=lambda: None)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert threading.active_count() == threads
    assert not guard._ends


def test_a_second_watch_does_not_move_the_time_limit(guard: Mortal) -> None:
    guard.watch(600, 600)
    guard.watch(0.001, 0.001)
    time.sleep(0.1)
    assert not guard.deaths
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 500


def test_who_is_blocked_is_told_so_before_the_time_limit(guard: Mortal) -> None:
    told: list[object] = []
    guard.ask()
    guard.watch_from_handler(600, 600, if_blocked=lambda: told.append(threading.get_ident()))
    deadline = time.monotonic() + PATIENCE
    while len(told) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.get_ident() in told  # by the timer
    assert len(set(told)) == 2  # and by the thread


def test_a_timer_of_the_program_is_left_to_it(guard: Mortal) -> None:
    rung: list[int] = []
    signal.signal(signal.SIGALRM, lambda signum, frame: rung.append(signum))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    guard.watch(600, 600)
    deadline = time.monotonic() + PATIENCE
    while not rung and time.monotonic() < deadline:
        time.sleep(0.01)
    assert rung
    guard.release()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_a_handler_without_a_timer_is_left_alone_as_well(guard: Mortal) -> None:
    def theirs(signum: int, frame: object) -> None: ...

    signal.signal(signal.SIGALRM, theirs)
    guard.watch(600, 600)
    assert signal.getsignal(signal.SIGALRM) is theirs
    guard.release()
    assert signal.getsignal(signal.SIGALRM) is theirs
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_a_timer_that_the_program_takes_over_is_left_to_it(guard: Mortal) -> None:
    def theirs(signum: int, frame: object) -> None: ...

    guard.watch(600, 600)
    signal.signal(signal.SIGALRM, theirs)
    signal.setitimer(signal.ITIMER_REAL, 500)
    guard.release()
    assert signal.getsignal(signal.SIGALRM) is theirs
    assert signal.setitimer(signal.ITIMER_REAL, 0)[0] > 400
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_a_thread_that_is_just_being_started_hides_no_stack() -> None:
    for _ in range(20):
        _thread.start_new_thread(time.sleep, (0,))
        assert b"in test_a_thread_that_is_just_being_started" in _stacks()


def test_the_stack_of_an_endless_recursion_is_cut_off() -> None:
    def recurse(depth: int) -> bytes:
        return recurse(depth - 1) if depth else _stacks()

    stacks = recurse(3 * MAX_DEPTH)
    assert stacks.count(b"in recurse") <= MAX_DEPTH
    assert b"\n  ...\n" in stacks


def test_a_name_of_a_file_that_is_no_text_is_written_as_well() -> None:
    code = compile("found = stacks()", "\udcff.py", "exec")
    namespace: dict[str, Any] = {"stacks": _stacks}
    exec(code, namespace)  # noqa: S102 - a file of such a name
    assert b'File "\\udcff.py", line 1 in <module>' in namespace["found"]
