"""One web socket, or the refusal of it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aiohttp import WebSocketError, WSCloseCode, WSMsgType, hdrs, web

from svcrun._web.asgi.exchange import Exchange
from svcrun._web.asgi.hearing import Hearing
from svcrun._web.asgi.response import Response
from svcrun.errors import ClientDisconnected, UnexpectedMessage

if TYPE_CHECKING:
    from aiohttp_asgi.resource import ASGIApplicationType

    from svcrun._web.asgi.exchange import Message

__all__ = ("WebSocketExchange", "WebSocketOptions", "is_web_socket")

# Seconds that a client has to answer when it is told that the web socket is closed.
CLOSE_TIMEOUT: Final = 5.0

# What stands for a close code where none was sent, and where the connection broke.
NO_STATUS: Final = 1005
ABNORMAL: Final = int(WSCloseCode.ABNORMAL_CLOSURE)


class WebSocketOptions(NamedTuple):
    """What is to be said to all web sockets of a service."""

    max_size: int
    """Bytes of the longest message that is accepted."""
    ping_interval: float | None
    """Seconds of silence after which a client is asked whether it is still there."""
    per_message_deflate: bool
    """Whether messages may be compressed."""


def is_web_socket(request: web.BaseRequest) -> bool:
    """Tell whether a client asks for a web socket."""
    headers = request.headers
    if headers.get(hdrs.UPGRADE, "").lower() != "websocket" or request.method != "GET":
        return False
    tokens = headers.get(hdrs.CONNECTION, "").lower().split(",")
    return "upgrade" in (token.strip() for token in tokens)


class WebSocketExchange(Exchange):
    """A client that asks for a web socket, what it then says, and what it is told.

    :param options: of the service.
    """

    def __init__(
        self,
        app: ASGIApplicationType,
        request: web.BaseRequest,
        state: dict[str, Any],
        options: WebSocketOptions,
    ) -> None:
        super().__init__(app, request, state)
        self._options = options
        self._is_announced = False
        self._socket: web.WebSocketResponse | None = None
        self._hearing: Hearing | None = None
        self._denial: Response | None = None
        # What the application is told at the end, and again whenever it asks.
        self._farewell: Message | None = None

    @property
    def response(self) -> web.StreamResponse:
        """The web socket, or the response that denies it."""
        response = self._denial if self._socket is None else self._socket
        if response is None:
            raise RuntimeError("there is no response yet")
        return response

    async def run(self) -> web.StreamResponse:
        """Call the application, and close what it leaves open."""
        if not web.WebSocketResponse(protocols=self._offered()).can_prepare(self.request):
            refusal = web.HTTPBadRequest(text="this is no handshake of a web socket, version 13")
            refusal.force_close()
            raise refusal
        begun = asyncio.get_running_loop().time()
        try:
            return await super().run()
        except asyncio.CancelledError:
            # At the end of the connection, in most cases. aiohttp logs what handlers return.
            if self._socket is not None:
                self.request.protocol.log_access(self.request, self._socket, begun)
            raise
        except Exception:
            if self._socket is not None:
                await self._close(WSCloseCode.INTERNAL_ERROR)
            raise

    async def _call(self) -> None:
        try:
            try:
                await super()._call()
            finally:
                if self._hearing is not None:
                    self._hearing.end()
            if self._socket is not None:
                await self._close(WSCloseCode.OK)
                self.complete()
        finally:
            if self._hearing is not None:
                self._hearing.close()

    def scope(self) -> Message:
        """Return the scope of a web socket."""
        scope = self.common_scope("websocket", ("ws", "wss"))
        scope["subprotocols"] = self._offered()
        scope["extensions"] = {"websocket.http.response": {}}
        return scope

    def _offered(self) -> list[str]:
        """Return the protocols that the client would speak over the web socket."""
        lines = self.request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, ())
        names = (name.strip() for line in lines for name in line.split(","))
        return [name for name in names if name]

    # What comes from the client.

    async def next_message(self) -> Message:
        """Return that the client is there, what it says, or that it has gone."""
        if not self._is_announced:
            self._is_announced = True
            return {"type": "websocket.connect"}
        if self._farewell is not None:
            return self._farewell
        while (hearing := self._hearing) is None:
            if self.is_complete or self.is_gone:
                return self._take_leave(ABNORMAL)
            await self.change()
        message = await hearing.next()
        if message.type is WSMsgType.TEXT:
            return {"type": "websocket.receive", "text": message.data}
        if message.type is WSMsgType.BINARY:
            return {"type": "websocket.receive", "bytes": message.data}
        return self._take_leave(*self._reason_of(message))

    def _reason_of(self, message: Any) -> tuple[int, str]:
        """Return code and reason of an end."""
        if message.type is WSMsgType.CLOSE:
            return message.data or NO_STATUS, message.extra or ""
        if message.type is WSMsgType.CLOSING:  # by the end of the server, from another task
            return int(WSCloseCode.GOING_AWAY), ""
        if isinstance(message.data, WebSocketError):  # the client broke a rule
            return int(message.data.code), str(message.data)
        code = None if self._socket is None else self._socket.close_code
        # aiohttp calls it OK when a connection breaks.
        return (ABNORMAL if code is None or code == WSCloseCode.OK else int(code)), ""

    def _take_leave(self, code: int, reason: str = "") -> Message:
        self.leave()
        self._farewell = {"type": "websocket.disconnect", "code": code, "reason": reason}
        return self._farewell

    # What goes to the client.

    async def send(self, message: Message) -> None:
        """Accept or deny the web socket, say something, or close it."""
        kind = message["type"]
        if kind == "websocket.accept":
            await self._accept(message)
        elif kind == "websocket.send":
            await self._say(message)
        elif kind == "websocket.close":
            await self._end_by(message)
        elif kind == "websocket.http.response.start":
            self._check_undecided(kind)
            self._denial = Response(self.request, message["status"], message.get("headers", ()))
        elif kind == "websocket.http.response.body":
            await self._deny(message.get("body") or b"", more=bool(message.get("more_body")))
        else:
            raise UnexpectedMessage(kind, "to a web socket")

    def wait(self) -> None:
        """Do nothing: all that is sent goes out at once."""

    async def _accept(self, message: Message) -> None:
        self._check_undecided(message["type"])
        self.check_presence()
        options = self._options
        protocol = message.get("subprotocol")
        socket = web.WebSocketResponse(
            timeout=CLOSE_TIMEOUT,
            autoclose=False,  # by a code of its own
            heartbeat=options.ping_interval,
            protocols=() if protocol is None else (protocol,),
            compress=options.per_message_deflate,
            max_msg_size=options.max_size + 1,  # aiohttp refuses what is as long as its limit
        )
        for name, value in message.get("headers") or ():
            socket.headers.add(name.decode("latin-1"), value.decode("latin-1"))
        try:
            await socket.prepare(self.request)
        except ConnectionError as error:
            raise self._gone() from error
        self._socket = socket
        self._hearing = Hearing(self.request, socket, options.ping_interval, self.leave)
        self.signal()

    async def _say(self, message: Message) -> None:
        socket = self._socket
        if socket is None:
            raise UnexpectedMessage(message["type"], "before websocket.accept")
        if self.is_complete:
            raise UnexpectedMessage(message["type"], "after websocket.close")
        if socket.closed:
            raise self._gone()
        self.check_presence()
        data, text = message.get("bytes"), message.get("text")
        if (data is None) is (text is None):
            raise UnexpectedMessage(message["type"], "without exactly one of bytes and text")
        try:
            if data is not None:
                await socket.send_bytes(data)
            elif text is not None:
                await socket.send_str(text)
        except ConnectionError as error:
            raise self._gone() from error

    async def _end_by(self, message: Message) -> None:
        if self.is_complete:
            raise UnexpectedMessage(message["type"], "a second time")
        if self._socket is not None:
            await self._close(message.get("code") or WSCloseCode.OK, message.get("reason") or "")
            self.complete()
        else:
            self._check_undecided(message["type"])
            self._denial = Response(self.request, 403, [(b"content-type", b"text/plain")])
            await self._deny(b"", more=False)

    async def _deny(self, body: bytes, *, more: bool) -> None:
        if self._denial is None or self.is_complete:
            raise UnexpectedMessage("websocket.http.response.body", "without a denial under way")
        self.check_presence()
        try:
            await self._denial.send(body, more=more)
        except ClientDisconnected:
            self.leave()
            raise
        if not more:
            self.complete()

    async def _close(self, code: int, reason: str = "") -> None:
        socket = self._socket
        if socket is not None and not socket.closed:
            with contextlib.suppress(ConnectionError):
                await socket.close(code=code, message=reason.encode())

    def _check_undecided(self, kind: str) -> None:
        if self._socket is not None or self._denial is not None:
            raise UnexpectedMessage(kind, "when the web socket was accepted or denied already")

    def _gone(self) -> ClientDisconnected:
        self.leave()
        return ClientDisconnected()
