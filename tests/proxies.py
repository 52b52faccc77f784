"""Headers of the PROXY protocol, put together from their specification, and a proxy."""

import asyncio
import contextlib
import ipaddress
import os
import struct
from collections.abc import AsyncIterator
from typing import Any

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

UNIX_PATH = "/run/client.sock"


def v1(client: tuple[str, int], server: tuple[str, int] = ("198.51.100.7", 443)) -> bytes:
    """Return a header of version 1."""
    kind = "TCP6" if ":" in client[0] else "TCP4"
    if kind == "TCP6" and ":" not in server[0]:
        server = ("2001:db8::7", server[1])
    return f"PROXY {kind} {client[0]} {server[0]} {client[1]} {server[1]}\r\n".encode()


def v2(
    client: tuple[str, int] | str | bytes | None,
    *,
    command: int = 0x21,
    transport: int = 1,
    tlvs: bytes = b"",
) -> bytes:
    """Return a header of version 2.

    :param client: an IP address and port, the path of a Unix socket, or None for UNSPEC.
    """
    if client is None:
        return fixed(command, 0, len(tlvs)) + tlvs
    if isinstance(client, tuple):
        source = ipaddress.ip_address(client[0])
        family = 1 if source.version == 4 else 2
        addresses = 2 * source.packed + struct.pack("!HH", client[1], 443)
    else:
        family = 3
        path = os.fsencode(client)
        addresses = path.ljust(108, b"\0") + b"/run/server.sock".ljust(108, b"\0")
    rest = addresses + tlvs
    return fixed(command, family * 16 + transport, len(rest)) + rest


def fixed(command: int, kind: int, length: int) -> bytes:
    """Return the first 16 bytes of a header of version 2."""
    return SIGNATURE + struct.pack("!BBH", command, kind, length)


def tlv(kind: int, value: bytes) -> bytes:
    """Return a TLV of version 2."""
    return struct.pack("!BH", kind, len(value)) + value


LOCAL = v2(None, command=0x20)

# Complete headers, each with the address of its client, which is None if it names none.
HEADERS: dict[str, tuple[bytes, Any]] = {
    "v1-ipv4": (v1(("192.0.2.1", 56324)), ("192.0.2.1", 56324)),
    "v1-ipv6": (v1(("2001:db8::1", 56324)), ("2001:db8::1", 56324, 0, 0)),
    "v1-longest": (
        v1(("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535), ("ffff:" * 7 + "ffff", 65535)),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535, 0, 0),
    ),
    "v1-shortest": (v1(("1.2.3.4", 0), ("5.6.7.8", 0)), ("1.2.3.4", 0)),
    "v1-unknown": (b"PROXY UNKNOWN\r\n", None),
    "v1-unknown-with-addresses": (
        b"PROXY UNKNOWN " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n",
        None,
    ),
    "v2-ipv4": (v2(("192.0.2.1", 56324)), ("192.0.2.1", 56324)),
    "v2-ipv6": (v2(("2001:db8::1", 56324)), ("2001:db8::1", 56324, 0, 0)),
    "v2-unix": (v2(UNIX_PATH), UNIX_PATH),
    "v2-unix-unnamed": (v2(""), ""),
    "v2-unix-abstract": (v2(b"\0client"), b"\0client"),
    "v2-tlvs": (
        v2(("192.0.2.1", 56324), tlvs=tlv(0x04, b"\0" * 40) + tlv(0x02, b"example.com")),
        ("192.0.2.1", 56324),
    ),
    "v2-largest": (v2(("192.0.2.1", 1), tlvs=b"\0" * (16_384 - 28)), ("192.0.2.1", 1)),
    "v2-local": (LOCAL, None),
    "v2-local-with-addresses": (v2(("192.0.2.1", 1), command=0x20), None),
    "v2-unspec": (v2(None), None),
    "v2-unspec-with-data": (v2(None, tlvs=b"anything"), None),
    "v2-datagram": (v2(("192.0.2.1", 1), transport=2), None),
}


@contextlib.asynccontextmanager
async def relay(service: Any, header: bytes) -> AsyncIterator[int]:
    """Run a proxy that sends a header before the data of each client, and yield its port."""
    relays: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(str(service.address), service.port)
        there[1].write(header)
        for one in (copy(reader, there[1]), copy(there[0], writer)):
            relays.add(asyncio.create_task(one))

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in relays:
            task.cancel()
        await asyncio.gather(*relays, return_exceptions=True)
