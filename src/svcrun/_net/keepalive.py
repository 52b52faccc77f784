"""TCP keep-alive: notice a peer that vanished without closing its connection."""

from __future__ import annotations

import socket
from typing import Final

from svcrun._util.validation import number, optional

__all__ = ("check_keepalive", "set_keepalive")

# The probes of a connection that is silent for `keepalive` seconds; then the peer counts as lost.
_PROBES: Final = 6

# The greatest number of seconds that Linux accepts.
_MAX: Final = 32767

check_keepalive: Final = optional(number(above=0, high=_MAX, unit="seconds"), "no checks")
"""The check of a parameter `keepalive`."""


def set_keepalive(sock: socket.socket, seconds: float) -> None:
    """Make TCP notice a peer that vanished, whether or not output waits for it.

    On a listening socket, this holds for the connections that it accepts from then on.

    :param seconds: the seconds of silence after which TCP checks whether the peer is still there.
        It counts as lost when it has not answered for as long again.
    """
    idle = max(1, round(seconds))
    interval = max(1, round(seconds / _PROBES))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", idle),
        ("TCP_KEEPINTVL", interval),
        ("TCP_KEEPCNT", _PROBES),
        # Linux: the limit for output without an acknowledgement, which no probe checks.
        ("TCP_USER_TIMEOUT", (idle + interval * _PROBES) * 1000),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
