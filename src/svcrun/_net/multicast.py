"""Join the multicast groups of a UDP server, and leave them."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import struct
import sys
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from svcrun._net.addresses import AF_UNIX
from svcrun.errors import ParameterError, ParameterTypeError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("Group", "check_family", "check_groups", "join", "leave")

Address: TypeAlias = IPv4Address | IPv6Address
Interface: TypeAlias = Address | str | int | None

log = logging.getLogger("svcrun.net")

_ACCEPTED: Final = (
    "a list of multicast groups, each an IP address or a pair of it and an interface (its address, "
    "name or index)"
)
# Options of Linux that Python has no names for. They are on by default: then a socket receives the
# datagrams of the groups that any program on the machine has joined.
_IP_MULTICAST_ALL: Final = 49
_IPV6_MULTICAST_ALL: Final = 29

# The greatest index of an interface.
_MAX_INDEX: Final = 2**31 - 1

_HINTS: Final = {
    errno.ENODEV: "; name an interface of this machine, as in (group, interface)",
    errno.ENOBUFS: "; raise the limit net.ipv4.igmp_max_memberships of the system",
}


class Group(NamedTuple):
    """A multicast group, and the interface to receive it on; None for the choice of the system."""

    address: Address
    interface: Interface

    def __str__(self) -> str:
        interface = "" if self.interface is None else f" on the interface {self.interface}"
        return f"the group {self.address}{interface}"

    @property
    def family(self) -> int:
        """The family of the group's address."""
        return socket.AF_INET if self.address.version == 4 else socket.AF_INET6  # noqa: PLR2004

    def request(self) -> bytes:
        """Return the value of the socket options that join and leave the group.

        :raises OSError: if the machine has no such interface.
        """
        packed = self.address.packed
        if self.family == socket.AF_INET6:
            return packed + struct.pack("@I", _index_of(self.interface))
        if isinstance(self.interface, IPv4Address):
            return packed + self.interface.packed
        return packed + bytes(4) + struct.pack("@i", _index_of(self.interface))


# Level, option and value of the call that ends a membership.
_Leave = tuple[int, int, bytes]


def check_groups(owner: object, name: str, value: Any) -> tuple[Group, ...]:
    """Return the groups of the parameter `name`, each once.

    A mapping is an attribute that a subclass uses for something else.

    :raises ValueError, TypeError: naming owner, parameter and value.
    """
    if isinstance(value, Mapping):
        return ()
    title = type(owner).__qualname__
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        raise ParameterTypeError(title, name, value, _ACCEPTED)
    return tuple(dict.fromkeys(_parse(title, name, one) for one in value))


def check_family(
    owner: object, groups: Sequence[Group], family: int | None, sock: socket.socket | None = None
) -> None:
    """Raise an error if a socket of this family can't receive a group.

    :param sock: the socket, once it is bound.
    :raises ValueError: naming the group.
    """
    for group in groups:
        if family == AF_UNIX:
            raise ParameterError(owner, "groups", str(group.address), "empty for a Unix socket")
        if family == socket.AF_INET and group.family == socket.AF_INET6:
            accepted = "groups of IPv4 for a server at an IPv4 address"
            raise ParameterError(owner, "groups", str(group.address), accepted)
        if sock is None or sys.platform == "win32":
            continue
        bound = sock.getsockname()[0].partition("%")[0]
        anywhere = {"0.0.0.0", "::"} if group.family == sock.family else {"::"}  # noqa: S104
        if bound not in anywhere and bound != str(group.address).partition("%")[0]:
            log.warning(
                "%r: no datagram of the group %s arrives at a socket bound to %s; bind '0.0.0.0', "
                "'::' or the group",
                owner,
                group.address,
                bound,
            )


def join(owner: object, sock: socket.socket, groups: Sequence[Group]) -> list[_Leave]:
    """Join the groups, and return the memberships for :func:`leave`.

    :param owner: the server, as errors show it.
    :raises OSError: with the type and errno of the system, naming owner, group and interface.
    """
    if groups and sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
        if sock.family == socket.AF_INET6:
            with contextlib.suppress(OSError):  # before Linux 4.20
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
    joined: list[_Leave] = []
    for group in groups:
        if group.family == socket.AF_INET:
            level, add, drop = (
                socket.IPPROTO_IP,
                socket.IP_ADD_MEMBERSHIP,
                socket.IP_DROP_MEMBERSHIP,
            )
        else:
            level, add, drop = (
                socket.IPPROTO_IPV6,
                socket.IPV6_JOIN_GROUP,
                socket.IPV6_LEAVE_GROUP,
            )
        try:
            request = group.request()
            sock.setsockopt(level, add, request)
        except OSError as error:
            # A passed socket is still a member if a process was killed, which could not leave.
            if error.errno != errno.EADDRINUSE:
                leave(sock, joined)
                reason = f"{error.strerror or error}{_HINTS.get(error.errno or 0, '')}"
                message = f"{owner}: could not join {group}: {reason}"
                raise type(error)(error.errno, message) from error
        joined.append((level, drop, request))
    return joined


def leave(sock: socket.socket, joined: Sequence[_Leave]) -> None:
    """Leave the groups. The end of the last duplicate of a socket would do that, but not sooner."""
    for membership in joined:
        with contextlib.suppress(OSError):  # the interface may be gone
            sock.setsockopt(*membership)


def _parse(owner: str, name: str, given: Any) -> Group:
    pair = given if isinstance(given, tuple | list) else (given, None)
    address = _address(pair[0]) if len(pair) == 2 else None  # noqa: PLR2004 - a pair
    if address is None or not address.is_multicast:
        raise ParameterError(owner, name, given, _ACCEPTED)
    interface = pair[1]
    scope = getattr(address, "scope_id", None)
    if scope is not None:
        address = ip_address(str(address).partition("%")[0])
        interface = scope if interface is None else interface
    if isinstance(interface, bool) or not isinstance(interface, Interface):
        raise ParameterTypeError(owner, name, given, _ACCEPTED)
    if isinstance(interface, str):
        interface = _parse_interface(interface)
    if not isinstance(interface, str | int | None) and interface.version != address.version:
        accepted = "pairs of a group and an interface address of the same IP version"
        raise ParameterError(owner, name, given, accepted)
    if (isinstance(interface, int) and not 0 <= interface <= _MAX_INDEX) or interface == "":
        raise ParameterError(owner, name, given, _ACCEPTED)
    return Group(address, interface)


def _parse_interface(text: str) -> Address | str | int:
    """Return the address, index or name of an interface; an empty string for no name."""
    found = _address(text)
    if found is not None:
        return found
    if text.isascii() and text.isdecimal():
        return int(text[:20])
    return text if text.isprintable() else ""


def _address(value: object) -> Address | None:
    if not isinstance(value, str | IPv4Address | IPv6Address):
        return None
    try:
        return ip_address(value)
    except ValueError:
        return None


def _index_of(interface: Interface) -> int:
    """Return the index of an interface; 0 lets the system choose."""
    if interface is None:
        return 0
    if isinstance(interface, int):
        return interface
    if isinstance(interface, str):
        return socket.if_nametoindex(interface)
    scope = getattr(interface, "scope_id", None)
    if scope is not None:
        return int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)
    with contextlib.suppress(FileNotFoundError), open("/proc/net/if_inet6", encoding="ascii") as f:
        for line in f:
            packed, index, *_ = line.split()
            if bytes.fromhex(packed) == interface.packed:
                return int(index, 16)
    raise OSError(errno.ENODEV, "no interface has this address")
