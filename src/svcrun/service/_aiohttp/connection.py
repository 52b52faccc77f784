"""One connection of an aiohttp server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import ClientConnectionResetError, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler, RequestPayloadError

from svcrun.addresses import format_address
from svcrun.errors import ClientDisconnected
from svcrun.tasks import current_work

if TYPE_CHECKING:
    import asyncio

    from svcrun.service._aiohttp.server import Server
    from svcrun.service._handshake import Handshake

__all__ = ("Connection", "EndingConnection")

# Errors of requests that the client got wrong.
_MALFORMED: Final = (HttpProcessingError, RequestPayloadError)

# The arguments of aiohttp's error when a connection is lost while its output is waited for.
_LOST: Final = ("Connection lost",)


class Connection(RequestHandler):
    """One client, and the task that answers its requests one after the other."""

    __slots__ = ("blamed", "handshake", "request")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # What established TLS for it.
        self.handshake: Handshake | None = None
        # The last one that came; aiohttp knows of it only when it has begun to handle it.
        self.request: web.BaseRequest | None = None
        # The last one that was logged as malformed.
        self.blamed: web.BaseRequest | None = None

    @property
    def server(self) -> Server | None:
        """The server, until the connection is lost."""
        return cast("Server | None", self._manager)

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

    def end(self) -> None:
        """Take no further request, and close at once if none is being answered."""
        self._close = True
        waiter = self._waiter
        if self._request_count == 0 or not (waiter is None or waiter.done()):
            self.force_close()
        # Another class, not a flag: that would be looked at whenever something comes, all its life.
        self.__class__ = EndingConnection
        if self.transport is not None:
            self.transport.set_protocol(self)  # uvloop has kept the methods of the one before

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
            reason = self._blame(exc)
            if request.writer.output_size > 0:
                raise ConnectionError("the response has begun")
            response = web.Response(status=400, text=message or reason)
            response.force_close()
            return response
        if isinstance(exc, ConnectionError) and self._is_lost(exc, request):
            self.logger.info("%s disconnected before the response was sent: %s", self._peer, exc)
            raise ConnectionError("the client disconnected") from exc
        if exc is None:
            exc = sys.exc_info()[1]  # aiohttp does not pass on that a handler timed out
        return super().handle_error(request, status, exc, message)

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Log an error that aiohttp does not expect, and its traceback.

        It reads the rest of a request that the handler has not read. The rest may be malformed.
        """
        error = kwargs.get("exc_info")
        if isinstance(error, _MALFORMED):
            self._blame(error)
        else:
            super().log_exception(*args, **kwargs)

    def _blame(self, error: Exception) -> str:
        """Log once that the client's request is malformed; return the reason."""
        text = error.message if isinstance(error, HttpProcessingError) else str(error)
        reason = text.partition("\n")[0].rstrip(":")
        if self.blamed is None or self.blamed is not self.request:  # each attempt to read fails
            self.blamed = self.request
            self.logger.warning("%s sent a malformed request: %s", self._peer, reason)
        return reason

    def _is_lost(self, error: ConnectionError, request: web.BaseRequest) -> bool:
        """Return whether an error says that the client has gone, and not another peer."""
        if not (self._is_closed or isinstance(self, EndingConnection)):
            return False
        if isinstance(error, ClientConnectionResetError | ClientDisconnected):
            return True
        # Reading fails by the error of the connection. Waiting for the output to be taken fails by
        # one that has no class of its own.
        return error is request.content.exception() or (
            self._is_closed and type(error) is ConnectionError and error.args == _LOST
        )

    @property
    def _is_closed(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    @property
    def _peer(self) -> str:
        # Known as long as there is a transport, and remembered from then on.
        return format_address(self.peername)


class EndingConnection(Connection):
    """A connection that takes no further request."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        """Take what is for the request that is being answered."""
        if self._force_close:
            return
        self._close = False  # aiohttp would take nothing
        try:
            super().data_received(data)
        finally:
            self._close = True
