"""One HTTP request, and the response of the application."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, hdrs

from svcrun._util.eager import start_eagerly
from svcrun._web.aiohttp.server import is_stopping, track
from svcrun._web.asgi.request_cycle import RequestCycle
from svcrun._web.asgi.response import Response
from svcrun.errors import ClientDisconnected, UnexpectedMessage

if TYPE_CHECKING:
    from aiohttp import StreamReader, web

    from svcrun._web.asgi.request_cycle import Message

__all__ = ("HTTPCycle",)


class HTTPCycle(RequestCycle):
    """A request whose body is received in parts, and a response that is sent in parts.

    Invariant: one task at a time reads the body. A read by the application ends before aiohttp
    reads the rest of the request: :meth:`run` waits until the read has timed out.
    """

    _response: Response | None = None
    # The timeout of a read of the body; it expires at the end of the response.
    _read_timeout: asyncio.Timeout | None = None
    # Whether more of the body may follow, and whether the client may send it: it may expect
    # ``100 Continue`` first.
    _has_body = True
    _has_continued = False

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
            while self._read_timeout is not None:
                self._end_read()
                await asyncio.sleep(0)

    async def _call(self) -> None:
        await self.app(self.scope(), self.receive, self.send)
        response = self._response
        if (
            response is not None
            and not (self.is_complete or self.is_disconnected)
            and is_stopping(self.request)
            and response.is_event_stream
        ):
            # The stop has ended the event stream, which is complete after any event.
            await self.send({"type": "http.response.body"})

    async def next_message(self) -> Message:
        """Return a part of the body, or ``http.disconnect`` after the end of the response."""
        if self._has_body and not self.is_complete and not self.is_disconnected:
            content = self.request.content
            try:
                if not (self._has_continued or self._response is not None or content.at_eof()):
                    await self._send_continue()
                body = content.read_nowait()
                if not body and not content.at_eof():
                    body = await self._read(content)
            except Exception as error:  # noqa: BLE001 - the request can't be read after any error
                if not isinstance(error, ConnectionError):
                    self.fault = error
                self.on_disconnect()
            else:
                self._has_body = not content.at_eof()
                if body or not self._has_body:
                    return {"type": "http.request", "body": body, "more_body": self._has_body}
        await self.wait_for_end()
        return {"type": "http.disconnect"}

    async def _read(self, content: StreamReader) -> bytes:
        """Wait for a part of the body; return ``b""`` if the response is complete before that."""
        # A timeout, not a task: cancelling a task that reads may lose the part that it has read.
        try:
            async with asyncio.timeout(None) as self._read_timeout:
                return await content.readany()
        except TimeoutError:
            if not self.is_complete:
                raise
            return b""
        finally:
            self._read_timeout = None

    def _end_read(self) -> None:
        waiting = self._read_timeout
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
            self.check_connected()
            more = bool(message.get("more_body", False))
            try:
                await response.send(message.get("body") or b"", more=more)
            except ClientDisconnected:
                self.on_disconnect()
                raise
            if not more:
                self.complete()
                self._end_read()
        elif kind == "http.response.start":
            if response is not None:
                raise UnexpectedMessage(kind, "a second time")
            self.check_connected()
            self._response = Response(self.request, message["status"], message.get("headers", ()))
            if self._task is not None:
                self.on_wait()
        else:
            raise UnexpectedMessage(kind, "in answer to an HTTP request")

    def on_wait(self) -> None:
        """Schedule the head of a response whose body may take long."""
        # A body that the application sends in this iteration of the loop is sent with the head.
        if self._response is not None and not self.is_complete:
            asyncio.get_running_loop().call_soon(self._send_head)

    def _send_head(self) -> None:
        """Send the head of a response before its body, which may be a stream of events."""
        response, call = self._response, self._task
        if response is None or response.prepared or self.is_disconnected:
            return
        if call is None or call.done():
            return  # the application failed, and the client may still receive an error response
        task = start_eagerly(self._write_head(response), asyncio.get_running_loop())
        if not task.done():
            track(self.request, task)

    async def _write_head(self, response: Response) -> None:
        with contextlib.suppress(ClientDisconnected):  # send() raises it for the application
            await response.send(b"", more=True)

    async def _send_continue(self) -> None:
        """Send ``100 Continue`` if the client expects it before it sends the body."""
        self._has_continued = True
        request = self.request
        if request.headers.get(hdrs.EXPECT) and request.version >= HttpVersion11:
            try:
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            finally:
                request.writer.output_size = 0  # aiohttp would assume that the response has begun
