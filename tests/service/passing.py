"""A service manager that passes sockets to the process of the tests itself."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from svcrun._util import passed_descriptors as module


class Manager:
    """Pass descriptors to this process, in consecutive numbers as systemd does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._stack = contextlib.ExitStack()

    def open(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """Return a socket on a free port, which is closed after the test."""
        sock = self._stack.enter_context(socket.socket(socket.AF_INET, kind))
        sock.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        return sock

    def pass_on(self, *files: tuple[str, Any]) -> list[int]:
        """Pass files under names, and return the descriptors in this process."""
        first = _free_range(len(files))
        for number, (_, file) in enumerate(files, first):
            os.dup2(file.fileno(), number, inheritable=True)
            self._stack.callback(_close, number)
        self._monkeypatch.setattr(module, "_FIRST", first)
        os.environ["LISTEN_PID"] = str(os.getpid())
        os.environ["LISTEN_FDS"] = str(len(files))
        os.environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in files)
        return list(range(first, first + len(files)))

    def close(self) -> None:
        """Close all sockets and descriptors."""
        self._stack.close()


@contextlib.contextmanager
def managed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """Return a manager for the block; after it, no socket counts as passed."""
    made = Manager(monkeypatch)
    try:
        yield made
    finally:
        made.close()
        for name in module.VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="0")
        module.take_passed_descriptors()


def _free_range(count: int) -> int:
    """Return the first of `count` consecutive free descriptors."""
    first = 400
    while any(map(_is_open, range(first, first + count))):
        first += count
    return first


def _is_open(number: int) -> bool:
    try:
        fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def _close(number: int) -> None:
    with contextlib.suppress(OSError):
        os.close(number)
