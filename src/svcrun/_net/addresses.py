"""Check addresses, ports and paths, and format them for messages."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

from svcrun._util.validation import number
from svcrun.errors import NotASocket, ParameterError, ParameterTypeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    Option = tuple[int, int, int | bytes]

__all__ = (
    "AF_UNIX",
    "check_address",
    "check_options",
    "check_path",
    "check_port",
    "check_socket",
    "format_address",
    "format_path",
    "format_url",
    "host_and_port",
    "path_of",
)

#: None on a system without Unix sockets.
AF_UNIX: Final[int | None] = getattr(socket, "AF_UNIX", None)

# The longest path of a Unix socket in bytes: `sun_path` less its final NUL.
_MAX_PATH: Final = 107 if sys.platform.startswith("linux") else 103
_MAX_PORT: Final = 65535


def check_port(owner: str, port: int) -> int:
    """Return `port` if it is a port.

    :param owner: how an error message names the server.
    :raises ValueError, TypeError: naming owner, parameter and value, as the other checks here do.
    """
    _check_port(owner, "port", port)
    return port


_check_port = number(low=0, high=_MAX_PORT, whole=True)


def check_address(owner: str, address: object) -> tuple[str, int | None]:
    """Return a network address and its family, which is None for a host name."""
    accepted = "an IP address without brackets or port, a host name or a path"
    if not isinstance(address, str):
        raise ParameterTypeError(owner, "address", address, accepted)
    try:
        if ":" in address:
            socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
            return address, socket.AF_INET6
        if address.replace(".", "").isdecimal():
            socket.inet_aton(address)
            return address, socket.AF_INET
    except (OSError, ValueError):
        raise ParameterError(owner, "address", address, accepted) from None
    if not address or not address.isprintable() or " " in address or "[" in address:
        raise ParameterError(owner, "address", address, accepted)
    return address, None


def path_of(address: object) -> str | os.PathLike[str] | None:
    """Return `address` without ``unix:`` if it is a path, None if it is a network address."""
    if isinstance(address, os.PathLike):
        return address
    if not isinstance(address, str):
        return None
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        return path.removeprefix("//") if path.startswith("///") else path
    return address if "/" in address or address.startswith("\0") else None


def check_path(owner: str, path: object) -> str:
    """Return the path of a Unix socket as a string."""
    accepted = f"a path of at most {_MAX_PATH} bytes"
    if not isinstance(path, str | os.PathLike):
        raise ParameterTypeError(owner, "path", path, accepted)
    path = os.fspath(path)
    if AF_UNIX is None:
        raise ParameterError(owner, "path", path, "None on a system without Unix sockets")
    if not isinstance(path, str):
        raise ParameterTypeError(owner, "path", path, "a path of type str")
    if path in {"", "\0"} or "\0" in path[1:] or len(os.fsencode(path)) > _MAX_PATH:
        raise ParameterError(owner, "path", path, accepted)
    return path


def check_socket(owner: str, sock: object, kind: int) -> None:
    """Raise an error unless `sock` is an open socket of type `kind`, without TLS."""
    # An SSLSocket would perform blocking handshakes.
    if not isinstance(sock, socket.socket) or hasattr(sock, "do_handshake"):
        raise NotASocket(owner, sock)
    if sock.fileno() == -1:
        raise ParameterError(owner, "sock", sock, "an open socket")
    if sock.type != kind:
        accepted = "a stream socket" if kind == socket.SOCK_STREAM else "a datagram socket"
        raise ParameterError(owner, "sock", sock, accepted)
    if sock.family not in {socket.AF_INET, socket.AF_INET6, AF_UNIX}:
        accepted = "a socket of the family AF_INET, AF_INET6 or AF_UNIX"
        raise ParameterError(owner, "sock", sock, accepted)


def check_options(owner: str, options: Iterable[Option]) -> tuple[Option, ...]:
    """Return the arguments of several calls of :meth:`socket.socket.setsockopt`."""
    accepted = "triples (level, option, value) for socket.setsockopt()"
    try:
        checked = tuple((level, option, value) for level, option, value in options)
    except TypeError:
        raise ParameterTypeError(owner, "options", options, accepted) from None
    except ValueError:
        raise ParameterError(owner, "options", options, accepted) from None
    numbers: list[Any] = [number for level, option, _ in checked for number in (level, option)]
    values: list[Any] = [value for _, _, value in checked]
    if not all(isinstance(number, int) for number in numbers) or not all(
        isinstance(value, int | bytes) for value in values
    ):
        raise ParameterTypeError(owner, "options", options, accepted)
    return checked


def host_and_port(family: int, address: Any) -> tuple[str, int | None]:
    """Return host and port of an address of the socket module. A path has no port."""
    if family == AF_UNIX:
        return os.fsdecode(address), None
    host, port = address[:2]
    if family == socket.AF_INET6 and address[3]:
        host = f"{host}%{socket.if_indextoname(address[3])}"
    return host, port


def format_url(scheme: str, family: int, address: Any) -> str:
    """Return an address of the socket module as a URL."""
    host, port = host_and_port(family, address)
    if port is None:
        return f"unix://{format_path(host)}"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def format_address(address: Any) -> str:
    """Return the address of a peer as text.

    :param address: the result of :meth:`socket.socket.getpeername`; None or empty if it has none.

    >>> format_address(("::1", 80, 0, 0))
    '[::1]:80'
    """
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return format_path(os.fsdecode(address)) if address else "an unnamed peer"


def format_path(path: str) -> str:
    """Return `path`, with ``@`` for the NUL of an abstract name, as ``ss`` and ``lsof`` show it."""
    return "@" + path[1:] if path.startswith("\0") else path
