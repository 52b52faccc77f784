"""A server of datagrams.

Datagrams arrive in ``svcrun/_net/datagrams.py``, and leave through ``svcrun/_net/send_queue.py``.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from svcrun._net import multicast
from svcrun._net.addresses import AF_UNIX
from svcrun._net.datagrams import WorkerPool
from svcrun._net.send_queue import SendQueue
from svcrun._util.callables import is_coroutine_function
from svcrun._util.rate_limited_log import RateLimitedLog
from svcrun._util.validation import number, switch
from svcrun.errors import AlreadyRunning, NotRunning, ParameterError
from svcrun.service._internals import overridable, part_of
from svcrun.service._listening import Listening
from svcrun.service._parameters import several
from svcrun.service.base import SimpleServer, parameter, tasks_of
from svcrun.sockets import bind_socket as bind_socket
from svcrun.utils import OptionsType as OptionsType, awaitable as awaitable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from svcrun._net.endpoint import Endpoint

    Address: TypeAlias = str | IPv4Address | IPv6Address
    Group: TypeAlias = Address | tuple[Address, Address | int]

__all__ = ("UDPServer",)

log = logging.getLogger(__name__)

TransportType: TypeAlias = asyncio.DatagramTransport | None
"""The transport of a server, if it has one."""


def _check_groups(owner: object, name: str, value: Any) -> Any:
    value = several(owner, name, value)
    multicast.check_groups(owner, name, value)
    return value


class UDPServer(Listening, SimpleServer, base=True):
    """Call :meth:`handle_datagram` for each datagram that arrives at an address.

    :param address: an IP address (``"::"`` for all, of IPv6 and IPv4), a host name, or the path of
        a Unix socket.
    :param port: 0 to 65535; 0 selects a free port. While the server runs, :attr:`address` and
        :attr:`port` are those of the bound socket.
    :param options: socket options as ``(level, option, value)``. A larger ``SO_RCVBUF`` holds
        longer bursts.
    :param sock: a bound datagram socket, instead of `address` and `port`. The server closes it when
        it stops. Or ``"fd:NAME"``, the datagram socket that systemd has passed under that name. It
        stays open for the next start. If none was passed, `address` and `port` are bound.
    :param path: the path of a Unix socket, instead of `address` and `port`.
    :param reuse_port: let several processes share the port. The system assigns each sender to one
        of them, while each process receives the datagrams of a group. Off by default.
    :param groups: multicast groups to join, each an IP address, or a pair of it and the interface
        to receive it on: an address of that, its name or its index. By default, the system chooses
        the interface. Bind ``"0.0.0.0"``, ``"::"`` or the group. The stop leaves the groups.
    :param broadcast: allow :meth:`sendto` a broadcast address. Off by default.
    :param max_tasks: the maximum number of handlers in flight; 1024 by default. More datagrams are
        dropped and counted in :attr:`dropped`.
    :param drain_timeout: seconds that handlers in flight may continue during a stop; 5 by default,
        0 to cancel them at once.

    :raises ValueError, TypeError: naming a parameter whose value is not accepted.

    An exception of a handler is logged with the address of the sender, and does not affect other
    datagrams.

    .. code-block:: python

        class Echo(UDPServer):
            async def handle_datagram(self, data, addr):
                self.sendto(data, addr)


        with entrypoint(Echo(address="::1", port=3000)) as loop:
            loop.run_forever()
    """

    _svcrun_handlers: ClassVar[Any] = ("handle_datagram",)

    PROTO_NAME = "udp"
    SOCKET_KIND = socket.SOCK_DGRAM

    max_tasks: int = parameter(default=1024, check=number(low=1, whole=True, unit="handlers"))
    drain_timeout: float = parameter(default=5, check=number(low=0, unit="seconds"))
    groups: Iterable[Group] = parameter(default=(), check=_check_groups)
    broadcast: bool = parameter(default=False, check=switch)

    def _svcrun_check_together(self) -> None:
        super()._svcrun_check_together()
        endpoint = self._svcrun_endpoint
        family = endpoint.family if endpoint.sock is None else endpoint.sock.family
        multicast.check_family(self, self.__groups(), family)
        if family == AF_UNIX and self.__broadcasts():
            raise ParameterError(self, "broadcast", True, "False for a Unix socket")

    def _svcrun_make_endpoint(self) -> Endpoint:
        endpoint = super()._svcrun_make_endpoint()
        if self.__broadcasts():
            endpoint.options += ((socket.SOL_SOCKET, socket.SO_BROADCAST, 1),)
        return endpoint

    def __groups(self) -> tuple[multicast.Group, ...]:
        """Return the groups; none if a subclass has a method of that name."""
        groups = self.groups
        return () if callable(groups) else multicast.check_groups(self, "groups", groups)

    def __broadcasts(self) -> bool:
        return self.broadcast is True  # a subclass may have a method of that name

    @overridable
    def dropped(self) -> int:
        """The number of datagrams dropped because `max_tasks` handlers were in flight."""
        return part_of(self, _Datagrams).dropped.total

    @overridable
    def unsent(self) -> int:
        """The number of datagrams that :meth:`sendto` accepted and that could not be sent."""
        return part_of(self, _Datagrams).unsent.total

    def _svcrun_measure(self) -> dict[str, float]:
        own = part_of(self, _Datagrams)
        return {
            "datagrams_dropped_total": own.dropped.total,
            "datagrams_unsent_total": own.unsent.total,
        }

    @abstractmethod
    def handle_datagram(self, data: bytes, addr: Any) -> Any:
        """Handle a datagram.

        It is called once for each datagram, in the order of their arrival. Handlers run
        concurrently, each in a task of its own while it runs. A handler that never waits costs no
        task.

        :param data: the contents, which may be empty.
        :param addr: the address of the sender. It is a tuple of IP address and port, with two more
            items for IPv6, or the path of a Unix socket, None if that socket is not bound.
        """
        raise NotImplementedError

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any) -> None:
        """Send a datagram without waiting.

        A datagram that the socket does not accept at once is queued. The queue holds up to 1 MiB.
        Datagrams beyond that, and those that the system refuses to send, are counted in
        :attr:`unsent` and logged at a limited rate.

        :param data: the contents, at most 65,507 bytes with IPv4.
        :param addr: the address of the receiver, in the form that :meth:`handle_datagram` gets.
            Host names are not resolved.

        :raises RuntimeError: if the server is not running.
        :raises OSError: ``EMSGSIZE`` if `data` is too long for a datagram.
        :raises ValueError: if `addr` is not an address of the server's family.
        :raises TypeError: if `data` or `addr` has a wrong type.
        """
        send_queue = part_of(self, _Datagrams).send_queue
        if send_queue is None:
            raise NotRunning(self, "sendto()")
        send_queue.send(data, addr)

    async def start(self) -> None:
        """Bind the socket and start to receive datagrams.

        :raises OSError: if the address can't be bound, or a group not joined. The error names the
            service, and address and port, or group and interface.
        """
        own = part_of(self, _Datagrams)
        if own.pool is not None:
            raise AlreadyRunning(self)
        handle: Any = self.handle_datagram
        if not is_coroutine_function(handle):
            from svcrun.utils import awaitable

            handle = awaitable(handle)

        groups = self.__groups()
        loop = asyncio.get_running_loop()
        sock = await self._svcrun_bind()
        try:
            multicast.check_family(self, groups, sock.family, sock)
            own.joined = multicast.join(self, sock, groups)
            own.pool = WorkerPool(
                self,
                loop,
                sock,
                handle,
                max_tasks=self.max_tasks,
                dropped=own.dropped,
                failures=own.failures,
            )
        except BaseException:
            self.__unbind(own)
            raise
        own.send_queue = SendQueue(self, loop, sock, own.unsent)

    async def stop(self, exception: Any = None) -> None:
        """Stop reading, drain the handlers, send the queue, and close the socket.

        A handler may call this, and is then not waited for. Concurrent calls return together.
        """
        own = part_of(self, _Datagrams)
        pool, send_queue = own.pool, own.send_queue
        if pool is None or send_queue is None:
            await super().stop(exception)
            return
        if await pool.stop.in_progress():
            return

        loop = asyncio.get_running_loop()
        # The handlers and the send queue share one time limit: handlers add to the queue.
        deadline = loop.time() + self.drain_timeout
        with pool.stop:
            try:
                await pool.close(self.drain_timeout)
                await super().stop(exception)
                await send_queue.flush(max(0, deadline - loop.time()))
            except BaseException:
                # The stop was cut short: cancel the rest without waiting for it.
                pool.cancel()
                for task in tasks_of(self) - {asyncio.current_task()}:
                    task.cancel()
                raise
            finally:
                send_queue.close()
                self.__unbind(own)
                own.pool = own.send_queue = None
                for counter in (own.dropped, own.unsent, own.failures):
                    counter.close()

    def __unbind(self, own: _Datagrams) -> None:
        joined, own.joined = own.joined, ()
        if self._svcrun_socket is not None:
            multicast.leave(self._svcrun_socket, joined)
        self._svcrun_unbind()


class _Datagrams:
    """The worker pool and the send queue of a server, and the counts of lost datagrams."""

    def __init__(self, _: UDPServer) -> None:
        self.pool: WorkerPool | None = None
        self.send_queue: SendQueue | None = None
        self.joined: Sequence[tuple[int, int, bytes]] = ()
        self.dropped = RateLimitedLog(log)
        self.unsent = RateLimitedLog(log)
        self.failures = RateLimitedLog(log)
