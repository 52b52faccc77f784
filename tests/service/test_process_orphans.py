"""Laws of programs that die: none of their processes is left (C44)."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from svcrun._processes import guard
from tests.service.process_tools import SPAWNING, is_alive, wait_until_gone
from tests.support import PATIENCE, Program

WORK = """
from pathlib import Path
from svcrun import entrypoint
from tests.service.processes import Work

if __name__ == "__main__":
    service = Work(what={what!r}, folder=Path({folder!r}))
    with entrypoint(service, log_format="plain") as loop:
        print(service.process.pid, flush=True)
        loop.run_forever()
"""


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


@pytest.mark.parametrize(
    "what", ["wait", "ignore_sigterm", "fork_on", "fork_stubbornly", "compute"]
)
def test_no_process_outlives_a_program_that_is_killed(
    run_program: Callable[..., Program], what: str, tmp_path: Path
) -> None:
    program = run_program(WORK.format(what=what, folder=str(tmp_path)), **SPAWNING)
    program.wait_for_line(r"^(\d+)$")
    program.wait_for_line("hello", stream="stderr")
    if what != "wait":
        program.wait_for_line("ignoring|forked|computing", stream="stderr")
    left = family(program.pid)
    program.send_signal(signal.SIGKILL)
    wait_until_gone(*left)
    assert (tmp_path / "finally").exists() is (what == "wait")


SLOW_WORK = """
import os, signal, time
from svcrun import entrypoint
from svcrun.service.process import ProcessService

class Slow(ProcessService):
    data: bytes

    def in_process(self): ...

if os.environ.get("SLOW"):
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    print(f"importing, SIGINT blocked: {{signal.SIGINT in mask}}", flush=True)
    time.sleep(600)
if __name__ == "__main__":
    os.environ["SLOW"] = "1"
    with entrypoint(Slow(data=bytes({size}))) as loop:
        loop.run_forever()
"""


@pytest.mark.parametrize("size", [0, 1_000_000])
def test_a_process_that_still_imports_does_not_outlive_its_program(
    run_program: Callable[..., Program], size: int
) -> None:
    program = run_program(SLOW_WORK.format(size=size), **SPAWNING)
    program.wait_for_line("importing")
    left = family(program.pid)
    program.send_signal(signal.SIGKILL)
    wait_until_gone(*left)


@pytest.mark.parametrize("is_held", [False, True])
def test_a_process_that_the_guard_does_not_know_yet_does_not_outlive_its_program(
    run_program: Callable[..., Program], *, is_held: bool
) -> None:
    """Neither if another process holds the descriptors of the program."""
    program = run_program(
        f"""
import os, signal, time
from svcrun import entrypoint
from svcrun._processes import guard
from tests.service.processes import Work

def die(pid):
    print(pid, flush=True)
    if {is_held} and os.fork() == 0:
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    print(os.getpid(), flush=True)
    guard.watch = die
    with entrypoint(Work(), log_config=False) as loop:
        loop.run_forever()
""",
        **SPAWNING,
    )
    leader = int(program.wait_for_line(r"^(\d+)$")[1])
    spawned = int(program.wait_for_line(r"^(\d+)$")[1])
    try:
        wait_until_gone(leader, spawned)
    finally:
        if is_held:
            os.killpg(leader, signal.SIGKILL)


def test_a_stop_does_not_wait_for_the_imports_of_a_process(
    run_program: Callable[..., Program],
) -> None:
    program = run_program(SLOW_WORK.format(size=1_000_000), **SPAWNING)
    program.wait_for_line("importing")
    program.terminate()
    program.wait()


def interrupt(source: str, mark: bytes, folder: Path) -> tuple[int, str]:
    """Run a program at a terminal, and press Ctrl-C at its mark: its whole group gets SIGINT.

    Return its exit code and output.
    """
    path = folder / "program.py"
    path.write_text(source)
    terminal, its_end = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, path],
        stdin=its_end,
        stdout=its_end,
        stderr=its_end,
        env={**os.environ, **SPAWNING["env"]},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no thread matters
        restore_signals=True,
    )
    os.close(its_end)
    output = b""
    try:
        while mark not in output:
            output += os.read(terminal, 4096)
        os.write(terminal, b"\x03")
        while True:
            output += os.read(terminal, 4096)
    except OSError:
        pass  # the other end is closed
    finally:
        os.close(terminal)
    return program.wait(PATIENCE), output.decode()


def test_ctrl_c_at_a_terminal_stops_the_program_in_order(tmp_path: Path) -> None:
    code, output = interrupt(WORK.format(what="wait", folder=str(tmp_path)), b"hello", tmp_path)
    assert code == 0, output
    assert "Traceback" not in output
    assert "ended with exit code 143" in output
    assert (tmp_path / "finally").exists()


def test_ctrl_c_at_a_terminal_does_not_interrupt_the_imports_of_a_process(tmp_path: Path) -> None:
    _, output = interrupt(SLOW_WORK.format(size=0), b"importing", tmp_path)
    assert "SIGINT blocked: True" in output
    assert "ended with signal SIGKILL" in output


def test_a_program_that_is_run_as_a_module_may_have_processes(
    run_program: Callable[..., Program], tmp_path: Path
) -> None:
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "work.py").write_text(
        """
from svcrun.service import ProcessService

class Work(ProcessService):
    def in_process(self):
        print("at work", flush=True)
