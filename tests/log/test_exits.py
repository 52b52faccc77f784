"""However a program ends, each record is written exactly once."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import PATIENCE, STRICT, Program

RunProgram = Callable[..., Program]

BEGIN = """
import atexit, logging, os, signal, sys, threading, time
from svcrun.log import basic_config
session = basic_config("info", "plain")
"""


def numbers(text: str, prefix: str = "") -> list[int]:
    return [int(found) for found in re.findall(rf"^{prefix}(\d+)$", text, re.MULTILINE)]


ENDS = {
    "normal": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "exception": ("raise LookupError('lost')", 1),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", -signal.SIGINT),
    "SIGINT": ("os.kill(os.getpid(), signal.SIGINT); time.sleep(60)", -signal.SIGINT),
    "SIGTERM": (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(15)); signal.raise_signal(15)",
        15,
    ),
    "os._exit": ("session.flush(); os._exit(70)", 70),
    "closed": ("session.close()", 0),
    "thread": ("threading.Thread(target=sys.exit).start()", 0),
}


@pytest.mark.parametrize(("end", "code"), ENDS.values(), ids=ENDS)
def test_every_record_is_written_however_the_program_ends(
    run_program: RunProgram, end: str, code: int
) -> None:
    program = run_program(
        BEGIN + "for number in range(20_000):\n    logging.info('%d', number)\n" + end
    )
    outcome = program.wait()
    assert outcome.returncode == code
    assert numbers(outcome.stderr) == list(range(20_000))


def test_an_unhandled_exception_is_logged_after_all_before_it(run_program: RunProgram) -> None:
    outcome = run_program(BEGIN + "logging.info('before')\nraise LookupError('lost')").wait()
    lines = outcome.stderr.splitlines()
    assert outcome.returncode == 1
    assert lines[:3] == ["before", "Unhandled exception", "Traceback (most recent call last):"]
    assert lines[-1] == "LookupError: lost"
    assert outcome.stderr.count("LookupError: lost") == 1


def test_an_unhandled_exception_of_a_thread_is_logged(run_program: RunProgram) -> None:
    outcome = run_program(
        BEGIN + "def fail(): raise LookupError('lost')\n"
        "threading.Thread(target=fail, name='worker').start()"
    ).wait()
    assert "Unhandled exception in thread worker\nTraceback" in outcome.stderr
    assert outcome.stderr.count("LookupError: lost") == 1


def test_a_disabled_log_does_not_hide_the_traceback(run_program: RunProgram) -> None:
    outcome = run_program(
        BEGIN.replace("plain", "disabled") + "logging.critical('hidden')\nraise LookupError('lost')"
    ).wait()
    assert outcome.stderr.startswith("Traceback")
    assert "hidden" not in outcome.stderr


@pytest.mark.parametrize("level", ["'critical'", "60"])
def test_a_high_level_does_not_hide_the_traceback(run_program: RunProgram, level: str) -> None:
    outcome = run_program(
        BEGIN.replace('"info"', level) + "logging.error('hidden')\nraise LookupError('lost')"
    ).wait()
    assert "LookupError: lost" in outcome.stderr
    assert "hidden" not in outcome.stderr


def test_records_logged_at_the_end_of_the_interpreter_are_written(run_program: RunProgram) -> None:
    late = "atexit.register(lambda: logging.info('late'))\n"
    # Functions registered before logging is imported run after logging.shutdown().
    outcome = run_program(
        "import atexit\n"
        "atexit.register(lambda: __import__('logging').info('latest'))\n"
        + BEGIN
        + late
        + "logging.info('early')"
    ).wait()
    assert outcome.stderr.split() == ["early", "late", "latest"]


@pytest.mark.parametrize("before", ["", "logging.info('before')"])
def test_records_that_destructors_log_during_module_teardown_are_written(
    run_program: RunProgram, before: str
) -> None:
    outcome = run_program(
        BEGIN + "class Last:\n"
        "    def __del__(self, log=logging.info): log('last')\n"
        "last, circle = Last(), Last()\n"
        "circle.itself = circle\n" + before
    ).wait()
    assert outcome.returncode == 0
    assert outcome.stderr.splitlines() == ["before"] * bool(before) + ["last", "last"]


def test_the_first_record_may_come_while_the_interpreter_ends(run_program: RunProgram) -> None:
    outcome = run_program(BEGIN + "atexit.register(lambda: logging.info('late'))").wait()
    assert outcome.stderr.split() == ["late"]


CONFIGURED = """
class Handler(logging.StreamHandler):
    def format(self, record):
        return f"{threading.current_thread().name} {super().format(record)}"

session.close()
session = basic_config("info", "disabled", handlers=[Handler()])
logging.info("before")
while all(thread.name != "svcrun-log" for thread in threading.enumerate()):
    time.sleep(0.001)  # at its end, the interpreter starts no more threads
