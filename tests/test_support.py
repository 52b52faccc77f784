"""The helpers that many tests trust can fail themselves."""

import asyncio
import os
import signal
import threading
from pathlib import Path

import pytest

from tests.support import PATIENCE, Program, eventually, nothing_left

ECHO = """
import sys
print("one")
print("two", file=sys.stderr)
print("three")
sys.exit(3)
"""

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid)
time.sleep(600)
"""


def test_a_program_returns_its_output_and_its_exit_code() -> None:
    with Program(ECHO) as program:
        outcome = program.wait()
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (3, "one\nthree\n", "two\n")


def test_the_lines_of_a_program_are_found_once_and_in_order() -> None:
    with Program(ECHO) as program:
        assert program.wait_for_line("o(.)e")[1] == "n"
        program.wait_for_line("two", stream="stderr")
        with pytest.raises(AssertionError, match=r"no line with 'one'.*code is 3"):
            program.wait_for_line("one")


def test_a_signal_ends_a_program() -> None:
    with Program(PARENT) as program:
        program.wait_for_line(r"\d+")
        program.send_signal(signal.SIGTERM)
        program._process.wait(30)
        assert not program.is_running()


async def test_no_process_of_a_program_outlives_its_block() -> None:
    with nothing_left():
        with Program(PARENT) as program:
            child = int(program.wait_for_line(r"\d+")[0])
        assert not program.is_running()
        # Both are killed, in an order that the system decides.
        await eventually(lambda: not _is_alive(child))


def _is_alive(pid: int) -> bool:
    try:
        # A process without a waiting parent stays a zombie until init reaps it.
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_warning_ends_a_program() -> None:
    with Program("import warnings; warnings.warn('careful')") as program:
        outcome = program.wait()
    assert outcome.returncode == 1
    assert "UserWarning: careful" in outcome.stderr


def test_the_environment_of_this_process_does_not_configure_a_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SVCRUN_POOL_SIZE", "many")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    source = "import os; print(*sorted(k for k in os.environ if 'SVCRUN' in k or 'NOTIFY' in k))"
    with Program(source, env={"SVCRUN_DEBUG": "1"}) as program:
        assert program.wait().stdout == "SVCRUN_DEBUG\n"


def test_a_descriptor_left_open_is_noticed() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        with pytest.raises(AssertionError, match="file descriptor pipe"), nothing_left(within=0):
            extra = os.dup(write)
        os.close(extra)
    finally:
        os.close(write)


def test_a_thread_left_running_is_noticed() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="straggler")
    with pytest.raises(AssertionError, match="thread straggler"), nothing_left(within=0):
        thread.start()
    end.set()
    thread.join()


def test_a_signal_handler_not_restored_is_noticed() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(AssertionError, match="handler of SIGUSR1"), nothing_left(within=0):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, before)


def test_a_loop_that_is_closed_leaves_nothing_behind(no_leaks: None) -> None:
    asyncio.run(asyncio.sleep(0))


async def test_eventually_waits_until_the_check_is_true() -> None:
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, done.set)
    await eventually(done.is_set)


async def test_eventually_fails_after_its_time_limit() -> None:
    with pytest.raises(TimeoutError):
        await eventually(lambda: False, within=0.01)


SHOW_SIGNALS = """
import signal
ours = {signal.SIGPIPE, signal.SIGXFSZ}  # ignored by the interpreter
numbers = signal.valid_signals() - ours
print("ignored:", *(one for one in numbers if signal.getsignal(one) is signal.SIG_IGN))
print("blocked:", *signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


def test_a_program_begins_with_the_default_signals() -> None:
    with Program(SHOW_SIGNALS) as program:
        assert program.wait().stdout == "ignored:\nblocked:\n"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_program_begins_with_the_default_signals_even_if_the_tests_inherited_others(
    workers: int,
) -> None:
    law = f"tests/test_support.py::{test_a_program_begins_with_the_default_signals.__name__}"
    source = f"""
import os, signal, sys
number = signal.Signals
keyboard = (number.SIGINT, number.SIGQUIT)
for one in (*keyboard, number.SIGTERM, number.SIGHUP, number.SIGCHLD, number.SIGALRM):
    signal.signal(one, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, {{number.SIGTERM, number.SIGINT, number.SIGUSR1}})
command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "{workers}", "{law}"]
os.execv(sys.executable, [sys.executable, *command])
"""
    with Program(source) as program:
        outcome = program.wait(within=4 * PATIENCE)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "1 passed" in outcome.stdout
