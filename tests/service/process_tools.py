"""Look at the processes of programs and tests."""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

import psutil

from tests.support import PATIENCE, ROOT

_PATHS = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]

SPAWNING: dict[str, Any] = {
    "measured": False,
    "options": (),
    "env": {"PYTHONPATH": os.pathsep.join([str(ROOT), *_PATHS])},
}
"""The options of a program whose processes import modules of the tests."""


def is_alive(pid: int) -> bool:
    """Return whether a process runs, and is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(*pids: int, within: float = PATIENCE) -> None:
    """Wait until none of the processes exists."""
    deadline = time.monotonic() + within
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, pids
        time.sleep(0.01)


@contextlib.contextmanager
def no_new_children() -> Iterator[None]:
    """Fail if the block leaves a child process, but for the resource tracker of multiprocessing."""
    before = set(psutil.Process().children())
    yield
    left = set(psutil.Process().children()) - before
    assert not [one for one in left if "resource_tracker" not in " ".join(one.cmdline())]
