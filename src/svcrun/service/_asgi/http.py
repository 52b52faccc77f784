"""One HTTP request, and the answer of the application."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, hdrs

from svcrun.eager import start_eagerly
from svcrun.errors import ClientDisconnected, UnexpectedMessage
from svcrun.service._aiohttp.server import attend
from svcrun.service._asgi.exchange import Exchange
from svcrun.service._asgi.response import Response

if TYPE_CHECKING:
    from aiohttp import web

    from svcrun.service._asgi.exchange import Message

__all__ = ("HTTPExchange",)


class HTTPExchange(Exchange):
    """A request, its body as it comes, and a response as it is made."""

    _response: Response | None = None
    # Whether there may be more of the request, and whether it was asked for.
    _has_body = True
    _is_asked = False

    @property
    def response(self) -> web.StreamResponse:
        """The response, which is complete."""
        if self._response is None:
            raise RuntimeError("there is no response yet")
        return self._response

    def scope(self) -> Message:
        """Return the scope of a request."""
        scope = self.common_scope("http", ("http", "https"))
        scope["method"] = self.request.method
        return scope

    async def receive(self) -> Message:
        """Return a part of the body, or that the client has gone."""
        if self._has_body and not self.is_complete and not self.is_gone:
            content = self.request.content
            if content.at_eof():
                self._has_body = False
                return {"type": "http.request", "body": b"", "more_body": False}
            try:
                if not self._is_asked and self._response is None:
                    await self._encourage()
                body = await content.readany()
            except Exception as error:  # noqa: BLE001 - of whichever kind, there will be no more
                if not isinstance(error, ConnectionError):
                    self.fault = error
                self.leave()
            else:
                self._has_body = not content.at_eof()
                return {"type": "http.request", "body": body, "more_body": self._has_body}
        await self.end()
        return {"type": "http.disconnect"}

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
        """See to it that a response begins, though its body is still to come."""
        # What comes in this turn of the loop goes out with it. Most responses do.
        if self._response is not None and not self.is_complete:
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        """Write the head of a response whose body is still to come, as events may be."""
        response, call = self._response, self._task
        if response is None or response.prepared or self.is_gone:
            return
        if call is None or call.done():
            return  # it has failed, of which the client may still be told
        task = start_eagerly(self._write_head(response), asyncio.get_running_loop())
        if not task.done():
            attend(self.request, task)

    async def _write_head(self, response: Response) -> None:
        with contextlib.suppress(ClientDisconnected):  # which the application is told, too
            await response.send(b"", more=True)

    async def _encourage(self) -> None:
        """Ask for the body, if that is what the client waits for."""
        self._is_asked = True
        request = self.request
        if request.headers.get(hdrs.EXPECT) and request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the response has not begun by that
