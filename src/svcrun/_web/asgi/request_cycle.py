"""One call of an application, and the messages between it and its client."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from svcrun._net.addresses import format_address
from svcrun._util.eager import start_eagerly
from svcrun._web.aiohttp.server import is_stopping, track
from svcrun._web.disconnections import is_disconnection
from svcrun.errors import ClientDisconnected

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from aiohttp import web
    from aiohttp_asgi.resource import ASGIApplicationType

    Message = MutableMapping[str, Any]

__all__ = ("RequestCycle",)

log = logging.getLogger("svcrun.service.asgi")

_VERSION = {"version": "3.0", "spec_version": "2.4"}


class RequestCycle(ABC):
    """One call of the application, in a task of its own.

    aiohttp cancels a handler when its client disconnects, and answers the next request of a
    connection when the handler of the previous one has returned. ASGI requires otherwise: the
    application receives a message when its client disconnects, and may go on after its response is
    complete. So the handler only waits for the response.

    Race: the client may disconnect at any ``await``. :attr:`is_disconnected` and
    :attr:`is_complete` change from False to True once, each change wakes the waiting
    :meth:`receive`, and each method that sends checks them first.

    :param app: the application.
    :param request: the request of the client.
    :param state: the state that the lifespan of the application has set.
    """

    def __init__(
        self, app: ASGIApplicationType, request: web.BaseRequest, state: dict[str, Any]
    ) -> None:
        self.app = app
        self.request = request
        self.state = state
        # Whether the response is complete.
        self.is_complete = False
        # Whether the client has disconnected.
        self.is_disconnected = False
        # The error of a malformed request.
        self.fault: Exception | None = None
        # The task of the call, unless the call returned in its first step.
        self._task: asyncio.Task[None] | None = None
        # The handler waits for this until the response is complete or the task has ended.
        self._waiter: asyncio.Future[None] | None = None
        # receive() waits for this until signal() is called.
        self._change: asyncio.Future[None] | None = None
        # Held by the call of receive() that returns the next message.
        self._receive_lock: asyncio.Lock | None = None

    async def run(self) -> web.StreamResponse:
        """Call the application, and return when its response is complete.

        :raises Exception: the error that the application raised before that.
        """
        loop = asyncio.get_running_loop()
        task = start_eagerly(self._call(), loop)
        # Most calls return in their first step. They need neither a future nor a callback.
        if not task.done():
            self._task = task
            self.on_wait()
            track(self.request, task)
            if not self.is_complete:
                self._waiter = loop.create_future()
                task.add_done_callback(self._wake)
                try:
                    await self._waiter
                except asyncio.CancelledError:
                    # aiohttp cancels the handler if the client disconnects or the stop times out.
                    self.on_disconnect()
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
        """The response that the handler returns to aiohttp."""

    @abstractmethod
    def scope(self) -> Message:
        """Return the ASGI scope of the request."""

    @abstractmethod
    async def next_message(self) -> Message:
        """Return the next message from the client; only one call at a time.

        A cancelled call loses no message.
        """

    @abstractmethod
    async def send(self, message: Message) -> None:
        """Send a message to the client."""

    @abstractmethod
    def on_wait(self) -> None:
        """React to an application that is not complete after its first step."""

    async def receive(self) -> Message:
        """Return the next message from the client.

        It may be called while another call waits. The calls receive messages in the order of the
        calls, and each message goes to one call.
        """
        turn = self._receive_lock
        if turn is None:
            turn = self._receive_lock = asyncio.Lock()
        async with turn:
            return await self.next_message()

    async def _call(self) -> None:
        await self.app(self.scope(), self.receive, self.send)

    def complete(self) -> None:
        """Record that the response is complete, and wake the handler."""
        self.is_complete = True
        self.signal()
        self._wake()

    def on_disconnect(self) -> None:
        """Record that the client has disconnected."""
        self.is_disconnected = True
        self.signal()

    def signal(self) -> None:
        """Wake :meth:`next_message`, so that it checks its condition again."""
        change = self._change
        if change is not None and not change.done():
            change.set_result(None)

    async def wait_for_change(self) -> None:
        """Wait for :meth:`signal`; only one call at a time."""
        self._change = asyncio.get_running_loop().create_future()
        await self._change

    async def wait_for_end(self) -> None:
        """Wait until the response is complete or the client has disconnected."""
        while not (self.is_complete or self.is_disconnected):
            await self.wait_for_change()

    def check_connected(self) -> None:
        """Raise an error if the client has disconnected.

        :raises OSError: if the client has disconnected.
        """
        if self.is_disconnected:
            raise ClientDisconnected

    def common_scope(self, kind: str, schemes: tuple[str, str]) -> Message:
        """Return the part of the scope that requests and web sockets have in common.

        :param schemes: the scheme without TLS, and the one with TLS.
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
        """Return the response of a call that has ended, or raise its error."""
        if self.is_complete:
            self._log_failure(task)
            return self.response
        if self.fault is not None:
            task.cancelled() or task.exception()  # mark it as retrieved: it results from the fault
            raise self.fault
        if self.is_disconnected and not task.cancelled() and is_disconnection(task.exception()):
            raise ClientDisconnected  # our connection logs it in one line
        if task.cancelled():
            if is_stopping(self.request):
                raise asyncio.CancelledError
            raise RuntimeError("the application cancelled itself before its response was complete")
        task.result()
        raise RuntimeError("the application returned before its response was complete")

    def _log_failure(self, task: asyncio.Task[None]) -> None:
        """Log an error that the application raised after the handler stopped waiting for it."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self.is_disconnected and is_disconnection(error):
            return
        request = self.request
        peer = request.protocol.peername
        log.error(
            "application failed while handling %s %s from %s",
            request.method,
            request.raw_path,
            format_address(peer) if peer else "a client",
            exc_info=error,
        )


def _without_origin(target: str) -> str:
    """Return the path and the query of an absolute URL, which clients send to proxies."""
    _, scheme, rest = target.partition("://")
    if not scheme:
        return target
    location, mark, query = rest.partition("?")
    _, _, path = location.partition("/")
    return f"/{path}{mark}{query}"
