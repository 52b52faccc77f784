"""One HTTP request, and the response of the application."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, hdrs

from svcrun._util.eager import start_eagerly
from svcrun._web.aiohttp.server import is_stopping, track
from svcrun._web.asgi.exchange import Exchange
from svcrun._web.asgi.response import Response
from svcrun.errors import ClientDisconnected, UnexpectedMessage

if TYPE_CHECKING:
    from aiohttp import StreamReader, web

    from svcrun._web.asgi.exchange import Message

__all__ = ("HTTPExchange",)


class HTTPExchange(Exchange):
    """A request whose body is received in parts, and a response that is sent in parts.

    Invariant: one task at a time reads the body. A read by the application ends before aiohttp
    reads the rest of the request: :meth:`run` waits until the read has timed out.
    """

    _response: Response | None = None
    # The timeout of a read of the body; it expires at the end of the response.
    _waiting: asyncio.Timeout | None = None
    # Whether more of the body may follow, and whether the client was asked to send it.
    _has_body = True
    _is_asked = False

    @property
    def response(self) -> web.StreamResponse:
        """The complete response."""
        if self._response is None:
            raise RuntimeError("there is no response yet")
        return self._response

    def scope(self) -> Message:
        """Return the scope of a request."""
        scope = self.common_scope("http", ("http", "https"))
        scope["method"] = self.request.method
        return scope

    async def run(self) -> web.StreamResponse:
        """Call the application, and return when its response is complete.

        :raises Exception: the error that the application raised before that.
        """
        try:
            return await super().run()
        finally:
            # Race: aiohttp reads the rest of the request after this returns, and the application
            # may still be reading, though only one task may. So end the application's read.
            while self._waiting is not None:
                self._stop_waiting()
                await asyncio.sleep(0)

    async def _call(self) -> None:
        await self.app(self.scope(), self.receive, self.send)
        response = self._response
        if (
            response is not None
            and not (self.is_complete or self.is_gone)
            and is_stopping(self.request)
            and response.is_event_stream
        ):
            # The stop has ended the event stream, which is complete after any event.
            await self.send({"type": "http.response.body"})

    async def next_message(self) -> Message:
        """Return a part of the body, or ``http.disconnect`` after the end of the response."""
        if self._has_body and not self.is_complete and not self.is_gone:
            content = self.request.content
            try:
                if not (self._is_asked or self._response is not None or content.at_eof()):
                    await self._encourage()
                body = content.read_nowait()
                if not body and not content.at_eof():
                    body = await self._read(content)
            except Exception as error:  # noqa: BLE001 - the request can't be read after any error
                if not isinstance(error, ConnectionError):
                    self.fault = error
                self.leave()
            else:
                self._has_body = not content.at_eof()
                if body or not self._has_body:
                    return {"type": "http.request", "body": body, "more_body": self._has_body}
        await self.end()
        return {"type": "http.disconnect"}

    async def _read(self, content: StreamReader) -> bytes:
        """Wait for a part of the body; return ``b""`` if the response is complete before that."""
        try:
            async with asyncio.timeout(None) as self._waiting:
                return await content.readany()
        except TimeoutError:
            if not self.is_complete:
                raise
            return b""
        finally:
            self._waiting = None

    def _stop_waiting(self) -> None:
        waiting = self._waiting
        # A timeout raises RuntimeError if it is rescheduled while it expires.
        if waiting is not None and waiting.when() is None:
            waiting.reschedule(0)

    async def send(self, message: Message) -> None:
        """Begin the response, or write a part of its body."""
        kind = message["type"]
        response = self._response
        if kind == "http.response.body":
            if response is None:
                raise UnexpectedMessage(kind, "before http.response.start")
            if self.is_complete:
                raise UnexpectedMessage(kind, "after the end of the response")
            self.check_presence()
            more = bool(message.get("more_body", False))
            try:
                await response.send(message.get("body") or b"", more=more)
            except ClientDisconnected:
                self.leave()
                raise
            if not more:
                self.complete()
                self._stop_waiting()
        elif kind == "http.response.start":
            if response is not None:
                raise UnexpectedMessage(kind, "a second time")
            self.check_presence()
            self._response = Response(self.request, message["status"], message.get("headers", ()))
            if self._task is not None:
                self.wait()
        else:
            raise UnexpectedMessage(kind, "in answer to an HTTP request")

    def wait(self) -> None:
        """Schedule the head of a response whose body may take long."""
        # A body that the application sends in this iteration of the loop is sent with the head.
        if self._response is not None and not self.is_complete:
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        """Send the head of a response before its body, which may be a stream of events."""
        response, call = self._response, self._task
        if response is None or response.prepared or self.is_gone:
            return
        if call is None or call.done():
            return  # the application failed, and the client may still receive an error response
        task = start_eagerly(self._write_head(response), asyncio.get_running_loop())
        if not task.done():
            track(self.request, task)

    async def _write_head(self, response: Response) -> None:
        with contextlib.suppress(ClientDisconnected):  # send() raises it for the application
            await response.send(b"", more=True)

    async def _encourage(self) -> None:
        """Send ``100 Continue`` if the client expects it before it sends the body."""
        self._is_asked = True
        request = self.request
        if request.headers.get(hdrs.EXPECT) and request.version >= HttpVersion11:
            try:
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            finally:
                request.writer.output_size = 0  # aiohttp would take it for a begun response
