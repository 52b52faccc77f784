"""Parse the header that a proxy sends before the data of its client (PROXY protocol).

The authority is HAProxy's ``doc/proxy-protocol.txt``, with these decisions where it leaves a
choice:

- Version 1 is a line in exactly the format of the document. UNKNOWN is accepted.
- Version 2 has at most :data:`MAX_SIZE` bytes. Its TLVs are skipped, the checksum among them: TCP
  has checksums of its own.
- LOCAL, UNSPEC and datagram transports are accepted without the address of a client.
"""

from __future__ import annotations

import os
import socket
from struct import Struct
from typing import Any, Final, NamedTuple

__all__ = ("MAX_LINE", "MAX_SIZE", "Malformed", "ProxyHeader", "parse_proxy_header")

# The most bytes in a header of version 1, with its CRLF.
MAX_LINE: Final = 107

# The most bytes in a header of version 2: what HAProxy itself can receive by default.
MAX_SIZE: Final = 16_384

_V1: Final = b"PROXY "
_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"

_FAMILIES: Final = {b"TCP4": socket.AF_INET, b"TCP6": socket.AF_INET6}
_MAX_PORT: Final = 65535

# Version 2: signature, version and command, family and transport, length of the rest.
_FIXED: Final = Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21
_STREAM, _DATAGRAM = 1, 2
_UNSPEC, _INET, _INET6, _UNIX = range(4)
# The addresses of client and server, and their ports.
_ADDRESSES: Final = {
    _INET: Struct("!4s4sHH"),
    _INET6: Struct("!16s16sHH"),
    _UNIX: Struct("108s108s"),
}

# The bytes of data without a header that a reason shows.
_SHOWN: Final = 16


class ProxyHeader(NamedTuple):
    """A complete header."""

    size: int
    """The number of its bytes."""
    client: Any
    """The address of the client as of :meth:`socket.socket.getpeername`; None if there is none."""


class Malformed(NamedTuple):
    """Data that does not begin with an accepted header."""

    reason: str
    """The object of "sent", for log messages."""


def parse_proxy_header(data: bytes | bytearray, version: str) -> ProxyHeader | Malformed | None:
    r"""Return the header that `data` begins with, or why it has none.

    :param data: all bytes received so far, from the first one on.
    :param version: the accepted version: ``"v1"``, ``"v2"`` or ``"any"``.
    :returns: None if more bytes are needed.

    >>> parse_proxy_header(b"PROXY TCP4 192.0.2.1 198.51.100.7 52011 80\r\nGET /", "any")
    ProxyHeader(size=44, client=('192.0.2.1', 52011))
    >>> parse_proxy_header(b"PROXY TCP4 192.0.2.1", "any")
    >>> parse_proxy_header(b"GET / HTTP/1.1\r\n", "v2")
    Malformed(reason="b'GET / HTTP/1.1\\r\\n' instead of a PROXY header (v2)")
    """
    try:
        if version != "v2" and _begins_with(data, _V1):
            return _parse_line(data)
        if version != "v1" and _begins_with(data, _V2):
            return _parse_binary(data)
    except ValueError as error:
        return Malformed(str(error))
    accepted = "v1 or v2" if version == "any" else version
    return Malformed(f"{bytes(data[:_SHOWN])!r} instead of a PROXY header ({accepted})")


def _begins_with(data: bytes | bytearray, mark: bytes) -> bool:
    """Return whether `data` begins with `mark`, as far as it was received."""
    return data[: len(mark)] == mark[: len(data)]


def _parse_line(data: bytes | bytearray) -> ProxyHeader | None:
    size = data.find(b"\n", 0, MAX_LINE) + 1
    if not size:
        if len(data) < MAX_LINE:
            return None
        raise ValueError(f"a PROXY header (v1) of more than {MAX_LINE} bytes")
    line = bytes(data[:size])
    if line.find(b"\r") != size - 2:
        raise ValueError(f"a PROXY header (v1) that does not end in CRLF: {line!r}")
    fields = line[:-2].split(b" ")
    if fields[1] == b"UNKNOWN":
        return ProxyHeader(size, None)
    try:
        _, protocol, source, destination, source_port, destination_port = fields
        family = _FAMILIES[protocol]
        client = _address_of(family, _packed(family, source), _port(source_port))
        _packed(family, destination)
        _port(destination_port)
    except (KeyError, OSError, ValueError):
        raise ValueError(f"a malformed PROXY header (v1): {line!r}") from None
    return ProxyHeader(size, client)


def _packed(family: int, text: bytes) -> bytes:
    return socket.inet_pton(family, text.decode("ascii"))


def _port(digits: bytes) -> int:
    if not digits.isdigit() or (digits[:1] == b"0" and digits != b"0"):
        raise ValueError
    if (port := int(digits)) > _MAX_PORT:
        raise ValueError
    return port


def _parse_binary(data: bytes | bytearray) -> ProxyHeader | None:
    if len(data) < _FIXED.size:
        return None
    _, command, kind, length = _FIXED.unpack_from(data)
    size = _FIXED.size + length
    family = _family_of(command, kind)
    addresses = _ADDRESSES.get(family)
    if size > MAX_SIZE:
        raise ValueError(f"a PROXY header (v2) of {size} bytes; at most {MAX_SIZE} are accepted")
    if addresses is not None and length < addresses.size:
        raise ValueError(f"a PROXY header (v2) of {size} bytes, too few for its addresses")
    if len(data) < size:
        return None
    if addresses is None:
        return ProxyHeader(size, None)
    source, _, *ports = addresses.unpack_from(data, _FIXED.size)
    if family == _UNIX:
        return ProxyHeader(size, _path(source))
    family = socket.AF_INET if family == _INET else socket.AF_INET6
    return ProxyHeader(size, _address_of(family, source, ports[0]))


def _family_of(command: int, kind: int) -> int:
    """Return the family of the addresses, which is UNSPEC if they are to be ignored."""
    if command == _LOCAL:
        return _UNSPEC
    family, transport = divmod(kind, 16)
    if command != _PROXY:
        raise ValueError(f"a PROXY header (v2) with version and command {command:#04x}")
    if family > _UNIX or transport > _DATAGRAM:
        raise ValueError(f"a PROXY header (v2) with family and transport {kind:#04x}")
    return family if transport == _STREAM else _UNSPEC


def _address_of(family: int, packed: bytes, port: int) -> tuple[Any, ...]:
    host = socket.inet_ntop(family, packed)
    return (host, port) if family == socket.AF_INET else (host, port, 0, 0)


def _path(source: bytes) -> str | bytes:
    """Return the path of a Unix socket; the name of an abstract one begins with NUL."""
    name = source.rstrip(b"\0")
    return name if name[:1] == b"\0" else os.fsdecode(name.partition(b"\0")[0])
