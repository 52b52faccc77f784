"""The guard of a program: a process that ends the program's processes if the program dies.

Its standard input has lines: ``+PID`` for a process that the program has spawned, ``-PID`` for one
that has ended. It imports as little as possible, because it starts with the first process.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress

__all__ = ("main",)

GRACE = 1.5
"""Seconds from SIGTERM to SIGKILL."""

POLL_INTERVAL = 0.5  # seconds, on a system without pidfd
_STEP = 0.02  # seconds between two checks whether the processes have ended


def main() -> None:
    """Wait for the death of the program, whose process id is the last argument."""
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # the program ends this process when it ends
    parent = int(sys.argv[-1])
    spawned = Spawned()
    wait_for_death(parent, spawned)
    spawned.read()  # race: the last lines may be unread
    end(spawned.pids)


class Spawned:
    """The processes of the program, as its lines report them."""

    def __init__(self) -> None:
        self.pids: set[int] = set()
        self._rest = b""
        os.set_blocking(0, False)

    def read(self) -> bool:
        """Read all lines, and return whether there may be more of them."""
        with suppress(BlockingIOError):
            while data := os.read(0, 4096):
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    change = self.pids.add if line[:1] == b"+" else self.pids.discard
                    change(int(line[1:]))
            return False
        return True


def wait_for_death(parent: int, spawned: Spawned) -> None:
    """Wait until the program has died, or needs no guard."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    timeout = None
    try:
        poll.register(os.pidfd_open(parent), select.POLLIN)
    except (AttributeError, OSError):  # no such system call, or the program has died already
        timeout = POLL_INTERVAL * 1000
    # Race: the process id may belong to another process by now, if the program has died before.
    while os.getppid() == parent:
        ready = [descriptor for descriptor, _ in poll.poll(timeout)]
        if 0 in ready:
            if spawned.read():
                continue
            poll.unregister(0)
            if not spawned.pids:
                return
        elif ready:
            return


def end(pids: set[int]) -> None:
    """End the processes and their groups by SIGTERM, then by SIGKILL."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        alive = {pid for pid in pids if send(pid, signum)}
        deadline = time.monotonic() + GRACE
        while alive and signum == signal.SIGTERM and time.monotonic() < deadline:
            time.sleep(_STEP)
            alive = {pid for pid in alive if send(pid, 0)}


def send(pid: int, signum: int) -> bool:
    """Send a signal to the group of a process, and return whether that exists.

    A process that still imports its modules has no group of its own.
    """
    for kill in (os.killpg, os.kill):
        with suppress(OSError):
            kill(pid, signum)
            return True
    return False