import logging.config
logging.config.dictConfig({"version": 1, "loggers": {"library": {"level": "INFO"}}})
logging.info("after")
"""


@pytest.mark.parametrize("end", ["", "session.close()"])
def test_a_library_that_configures_logging_takes_neither_the_thread_nor_a_record(
    run_program: RunProgram, end: str
) -> None:
    """logging.config closes every handler of the process, and forgets them."""
    outcome = run_program(BEGIN + CONFIGURED + end).wait()
    assert outcome.returncode == 0
    assert outcome.stderr.splitlines() == ["svcrun-log before", "svcrun-log after"]


def test_a_full_pipe_does_not_block_the_program(tmp_path: Path) -> None:
    source = (
        BEGIN + "for number in range(30_000): logging.info('%d', number)\n"
        "print('logged', flush=True)\n"
        "print(session.close(timeout=0.2), flush=True)"
    )
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, *STRICT, "-c", source],
            stdout=subprocess.PIPE,
            stderr=writer,
            timeout=PATIENCE,
            check=False,
        )
    finally:
        os.close(writer)
        os.close(reader)
    assert done.stdout.split() == [b"logged", b"False"]
    assert done.returncode == 0


def test_a_slow_reader_gets_every_line_whole(run_program: RunProgram) -> None:
    # The reader waits until the pipe is full, again and again.
    source = (
        BEGIN + "for number in range(30_000): logging.info('%d', number)\n"
        "print('logged', flush=True); session.close(timeout=60)"
    )
    with subprocess.Popen(
        [sys.executable, *STRICT, "-c", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "logged\n"
        _, stderr = process.communicate(timeout=PATIENCE)
    assert numbers(stderr) == list(range(30_000))


def test_a_non_blocking_stderr_loses_nothing(run_program: RunProgram) -> None:
    outcome = run_program(
        BEGIN + "os.set_blocking(2, False)\n"
        "for number in range(30_000): logging.info('%d', number)\n"
    ).wait()
    assert numbers(outcome.stderr) == list(range(30_000))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_neither_the_writer_nor_the_exit_code(tmp_path: Path) -> None:
    source = BEGIN + (
        "out = tuple(map(int, sys.argv[1:]))\n"
        "good = os.dup(2); full = os.open('/dev/full', os.O_WRONLY)\n"
        "os.dup2(full, 2)\n"
        "for number in range(2000): logging.info('lost')\n"
        "session.flush()\n"
        "os.dup2(good, 2)\n"
        "logging.info('back')\n"
        "session.flush()\n"
        "os.dup2(full, 2)\n"
        "logging.info('lost again')\n"
    )
    done = subprocess.run(
        [sys.executable, *STRICT, "-c", source],
        capture_output=True,
        timeout=PATIENCE,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr.split("\n") == ["back", "2000 log records could not be written", ""]


@pytest.mark.parametrize(
    "damage",
    [
        "sys.stderr.close()",
        "os.close(2)",
        "sys.stderr = None",
        "sys.stderr = object()",
        "sys.__stderr__ = None",
        "r, w = os.pipe(); os.close(r); os.dup2(w, 2)",
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_damaged_stderr_raises_nothing(run_program: RunProgram, damage: str, when: str) -> None:
    imports, configure = BEGIN.rsplit("\n", 2)[0], BEGIN.rsplit("\n", 2)[1]
    steps = [damage, configure] if when == "before" else [configure, damage]
    outcome = run_program(
        "\n".join(
            [
                imports,
                *steps,
                "for number in range(3000): logging.error('%d', number)",
                "logging.info('%d', 'text')",
                "print(session.close(timeout=20))",
            ]
        )
    ).wait()
    assert outcome.returncode in {0, 120}  # 120: the interpreter could not flush the stream
    assert outcome.stdout.split() == ["True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_parent_and_child_of_a_fork_write_their_own_records_once(run_program: RunProgram) -> None:
    outcome = run_program(
        BEGIN + "for number in range(5000): logging.info('parent %d', number)\n"
        "child = os.fork()\n"
        "who, begin = ('parent', 5000) if child else ('child', 0)\n"
        "for number in range(begin, begin + 5000): logging.info('%s %d', who, number)\n"
        "if child: os.waitpid(child, 0)\n"
    ).wait()
    assert outcome.returncode == 0
    assert numbers(outcome.stderr, "parent ") == list(range(10_000))
    assert numbers(outcome.stderr, "child ") == list(range(5000))
    assert len(outcome.stderr.splitlines()) == 15_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_records_buffered_before_a_fork_are_written_without_a_further_record(
    run_program: RunProgram,
) -> None:
    outcome = run_program(
        BEGIN + "written = threading.Event()\n"
        "class Handler(logging.Handler):\n"
        "    def emit(self, record): written.set()\n"
        "basic_config('info', 'disabled', flush_interval=0.5, handlers=[Handler()])\n"
        "logging.info('x')\n"
        "child = os.fork()\n"
        "if not child: os._exit(0)\n"
        "print(written.wait(20)); os.waitpid(child, 0)\n"
    ).wait()
    assert outcome.stdout.split() == ["True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_does_not_wait_for_a_blocked_sink(run_program: RunProgram) -> None:
    outcome = run_program(
        BEGIN + "gate, busy = threading.Event(), threading.Event()\n"
        "class Stuck(logging.Handler):\n"
        "    def emit(self, record):\n"
        "        busy.set(); gate.wait()\n"
        "        print(record.getMessage(), os.getpid() == main, flush=True)\n"
        "main = os.getpid()\n"
        "import warnings; warnings.simplefilter('ignore')\n"  # for a thread remains
        "stuck = basic_config('info', 'disabled', handlers=[Stuck()])\n"
        "logging.error('parent'); busy.wait()\n"
        "child = os.fork()\n"
        "if not child: gate.set(); logging.error('child'); stuck.close(); os._exit(0)\n"
        "os.waitpid(child, 0); gate.set(); stuck.close()\n"
    ).wait()
    assert outcome.stdout.splitlines() == ["child False", "parent True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forks_with_nothing_logged_between_them_do_not_stop_the_log(
    run_program: RunProgram,
) -> None:
    outcome = run_program(
        BEGIN + "logging.info('0'); session.flush()\n"
        "for _ in range(3):\n"
        "    child = os.fork()\n"
        "    if not child: os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
        "logging.info('1'); print(session.flush(timeout=20))\n"
    ).wait()
    assert outcome.stdout == "True\n"
    assert numbers(outcome.stderr) == [0, 1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_closed_log_does_not_delay_a_fork(run_program: RunProgram) -> None:
    outcome = run_program(
        BEGIN + "logging.info('0'); session.flush()\n"
        "def fork():\n"
        "    child = os.fork()\n"
        "    if not child: os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
        "fork(); session.close()\n"
        "from svcrun.log import forking\n"
        "print(list(forking._running))\n"
    ).wait()
    assert outcome.stdout == "[]\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_of_multiprocessing_writes_its_records(
    tmp_path: Path, run_program: RunProgram, method: str
) -> None:
    path = tmp_path / "program.py"
    path.write_text(
        "import logging, multiprocessing\n"
        "from svcrun.log import basic_config\n"
        "def work():\n"
        "    basic_config('info', 'plain')\n"
        "    for number in range(3000): logging.info('%d', number)\n"
        "if __name__ == '__main__':\n"
        f"    process = multiprocessing.get_context('{method}').Process(target=work)\n"
        "    process.start(); process.join(); raise SystemExit(process.exitcode)\n"
    )
    outcome = run_program(path).wait()
    assert outcome.returncode == 0, outcome.stderr
    assert numbers(outcome.stderr) == list(range(3000))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forks_under_load_neither_hang_nor_lose_nor_repeat(run_program: RunProgram) -> None:
    outcome = run_program(
        BEGIN + "import warnings; warnings.simplefilter('ignore')\n"  # the other thread
        "def shout():\n"
        "    for number in range(20_000): logging.info('thread %d', number)\n"
        "thread = threading.Thread(target=shout); thread.start()\n"
        "for number in range(20):\n"
        "    logging.info('parent %d', number)\n"
        "    child = os.fork()\n"
        "    if not child: logging.info('child %d', number); session.close(); os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
        "thread.join()\n",
        measured=False,
    ).wait(within=60)
    assert numbers(outcome.stderr, "parent ") == list(range(20))
    assert numbers(outcome.stderr, "child ") == list(range(20))
    assert numbers(outcome.stderr, "thread ") == list(range(20_000))


def test_two_hundred_sessions_leave_no_thread_and_no_descriptor(run_program: RunProgram) -> None:
    outcome = run_program(
        "import gc, logging, os, threading\n"
        "from svcrun.log import basic_config\n"
        "def count():\n"
        "    gc.collect()\n"
        "    ours = [x for x in gc.get_objects() if type(x).__module__.startswith('svcrun')]\n"
        "    return len(os.listdir('/dev/fd')), threading.active_count(), len(ours)\n"
        "def once():\n"
        "    with basic_config('info', 'plain', handlers=[logging.NullHandler()]):\n"
        "        logging.info('x')\n"
        "for _ in range(20): once()\n"
        "before = count()\n"
        "for _ in range(200): once()\n"
        "after = count()\n"
        # An ending thread may still refer to objects of the last session.
        "flat = after[0] == before[0] and after[1] <= before[1] + 1 and after[2] < before[2] + 50\n"
        "print(flat, after, before)\n"
    ).wait()
    assert outcome.stdout.startswith("True"), outcome.stdout
    assert outcome.stderr == "x\n" * 220