"""
    )
    (package / "__main__.py").write_text(
        """
from svcrun import entrypoint
from shop.work import Work

if __name__ == "__main__":
    with entrypoint(Work(on_crash="ignore")) as loop:
        loop.run_forever()
"""
    )
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), SPAWNING["env"]["PYTHONPATH"]])}
    program = run_program("", **{**SPAWNING, "env": environment, "options": ("-m", "shop")})
    program.wait_for_line("at work")
    program.terminate()
    assert program.wait().returncode == 0


def test_a_program_without_a_guarded_main_is_told_so(run_program: Callable[..., Program]) -> None:
    outcome = run_program(
        """
from svcrun import entrypoint
from svcrun.service import ProcessService

class Work(ProcessService):
    def in_process(self): ...

with entrypoint(Work()) as loop:
    loop.run_forever()
""",
        **SPAWNING,
    ).wait()
    assert outcome.returncode == 1
    last = outcome.stderr.splitlines()[-1]
    assert last.endswith("such as a missing if __name__ == '__main__':")


def test_a_start_is_retried_until_there_are_descriptors_again(
    run_program: Callable[..., Program],
) -> None:
    program = run_program(
        """
import multiprocessing.connection, os, resource
from svcrun import Restart, entrypoint
from tests.service.processes import Work

held = []

class Hoarding(Work):
    attempts = 0

    def get_process_kwargs(self):
        Hoarding.attempts += 1
        if self.attempts == 1:
            try:
                while True:
                    held.append(os.dup(0))
            except OSError:
                pass
        elif self.attempts == 3:
            for descriptor in held:
                os.close(descriptor)
        return {"greeting": "hello"}

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    service = Hoarding(start_retry=Restart(delay=0.01))
    with entrypoint(service, log_config=False):
        print(service.attempts, service.state.name)
""",
        **SPAWNING,
    )
    outcome = program.wait()
    assert outcome.stdout == "3 RUNNING\n", outcome.stderr


# The guard.


def guards() -> list[psutil.Process]:
    """Return the guard of this process, if there is one."""
    found = psutil.Process().children()
    # Race: for a moment after its start, a process has no command line.
    while not all(one.cmdline() for one in found if one.status() != psutil.STATUS_ZOMBIE):
        pass
    return [one for one in found if "guard_process" in str(one.cmdline())]


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def test_one_guard_watches_all_processes_as_long_as_there_are_any() -> None:
    assert not guards()
    guard.watch(2_000_000_001)
    guard.watch(2_000_000_002)
    (first,) = guards()
    guard.release(2_000_000_001)
    assert guards() == [first]
    guard.release(2_000_000_002)
    assert not guards()
    assert not is_alive(first.pid)


def test_a_guard_that_was_killed_is_replaced() -> None:
    guard.watch(2_000_000_001)
    (first,) = guards()
    first.kill()
    first.wait(PATIENCE)
    guard.watch(2_000_000_002)
    (second,) = guards()
    assert second != first
    guard.release(2_000_000_001)
    guard.release(2_000_000_002)
    assert not guards()


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_the_guard_ends_exactly_the_processes_of_a_program_that_has_died(
    run_program: Callable[..., Program], *, has_pidfd: bool
) -> None:
    ended, released = sleeper(), sleeper()
    program = run_program(
        f"""
import time
from svcrun._processes import guard

if not {has_pidfd}:
    guard._CODE = "import os; os.__dict__.pop('pidfd_open', None); " + guard._CODE
guard.watch({ended.pid})
guard.watch({released.pid})
guard.release({released.pid})
print("watching", flush=True)
time.sleep(600)
""",
        measured=False,
    )
    program.wait_for_line("watching")
    left = family(program.pid)
    program.send_signal(signal.SIGKILL)
    assert ended.wait(PATIENCE) == -signal.SIGTERM
    wait_until_gone(*left)
    assert released.poll() is None
    released.kill()
    released.wait()


def test_a_forked_child_leaves_the_guard_to_its_parent(
    run_program: Callable[..., Program],
) -> None:
    program = run_program(
        """
import os
from svcrun._processes import guard
from tests.service.test_process_orphans import guards

guard.watch(2_000_000_001)
first = guards()
if os.fork() == 0:
    guard.release(2_000_000_001)
    guard.watch(2_000_000_002)
    print(len(guards()), guards() == first, flush=True)
    guard.release(2_000_000_002)
    os._exit(0)
os.wait()
print(guards() == first)
guard.release(2_000_000_001)
print(guards())
""",
        **{**SPAWNING, "options": ("-W", "error")},
    )
    assert program.wait().stdout == "1 False\nTrue\n[]\n", program.stderr


def test_without_a_guard_no_process_is_spawned(
    run_program: Callable[..., Program],
) -> None:
    outcome = run_program(
        """
import multiprocessing.spawn, os
import psutil
from svcrun import entrypoint
from svcrun._processes import guard
from tests.service.processes import Work

def fail(pid):
    raise OSError(11, "no process")

if __name__ == "__main__":
    guard.watch = fail
    try:
        with entrypoint(Work(), log_config=False):
            raise AssertionError
    except OSError as error:
        print(error)
    children = psutil.Process().children()
    print([one for one in children if "resource_tracker" not in str(one.cmdline())])
""",
        **SPAWNING,
    ).wait()
    assert outcome.stdout == "[Errno 11] no process\n[]\n", outcome.stderr
