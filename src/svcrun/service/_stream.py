"""What TCP and TLS servers share: listening, their connections, and an orderly end."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from svcrun._net.connection import PlainConnection
from svcrun._net.connections import Clients
from svcrun._net.listener import listen
from svcrun._net.resume_queue import ResumeQueue
from svcrun._util.validation import number
from svcrun.errors import AlreadyRunning
from svcrun.service._internals import overridable, part_of
from svcrun.service._listening import Listening
from svcrun.service.base import SimpleServer, parameter, tasks_of

if TYPE_CHECKING:
    import os
    import socket
    from collections.abc import Callable, Collection

    from svcrun._net.addresses import Option
    from svcrun._net.connection import Connection

__all__ = ("StreamServer",)


class StreamServer(Listening, SimpleServer):
    """A server of byte streams; see :class:`~svcrun.service.tcp.TCPServer`."""

    _svcrun_handlers: ClassVar[Any] = ("handle_client",)

    # Given by position as well.
    address: str | os.PathLike[str] | None = parameter(default=None, kw_only=False)
    port: int | None = parameter(default=None, kw_only=False)
    options: Collection[Option] = parameter(default=(), kw_only=False)
    sock: socket.socket | None = parameter(default=None, kw_only=False)

    backlog: int = 1024
    limit: int = 1 << 16
    drain_timeout: float = 5.0

    def __init__(
        self,
        address: str | os.PathLike[str] | None = None,
        port: int | None = None,
        options: Collection[Option] = (),
        sock: socket.socket | None = None,
        **kwargs: Any,
    ) -> None:
        # None stands for what a subclass has as its default.
        given = {"address": address, "port": port, "options": options or None, "sock": sock}
        kwargs.update((name, value) for name, value in given.items() if value is not None)
        super().__init__(**kwargs)

    if not TYPE_CHECKING:

        @overridable
        def server(self) -> asyncio.AbstractServer | None:
            """The listener, None while the service does not listen."""
            return part_of(self, Clients).listener

    @overridable
    def connections(self) -> Collection[Connection]:
        """The open connections."""
        return part_of(self, Clients).connections

    @overridable
    def stopping(self) -> bool:
        """Whether new clients are refused."""
        return part_of(self, Clients).stopping

    @abstractmethod
    def handle_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
        """Serve one client; the connection is closed when this returns or raises.

        :param reader: what the client sends.
        :param writer: what it is sent.
        """
        raise NotImplementedError

    async def start(self) -> None:
        """Bind the socket and listen.

        :raises OSError: if the address can't be bound; it names address, port and service.
        """
        clients = part_of(self, Clients)
        if clients.listener is not None:
            raise AlreadyRunning(self)
        sock = await self._svcrun_bind(self.backlog)
        clients.service = self
        clients.loop = asyncio.get_running_loop()
        clients.limit = self.limit
        clients.stopping = False
        # The loop of the previous run may have ended before it resumed all handlers in its queue.
        clients.resume_queue = ResumeQueue()
        make = self._svcrun_connection_factory(clients)
        try:
            clients.listener = await listen(clients.loop, sock, make, self.backlog)
        except BaseException:
            self._svcrun_unbind()
            raise

    async def stop(self, exception: Any = None) -> None:
        """Listen no more, end the handlers, then close the connections.

        A handler that waits for its client is ended at once. One that is at work gets
        `drain_timeout` seconds to finish, then is cancelled. What was written is sent as far as
        the client takes it within that time.
        """
        clients = part_of(self, Clients)
        if await clients.stop.in_progress():
            return

        self.__close_listener(clients)
        with clients.stop:
            try:
                if clients.connections:
                    await clients.end(self.drain_timeout)
                await super().stop(exception)
            except BaseException:
                # This wait was cut short: end the rest without waiting for it.
                clients.abort()
                for task in tasks_of(self) - {asyncio.current_task()}:
                    task.cancel()
                raise
            finally:
                if not clients.connections:
                    clients.service = None

    def _svcrun_connection_factory(self, clients: Clients) -> Callable[[], Connection]:
        return lambda: PlainConnection(clients)

    def _svcrun_check_parameters(self) -> None:
        super()._svcrun_check_parameters()
        number(low=1, whole=True, unit="connections")(self, "backlog", self.backlog)
        number(low=1, whole=True, unit="bytes")(self, "limit", self.limit)
        number(low=0, unit="seconds")(self, "drain_timeout", self.drain_timeout)

    def __close_listener(self, clients: Clients) -> None:
        clients.stopping = True
        listener, clients.listener = clients.listener, None
        if listener is None:
            return
        self._svcrun_endpoint.remove_file()  # before the socket is closed
        listener.close()
        self._svcrun_unbind()
