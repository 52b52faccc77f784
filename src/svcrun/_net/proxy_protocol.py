"""Receive the header of a proxy at the beginning of each connection of a server.

A connection of such a server has three phases:

1. The peer is checked when the connection is made: it has to be a trusted proxy.
2. :class:`HeaderReceiver` is the protocol of the transport until the header is complete.
3. The protocol that would otherwise have had the connection from the beginning replaces it. It
   gets a transport that shows the client, and the bytes after the header. TLS begins only now.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

from svcrun._net.addresses import format_address
from svcrun._net.proxied_transport import show_client
from svcrun._net.proxy_header import Malformed, ProxyHeader, parse_proxy_header
from svcrun._net.stream_writer import extra_info
from svcrun._util.rate_limited_log import RateLimitedLog
from svcrun.errors import ParameterError, ParameterTypeError, show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from svcrun._net.admission import Admission

    Network = IPv4Network | IPv6Network
    Trusted = Iterable[str | IPv4Address | IPv6Address | IPv4Network | IPv6Network]

__all__ = ("HeaderReceiver", "ProxyParameters", "ProxyProtocol", "networks_of")

log = logging.getLogger("svcrun.net")

# The most lines per second about refused connections; further ones share a line.
MAX_LINES: Final = 10

# The prefix of ::ffff:0:0/96, the addresses of IPv4 mapped to IPv6.
_MAPPED_PREFIX: Final = 96


class ProxyParameters(Protocol):
    """A server behind proxies, as far as their connections use it."""

    @property
    def proxy_protocol(self) -> str | None:
        """The accepted version."""

    @property
    def proxy_trusted(self) -> Trusted:
        """The addresses and networks of the proxies."""

    @property
    def proxy_timeout(self) -> float:
        """The time limit for the header, in seconds."""


def networks_of(owner: object, name: str, trusted: Trusted) -> tuple[Network, ...]:
    """Return the networks of a parameter.

    :raises ValueError, TypeError: naming the entry that is not accepted.
    """
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

    accepted = "addresses and networks such as ('127.0.0.1', '10.0.0.0/8')"
    if isinstance(trusted, str):
        raise ParameterTypeError(owner, name, trusted, accepted)
    try:
        entries = tuple(trusted)
    except TypeError:
        raise ParameterTypeError(owner, name, trusted, accepted) from None
    networks: list[Network] = []
    for entry in entries:
        if not isinstance(entry, str | IPv4Address | IPv6Address | IPv4Network | IPv6Network):
            raise ParameterTypeError(owner, name, entry, accepted)
        try:
            network = ip_network(entry)
        except ValueError as error:
            reason = " without host bits" if "host bits" in str(error) else ""
            raise ParameterError(owner, name, entry, f"{accepted}{reason}") from None
        mapped = getattr(network.network_address, "ipv4_mapped", None)
        if mapped is not None and network.prefixlen >= _MAPPED_PREFIX:
            network = IPv4Network((mapped, network.prefixlen - _MAPPED_PREFIX))
        networks.append(network)
    return tuple(networks)


class ProxyProtocol:
    """The connections of a server whose header is not complete, and those that it refused.

    :param server: the server, named in log messages.
    :param version: the accepted version.
    :param admission: counts the refused connections.
    :param on_lost: called with the protocol of a connection that has ended before its header.
    """

    def __init__(
        self,
        server: ProxyParameters,
        version: str,
        admission: Admission,
        on_lost: Callable[[Any], None] | None,
    ) -> None:
        self.server = server
        self.version = version
        self.timeout = server.proxy_timeout
        self.admission = admission
        self.on_lost = on_lost
        self.waiting: set[HeaderReceiver] = set()
        self.is_closed = False
        self._networks = networks_of(server, "proxy_trusted", server.proxy_trusted)
        # The lines of the current second, and when it began.
        self._lines = 0
        self._second = 0.0
        self._further = {
            level: RateLimitedLog(log, level) for level in (logging.INFO, logging.WARNING)
        }

    def after_header(self, make: Callable[[], Any]) -> Callable[[], HeaderReceiver]:
        """Return a function that creates the protocols of new connections.

        :param make: creates the protocol that follows.
        """
        return lambda: HeaderReceiver(self, make())

    def trusts(self, peer: Any) -> bool:
        """Return whether a header of this peer is accepted. Unix peers are trusted.

        :param peer: its address as of :meth:`socket.socket.getpeername`.
        """
        if not isinstance(peer, tuple):
            return True
        from ipaddress import ip_address

        address: Any = ip_address(peer[0])
        # A server of IPv6 and IPv4 shows a client of IPv4 by its address mapped to IPv6.
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._networks)

    def refuse(self, peer: Any, reason: str, level: int = logging.WARNING) -> None:
        """Log a refused connection."""
        message = "%s: refused the connection from %s: %s"
        now = monotonic()
        if now - self._second >= 1:
            self._second, self._lines = now, 0
        self._lines += 1
        if self._lines <= MAX_LINES:
            log.log(level, message, show(self.server), format_address(peer), reason)
        else:
            further = self._further[level]
            further.add(message, show(self.server), format_address(peer), reason)

    def close(self) -> None:
        """Close the connections whose header is not complete, and all that follow."""
        self.is_closed = True
        for receiver in tuple(self.waiting):
            receiver.abort()
        for further in self._further.values():
            further.close()


class HeaderReceiver(asyncio.Protocol):
    """The protocol of a connection until the header is complete.

    :param protocol: the protocol that follows.
    """

    # The transport and the address of the peer, as soon as the connection is made.
    _transport: Any = None
    _peer: Any = None
    # Ends the connection if the header is late.
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, proxy: ProxyProtocol, protocol: Any) -> None:
        self._proxy = proxy
        self._protocol = protocol
        self._received = bytearray()

    def connection_made(self, transport: Any) -> None:
        """Check the peer, and wait for the header."""
        proxy = self._proxy
        self._transport = transport
        self._peer = extra_info(transport, "peername")
        if proxy.is_closed:
            # Race: uvloop accepted the connection before the listener was closed.
            self.abort()
        elif self._peer is None:
            self._refuse("client disconnected", logging.INFO)
        elif not proxy.trusts(self._peer):
            self._refuse("it is not in proxy_trusted")
        else:
            proxy.waiting.add(self)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(proxy.timeout, self._time_out)

    def data_received(self, data: bytes) -> None:
        """Receive a part of the header, and perhaps the beginning of what follows it."""
        proxy = self._proxy
        if self not in proxy.waiting:
            return  # race: it was refused in this iteration of the loop
        self._received += data
        found = parse_proxy_header(self._received, proxy.version)
        if isinstance(found, Malformed):
            self._refuse(f"it sent {found.reason}")
        elif found is not None:
            self._stop_waiting()
            self._hand_over(found)

    def eof_received(self) -> None:
        """Close the connection: a header can't follow any more."""
        if self in self._proxy.waiting:
            # A health check that only connects deserves no warning.
            level = logging.WARNING if self._received else logging.INFO
            self._refuse("it disconnected before its PROXY header was complete", level)

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002 - a reset or None
        """Give up the protocol that would have followed."""
        self.eof_received()
        if self._proxy.on_lost is not None:
            self._proxy.on_lost(self._protocol)

    def abort(self) -> None:
        """Close the connection without waiting for its header."""
        self._stop_waiting()
        self._proxy.admission.refused += 1
        self._transport.abort()

    def _time_out(self) -> None:
        limit = f"within proxy_timeout={self._proxy.timeout:g} s"
        what = "only a part of its PROXY header" if self._received else "no PROXY header"
        self._refuse(f"it sent {what} {limit}")

    def _refuse(self, reason: str, level: int = logging.WARNING) -> None:
        self.abort()
        self._proxy.refuse(self._peer, reason, level)

    def _stop_waiting(self) -> None:
        self._proxy.waiting.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def _hand_over(self, header: ProxyHeader) -> None:
        transport, protocol = self._transport, self._protocol
        if header.client is not None:
            transport = show_client(transport, header.client, self._peer)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if rest := bytes(self._received[header.size :]):
            is_eager = asyncio.get_running_loop().get_task_factory() is None
            self._pass_on(transport, rest, is_eager=is_eager)

    def _pass_on(self, transport: Any, rest: bytes, *, is_eager: bool) -> None:
        """Pass the bytes after the header to the protocol, or to TLS if that has begun.

        Invariant: no data is read before these bytes have been passed on.

        :param is_eager: whether the protocol has taken its first step, which may begin TLS.
        """
        loop = asyncio.get_running_loop()
        if transport.is_closing():
            pass
        elif transport.get_protocol() is not self._protocol:
            # start_tls() has paused the transport, and scheduled connection_made() of its layer.
            loop.call_soon(_feed, transport, rest)
        elif is_eager:
            self._protocol.data_received(rest)
        else:
            # A task factory schedules the first step of the task that the protocol has created.
            transport.pause_reading()
            loop.call_soon(self._pass_on_after_first_step, transport, rest)

    def _pass_on_after_first_step(self, transport: Any, rest: bytes) -> None:
        if transport.get_protocol() is self._protocol:
            transport.resume_reading()
        self._pass_on(transport, rest, is_eager=True)


def _feed(transport: Any, data: bytes) -> None:
    """Pass data to the layer of TLS, as if `transport` had received it."""
    layer = transport.get_protocol()
    view = memoryview(data)
    while view and not transport.is_closing():
        buffer = memoryview(layer.get_buffer(len(view)))
        size = min(len(buffer), len(view))
        buffer[:size] = view[:size]
        layer.buffer_updated(size)
        view = view[size:]
