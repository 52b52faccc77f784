"""Send states to the service manager of systemd, by the protocol of ``sd_notify(3)``."""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from collections import deque

from svcrun._util.hints import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ("VARIABLES", "NotifySocket", "watchdog_interval")

log = logging.getLogger("svcrun.service.sdwatchdog")

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""The variables by which systemd describes the protocol to a process."""

LAST_WAIT: Final = 0.5
"""Seconds that :meth:`NotifySocket.close` waits for a manager whose queue is full."""

_MAX_UNSENT: Final = 64


class NotifySocket:
    """A datagram socket to the service manager. No method raises, and only :meth:`close` waits.

    A message that finds the queue of the manager full is kept, in order, until :meth:`retry`.

    :param address: the value of ``NOTIFY_SOCKET``: a path, or ``@`` and an abstract name.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._socket: socket.socket | None = None
        self._unsent: deque[bytes] = deque(maxlen=_MAX_UNSENT)
        self._has_warned = False
        if address[:1] not in ("/", "@"):
            self._warn("only a path or @ and a name is supported")
        else:
            self._open()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self | None:
        """Return the socket that the environment names, or None outside of systemd."""
        address = environment.get("NOTIFY_SOCKET")
        return cls(address) if address else None

    @property
    def is_behind(self) -> bool:
        """Whether messages wait for :meth:`retry`."""
        return bool(self._unsent)

    def send(self, *assignments: str, is_transient: bool = False) -> None:
        """Send assignments such as ``"READY=1"`` in one datagram.

        :param is_transient: whether the message is worth nothing later.
        """
        if is_transient and self._unsent:
            return
        self._unsent.append("\n".join(assignments).encode("utf-8", "backslashreplace"))
        self.retry()

    def retry(self) -> None:
        """Send the messages that wait, as far as the manager takes them."""
        if self._socket is None and self._address[:1] in ("/", "@"):
            self._open()  # there was no descriptor at first
        if self._socket is None:
            self._unsent.clear()
        else:
            self._send(self._socket)

    def _send(self, sock: socket.socket) -> None:
        while self._unsent:
            try:
                sock.send(self._unsent[0])
            except BlockingIOError:
                return
            except OSError as error:
                self._warn(error)
            self._unsent.popleft()

    def close(self) -> None:
        """Send the messages that wait, within :data:`LAST_WAIT`, and close the socket."""
        self.retry()
        deadline = time.monotonic() + LAST_WAIT
        sock, self._socket = self._socket, None
        while sock is not None and self._unsent and (left := deadline - time.monotonic()) > 0:
            select.select([], [sock], [], left)
            self._send(sock)
        self._address = ""
        if sock is not None:
            sock.close()

    def _open(self) -> None:
        name = self._address
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        except OSError as error:
            self._warn(error)
            return
        try:
            sock.setblocking(False)
            sock.connect("\0" + name[1:] if name.startswith("@") else name)
        except (OSError, ValueError) as error:
            sock.close()
            self._warn(error)
        else:
            self._socket = sock

    def _warn(self, reason: object) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning("could not notify systemd at %s: %s", self._address, reason)


def watchdog_interval(environment: Mapping[str, str]) -> float | None:
    """Return the seconds within which systemd expects a sign of life, None if it expects none.

    The variables may be those of a parent process; ``WATCHDOG_PID`` names the process meant.
    """
    text = environment.get("WATCHDOG_USEC", "")
    pid = environment.get("WATCHDOG_PID", "")
    if not (text.isascii() and text.isdigit() and int(text)):
        return None
    return None if pid and pid != str(os.getpid()) else int(text) / 1e6
