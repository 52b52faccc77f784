"""What TCP and TLS servers share: listening, their connections, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Final

from svcrun.checks import check_number
from svcrun.errors import AlreadyRunning
from svcrun.service._accept import listen
from svcrun.service._connection import PlainConnection
from svcrun.service._listening import Listening
from svcrun.service.base import SimpleServer, parameter

if TYPE_CHECKING:
    import os
    import socket
    from collections.abc import Callable, Collection

    from svcrun.addresses import Option
    from svcrun.service._connection import Connection

__all__ = ("StreamServer",)

log = logging.getLogger(__name__)

# Seconds that stop() gives a cancelled handler to clean up, and an output to be taken.
GRACE: Final = 1.0
LINGER: Final = 0.5


class StreamServer(Listening, SimpleServer):
    """A server of byte streams; see :class:`~svcrun.service.tcp.TCPServer`."""

    __async_required__: ClassVar[Any] = ("handle_client",)

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
        # The clients of the moment.
        self.connections: set[Connection] = set()
        # What the tasks of the handlers are called.
        self.task_name = f"{type(self).__name__}.handle_client"
        # Whether no more clients are wanted.
        self.stopping = False
        # Set by what brings a stop nearer to its end.
        self._progress: asyncio.Event | None = None
        self._stopping: asyncio.Future[None] | None = None

    @abstractmethod
    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Any:
        """Serve one client; the connection is closed when this returns or raises.

        :param reader: what the client sends.
        :param writer: what it is sent.
        """
        raise NotImplementedError

    async def start(self) -> None:
        """Bind the socket and listen.

        :raises OSError: if the address can't be bound; it names address, port and service.
        """
        if self.server is not None:
            raise AlreadyRunning(self)
        sock = await self._bind(self.backlog)
        self.stopping = False
        try:
            self.server = await listen(self.loop, sock, self._connection_factory(), self.backlog)
        except BaseException:
            self._unbind()
            raise

    async def stop(self, exception: BaseException | None = None) -> None:
        """Listen no more, end the handlers, then close the connections.

        A handler that waits for its client is ended at once. One that is at work gets
        `drain_timeout` seconds to finish, then is cancelled. What was written is sent as far as
        the client takes it within that time.
        """
        current = asyncio.current_task()
        for connection in self.connections:
            if connection.task is current:
                # A handler that stops its server is not waited for: it waits for this.
                connection.excused = True
                self.progress()
        if self._stopping is not None:
            await asyncio.wait((self._stopping,))
            return

        self._close_listener()
        self._stopping = self.loop.create_future()
        try:
            if self.connections:
                await self._end_connections()
            await super().stop(exception)
        except BaseException:
            # Nobody waits any longer, so what is left ends without being waited for.
            for connection in tuple(self.connections):
                connection.end(at_once=True)
                connection.abort()
            for task in self.tasks - {current}:
                task.cancel()
            raise
        finally:
            self._progress = None
            self._stopping.set_result(None)
            self._stopping = None

    # What the connections call.

    def forget(self, connection: Connection) -> None:
        """Take note that nothing is left of `connection`."""
        self.connections.discard(connection)
        if self._progress is not None:
            self._progress.set()

    def progress(self) -> None:
        """Take note that a handler has ended."""
        if self._progress is not None:
            self._progress.set()

    # How it is done.

    def _connection_factory(self) -> Callable[[], Connection]:
        return lambda: PlainConnection(self)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        owner = type(self).__qualname__
        accepted = "a number of connections from 1 on"
        check_number(owner, "backlog", self.backlog, accepted, low=1, whole=True)
        accepted = "a number of bytes from 1 on"
        check_number(owner, "limit", self.limit, accepted, low=1, whole=True)
        accepted = "a number of seconds, 0 for none"
        check_number(owner, "drain_timeout", self.drain_timeout, accepted, low=0)

    def _close_listener(self) -> None:
        self.stopping = True
        server, self.server = self.server, None
        if server is None:
            return
        self._endpoint.remove_file()  # before the socket is closed
        server.close()
        self._unbind()

    async def _end_connections(self) -> None:
        ending = {connection for connection in self.connections if not connection.excused}
        self._progress = asyncio.Event()
        deadline = self.loop.time() + self.drain_timeout
        await self._end_handlers(ending, deadline)
        await self._close_transports(ending, deadline)

    async def _end_handlers(self, ending: set[Connection], deadline: float) -> None:
        for connection in ending:
            connection.end(at_once=self.drain_timeout == 0)
        late = await self._still_working(ending, deadline)
        if not late:
            return
        log.warning(
            "%r: %d handlers did not end within %g s and are cancelled, that for %s among them",
            self,
            len(late),
            self.drain_timeout,
            late[0].peer,
        )
        for connection in late:
            connection.end(at_once=True)
        for connection in await self._still_working(ending, self.loop.time() + GRACE):
            connection.abandon()

    async def _still_working(self, ending: set[Connection], deadline: float) -> list[Connection]:
        def working() -> list[Connection]:
            return [c for c in ending if not (c.finished or c.excused)]

        await self._dismiss(working, deadline)
        return working()

    async def _close_transports(self, ending: set[Connection], deadline: float) -> None:
        def remaining() -> list[Connection]:
            return [c for c in ending & self.connections if not c.excused]

        # Each handler that ended has closed its transport. Now its output leaves.
        await self._dismiss(remaining, max(deadline, self.loop.time() + LINGER))
        rest = remaining()
        for connection in rest:
            connection.abort()
        # An aborted transport closes in the next turn of the loop, TLS above it in the one after.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.connections.difference_update(rest)

    async def _dismiss(self, remaining: Callable[[], list[Connection]], deadline: float) -> None:
        """Wait until none are `remaining`; help those that are closed but for a confirmation."""
        loop = self.loop
        while remaining() and loop.time() < deadline:
            await self._until(lambda: not remaining(), min(loop.time() + LINGER, deadline))
            for connection in remaining():
                if connection.is_sent():
                    connection.abort()

    async def _until(self, reached: Callable[[], bool], deadline: float) -> bool:
        """Wait until `reached` is true, to the `deadline` at most; tell whether it is."""
        progress = self._progress
        if progress is None:
            return True
        while not reached():
            progress.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await progress.wait()
            except TimeoutError:
                return reached()
        return True
