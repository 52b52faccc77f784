"""Create and bind sockets."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from svcrun._net.endpoint import Endpoint as Endpoint

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from svcrun._net.addresses import Option

__all__ = ("Endpoint", "bind_socket")


def bind_socket(
    *args: int,
    address: str | os.PathLike[str],
    port: int = 0,
    options: Iterable[Option] = (),
    reuse_addr: bool = True,
    reuse_port: bool = False,
    proto_name: str | None = None,
) -> socket.socket:
    """Create a non-blocking socket and bind it.

    :param args: address family and type, as for :class:`socket.socket`; by default a stream socket
        of the family of `address`.
    :param address: an IP address, a host name, or the path of a Unix socket.
    :param port: 0 to 65535; 0 selects a free port.
    :param options: socket options as ``(level, option, value)``.
    :param reuse_addr: set ``SO_REUSEADDR`` on a stream socket.
    :param reuse_port: set ``SO_REUSEPORT``, so that several processes can share the port. Off by
        default.
    :param proto_name: how log messages name the protocol; ``tcp`` by default.
    :raises ValueError, TypeError: naming a parameter whose value is not accepted.
    :raises OSError: if the address can't be bound. The error names the address.

    >>> with bind_socket(address="127.0.0.1") as sock:
    ...     sock.getsockname()[0]
    '127.0.0.1'
    """
    endpoint = Endpoint(
        "bind_socket",
        address=address,
        port=port,
        options=options,
        reuse_addr=reuse_addr,
        reuse_port=reuse_port,
        family=args[0] if args else None,
        kind=args[1] if len(args) > 1 else socket.SOCK_STREAM,
        scheme=proto_name or "tcp",
    )
    sock = endpoint.bind()
    if endpoint.kind != socket.SOCK_DGRAM:
        endpoint.log_listening(sock)  # the caller will listen on it
    return sock
