"""An aiohttp server that takes leave of its clients when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from aiohttp import WSCloseCode, web
from aiohttp.web_protocol import RequestHandler

from svcrun._util.tasks import current_work, format_stack
from svcrun._web.aiohttp.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.http import RawRequestMessage
    from aiohttp.streams import StreamReader

__all__ = (
    "KEYWORDS",
    "NUMBERS",
    "Server",
    "attend",
    "is_stopping",
    "request_factory",
)

log = logging.getLogger("svcrun.service.aiohttp")

# Seconds for what clients have sent before they could know of the stop.
LAST_CALL: Final = 0.1

# Seconds that a stop gives a cancelled handler to clean up, and an output to be taken.
GRACE: Final = 1.0
LINGER: Final = 0.5

# Turns of a loop in which it asks the system at least once what has come, and tasks are told.
TURNS: Final = 3

_DEFAULTS: Final = {
    name: one.default
    for name, one in inspect.signature(RequestHandler).parameters.items()
    if one.kind is one.KEYWORD_ONLY
}

# What may be given to a server for its connections, and what of it are numbers.
KEYWORDS: Final = _DEFAULTS.keys() - {"debug", "loop"} | {"handler_cancellation"}
NUMBERS: Final = {name for name, value in _DEFAULTS.items() if type(value) in {int, float}}

_SWITCHING: Final = int(HTTPStatus.SWITCHING_PROTOCOLS)


class Server(web.Server):
    """Makes connections, knows what they are doing, and brings them to their ends."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Whether no more requests are wanted.
        self.stopping = False
        # The TLS handshakes of clients who will have a connection.
        self.handshakes: set[asyncio.Task[Any]] = set()
        # Web sockets that were opened, and their connections.
        self.web_sockets: WeakKeyDictionary[web.WebSocketResponse, RequestHandler] = (
            WeakKeyDictionary()
        )
        self._transports: dict[RequestHandler, asyncio.Transport] = {}
        # What goes on for a connection besides its task.
        self._work: dict[asyncio.Task[Any], object] = {}
        # Whose handlers wait for the end themselves, and which are not waited for.
        self._excused: set[object] = set()
        # Done when somebody is excused who may be waited for.
        self._excusal: asyncio.Future[None] = self._loop.create_future()
        # Set when a connection is lost.
        self._change = asyncio.Event()

    def __call__(self) -> Connection:
        """Make the protocol of a connection."""
        return Connection(self, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Take note of a new connection."""
        self._transports[handler] = transport
        super().connection_made(handler, transport)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Take note that a connection is lost; what was done for it may still go on."""
        self._transports.pop(handler, None)
        self._change.set()
        if isinstance(handler, Connection):
            handler.request = handler.blamed = None  # which refer to it
            if handler.task is not None:
                self._attend(handler.task, handler)
        super().connection_lost(handler, exc)

    def attend(self, task: asyncio.Task[Any]) -> None:
        """Have the end wait for `task`, too, which works for the client of the moment."""
        self._attend(task, current_work.get())

    def excuse(self, work: object) -> None:
        """Do not wait for the connection that is `work`: its handler waits for the end."""
        if isinstance(work, Connection):
            self._excused.add(work)
            self._excusal.set_result(None)
            self._excusal = self._loop.create_future()
            self._change.set()

    def pre_shutdown(self) -> None:
        """Let each further response be the last one of its connection."""
        self.stopping = True
        for handler in self._connections:
            if isinstance(handler, Connection) and type(handler.request) is web.Request:
                # An assignment would make aiohttp warn in Python's development mode.
                object.__setattr__(handler.request, "__class__", Request)

    async def shutdown(self, timeout: float | None = None) -> None:
        """Bring all connections to their ends.

        What was sent already is answered. A connection without a request is closed, a web socket
        with a close frame. What else is under way gets `timeout` seconds, and is cancelled then.
        A connection whose handler calls this is left out: it waits for this.
        """
        self.excuse(current_work.get())
        deadline = self._loop.time() + (timeout or 0)
        try:
            await self._listen_to_the_last(deadline)
            for task in self.handshakes:
                task.cancel()
            for handler in self._connections:
                if isinstance(handler, Connection):
                    handler.end()
            for web_socket, handler in self.web_sockets.items():
                if handler not in self._excused:
                    self._attend(self._loop.create_task(_say_goodbye(web_socket)), handler)
            await self._turn()
            late = await self._wait(deadline)
            if late:
                await self._cancel(late, timeout or 0)
            await self._flush(deadline)
        finally:
            self.abort()

    def abort(self) -> None:
        """Close all connections at once, without waiting for anything."""
        for task in self._under_way():
            task.cancel()
        for handler, transport in tuple(self._transports.items()):
            if handler not in self._excused:
                transport.abort()

    def _attend(self, task: asyncio.Task[Any], work: object) -> None:
        self._work[task] = work
        task.add_done_callback(lambda task: self._work.pop(task, None))

    def _under_way(self) -> list[asyncio.Task[Any]]:
        excused = self._excused
        # First what connections wait for: where that waits is what one wants to know.
        tasks = [task for task, work in self._work.items() if work not in excused]
        tasks += [
            handler.task
            for handler in self._connections
            if isinstance(handler, Connection) and handler not in excused and handler.task
        ]
        tasks += self.handshakes
        return [task for task in tasks if not task.done()]

    async def _listen_to_the_last(self, deadline: float) -> None:
        """Wait for what clients have sent before they could know of the stop."""
        # Those who were in the backlog begin their handshakes only now, and many at once.
        patient = min(self._loop.time() + LINGER, deadline)
        while self.handshakes and (left := patient - self._loop.time()) > 0:
            await asyncio.wait(self.handshakes, timeout=left)
        await self._wait(min(self._loop.time() + LAST_CALL, deadline))
        await self._turn()

    async def _turn(self) -> None:
        """Have the loop take in what has come: it may have been busy, or stopped, for long."""
        for _ in range(TURNS):
            await asyncio.sleep(0)

    async def _wait(self, deadline: float) -> list[asyncio.Task[Any]]:
        """Wait until nothing is under way, to the `deadline` at most; return what is."""
        while (tasks := self._under_way()) and (left := deadline - self._loop.time()) > 0:
            all_done = self._loop.create_task(asyncio.wait(tasks))
            try:
                await asyncio.wait(
                    (all_done, self._excusal),
                    timeout=left,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                all_done.cancel()
        return tasks

    async def _cancel(self, late: list[asyncio.Task[Any]], limit: float) -> None:
        clients = {one.task: one for one in self._connections if isinstance(one, Connection)}
        log.warning(
            "%d requests or web sockets were not done within shutdown_timeout=%g s "
            "and are cancelled; one waits at\n%s",
            len({clients.get(task) or self._work.get(task) or task for task in late}),
            limit,
            format_stack(late[0]),
        )
        for task in late:
            task.cancel()
        for task in await self._wait(self._loop.time() + GRACE):
            log.error(
                "A request ignores that it was cancelled; it is waiting at\n%s", format_stack(task)
            )

    async def _flush(self, deadline: float) -> None:
        """Wait until clients have taken what they were sent; a few of them never will."""
        now = self._loop.time()
        deadline = max(deadline, now + LINGER)
        confirmed = now + LINGER  # by when a client has said goodbye, if it ever will
        while (now := self._loop.time()) < deadline:
            if now >= confirmed:
                for handler, transport in tuple(self._transports.items()):
                    if isinstance(handler, Connection) and handler.is_sent(transport):
                        transport.abort()
            if self._transports.keys() <= self._excused:
                return
            self._change.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(deadline, max(confirmed, now + LINGER / 5))):
                    await self._change.wait()


async def _say_goodbye(web_socket: web.WebSocketResponse) -> None:
    """Close a web socket; its handler then gets to know that it is closed."""
    with contextlib.suppress(OSError, RuntimeError):  # closed meanwhile, or never opened
        await web_socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server is stopping")


class Request(web.Request):
    """A request whose response is prepared for the end of its server.

    Of this class are those which ask for a web socket, and all when their server is stopping: to
    prepare every response, for an end that comes once, would cost more than all else that a
    service does for a request.
    """

    def _prepare_hook(self, response: web.StreamResponse) -> Coroutine[Any, Any, None]:
        if isinstance(response, web.WebSocketResponse):
            if server := _server_of(self):
                server.web_sockets[response] = self.protocol
        elif (server := _server_of(self)) and server.stopping and response.status != _SWITCHING:
            response.force_close()
            response.headers["Connection"] = "close"
        return super()._prepare_hook(response)


def request_factory(make: Callable[..., web.Request], server: Server) -> Callable[..., web.Request]:
    """Return what makes the requests of `server`, by the `make` of its application."""

    def make_request(
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: Connection,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.Request:
        cls = Request if message.upgrade or server.stopping else web.Request
        request = protocol.request = make(message, payload, protocol, writer, task, cls)
        return request

    return make_request


def attend(request: web.BaseRequest, task: asyncio.Task[Any]) -> None:
    """Have the end of the server that got `request` wait for `task`, too."""
    server = _server_of(request)
    if server is not None:
        server.attend(task)


def is_stopping(request: web.BaseRequest) -> bool:
    """Tell whether no request is wanted after `request`."""
    server = _server_of(request)
    return server is not None and server.stopping


def _server_of(request: web.BaseRequest) -> Server | None:
    protocol = request.protocol
    return protocol.server if isinstance(protocol, Connection) else None
