"""An aiohttp server that handles the requests in flight before it closes their connections."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, WeakSet

from aiohttp import WSCloseCode, web
from aiohttp.web_protocol import RequestHandler

from svcrun._net.handshake import Handshakes
from svcrun._util.drain import Drain
from svcrun._util.tasks import current_work
from svcrun._web.aiohttp.connection import Connection
from svcrun._web.graceful import shut_down_connections

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.http import RawRequestMessage
    from aiohttp.streams import StreamReader

__all__ = ("KEYWORDS", "NUMBERS", "Server", "is_stopping", "request_factory", "track")

log = logging.getLogger("svcrun.service.aiohttp")

_DEFAULTS: Final = {
    name: parameter.default
    for name, parameter in inspect.signature(RequestHandler).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}

# The keywords that aiohttp accepts for the connections of a server, and those that are numbers.
KEYWORDS: Final = _DEFAULTS.keys() - {"debug", "loop"} | {"handler_cancellation"}
NUMBERS: Final = {name for name, value in _DEFAULTS.items() if type(value) in {int, float}}


class Server(web.Server):
    """Create the connections of an application, and shut them down gracefully.

    :param handler: handles a request.
    :param owner: the service, named in log messages.
    :param handler_cancellation: whether a handler is cancelled when its client disconnects.
    :param options: the options of each connection.
    :param idle_grace: seconds that idle connections stay open in a shutdown by SIGTERM.
    """

    def __init__(
        self,
        handler: Callable[[Any], Any],
        owner: object,
        *,
        handler_cancellation: bool,
        options: dict[str, Any],
        idle_grace: float,
    ) -> None:
        super().__init__(handler, handler_cancellation=handler_cancellation)
        self._options = options
        self.idle_grace = idle_grace
        # Whether each further response is the last one of its connection.
        self.stopping = False
        self.handshakes = Handshakes()
        self.drain = Drain(log, owner, self._in_flight, lambda _: "a request")
        # The web sockets that were accepted, and their connections.
        self.web_sockets: WeakKeyDictionary[web.WebSocketResponse, RequestHandler] = (
            WeakKeyDictionary()
        )
        # Those to which the shutdown sends a Close frame.
        self._closed: WeakSet[web.WebSocketResponse] = WeakSet()
        self._open: dict[RequestHandler, asyncio.Transport] = {}
        # Tasks that work for a connection, besides the task that handles its requests.
        self._tasks: dict[asyncio.Task[Any], object] = {}
        # Connections whose handlers wait for the shutdown: to wait for them would be a deadlock.
        self._excused: set[object] = set()

    def __call__(self) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(self, loop=asyncio.get_running_loop(), **self._options)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Record a new connection."""
        self._open[handler] = transport
        super().connection_made(handler, transport)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Record that a connection is lost. Its handler may still be running."""
        self._open.pop(handler, None)
        # Without handler_cancellation, the handler continues after its client has disconnected.
        if isinstance(handler, Connection) and handler.task is not None:
            self._track(handler.task, handler)
        super().connection_lost(handler, exc)

    def track(self, task: asyncio.Task[Any]) -> None:
        """Wait for `task` during the shutdown. It works for the connection that calls this."""
        self._track(task, current_work.get())

    def excuse(self, work: object) -> None:
        """Leave out `work`, which waits for the shutdown, if it is a connection of this server."""
        if isinstance(work, Connection):
            self._excused.add(work)
            self.drain.recheck()

    def pre_shutdown(self) -> None:
        """Make each further response the last one of its connection."""
        self.stopping = True

    async def shutdown(self, timeout: float | None = None) -> None:
        """Handle the requests in flight, then close all connections.

        Idle connections are closed, those of web sockets with a Close frame.

        :param timeout: seconds that requests and web sockets may take. They are cancelled then.
        """
        self.excuse(current_work.get())
        await shut_down_connections(
            self, timeout or 0, "shutdown_timeout", idle_grace=self.idle_grace
        )

    @property
    def open_connections(self) -> int:
        """The number of open connections, those with a handshake in progress included."""
        return len(self._open) + len(self.handshakes.tasks)

    # Methods for the graceful shutdown.

    def transports(self) -> list[asyncio.Transport]:
        """Return the transports of the open connections."""
        excused = self._excused
        return [transport for handler, transport in self._open.items() if handler not in excused]

    def http_connections(self) -> list[tuple[Connection, bool]]:
        """Return the connections that may receive a request, each with whether it is idle."""
        left_out = {*self._excused, *self.web_sockets.values()}
        return [
            (handler, handler.is_idle)
            for handler, transport in self._open.items()
            if isinstance(handler, Connection)
            and handler not in left_out
            and not transport.is_closing()
        ]

    def end_connection(self, connection: Connection) -> None:
        """Accept no further request on a connection, and close it if it is idle."""
        connection.end()

    def end_web_sockets(self) -> None:
        """Send a Close frame to each web socket that has not been sent one."""
        loop = asyncio.get_running_loop()
        for web_socket, handler in tuple(self.web_sockets.items()):
            if handler not in self._excused and web_socket not in self._closed:
                self._closed.add(web_socket)
                if isinstance(handler, Connection):
                    handler.end()
                self._track(loop.create_task(_close(web_socket)), handler)

    def end_connections(self) -> None:
        """End all connections, those of web sockets with a Close frame."""
        for handler in tuple(self._open):  # end() may lose the connection
            if isinstance(handler, Connection):
                handler.end()
        self.end_web_sockets()

    def abort(self) -> None:
        """Cancel all tasks and close all connections, without waiting for anything."""
        for task in (*self._in_flight(), *self.handshakes.tasks):
            task.cancel()
        for transport in self.transports():
            transport.abort()

    def _track(self, task: asyncio.Task[Any], work: object) -> None:
        self._tasks[task] = work
        task.add_done_callback(lambda task: self._tasks.pop(task, None))

    def _in_flight(self) -> Iterator[asyncio.Task[Any]]:
        excused = self._excused
        # Tasks of applications come first: a log message shows the place of the first task.
        yield from [task for task, work in self._tasks.items() if work not in excused]
        for handler in tuple(self._open):
            if isinstance(handler, Connection) and handler.task and handler not in excused:
                yield handler.task


async def _close(web_socket: web.WebSocketResponse) -> None:
    """Close a web socket. Its handler receives that it is closed."""
    with contextlib.suppress(OSError, RuntimeError):  # race: it may be closed already
        await web_socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server is stopping")


class Request(web.Request):
    """A request to a :class:`Server`."""

    @property
    def keep_alive(self) -> bool:
        """Whether the connection stays open after the response."""
        connection = self.protocol
        if isinstance(connection, Connection) and is_stopping(self) and connection.is_last_request:
            return False
        return super().keep_alive

    def _prepare_hook(self, response: web.StreamResponse) -> Coroutine[Any, Any, None]:
        if isinstance(response, web.WebSocketResponse) and (server := _server_of(self)):
            server.web_sockets[response] = self.protocol
        return super()._prepare_hook(response)


def request_factory(make: Callable[..., web.Request]) -> Callable[..., web.Request]:
    """Return a function that creates the requests of a server.

    :param make: the function of an application that creates requests.
    """

    def make_request(
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: Connection,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.Request:
        request = make(message, payload, protocol, writer, task, Request)
        protocol.begin(request)
        return request

    return make_request


def track(request: web.BaseRequest, task: asyncio.Task[Any]) -> None:
    """Wait for `task` when the server of `request` shuts down."""
    server = _server_of(request)
    if server is not None:
        server.track(task)


def is_stopping(request: web.BaseRequest) -> bool:
    """Return whether the server of `request` is stopping."""
    server = _server_of(request)
    return server is not None and server.stopping


def _server_of(request: web.BaseRequest) -> Server | None:
    server = getattr(request.protocol, "server", None)
    return server if isinstance(server, Server) else None
