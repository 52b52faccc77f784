"""Run programs in fresh processes, and measure their processor time."""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent

# Seconds after which a program that hangs is killed; a working one takes much less.
TIME_LIMIT = 120.0


@functools.cache
def environment() -> dict[str, str]:
    """Return the environment of the programs, without variables that affect the measurements."""
    ours = ("PYTHON", "SVCRUN_", "AIOMISC_", "COVERAGE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}


class Program:
    """A program in a process of its own, which ends with the ``with`` block.

    It reads requests as lines of JSON from its standard input, and writes answers to its standard
    output.

    :param command: the program and its arguments.
    """

    def __init__(self, *command: str) -> None:
        self._name = " ".join(Path(word).name for word in command)
        with contextlib.ExitStack() as stack:
            self._stderr = stack.enter_context(tempfile.TemporaryFile())
            self._process = stack.enter_context(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._stderr,
                    env=environment(),
                    cwd=ROOT,
                )
            )
            watchdog = threading.Timer(TIME_LIMIT, self._process.kill)
            watchdog.daemon = True
            watchdog.start()
            stack.callback(watchdog.cancel)
            stack.callback(self._kill)
            self._undo = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._undo.close()

    @property
    def pid(self) -> int:
        """The process ID."""
        return self._process.pid

    def wait_for_port(self, port: int) -> None:
        """Wait until the program accepts connections on a port of this machine."""
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self._name} has ended\n{self._complaint()}")
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                return
            time.sleep(0.01)

    def answer(self) -> Any:
        """Return the next line that the program writes.

        :raises RuntimeError: with the program's stderr, if it ended instead.
        """
        line = self._process.stdout.readline() if self._process.stdout else b""
        if not line:
            raise RuntimeError(f"no answer from {self._name}\n{self._complaint()}")
        return json.loads(line)

    def ask(self, request: Any) -> Any:
        """Send the program a line, and return its answer."""
        if self._process.stdin:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        return self.answer()

    def cpu_time(self) -> float:
        """Return the seconds of processor time that the process took so far.

        It equals ``time.process_time()`` in the process, which is not disturbed by this method.
        """
        # The conversion of clock_getcpuclockid(3).
        return time.clock_gettime(~self._process.pid << 3 | 2)

    def memory(self) -> int:
        """Return the bytes of memory that the process has in use."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def terminate(self) -> tuple[float, float]:
        """Send SIGTERM and wait for the end; return the processor and wall-clock time of that.

        :raises RuntimeError: if the exit code is not 0.
        """
        before = self.cpu_time()
        began = time.perf_counter()
        os.kill(self._process.pid, signal.SIGTERM)
        _, status, usage = os.wait4(self._process.pid, 0)
        elapsed = time.perf_counter() - began
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode != 0:
            raise RuntimeError(
                f"exit code {self._process.returncode} of {self._name}\n{self._complaint()}"
            )
        return usage.ru_utime + usage.ru_stime - before, elapsed

    def _complaint(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")

    def _kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()


def program(python: str, name: str, **parameters: Any) -> Program:
    """Run a module of ``benchmarks.programs`` with the keywords of its ``main()``."""
    return Program(python, "-m", f"benchmarks.programs.{name}", json.dumps(parameters))


def evaluate(command: Sequence[str]) -> str:
    """Run a command to its end, and return its output."""
    return subprocess.run(
        command,
        env=environment(),
        cwd=ROOT,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        timeout=TIME_LIMIT,
    ).stdout


def write_bytecode(python: str) -> None:
    """Compile the measured packages in advance, as installed packages are."""
    evaluate([python, "-m", "compileall", "-q", str(ROOT / "src"), str(ROOT / "benchmarks")])


def this_python() -> str:
    """Return the interpreter that runs this command."""
    return sys.executable
