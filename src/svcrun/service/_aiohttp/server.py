"""An aiohttp server that takes leave of its clients when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from aiohttp import WSCloseCode, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler, RequestPayloadError

from svcrun.addresses import format_address
from svcrun.tasks import current_work, format_stack

if TYPE_CHECKING:
    from collections.abc import Iterable

    from svcrun.service._handshake import Handshake

__all__ = ("KEYWORDS", "Connection", "Server", "attend", "is_stopping", "tend_response")

log = logging.getLogger("svcrun.service.aiohttp")

# Seconds for what clients have sent before they could know of the stop.
LAST_CALL: Final = 0.1

# Seconds that a stop gives a cancelled handler to clean up, and an output to be taken.
GRACE: Final = 1.0
LINGER: Final = 0.5

# What may be given to a server for its connections.
KEYWORDS: Final = frozenset(
    name
    for name, one in inspect.signature(RequestHandler).parameters.items()
    if one.kind is one.KEYWORD_ONLY
) - {"debug", "loop"} | {"handler_cancellation"}

# How a client says that its request makes no sense.
_MALFORMED: Final = (HttpProcessingError, RequestPayloadError)


class Connection(RequestHandler):
    """One client, and the task that answers its requests one after the other."""

    __slots__ = ("handshake",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # What established TLS for it.
        self.handshake: Handshake | None = None

    @property
    def server(self) -> Server | None:
        """The server, until the connection is lost."""
        server = self._manager
        return server if isinstance(server, Server) else None

    @property
    def task(self) -> asyncio.Task[None] | None:
        """Answers the requests, until the last one is answered."""
        return self._task_handler

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the task; what it does is the work of this connection."""
        token = current_work.set(self)
        try:
            super().connection_made(transport)
        finally:
            current_work.reset(token)

    def close(self) -> None:
        """Take no further request, and close at once if none is being answered."""
        is_idle = self._waiter is not None
        super().close()
        if is_idle:
            self.force_close()

    def is_sent(self, transport: asyncio.Transport) -> bool:
        """Tell whether `transport`, its own, is closed and all is sent but for farewells of TLS."""
        plain = None if self.handshake is None else self.handshake.plain
        return (
            transport.is_closing()
            and transport.get_write_buffer_size() == 0
            and (plain is None or plain.get_write_buffer_size() == 0)
        )

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Log what went wrong, and make a response of it if there can be one."""
        if isinstance(exc, _MALFORMED):
            # No traceback: the code that it would show did nothing wrong.
            reason = str(exc).partition("\n")[0]
            self.logger.warning("%s sent a malformed request: %s", self._peer, reason)
            if request.writer.output_size > 0:
                raise ConnectionError("the response has begun")
            response = web.Response(status=400, text=message or reason)
            response.force_close()
            return response
        if exc is None:
            exc = sys.exc_info()[1]  # aiohttp does not pass on that a handler timed out
        return super().handle_error(request, status, exc, message)

    @property
    def _peer(self) -> str:
        peer = None if self.transport is None else self.transport.get_extra_info("peername")
        return "a client" if peer is None else format_address(peer)


class Server(web.Server):
    """Makes connections, knows what they are doing, and brings them to their ends."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Whether no more requests are wanted.
        self.stopping = False
        # The TLS handshakes of clients who will have a connection.
        self.handshakes: set[asyncio.Task[Any]] = set()
        self.web_sockets: WeakSet[web.WebSocketResponse] = WeakSet()
        self._transports: dict[RequestHandler, asyncio.Transport] = {}
        # What goes on for a connection besides its task.
        self._work: dict[asyncio.Task[Any], object] = {}
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
        """Take note that a connection is lost."""
        self._transports.pop(handler, None)
        self._change.set()
        super().connection_lost(handler, exc)

    def attend(self, task: asyncio.Task[Any]) -> None:
        """Have the end wait for `task`, too, which works for the client of the moment."""
        self._work[task] = current_work.get()
        task.add_done_callback(self._work.pop)

    def pre_shutdown(self) -> None:
        """Let each further response be the last one of its connection."""
        self.stopping = True

    async def shutdown(self, timeout: float | None = None) -> None:
        """Bring all connections to their ends.

        What was sent already is answered. A connection without a request is closed, a web socket
        with a close frame. What else is under way gets `timeout` seconds, and is cancelled then.
        A connection whose handler calls this is left out: it waits for this.
        """
        excused = current_work.get()
        deadline = self._loop.time() + (timeout or 0)
        try:
            await self._wait(excused, min(self._loop.time() + LAST_CALL, deadline))
            for task in self.handshakes:
                task.cancel()
            super().pre_shutdown()
            closing = [self._loop.create_task(_say_goodbye(one)) for one in self.web_sockets]
            late = await self._wait(excused, deadline, closing)
            if late:
                await self._cancel(late, excused, timeout or 0)
            await self._flush(excused, deadline)
        finally:
            self.abort(excused)

    def abort(self, excused: object = None) -> None:
        """Close all connections at once, without waiting for anything."""
        for task in self._under_way(excused):
            task.cancel()
        for handler, transport in tuple(self._transports.items()):
            if handler is not excused:
                transport.abort()

    def _under_way(self, excused: object) -> list[asyncio.Task[Any]]:
        tasks = [
            handler.task
            for handler in self.connections
            if isinstance(handler, Connection) and handler is not excused
        ]
        tasks += [task for task, work in self._work.items() if work is not excused or work is None]
        tasks += self.handshakes
        return [task for task in tasks if task is not None and not task.done()]

    async def _wait(
        self, excused: object, deadline: float, besides: Iterable[asyncio.Task[Any]] = ()
    ) -> list[asyncio.Task[Any]]:
        """Wait until nothing is under way, to the `deadline` at most; return what is."""

        def remaining() -> list[asyncio.Task[Any]]:
            return [*self._under_way(excused), *(task for task in besides if not task.done())]

        while (tasks := remaining()) and (left := deadline - self._loop.time()) > 0:
            await asyncio.wait(tasks, timeout=left)
        return tasks

    async def _cancel(self, late: list[asyncio.Task[Any]], excused: object, limit: float) -> None:
        log.warning(
            "%d requests or web sockets were not done within shutdown_timeout=%g s "
            "and are cancelled; one waits at\n%s",
            len(late),
            limit,
            format_stack(late[0]),
        )
        for task in late:
            task.cancel()
        for task in await self._wait(excused, self._loop.time() + GRACE):
            log.error(
                "A request ignores that it was cancelled; it is waiting at\n%s", format_stack(task)
            )

    async def _flush(self, excused: object, deadline: float) -> None:
        """Wait until clients have taken what they were sent; a few of them never will."""
        now = self._loop.time()
        deadline = max(deadline, now + LINGER)
        confirmed = now + LINGER  # by when a client has said goodbye, if it ever will
        while (now := self._loop.time()) < deadline:
            if now >= confirmed:
                for handler, transport in tuple(self._transports.items()):
                    if isinstance(handler, Connection) and handler.is_sent(transport):
                        transport.abort()
            if all(handler is excused for handler in self._transports):
                return
            self._change.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(deadline, max(confirmed, now + LINGER / 5))):
                    await self._change.wait()


async def _say_goodbye(web_socket: web.WebSocketResponse) -> None:
    """Close a web socket; its handler then gets to know that it is closed."""
    with contextlib.suppress(OSError, RuntimeError):  # closed meanwhile, or never opened
        await web_socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server is stopping")


async def tend_response(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Prepare a response for the end of its server (a receiver of ``on_response_prepare``)."""
    if response.status == HTTPStatus.SWITCHING_PROTOCOLS:
        if isinstance(response, web.WebSocketResponse) and (server := _server_of(request)):
            server.web_sockets.add(response)
    elif (server := _server_of(request)) and server.stopping:
        response.force_close()
        response.headers["Connection"] = "close"


def attend(request: web.BaseRequest, task: asyncio.Task[Any]) -> None:
    """Have the end of the server that got `request` wait for `task`, too."""
    server = _server_of(request)
    if server is not None:
        server.attend(task)


def is_stopping(request: web.BaseRequest) -> bool:
    """Tell whether no request is wanted after `request`."""
    server = _server_of(request)
    return server is None or server.stopping


def _server_of(request: web.BaseRequest) -> Server | None:
    protocol = request.protocol
    return protocol.server if isinstance(protocol, Connection) else None
