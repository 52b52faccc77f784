"""One connection of an aiohttp server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import ClientConnectionResetError, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler, RequestPayloadError

from svcrun._net.addresses import format_address
from svcrun._util.tasks import current_work
from svcrun.errors import ClientDisconnected

if TYPE_CHECKING:
    import asyncio

    from svcrun._net.handshake import Handshake
    from svcrun._web.aiohttp.server import Server

__all__ = ("Connection", "EndingConnection")

# Errors of malformed requests.
_MALFORMED: Final = (HttpProcessingError, RequestPayloadError)

# The arguments of the error that aiohttp raises if a connection is lost during a drain.
_LOST: Final = ("Connection lost",)


class Connection(RequestHandler):
    """The connection of a client, and the task that answers its requests one after another."""

    __slots__ = ("blamed", "handshake", "request")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The TLS handshake of this connection.
        self.handshake: Handshake | None = None
        # The last request that was received; aiohttp records one only when it begins to handle it.
        self.request: web.BaseRequest | None = None
        # The last request that was logged as malformed.
        self.blamed: web.BaseRequest | None = None

    @property
    def server(self) -> Server | None:
        """The server, until the connection is lost."""
        return cast("Server | None", self._manager)

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task that answers the requests, until it has answered the last one."""
        return self._task_handler

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the task, in a context whose current work is this connection."""
        token = current_work.set(self)
        try:
            super().connection_made(transport)
        finally:
            current_work.reset(token)

    def end(self) -> None:
        """Accept no further request, and close at once if no request is in flight."""
        self._close = True
        waiter = self._waiter
        if self._request_count == 0 or not (waiter is None or waiter.done()):
            self.force_close()
        # Change the class instead of setting a flag, which data_received() would check each time.
        self.__class__ = EndingConnection
        if self.transport is not None:
            self.transport.set_protocol(self)  # uvloop has cached the methods of the old class

    def is_sent(self, transport: asyncio.Transport) -> bool:
        """Return whether `transport` is closed and has sent all data.

        :param transport: the transport of this connection. Its TLS may still wait for the peer's
            ``close_notify``.
        """
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
        """Log the error of a request, and return a response for it.

        :raises ConnectionError: if the response has begun, or the client has disconnected.
        """
        if isinstance(exc, _MALFORMED):
            # No traceback: the fault is the client's, not that of the code it would show.
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
            exc = sys.exc_info()[1]  # aiohttp does not pass the TimeoutError of a handler
        return super().handle_error(request, status, exc, message)

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Log an error that aiohttp does not expect, with its traceback.

        aiohttp reads the rest of a request that the handler has not read. A malformed rest is
        logged as such, without traceback.
        """
        error = kwargs.get("exc_info")
        if isinstance(error, _MALFORMED):
            self._blame(error)
        else:
            super().log_exception(*args, **kwargs)

    def _blame(self, error: Exception) -> str:
        """Log once per request that it is malformed, and return the reason."""
        text = error.message if isinstance(error, HttpProcessingError) else str(error)
        reason = text.partition("\n")[0].rstrip(":")
        if self.blamed is None or self.blamed is not self.request:  # each attempt to read fails
            self.blamed = self.request
            self.logger.warning("%s sent a malformed request: %s", self._peer, reason)
        return reason

    def _is_lost(self, error: ConnectionError, request: web.BaseRequest) -> bool:
        """Return whether `error` results from the loss of this connection, not of another one."""
        if not (self._is_closed or isinstance(self, EndingConnection)):
            return False
        if isinstance(error, ClientConnectionResetError | ClientDisconnected):
            return True
        # A read raises the error of the connection. A drain raises a plain ConnectionError.
        return error is request.content.exception() or (
            self._is_closed and type(error) is ConnectionError and error.args == _LOST
        )

    @property
    def _is_closed(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    @property
    def _peer(self) -> str:
        # aiohttp keeps the name of the peer after the transport is closed.
        return format_address(self.peername)


class EndingConnection(Connection):
    """A connection that accepts no further request."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        """Receive the rest of the request in flight."""
        if self._force_close:
            return
        self._close = False  # otherwise aiohttp would drop the data
        try:
            super().data_received(data)
        finally:
            self._close = True
