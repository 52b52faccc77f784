"""A server that handles datagrams."""

from __future__ import annotations

import asyncio
import logging
import socket
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from svcrun._net.datagrams import WorkerPool
from svcrun._net.endpoint import bind_socket as bind_socket
from svcrun._net.send_queue import SendQueue
from svcrun._util.callables import is_coroutine_function
from svcrun._util.rate_limited_log import RateLimitedLog
from svcrun._util.validation import number
from svcrun.errors import AlreadyRunning, NotRunning
from svcrun.service._internals import overridable, part_of
from svcrun.service._listening import Listening
from svcrun.service.base import SimpleServer, parameter, tasks_of
from svcrun.utils import OptionsType as OptionsType, awaitable as awaitable

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable

    from svcrun._net.addresses import Option

__all__ = ("UDPServer",)

log = logging.getLogger(__name__)

TransportType: TypeAlias = asyncio.DatagramTransport | None
"""The transport of a server, if it has one."""


class UDPServer(Listening, SimpleServer):
    """Handle each datagram that arrives at an address with a call of :meth:`handle_datagram`.

    :param address: an IP address, a host name, or the path of a Unix socket; ``"::"`` stands for
        all addresses, those of IPv4 included. See :class:`svcrun._net.endpoint.Endpoint`.
    :param port: 0 to 65535; 0 takes a free one.
    :param options: socket options as ``(level, option, value)``. A larger ``SO_RCVBUF`` lets longer
        bursts wait for their turn.
    :param sock: a bound datagram socket in place of an address; the server closes it at its end.
    :param path: the path of a Unix socket in place of `address` and `port`.
    :param reuse_port: let several processes share the port, among which the system divides senders.
    :param max_tasks: how many handlers may be under way at a time, 1024 by default. Datagrams past
        that are dropped and counted in :attr:`dropped`.
    :param drain_timeout: seconds that handlers under way have to end when the server stops, 5 by
        default; 0 cancels them at once.

    :raises ValueError: if a parameter has a value that can't be right.
    :raises TypeError: if it is of a wrong type.

    Once started, :attr:`address` and :attr:`port` tell what was bound, and :attr:`socket` is the
    socket. A handler that raises is logged with the address of the sender, and the server goes on.

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

    # Given by position as well.
    address: str | os.PathLike[str] | None = parameter(default=None, kw_only=False)
    port: int | None = parameter(default=None, kw_only=False)
    options: Collection[Option] = parameter(default=(), kw_only=False)
    sock: socket.socket | None = parameter(default=None, kw_only=False)

    max_tasks: int = 1024
    drain_timeout: float = 5

    def __init__(
        self,
        address: str | os.PathLike[str] | None = None,
        port: int | None = None,
        options: Iterable[Option] = (),
        sock: socket.socket | None = None,
        **kwargs: Any,
    ) -> None:
        # None stands for what a subclass has as its default.
        given = {"address": address, "port": port, "options": tuple(options) or None, "sock": sock}
        kwargs.update((name, value) for name, value in given.items() if value is not None)
        super().__init__(**kwargs)

    @overridable
    def dropped(self) -> int:
        """How many datagrams were read but not handled, as `max_tasks` handlers were at work."""
        return part_of(self, _Datagrams).dropped.total

    @overridable
    def unsent(self) -> int:
        """How many datagrams :meth:`sendto` took and could not send."""
        return part_of(self, _Datagrams).unsent.total

    @abstractmethod
    def handle_datagram(self, data: bytes, addr: Any) -> Any:
        """Do what is to be done with a datagram.

        :param data: what was received, maybe nothing (``b""``).
        :param addr: the address of the sender: a tuple of IP address, port, and more with IPv6; the
            path of a Unix socket, None if that is not bound.

        Handlers run at the same time, each in a task of its own as long as it runs. One that never
        waits costs no task.
        """
        raise NotImplementedError

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any) -> None:
        """Send a datagram, without waiting.

        :param data: at most 65,507 bytes (IPv4).
        :param addr: where to, in the form that :meth:`handle_datagram` gets it. Host names are not
            looked up.

        What the socket does not take at once is queued, up to 1 MiB. Datagrams past that, and those
        that the system refuses to send, are counted in :attr:`unsent` and logged now and then.

        :raises RuntimeError: if the server is not running.
        :raises OSError: ``EMSGSIZE`` if `data` is too long for a datagram.
        :raises ValueError: if `addr` can't be an address of the server's family.
        :raises TypeError: if `data` or `addr` is of a wrong type.
        """
        send_queue = part_of(self, _Datagrams).send_queue
        if send_queue is None:
            raise NotRunning(self, "sendto()")
        send_queue.send(data, addr)

    async def start(self) -> None:
        """Bind the socket and begin to read from it."""
        own = part_of(self, _Datagrams)
        if own.pool is not None:
            raise AlreadyRunning(self)
        handle: Any = self.handle_datagram
        if not is_coroutine_function(handle):
            from svcrun.utils import awaitable

            handle = awaitable(handle)

        loop = asyncio.get_running_loop()
        sock = await self._svcrun_bind()
        try:
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
            self._svcrun_unbind()
            raise
        own.send_queue = SendQueue(self, loop, sock, own.unsent)

    async def stop(self, exception: Any = None) -> None:
        """Stop reading, let handlers end or cancel them, send what is queued, close the socket.

        May be called from a handler, at any time and more than once; each call returns when all
        is done.
        """
        own = part_of(self, _Datagrams)
        pool, send_queue = own.pool, own.send_queue
        if pool is None or send_queue is None:
            await super().stop(exception)
            return
        if await pool.stop.in_progress():
            return

        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.drain_timeout
        with pool.stop:
            try:
                await pool.close(self.drain_timeout)
                await super().stop(exception)
                await send_queue.flush(max(0, deadline - loop.time()))
            except BaseException:
                # This wait was cut short: cancel the rest without waiting for it.
                pool.cancel()
                for task in tasks_of(self) - {asyncio.current_task()}:
                    task.cancel()
                raise
            finally:
                send_queue.close()
                self._svcrun_unbind()
                own.pool = own.send_queue = None
                for tally in (own.dropped, own.unsent, own.failures):
                    tally.close()

    def _svcrun_check_parameters(self) -> None:
        super()._svcrun_check_parameters()
        number(low=1, whole=True, unit="handlers")(self, "max_tasks", self.max_tasks)
        number(low=0, unit="seconds")(self, "drain_timeout", self.drain_timeout)


class _Datagrams:
    """The pool and the send_queue of a server, and the counts of lost datagrams."""

    def __init__(self, _: UDPServer) -> None:
        self.pool: WorkerPool | None = None
        self.send_queue: SendQueue | None = None
        self.dropped = RateLimitedLog(log)
        self.unsent = RateLimitedLog(log)
        self.failures = RateLimitedLog(log)
