"""The base of TCP and TLS servers: a listener, connections, and their drain."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

from svcrun._net.connection import Connection
from svcrun._net.connections import Connections
from svcrun._net.listener import listen
from svcrun._util.validation import number, optional
from svcrun.errors import AlreadyRunning
from svcrun.service._internals import overridable, part_of
from svcrun.service._proxied import Proxied
from svcrun.service.base import SimpleServer, parameter, tasks_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from svcrun._net.admission import Admission

__all__ = ("StreamServer",)


class StreamServer(Proxied, SimpleServer, base=True):
    """A server of byte streams; see :class:`~svcrun.service.tcp.TCPServer`."""

    _svcrun_handlers: ClassVar[Any] = ("handle_client",)

    backlog: int = parameter(default=1024, check=number(low=1, whole=True, unit="connections"))
    limit: int = parameter(default=1 << 16, check=number(low=1, whole=True, unit="bytes"))
    drain_timeout: float = parameter(default=5.0, check=number(low=0, unit="seconds"))
    idle_timeout: float | None = parameter(
        default=None, check=optional(number(above=0, high=inf, unit="seconds"), "no limit")
    )

    if not TYPE_CHECKING:

        @overridable
        def server(self) -> asyncio.AbstractServer | None:
            """The listener, None while the service does not listen."""
            return part_of(self, Connections).listener

    @overridable
    def connections(self) -> Collection[Connection]:
        """The open connections."""
        return part_of(self, Connections).open_connections

    @overridable
    def stopping(self) -> bool:
        """Whether new connections are refused."""
        return part_of(self, Connections).stopping

    @abstractmethod
    def handle_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
        """Serve one client.

        It is called once for each connection, in a task of its own. The connection is closed when
        this method returns or raises. An exception is logged with the address of the client.

        :param reader: the data from the client.
        :param writer: the data to the client.
        """
        raise NotImplementedError

    async def start(self) -> None:
        """Bind the socket and listen.

        :raises OSError: if the address can't be bound. The error names address, port and service.
        """
        connections = part_of(self, Connections)
        if connections.listener is not None:
            raise AlreadyRunning(self)
        sock = await self._svcrun_bind(self.backlog)
        # From here to the end of the last connection, the service and its connections refer to each
        # other: stop() ends this reference cycle.
        connections.service = self
        connections.loop = asyncio.get_running_loop()
        connections.limit = self.limit
        connections.stopping = False
        make: Callable[[], asyncio.BaseProtocol] = self._svcrun_connection_factory(connections)
        try:
            # A connection is open before its header is complete.
            proxy = self._svcrun_accept_proxies(on_lost=Connection.release)
            if proxy is not None:
                make = proxy.after_header(make)
            connections.listener = await listen(
                connections.loop, sock, make, self.backlog, connections.admission
            )
        except BaseException:
            self._svcrun_unbind()
            raise
        idle_timeout = self._svcrun_limit("idle_timeout")
        if idle_timeout is not None:
            connections.limit_idle(idle_timeout, self.drain_timeout)

    async def stop(self, exception: Any = None) -> None:
        """Close the listener, end the handlers, then close the connections.

        A handler that waits for its client is cancelled at once. A handler that is at work has
        `drain_timeout` seconds to finish, and is cancelled then. The client has the same time to
        receive the rest of the output. A handler may call this, and is then not waited for.
        """
        connections = part_of(self, Connections)
        if await connections.stop.in_progress():
            return

        # The first step, so that no client connects to a server that would not serve it any more.
        self.__close_listener(connections)
        with connections.stop:
            try:
                await connections.drain(self.drain_timeout)
                await super().stop(exception)
            except BaseException:
                # The stop was cut short: end the rest without waiting for it.
                connections.abort()
                for task in tasks_of(self) - {asyncio.current_task()}:
                    task.cancel()
                raise
            finally:
                if not connections.open_connections:
                    connections.service = None

    @property
    def _svcrun_admission(self) -> Admission:
        return part_of(self, Connections).admission

    def _svcrun_count_connections(self) -> int:
        return len(part_of(self, Connections).open_connections)

    @abstractmethod
    def _svcrun_connection_factory(self, connections: Connections) -> Callable[[], Connection]:
        """Return a function that creates the protocol of a connection."""
        raise NotImplementedError

    def __close_listener(self, connections: Connections) -> None:
        connections.stopping = True
        listener, connections.listener = connections.listener, None
        if listener is None:
            return
        self._svcrun_endpoint.remove_file()  # before the socket is closed
        listener.close()
        self._svcrun_unbind()
