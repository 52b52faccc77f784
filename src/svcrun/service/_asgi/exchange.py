"""A call of an application, and what it exchanges with one client."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from svcrun.addresses import format_address
from svcrun.eager import start_eagerly
from svcrun.errors import ClientDisconnected
from svcrun.service._aiohttp.server import attend, is_stopping

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from aiohttp import web
    from aiohttp_asgi.resource import ASGIApplicationType

    Message = MutableMapping[str, Any]

__all__ = ("Exchange",)

log = logging.getLogger("svcrun.service.asgi")

_VERSION = {"version": "3.0", "spec_version": "2.4"}

# What Starlette raises for http.disconnect and websocket.disconnect.
_DEPARTURES = frozenset({"ClientDisconnect", "WebSocketDisconnect"})
# How many errors may follow from one another.
_DEPTH = 10


class Exchange(ABC):
    """One call of the application, in a task of its own.

    aiohttp cancels its handlers when their clients go, and answers the next request of a connection
    when the handler of the last one has returned. An application is to be told that its client has
    gone, and may go on when its response is complete; so the handler only waits for it.

    :param app: the application.
    :param request: what the client asks for.
    :param state: what the lifespan of the application has for its requests.
    """

    def __init__(
        self, app: ASGIApplicationType, request: web.BaseRequest, state: dict[str, Any]
    ) -> None:
        self.app = app
        self.request = request
        self.state = state
        # Whether the client has all that it is to get.
        self.is_complete = False
        # Whether it does not listen any more.
        self.is_gone = False
        # What is wrong with what it sent.
        self.fault: Exception | None = None
        # The call, unless it was over at once.
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        # Done at the next change of what receive() may wait for.
        self._change: asyncio.Future[None] | None = None
        # Held by the call of receive() that gets the next message.
        self._turn: asyncio.Lock | None = None

    async def run(self) -> web.StreamResponse:
        """Call the application; return when its response is complete.

        :raises Exception: what it raised before that.
        """
        loop = asyncio.get_running_loop()
        task = start_eagerly(self._call(), loop)
        if not task.done():
            self._task = task
            self.wait()
            attend(self.request, task)
            if not self.is_complete:
                self._waiter = loop.create_future()
                task.add_done_callback(self._wake)
                try:
                    await self._waiter
                except asyncio.CancelledError:
                    # aiohttp says by that that the client has gone, or that time is over.
                    self.leave()
                    task.add_done_callback(self._log_failure)
                    raise
                finally:
                    self._waiter = None
            if not task.done():
                task.add_done_callback(self._log_failure)
                return self.response
        return self._conclude(task)

    @property
    @abstractmethod
    def response(self) -> web.StreamResponse:
        """What aiohttp takes for the answer."""

    @abstractmethod
    def scope(self) -> Message:
        """Return what the application is told of the client."""

    @abstractmethod
    async def next_message(self) -> Message:
        """Return the next message from the client; only one call at a time.

        A call that is cancelled takes no message.
        """

    @abstractmethod
    async def send(self, message: Message) -> None:
        """Send something to the client."""

    @abstractmethod
    def wait(self) -> None:
        """Do what can't wait until the application goes on."""

    async def receive(self) -> Message:
        """Return the next message from the client.

        It may be called while another call waits: messages go to the calls in their order, each to
        one of them.
        """
        turn = self._turn
        if turn is None:
            turn = self._turn = asyncio.Lock()
        async with turn:
            return await self.next_message()

    async def _call(self) -> None:
        await self.app(self.scope(), self.receive, self.send)

    def complete(self) -> None:
        """Record that the client has all that it is to get."""
        self.is_complete = True
        self.signal()
        self._wake()

    def leave(self) -> None:
        """Record that the client has gone."""
        self.is_gone = True
        self.signal()

    def signal(self) -> None:
        """Let :meth:`next_message` look again at what it waits for."""
        change = self._change
        if change is not None and not change.done():
            change.set_result(None)

    async def change(self) -> None:
        """Wait for :meth:`signal`; only one call at a time."""
        self._change = asyncio.get_running_loop().create_future()
        await self._change

    async def end(self) -> None:
        """Wait until nothing more comes from the client."""
        while not (self.is_complete or self.is_gone):
            await self.change()

    def check_presence(self) -> None:
        """Refuse to send something to nobody.

        :raises OSError: if the client has gone.
        """
        if self.is_gone:
            raise ClientDisconnected

    def common_scope(self, kind: str, schemes: tuple[str, str]) -> Message:
        """Return what requests and web sockets have in common.

        :param schemes: without TLS and with it.
        """
        request = self.request
        protocol = request.protocol
        target = request.raw_path
        if not target.startswith("/"):
            target = _without_origin(target)
        path, _, query = target.partition("?")
        raw_path = path.encode("utf-8", "surrogateescape")
        if not path.isascii():
            path = raw_path.decode("utf-8", "replace")
        peer, here = protocol.peername, protocol.sockname
        return {
            "type": kind,
            "asgi": _VERSION.copy(),
            "http_version": f"{request.version[0]}.{request.version[1]}",
            "scheme": schemes[protocol.ssl_context is not None],
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query.encode("utf-8", "surrogateescape"),
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.raw_headers],
            "client": peer[:2] if isinstance(peer, tuple) else None,
            "server": here[:2] if isinstance(here, tuple) else (here, None) if here else None,
            "state": self.state.copy(),
        }

    def _wake(self, _: object = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _conclude(self, task: asyncio.Task[None]) -> web.StreamResponse:
        """Tell what became of a call that has ended."""
        if self.is_complete:
            self._log_failure(task)
            return self.response
        if self.fault is not None:
            task.cancelled() or task.exception()  # which followed from it
            raise self.fault
        if self.is_gone and not task.cancelled() and _is_of_departure(task.exception()):
            raise ClientDisconnected  # of which aiohttp makes no fuss
        if task.cancelled():
            if is_stopping(self.request):
                raise asyncio.CancelledError
            raise RuntimeError("the application cancelled itself before its response was complete")
        task.result()
        raise RuntimeError("the application returned before its response was complete")

    def _log_failure(self, task: asyncio.Task[None]) -> None:
        """Log what the application raised when there was nobody left to be told."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self.is_gone and _is_of_departure(error):
            return
        request = self.request
        peer = request.protocol.peername
        log.error(
            "The application failed in its work for %s %s of %s",
            request.method,
            request.raw_path,
            format_address(peer) if peer else "a client",
            exc_info=error,
        )


def _is_of_departure(error: BaseException | None) -> bool:
    """Tell whether something was raised because the client has gone.

    Frameworks make errors of their own of what they are told, which have no base in common.
    """
    for _ in range(_DEPTH):
        if isinstance(error, BaseExceptionGroup):
            return all(map(_is_of_departure, error.exceptions))
        if isinstance(error, ClientDisconnected) or type(error).__name__ in _DEPARTURES:
            return True
        if error is None:
            break
        error = error.__cause__ or error.__context__
    return False


def _without_origin(target: str) -> str:
    """Return the path and the query of an absolute URL, which proxies are asked for."""
    _, scheme, rest = target.partition("://")
    if not scheme:
        return target
    place, mark, query = rest.partition("?")
    _, _, path = place.partition("/")
    return f"/{path}{mark}{query}"
