"""Connect to the endpoint of a server: an address and port, or a path."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

from svcrun._net.addresses import (
    AF_UNIX,
    check_address,
    check_options,
    check_path,
    check_port,
    format_path,
    path_of,
)
from svcrun._net.keepalive import set_keepalive
from svcrun._util.drain import GRACE_PERIOD
from svcrun.errors import NoEndpoint, ParameterError

if TYPE_CHECKING:
    import os
    import ssl
    from collections.abc import Iterable

    from svcrun._net.addresses import Option
    from svcrun._net.name_resolver import NameResolver

    Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

__all__ = ("Connector", "close_stream")


class Connector:
    """Connect to a server, each time from the start: resolve its name, connect, shake hands.

    The parameters are checked when the connector is created.

    :param owner: how error messages name the client.
    :param address: an IP address, a host name, or the path of a Unix socket. A host name is
        resolved for each connection, and its addresses are tried in their order.
    :param port: 1 to 65535; None beside a path.
    :param options: socket options as ``(level, option, value)``, set before the connection is made.
    :param keepalive: seconds of silence after which TCP checks whether the peer is still there;
        None for no checks.
    :param scheme: how messages name the protocol.
    :raises NoEndpoint: a :class:`ValueError` and :class:`RuntimeError`, if address or port is
        missing.
    :raises ValueError, TypeError: naming a parameter whose value is not accepted.
    """

    def __init__(
        self,
        owner: str,
        *,
        address: str | os.PathLike[str] | None,
        port: int | None,
        options: Iterable[Option] = (),
        keepalive: float | None = None,
        scheme: str = "tcp",
    ) -> None:
        if address is None:
            raise NoEndpoint(owner, "an address to connect to")
        self.options = check_options(owner, options)
        self.keepalive = keepalive
        self.scheme = scheme
        self.host = ""
        self.path: str | None = None
        self.port = 0
        path = path_of(address)
        if path is not None:
            self.path = check_path(owner, path)
            if port:
                raise ParameterError(owner, "port", port, f"None beside the path {self.path!r}")
        else:
            self.host = check_address(owner, address)[0]
            if port is None:
                raise NoEndpoint(owner, f"a port beside address={address!r}")
            self.port = check_port(owner, port)
            if not self.port:
                raise ParameterError(owner, "port", port, "between 1 and 65535")

    def __str__(self) -> str:
        """Return the endpoint as a URL."""
        if self.path is not None:
            return f"unix://{format_path(self.path)}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    async def open(
        self,
        resolver: NameResolver,
        *,
        limit: int,
        context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        handshake_timeout: float | None = None,
    ) -> Streams:
        """Return asyncio's streams of a new connection. A failure leaves no socket.

        :param limit: the maximum number of bytes in a line.
        :param context: the SSL context for TLS.
        :param server_hostname: the name that the server's certificate must have; the host by
            default.
        :param handshake_timeout: the limit of the TLS handshake, in seconds.
        :raises OSError: if the connection can't be made, with the error of the last address.
        """
        sock = await self._connect(resolver)
        options: dict[str, Any] = {}
        if context is not None:
            name = self.host if server_hostname is None else server_hostname
            options = {
                "ssl": context,
                "server_hostname": name,
                "ssl_handshake_timeout": handshake_timeout,
            }
        streams = asyncio.open_connection if self.path is None else asyncio.open_unix_connection
        try:
            return await streams(sock=sock, limit=limit, **options)
        except BaseException:
            sock.close()
            raise

    async def _connect(self, resolver: NameResolver) -> socket.socket:
        if self.path is not None:
            return await self._connect_to(AF_UNIX or 0, self.path)
        error: OSError | None = None
        for family, _, _, _, address in await resolver.resolve(self.host, self.port):
            try:
                return await self._connect_to(family, address)
            except OSError as failure:
                error = failure
        try:
            raise error or OSError(f"{self.host} has no address")
        finally:
            del error  # its traceback refers to this frame: a reference cycle

    async def _connect_to(self, family: int, address: Any) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if family != AF_UNIX and self.keepalive is not None:
                set_keepalive(sock, self.keepalive)
            for option in self.options:
                sock.setsockopt(*option)
            await asyncio.get_running_loop().sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
        return sock


async def close_stream(writer: asyncio.StreamWriter) -> None:
    """Close the connection of `writer`.

    The peer has :data:`GRACE_PERIOD` to receive the rest of the output and to end TLS.
    """
    writer.close()
    try:
        async with asyncio.timeout(GRACE_PERIOD):
            await writer.wait_closed()
    except OSError:
        pass  # the connection was lost, or the peer took too long
    finally:
        writer.transport.abort()
