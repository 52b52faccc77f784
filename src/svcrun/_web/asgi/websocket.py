"""One web socket: its messages to and from the application, or the response that denies it.

:class:`~svcrun._web.asgi.receive_queue.ReceiveQueue` receives the messages of the client, and
:meth:`WebSocketCycle.next_message` passes them to the application.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aiohttp import WebSocketError, WSCloseCode, WSMsgType, hdrs, web

from svcrun._web.asgi.receive_queue import ReceiveQueue
from svcrun._web.asgi.request_cycle import RequestCycle
from svcrun._web.asgi.response import Response
from svcrun.errors import ClientDisconnected, UnexpectedMessage

if TYPE_CHECKING:
    from aiohttp_asgi.resource import ASGIApplicationType

    from svcrun._web.asgi.request_cycle import Message

__all__ = ("WebSocketCycle", "WebSocketOptions", "is_web_socket")

# Seconds that a client has to answer a Close frame.
CLOSE_TIMEOUT: Final = 5.0

# The close codes of a Close frame without one, and of a lost connection.
NO_STATUS: Final = 1005
ABNORMAL: Final = int(WSCloseCode.ABNORMAL_CLOSURE)


class WebSocketOptions(NamedTuple):
    """The options of the web sockets of a service."""

    max_size: int
    """The maximum size of a message, in bytes."""
    ping_interval: float | None
    """Seconds without data from the client after which it is sent a Ping frame."""
    per_message_deflate: bool
    """Whether messages may be compressed (permessage-deflate)."""


def is_web_socket(request: web.BaseRequest) -> bool:
    """Return whether a request asks for a web socket."""
    headers = request.headers
    if headers.get(hdrs.UPGRADE, "").lower() != "websocket" or request.method != "GET":
        return False
    tokens = headers.get(hdrs.CONNECTION, "").lower().split(",")
    return "upgrade" in (token.strip() for token in tokens)


class WebSocketCycle(RequestCycle):
    """A request for a web socket, which the application accepts or denies.

    :param options: the options of the service.
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
        self._is_connect_sent = False
        self._socket: web.WebSocketResponse | None = None
        self._receive_queue: ReceiveQueue | None = None
        self._denial: Response | None = None
        # The last message to the application. Each further call of receive() returns it again.
        self._disconnect_message: Message | None = None

    @property
    def response(self) -> web.StreamResponse:
        """The web socket, or the response that denies it."""
        response = self._denial if self._socket is None else self._socket
        if response is None:
            raise RuntimeError("there is no response yet")
        return response

    async def run(self) -> web.StreamResponse:
        """Call the application, and close a web socket that it leaves open.

        :raises HTTPBadRequest: if the request is not a valid handshake.
        """
        if not web.WebSocketResponse(protocols=self._offered()).can_prepare(self.request):
            text = "this is not a valid handshake of a web socket of version 13"
            denial = web.HTTPBadRequest(text=text)
            denial.force_close()
            raise denial
        begun = asyncio.get_running_loop().time()
        try:
            return await super().run()
        except asyncio.CancelledError:
            # aiohttp logs no response of a cancelled handler. Most web sockets end that way.
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
                if self._receive_queue is not None:
                    self._receive_queue.end()
            if self._socket is not None:
                await self._close(WSCloseCode.OK)
                self.complete()
        finally:
            if self._receive_queue is not None:
                self._receive_queue.close()

    def scope(self) -> Message:
        """Return the scope of a web socket."""
        scope = self.common_scope("websocket", ("ws", "wss"))
        scope["subprotocols"] = self._offered()
        scope["extensions"] = {"websocket.http.response": {}}
        return scope

    def _offered(self) -> list[str]:
        """Return the subprotocols that the client offers."""
        lines = self.request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, ())
        names = (name.strip() for line in lines for name in line.split(","))
        return [name for name in names if name]

    # Messages from the client.

    async def next_message(self) -> Message:
        """Return the next message from the client.

        The first one is ``websocket.connect``. ``websocket.disconnect`` is the last one, and each
        further call returns it again.
        """
        if not self._is_connect_sent:
            self._is_connect_sent = True
            return {"type": "websocket.connect"}
        if self._disconnect_message is not None:
            return self._disconnect_message
        while (queue := self._receive_queue) is None:
            if self.is_complete or self.is_disconnected:
                return self._make_disconnect(ABNORMAL)
            await self.wait_for_change()
        message = await queue.get()
        if message.type is WSMsgType.TEXT:
            return {"type": "websocket.receive", "text": message.data}
        if message.type is WSMsgType.BINARY:
            return {"type": "websocket.receive", "bytes": message.data}
        return self._make_disconnect(*self._close_reason(message))

    def _close_reason(self, message: Any) -> tuple[int, str]:
        """Return the close code and the reason, for the message that ends the web socket."""
        if message.type is WSMsgType.CLOSE:
            return message.data or NO_STATUS, message.extra or ""
        if message.type is WSMsgType.CLOSING:  # by the shutdown of the server, in another task
            return int(WSCloseCode.GOING_AWAY), ""
        if isinstance(message.data, WebSocketError):  # the client violated the protocol
            return int(message.data.code), str(message.data)
        code = None if self._socket is None else self._socket.close_code
        # aiohttp reports a lost connection as OK.
        return (ABNORMAL if code is None or code == WSCloseCode.OK else int(code)), ""

    def _make_disconnect(self, code: int, reason: str = "") -> Message:
        self.on_disconnect()
        self._disconnect_message = {"type": "websocket.disconnect", "code": code, "reason": reason}
        return self._disconnect_message

    # Messages to the client.

    async def send(self, message: Message) -> None:
        """Accept or deny the web socket, send data, or close it."""
        kind = message["type"]
        if kind == "websocket.accept":
            await self._accept(message)
        elif kind == "websocket.send":
            await self._send_data(message)
        elif kind == "websocket.close":
            await self._close_or_deny(message)
        elif kind == "websocket.http.response.start":
            self._check_not_answered(kind)
            self._denial = Response(self.request, message["status"], message.get("headers", ()))
        elif kind == "websocket.http.response.body":
            await self._deny(message.get("body") or b"", more=bool(message.get("more_body")))
        else:
            raise UnexpectedMessage(kind, "to a web socket")

    def on_wait(self) -> None:
        """Do nothing: nothing that was sent is buffered."""

    async def _accept(self, message: Message) -> None:
        self._check_not_answered(message["type"])
        self.check_connected()
        options = self._options
        protocol = message.get("subprotocol")
        socket = web.WebSocketResponse(
            timeout=CLOSE_TIMEOUT,
            autoclose=False,  # ReceiveQueue answers a Close frame with the same code
            heartbeat=options.ping_interval,
            protocols=() if protocol is None else (protocol,),
            compress=options.per_message_deflate,
            max_msg_size=options.max_size
            + 1,  # aiohttp denies a message that is as long as its limit
        )
        for name, value in message.get("headers") or ():
            socket.headers.add(name.decode("latin-1"), value.decode("latin-1"))
        try:
            await socket.prepare(self.request)
        except ConnectionError as error:
            raise self._lost() from error
        self._socket = socket
        self._receive_queue = ReceiveQueue(
            self.request, socket, options.ping_interval, self.on_disconnect
        )
        self.signal()

    async def _send_data(self, message: Message) -> None:
        socket = self._socket
        if socket is None:
            raise UnexpectedMessage(message["type"], "before websocket.accept")
        if self.is_complete:
            raise UnexpectedMessage(message["type"], "after websocket.close")
        if socket.closed:
            raise self._lost()
        self.check_connected()
        data, text = message.get("bytes"), message.get("text")
        if (data is None) is (text is None):
            raise UnexpectedMessage(message["type"], "without exactly one of bytes and text")
        try:
            if data is not None:
                await socket.send_bytes(data)
            elif text is not None:
                await socket.send_str(text)
        except ConnectionError as error:
            raise self._lost() from error

    async def _close_or_deny(self, message: Message) -> None:
        if self.is_complete:
            raise UnexpectedMessage(message["type"], "a second time")
        if self._socket is not None:
            await self._close(message.get("code") or WSCloseCode.OK, message.get("reason") or "")
            self.complete()
        else:
            self._check_not_answered(message["type"])
            self._denial = Response(self.request, 403, [(b"content-type", b"text/plain")])
            await self._deny(b"", more=False)

    async def _deny(self, body: bytes, *, more: bool) -> None:
        if self._denial is None or self.is_complete:
            raise UnexpectedMessage(
                "websocket.http.response.body", "without websocket.http.response.start"
            )
        self.check_connected()
        try:
            await self._denial.send(body, more=more)
        except ClientDisconnected:
            self.on_disconnect()
            raise
        if not more:
            self.complete()

    async def _close(self, code: int, reason: str = "") -> None:
        socket = self._socket
        if socket is not None and not socket.closed:
            with contextlib.suppress(ConnectionError):
                await socket.close(code=code, message=reason.encode())

    def _check_not_answered(self, kind: str) -> None:
        if self._socket is not None or self._denial is not None:
            raise UnexpectedMessage(kind, "after the web socket was accepted or denied")

    def _lost(self) -> ClientDisconnected:
        self.on_disconnect()
        return ClientDisconnected()
