"""Transports that answer with the address of the client behind a proxy.

``get_extra_info("peername")`` is the client's address and ``get_extra_info("proxy")`` the proxy's.
``get_extra_info("socket").getpeername()`` is the client's as well, because uvicorn calls that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("show_client", "show_same_client", "unwrap")


def show_client(transport: Any, client: Any, proxy: Any) -> Any:
    """Return `transport`, or one in its place, that answers with these addresses.

    asyncio's transport stays itself, because ``sendfile()`` and ``start_tls()`` use more of it than
    its public methods. TLS above it asks it for the addresses. uvloop's transport can't be changed,
    and another object takes its place; uvloop has no ``sendfile()``.

    :param client: the address of the client.
    :param proxy: the address of the proxy.
    """
    return _show(transport, _Addresses(client, proxy))


def show_same_client(transport: Any, below: Any) -> Any:
    """Return `transport`, of TLS above `below`, or one in its place that shows the same client."""
    if isinstance(below, _ProxiedTransport):
        return _show(transport, below.addresses)
    return transport  # asyncio's asks the one below


def unwrap(transport: Any) -> Any:
    """Return the transport that the loop created, which alone has a place in its functions."""
    return transport.own if isinstance(transport, _ProxiedTransport) else transport


class _Addresses(NamedTuple):
    """The addresses that a transport answers with."""

    client: Any
    proxy: Any

    def get(self, ask: Callable[[str, Any], Any], name: str, default: Any) -> Any:
        """Return information about the connection; `ask` returns that of the transport."""
        if name == "peername":
            return self.client
        if name == "proxy":
            return self.proxy
        found = ask(name, default)
        if name == "socket" and found is not None:
            return _ProxiedSocket(found, self.client)
        return found


def _show(transport: Any, addresses: _Addresses) -> Any:
    if not hasattr(transport, "__dict__"):
        return _ProxiedTransport(transport, addresses)
    of_class = type(transport).get_extra_info
    own = ref(transport)  # a reference cycle otherwise

    def ask(name: str, default: Any) -> Any:
        return of_class(own(), name, default)

    def get_extra_info(name: str, default: Any = None) -> Any:
        return addresses.get(ask, name, default)

    transport.get_extra_info = get_extra_info
    return transport


class _ProxiedTransport:
    """A transport of uvloop and the addresses that it can't be given."""

    __slots__ = ("__weakref__", "addresses", "own")

    def __init__(self, own: Any, addresses: _Addresses) -> None:
        self.own = own
        self.addresses = addresses

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def __repr__(self) -> str:
        return repr(self.own)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return information about the connection, by a name like ``"peername"``."""
        return self.addresses.get(self.own.get_extra_info, name, default)


class _ProxiedSocket:
    """The socket of a transport, whose peer is the client behind the proxy."""

    __slots__ = ("_client", "_sock")

    def __init__(self, sock: Any, client: Any) -> None:
        self._sock = sock
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def __repr__(self) -> str:
        return repr(self._sock)

    def getpeername(self) -> Any:
        """Return the address of the client."""
        return self._client
