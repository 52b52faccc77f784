"""Start and inform the guard: a process that ends the processes of this one if it dies.

Why a process, and not a thread of each spawned process: a process that imports its modules has no
thread yet, and one that computes in C may hold the interpreter's lock, so that no thread runs.
"""

from __future__ import annotations

import multiprocessing.spawn
import os
import subprocess
import threading
from pathlib import Path
from typing import Final

__all__ = ("release", "watch")

_CODE: Final = (
    "import sys; sys.path.append(sys.argv[1]);"
    " from svcrun._processes.guard_process import main; main()"
)
_FOLDER: Final = str(Path(__file__).parents[2])


class _Guard:
    """The guard process, which exists while any process is watched."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pids: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None

    def watch(self, pid: int) -> None:
        with self._lock:
            self._pids.add(pid)
            try:
                if not self._send(f"+{pid}\n"):
                    self._start()
            except BaseException:
                self._pids.discard(pid)
                raise

    def release(self, pid: int) -> None:
        with self._lock:
            self._pids.discard(pid)
            if not self._pids:
                self._end()
            else:
                self._send(f"-{pid}\n")

    def forget(self) -> None:
        """Leave the guard to the parent, in a forked child."""
        process = self._process
        if process is not None:
            process.returncode = 0  # it is no child of this process, and is not waited for
            if process.stdin is not None:
                process.stdin.close()

    def _send(self, line: str) -> bool:
        """Write a line, and return whether the guard is there to read it."""
        process = self._process
        if process is None or process.stdin is None:
            return False
        try:
            process.stdin.write(line.encode())
        except OSError:
            return False  # it was killed
        return True

    def _start(self) -> None:
        self._end()
        self._process = subprocess.Popen(  # noqa: S603 - the same interpreter
            [
                multiprocessing.spawn.get_executable(),
                *("-I", "-S", "-c", _CODE, _FOLDER, str(os.getpid())),
            ],
            bufsize=0,
            stdin=subprocess.PIPE,
            # Readers of the program's output must not wait for the guard.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            # A signal to the group of the program does not end it.
            start_new_session=True,
        )
        for pid in self._pids:
            self._send(f"+{pid}\n")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


_guard = _Guard()


def watch(pid: int) -> None:
    """End the process `pid` and its group if this process dies, until :func:`release`.

    :raises OSError: if the guard can't be started.
    """
    _guard.watch(pid)


def release(pid: int) -> None:
    """Watch a process no more. Call this before the process is reaped and its number is free."""
    _guard.release(pid)


def _reset_in_child() -> None:
    global _guard  # noqa: PLW0603 - each process has its own
    _guard.forget()
    _guard = _Guard()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_child)
