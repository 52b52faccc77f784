"""Use the sockets that systemd, or another parent, has passed to the process."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING, Final
from weakref import ref

from svcrun._net.addresses import AF_UNIX, format_url
from svcrun._util.passed_descriptors import passed_descriptors, reason_for_none
from svcrun.errors import PassedSocketError, title

if TYPE_CHECKING:
    from svcrun._util.passed_descriptors import Descriptor

__all__ = ("PREFIX", "PassedSocket", "is_connected", "is_unbound")

log = logging.getLogger("svcrun.net")

PREFIX: Final = "fd:"
"""How the parameter ``sock`` names a passed socket."""

_KINDS: Final = {
    socket.SOCK_STREAM: "stream",
    socket.SOCK_DGRAM: "datagram",
    getattr(socket, "SOCK_SEQPACKET", None): "sequential-packet",
    getattr(socket, "SOCK_RAW", None): "raw",
}


class PassedSocket:
    """The socket that was passed under a name, for one server.

    Several sockets may have the same name. Those of another kind are left out. Of the others, the
    server uses the first that no other server uses, and the same one in its next run.

    :param owner: how error messages name the server.
    :param value: ``"fd:"`` and a name in ``LISTEN_FDNAMES``, or the number of the socket, from 0.
    :param kind: ``socket.SOCK_STREAM`` or ``socket.SOCK_DGRAM``.

    :raises PassedSocketError: a :class:`ValueError`, if what was passed is not such a socket.
    """

    def __init__(self, owner: str, value: str, kind: int) -> None:
        self._value = value
        self._kind = kind
        self._last: Descriptor | None = None
        self._find(owner)  # for its checks

    def __str__(self) -> str:
        return self._value

    @property
    def exists(self) -> bool:
        """Whether a descriptor with this name was passed."""
        return bool(self._named())

    def open(self, owner: object) -> socket.socket | None:
        """Return a duplicate of the socket, None if none was passed.

        :param owner: the server.
        :raises PassedSocketError: if other servers use all sockets of this name, or if what was
            passed can't be used.
        :raises OSError: if there is no descriptor left.
        """
        found = self._find(owner)
        if not found:
            return None
        free = [one for one in found if not _is_in_use(one)]
        if not free:
            users = ", ".join(dict.fromkeys(one.user for one in found))
            accepted = "the name of a passed socket that no other server uses"
            raise PassedSocketError(owner, self._value, accepted, f"in use by {users}")
        descriptor = next((one for one in free if one is self._last), free[0])
        sock = socket.socket(fileno=os.dup(descriptor.number))
        descriptor.duplicate, descriptor.user = ref(sock), title(owner)
        descriptor.is_used = True
        self._last = descriptor
        return sock

    def missing(self, owner: object) -> PassedSocketError:
        """Return the error for a server that has no other endpoint either."""
        names = ", ".join(dict.fromkeys(repr(one.name) for one in passed_descriptors()))
        reason = reason_for_none()
        passed = f"passed were {names}" if names else "none was passed"
        if reason and not names:
            passed = f"{passed}: {reason}"
        accepted = f"'{PREFIX}' and the name of a passed socket ({passed})"
        return PassedSocketError(owner, self._value, accepted, "and without address= and port=")

    def log_absence(self, owner: object, instead: object) -> None:
        """Log that the server listens on its address instead."""
        reason = reason_for_none()
        level = logging.WARNING if reason or passed_descriptors() else logging.INFO
        log.log(
            level,
            "%r: no socket was passed as %r%s; using %s",
            owner,
            self._value,
            f" ({reason})" if reason else "",
            instead,
        )

    def _named(self) -> list[Descriptor]:
        """Return the descriptors of this name, or the one of this number."""
        name = self._value.removeprefix(PREFIX)
        passed = passed_descriptors()
        named = [one for one in passed if one.name == name]
        if not named and name.isascii() and name.isdigit() and int(name[:9]) < len(passed):
            named.append(passed[int(name)])
        return named

    def _find(self, owner: object) -> list[Descriptor]:
        """Return those descriptors of this name that the server can use.

        :raises PassedSocketError: if there are others only.
        """
        found, wrong = [], []
        for descriptor in self._named():
            what = _describe(descriptor, self._kind)
            if what is None:
                found.append(descriptor)
            else:
                wrong.append(f"descriptor {descriptor.number}, {what}")
        if wrong and not found:
            kind = _KINDS[self._kind]
            accepted = f"the name of a bound {kind} socket"
            if self._kind == socket.SOCK_STREAM:
                accepted += " without a connection"
            raise PassedSocketError(owner, self._value, accepted, "; ".join(wrong))
        return found


def _is_in_use(descriptor: Descriptor) -> bool:
    sock = None if descriptor.duplicate is None else descriptor.duplicate()
    return sock is not None and sock.fileno() != -1


def _describe(descriptor: Descriptor, kind: int) -> str | None:
    """Return what a descriptor is, None if it is a socket that a server can use."""
    found = descriptor.kind()
    if found != "a socket":
        return found
    sock = socket.socket(fileno=descriptor.number)
    try:
        name = f"a {_KINDS.get(sock.type, 'special')} socket"
        if sock.family not in {socket.AF_INET, socket.AF_INET6, AF_UNIX}:
            return f"{name} of the family {sock.family!s}"
        if sock.type != kind:
            return f"{name} at {_place(sock)}"
        if kind == socket.SOCK_STREAM and is_connected(sock):
            return f"{name} with a connection (a unit with Accept=yes passes those)"
        if is_unbound(sock):
            return f"{name} that is not bound"
    finally:
        sock.detach()
    return None


def _place(sock: socket.socket) -> str:
    scheme = "tcp" if sock.type == socket.SOCK_STREAM else "udp"
    return format_url(scheme, sock.family, sock.getsockname())


def is_unbound(sock: socket.socket) -> bool:
    """Return whether `sock` has no address of its own."""
    bound = sock.getsockname()
    return not bound or (sock.family != AF_UNIX and bound[1] == 0)


def is_connected(sock: socket.socket) -> bool:
    """Return whether `sock` has a peer."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
