"""A fork does not wait for a slow sink, and the log of the child works."""

import os
import re
from collections.abc import Callable

import pytest

from tests.support import Program, has

RunProgram = Callable[..., Program]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# The log is blocked by a full pipe. A fork that waited for it would wait for an hour.
BEGIN = """
import asyncio, logging, os, subprocess, sys, threading, time, warnings
from logging import FileHandler, StreamHandler
from svcrun.log import basic_config, forking

warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
forking._STOP_TIMEOUT = 3600
reader, writer = os.pipe()
os.set_inheritable(writer, True)

def configure():
    if kind == "stderr":
        return basic_config("info", "plain")
    if kind == "stream":
        return basic_config("info", "plain", stream=target)
    return basic_config("info", "disabled", handlers=[target])

def stick():
    for number in range(2000):
        logging.info("parent %d %s", number, "x" * 100)
    session._flush_all_soon()
    poll = __import__("select").poll()
    poll.register(writer, 4)  # POLLOUT
    while poll.poll(0):
        time.sleep(0.001)

def drain(until):
    data = b""
    while not until(data):
        data += os.read(reader, 65536)
    return data.decode().splitlines()

kind = sys.argv[1]
if kind == "stderr":
    os.dup2(writer, 2)
elif kind == "stdout":
    shown = os.dup(1)
    os.dup2(writer, 1)
    target = StreamHandler(sys.stdout)
elif kind == "stream":
    target = os.fdopen(writer, "w", closefd=False)
elif kind == "handler":
    target = StreamHandler(os.fdopen(writer, "w", closefd=False))
elif kind == "file":
    target = FileHandler(f"/proc/self/fd/{writer}")
session = configure()
stick()
out = os.fdopen(shown, "w") if kind == "stdout" else sys.stdout
"""

KINDS = ["stderr", "stdout", "stream", "handler", "file"]


def found(lines: str, who: str) -> list[int]:
    return [int(number) for number in re.findall(rf"{who} (\d+)", lines)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)"])
def test_a_child_forked_while_the_log_is_blocked_logs_once_and_so_does_the_parent(
    run_program: RunProgram, kind: str, end: str
) -> None:
    outcome = run_program(
        BEGIN + "child = os.fork()\n"
        "if not child:\n"
        "    os.close(reader)\n"
        "    for number in range(300): logging.info('child %d', number)\n"
        "    assert session.close()\n"
        f"    {end}\n"
        "thread = threading.Thread(target=lambda: (os.waitpid(child, 0), session.close(),\n"
        "    os.write(writer, b'end')))\n"
        "thread.start()\n"
        "lines = drain(lambda data: data.endswith(b'end'))\n"
        "print(*lines, sep='\\n', file=out, flush=True)\n"
        "thread.join(); os._exit(0)\n",
        kind,
    ).wait()
    assert outcome.returncode == 0
    assert found(outcome.stdout, "parent") == list(range(2000))
    assert found(outcome.stdout, "child") == list(range(300))


STARTS = {
    "exec": "process = await asyncio.create_subprocess_exec('true'); await process.wait()",
    "preexec": "subprocess.run(['true'], preexec_fn=os.getpid, check=True)",
    "fork": "os.fork() or os._exit(0); os.wait()",
    "multiprocessing": "process = fork.Process(target=os.getpid); process.start(); process.join()",
}


@pytest.mark.parametrize("loop", ["stock", "uvloop"])
@pytest.mark.parametrize("kind", ["stderr", "handler"])
def test_the_start_of_a_process_does_not_wait_for_a_blocked_log(
    run_program: RunProgram, loop: str, kind: str
) -> None:
    if loop == "uvloop" and not has("uvloop"):
        pytest.skip("uvloop is not there")
    outcome = run_program(
        BEGIN + "import multiprocessing\n"
        "fork = multiprocessing.get_context('fork')\n"
        "async def main():\n"
        "    for _ in range(3):\n"
        + "".join(f"        {start}\n" for start in STARTS.values())
        + ("import uvloop\nuvloop.run(main())\n" if loop == "uvloop" else "asyncio.run(main())\n")
        + "print('done', flush=True)\n"
        "os._exit(0)\n",
        kind,
    ).wait()
    assert outcome.stdout == "done\n"


def test_a_handler_may_fork(run_program: RunProgram) -> None:
    outcome = run_program(
        "import logging, os, sys, warnings\n"
        "from svcrun.log import basic_config, forking\n"
        "warnings.simplefilter('ignore', DeprecationWarning)\n"
        "forking._STOP_TIMEOUT = 3600\n"
        "class Forking(logging.Handler):\n"
        "    def emit(self, record):\n"
        "        child = os.fork()\n"
        "        if not child: os._exit(0)\n"
        "        os.waitpid(child, 0)\n"
        "        print(record.getMessage(), flush=True)\n"
        "with basic_config('info', 'disabled', handlers=[Forking()]):\n"
        "    for number in range(20): logging.info(number)\n"
    ).wait()
    assert outcome.stdout.split() == [str(number) for number in range(20)]


def test_forks_of_many_threads_lose_no_record_and_keep_the_order(run_program: RunProgram) -> None:
    outcome = run_program(
        "import logging, os, sys, threading, time, warnings\n"
        "from svcrun.log import basic_config\n"
        "warnings.simplefilter('ignore', DeprecationWarning)\n"
        "class Slow(logging.Handler):\n"
        "    def emit(self, record): sum(range(200)); lines.append(record.getMessage())\n"
        "lines = []\n"
        "def fork():\n"
        "    for _ in range(5):\n"
        "        child = os.fork()\n"
        "        if not child: os._exit(0)\n"
        "        os.waitpid(child, 0)\n"
        "session = basic_config('info', 'plain', handlers=[Slow()], flush_interval=0)\n"
        "threads = [threading.Thread(target=fork) for _ in range(3)]\n"
        "for thread in threads: thread.start()\n"
        "number = 0\n"
        "while any(thread.is_alive() for thread in threads):\n"
        "    logging.info('%d', number); number += 1; time.sleep(0.0001)\n"
        "for thread in threads: thread.join()\n"
        "session.close()\n"
        "assert lines == [str(one) for one in range(number)]\n"
        "print(number)\n"
    ).wait()
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    written = [int(line) for line in outcome.stderr.split()]
    assert written == list(range(int(outcome.stdout)))


def test_a_fork_right_after_the_first_record_finds_no_other_thread(run_program: RunProgram) -> None:
    outcome = run_program(
        "import logging, os, sys\n"
        "from svcrun.log import basic_config\n"
        "session = basic_config('info', 'plain')\n"
        "for number in range(30):\n"
        "    logging.info(number)\n"
        "    child = os.fork()\n"  # warns of other threads, which is an error here
        "    if not child: os._exit(0)\n"
        "    os.waitpid(child, 0)\n",
    ).wait()
    assert outcome.stderr.split() == [str(number) for number in range(30)]
