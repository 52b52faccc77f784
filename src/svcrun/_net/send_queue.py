"""Send datagrams without waiting, and queue those that the socket does not accept at once."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from svcrun._net.addresses import format_address
from svcrun.errors import ParameterError, ParameterTypeError

if TYPE_CHECKING:
    from svcrun._util.rate_limited_log import RateLimitedLog

    Data = bytes | bytearray | memoryview

__all__ = ("SendQueue",)

log = logging.getLogger("svcrun.service.udp")

# The maximum size of the queue in bytes. Each datagram adds an overhead, so that empty ones count.
MAX_SIZE: Final = 1_048_576
OVERHEAD: Final = 128

# Seconds until the next attempt when polling does not report that a peer is ready.
RETRY_DELAY: Final = 0.02

# The maximum of hosts that are remembered as IP addresses.
MAX_KNOWN_HOSTS: Final = 1024


class SendQueue:
    """Send datagrams through a non-blocking socket.

    Datagrams to one address are sent in their order. Like a datagram transport, it counts errors of
    the network instead of raising them: the system may report them with a later datagram.

    :param owner: the server, as log messages show it.
    :param loop: the event loop that sends the queue.
    :param sock: the socket. It stays open after :meth:`close`.
    :param unsent: counts and logs datagrams that were not sent.
    """

    def __init__(
        self,
        owner: object,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        unsent: RateLimitedLog,
    ) -> None:
        self._owner = owner
        self._loop = loop
        self._fd = sock.fileno()
        self._family = sock.family
        self._is_unix = sock.family not in {socket.AF_INET, socket.AF_INET6}
        self._sendto = sock.sendto
        self._unsent = unsent
        # Known IP addresses. sendto() would resolve a host name, and block the loop meanwhile.
        self._hosts: set[str] = set()

        self._queues: dict[Any, deque[bytes]] = {}
        self._size = 0
        self._retry: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Future[None] | None = None

    def send(self, data: Data, addr: Any) -> None:
        """Send `data` to `addr` now, or as soon as the socket accepts it.

        :raises OSError: ``EMSGSIZE`` if `data` is too long for a datagram.
        :raises ValueError: if `addr` is not an address of the socket's family.
        :raises TypeError: if `addr` or `data` has a wrong type.
        """
        try:
            if self._is_unix or addr[0] in self._hosts:
                if self._queues and addr in self._queues:
                    self._queue(data, addr)
                else:
                    self._sendto(data, addr)
                return
        except BlockingIOError:
            self._queue(data, addr)
            return
        except OSError as error:
            self._failed(error, data, addr)
            return
        except (TypeError, ValueError, LookupError, OverflowError):
            self._check(data, addr)
            raise

        self._check(data, addr)
        if len(self._hosts) >= MAX_KNOWN_HOSTS:
            self._hosts.clear()
        self._hosts.add(addr[0])
        self.send(data, addr)

    async def flush(self, timeout: float) -> None:
        """Wait until the queue is empty, for `timeout` seconds at most."""
        if self._queues:
            self._emptied = self._loop.create_future()
            await asyncio.wait((self._emptied,), timeout=timeout)

    def close(self) -> None:
        """Discard the queue, and count its datagrams as unsent. Idempotent."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        elif self._queues:
            self._loop.remove_writer(self._fd)
        for addr, queue in self._queues.items():
            for _ in queue:
                self._count(addr, "the server stopped before the socket accepted it")
        self._queues.clear()
        self._size = 0

    # The queue.

    def _queue(self, data: Data, addr: Any) -> None:
        data = bytes(data)
        if self._size + len(data) + OVERHEAD > MAX_SIZE:
            self._count(addr, f"the send queue is full ({MAX_SIZE} bytes)")
            return
        if not self._queues:
            self._loop.add_writer(self._fd, self._on_writable)
        self._size += len(data) + OVERHEAD
        self._queues.setdefault(addr, deque()).append(data)

    def _on_writable(self) -> None:
        before = self._size
        # One queue for each address keeps the order for it, while a full Unix peer delays no other.
        for addr in tuple(self._queues):
            if self._send_queued(addr):
                del self._queues[addr]
            elif not self._is_unix:
                break  # the socket is full for every address; with Unix, one peer may be full

        if not self._queues:
            self._loop.remove_writer(self._fd)
            if self._emptied is not None and not self._emptied.done():
                self._emptied.set_result(None)
        elif self._size == before:
            # Polling reports that this socket has space, not that a Unix peer has.
            self._loop.remove_writer(self._fd)
            self._retry = self._loop.call_later(RETRY_DELAY, self._poll_again)

    def _poll_again(self) -> None:
        self._retry = None
        self._loop.add_writer(self._fd, self._on_writable)

    def _send_queued(self, addr: Any) -> bool:
        """Send the queued datagrams for `addr`; return whether all of them were sent."""
        queue = self._queues[addr]
        while queue:
            data = queue[0]
            try:
                self._sendto(data, addr)
            except BlockingIOError:
                return False
            except OSError as error:
                self._count(addr, error)
            queue.popleft()
            self._size -= len(data) + OVERHEAD
        return True

    # Errors.

    def _failed(self, error: OSError, data: Data, addr: Any) -> None:
        # Other errors do not concern the caller: the sender of a datagram can forge its address.
        if error.errno in {errno.EMSGSIZE, None}:
            raise type(error)(
                error.errno or errno.EINVAL,
                f"{self._owner!r}: could not send {len(data)} bytes to {format_address(addr)}: "
                f"{error.strerror or error}",
            ) from error
        self._count(addr, error)

    def _count(self, addr: Any, reason: object) -> None:
        if isinstance(reason, OSError) and reason.errno == errno.EACCES and not self._is_unix:
            reason = f"{reason}; a broadcast address requires broadcast=True"
        self._unsent.add(
            "%r: could not send a datagram to %s: %s", self._owner, format_address(addr), reason
        )

    def _check(self, data: object, addr: Any) -> None:
        """Raise an error if `data` or `addr` is not accepted."""
        try:
            memoryview(data)  # type: ignore[arg-type]
        except TypeError:
            raise ParameterTypeError(self._owner, "data", data, "bytes") from None

        if self._is_unix:
            accepted = "the path of a bound Unix socket"
            if not isinstance(addr, str | bytes):
                raise ParameterTypeError(self._owner, "addr", addr, accepted)
            if not addr:
                raise ParameterError(self._owner, "addr", addr, accepted)
            return

        version = "4" if self._family == socket.AF_INET else "6"
        accepted = f"a tuple (IPv{version} address, port)"
        if not (
            isinstance(addr, tuple)
            and len(addr) >= 2  # noqa: PLR2004 - an IPv6 address has four parts
            and isinstance(addr[0], str)
            and all(isinstance(part, int) for part in addr[1:])
        ):
            raise ParameterTypeError(self._owner, "addr", addr, accepted)
        host, port = addr[:2]
        if not 0 <= port <= 65_535:  # noqa: PLR2004 - the highest port
            raise ParameterError(
                self._owner, "addr", addr, f"{accepted} with a port between 1 and 65535"
            )
        try:
            socket.inet_pton(self._family, host.partition("%")[0])
        except (OSError, ValueError):
            hint = "resolve a host name with loop.getaddrinfo()"
            if version == "6" and ":" not in host:
                hint += "; write an IPv4 address as ::ffff:192.0.2.1"
            raise ParameterError(self._owner, "addr", addr, f"{accepted} ({hint})") from None
