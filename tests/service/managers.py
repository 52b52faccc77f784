"""A service manager for tests: it reads the datagrams that a program sends to systemd."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests.support import PATIENCE


class Manager:
    """A socket like systemd's, which a thread reads.

    :param address: a path, or ``@`` and an abstract name, as in ``NOTIFY_SOCKET``.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._changed = threading.Condition()
        self.messages: list[str] = []
        self.times: list[float] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _read(self) -> None:
        while data := self._socket.recv(65_536):
            with self._changed:
                self.messages.append(data.decode())
                self.times.append(time.monotonic())
                self._changed.notify_all()

    def wait_for(self, start: str, count: int = 1) -> str:
        """Wait for the message number `count` that begins with `start`, and return it."""

        def found() -> list[str]:
            return [message for message in self.messages if message.startswith(start)]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= count, PATIENCE), self.messages
            return found()[count - 1]

    def clear(self) -> None:
        """Forget all messages."""
        with self._changed:
            self.messages.clear()
            self.times.clear()

    def sync(self) -> list[str]:
        """Return all messages that were sent before this call."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"SYNC", self._socket.getsockname())
        self.wait_for("SYNC")
        return [message for message in self.messages if message != "SYNC"]

    def phases(self) -> list[str]:
        """Return the messages that begin a phase, in their order."""
        phases = ("READY", "RELOADING", "STOPPING")
        return [m.partition("=")[0] for m in self.messages if m.startswith(phases)]


@contextmanager
def managed(folder: Path, monkeypatch: object) -> Iterator[Manager]:
    """Run a manager for the block, and set ``NOTIFY_SOCKET`` to its address."""
    with Manager(str(folder / "notify")) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.address)  # type: ignore[attr-defined]
        yield manager
