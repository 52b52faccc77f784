"""A connection of an aiohttp server."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final

from aiohttp import ClientConnectionResetError, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler, RequestPayloadError

from svcrun._net.addresses import format_address
from svcrun._util.tasks import current_work
from svcrun.errors import ClientDisconnected

__all__ = ("Connection",)

# Errors of malformed requests.
_MALFORMED: Final = (HttpProcessingError, RequestPayloadError)

# The arguments of the error that aiohttp raises if a connection is lost during a drain.
_LOST: Final = ("Connection lost",)


class _IsLast:
    """As a truth value: whether no request of a connection waits for the current one.

    A client may send several requests at once. aiohttp uses the value when it begins a response.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __bool__(self) -> bool:
        return not self._connection._messages  # noqa: SLF001 - the same module


class Connection(RequestHandler):
    """The connection of a client, and the task that handles its requests one after another."""

    __slots__ = ("is_ending", "last_malformed", "request", "server", "task")

    def __init__(self, server: web.Server, **options: Any) -> None:
        super().__init__(server, **options)
        # The server, until the connection is lost.
        self.server: web.Server | None = server
        # The task that handles the requests, while the connection is open.
        self.task: asyncio.Task[Any] | None = None
        # The last request that was received; aiohttp records one only when it begins to handle it.
        self.request: web.BaseRequest | None = None
        # The last request that was logged as malformed.
        self.last_malformed: web.BaseRequest | None = None
        # Whether no further request is accepted.
        self.is_ending = False

    async def start(self) -> None:
        """Handle the requests, in a task whose current work is this connection."""
        self.task = asyncio.current_task()
        current_work.set(self)
        await super().start()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Drop the references to the server and to requests: they refer to this connection."""
        super().connection_lost(exc)
        self.server = self.task = self.request = self.last_malformed = None

    @property
    def is_idle(self) -> bool:
        """Whether no request is in flight, or was received and not begun."""
        # aiohttp waits by this future for the next request, and has none before its task begins.
        # It is done if a request was received in this iteration of the loop: that one is handled.
        waiter = self._waiter
        return self._request_count == 0 or not (waiter is None or waiter.done())

    def forbid_keep_alive(self) -> None:
        """Send ``Connection: close`` with the response to the last request that was received.

        It has no effect on a response that has begun.
        """
        request = self.request
        if request is not None:
            message: Any = request._message  # noqa: SLF001 - keep_alive has no setter
            if not message.should_close:
                is_last: Any = _IsLast(self)
                request._message = message._replace(should_close=is_last)  # noqa: SLF001 - the same

    def end(self) -> None:
        """Accept no further request, and close at once if no request is in flight."""
        self.is_ending = True
        if self.is_idle:
            self.force_close()
        # The requests that were received are handled. The waiter exists until the first one begins,
        # which close() permits. The response to the last one closes the connection.
        elif len(self._messages) <= (self._waiter is not None):
            self.close()

    def data_received(self, data: bytes) -> None:
        """Receive data, which is the rest of the request in flight if the connection is ending."""
        if not self.is_ending:
            super().data_received(data)
            return
        is_closed, self._close = self._close, False  # aiohttp drops data after close()
        try:
            super().data_received(data)
        finally:
            self._close = is_closed

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
            # No traceback: the client is at fault, not the code that a traceback would show.
            reason = self._log_malformed(exc)
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
            self._log_malformed(error)
        else:
            super().log_exception(*args, **kwargs)

    def _log_malformed(self, error: Exception) -> str:
        """Log once per request that it is malformed, and return the reason."""
        text = error.message if isinstance(error, HttpProcessingError) else str(error)
        reason = text.partition("\n")[0].rstrip(":")
        # Each attempt to read the request raises the error.
        if self.last_malformed is None or self.last_malformed is not self.request:
            self.last_malformed = self.request
            self.logger.warning("%s sent a malformed request: %s", self._peer, reason)
        return reason

    def _is_lost(self, error: ConnectionError, request: web.BaseRequest) -> bool:
        """Return whether `error` results from the loss of this connection, not of another one."""
        if not (self._is_closed or self.is_ending):
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
