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


class Connection(RequestHandler):
    """The connection of a client, and the task that handles its requests one after another."""

    __slots__ = ("_further", "is_ending", "last_malformed", "request", "server", "task")

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
        # Whether no further request is accepted, and how many were received and have not begun.
        self.is_ending = False
        self._further = 0

    async def start(self) -> None:
        """Handle the requests, in a task whose current work is this connection."""
        self.task = asyncio.current_task()
        current_work.set(self)
        if self.is_ending:
            # Race: end() was called before this task began, and a request may have been received.
            # If not, aiohttp waits for one by the time of this second call.
            asyncio.get_running_loop().call_soon(self.end)
        await super().start()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Drop the references to the server and to requests: they refer to this connection."""
        super().connection_lost(exc)
        self.server = self.task = self.request = self.last_malformed = None

    def begin(self, request: web.Request) -> None:
        """Record the request that is handled from now on."""
        self.request = request
        self._further -= 1

    @property
    def is_idle(self) -> bool:
        """Whether no request is in flight, or was received and not begun."""
        # aiohttp waits by this future for the next request, and has none before its task begins.
        # It is done if a request was received in this iteration of the loop: that one is handled.
        waiter = self._waiter
        return self.task is None or not (waiter is None or waiter.done())

    @property
    def is_last_request(self) -> bool:
        """Whether no request waits for the current one; a client may send several at once."""
        return self._further <= 0 if self.is_ending else not self._messages

    def end(self) -> None:
        """Accept no further request, and close at once if no request is in flight.

        The requests that were received are handled. The response to the last one closes the
        connection.
        """
        if not self.is_ending:
            self.is_ending = True
            self._further = len(self._messages)
            # Race: the last response may be complete, and aiohttp about to decide whether to keep
            # the connection, as the response says. It has decided by the time of this second call.
            asyncio.get_running_loop().call_soon(self.end)
        if self.task is None:
            return  # start() calls this again
        if self.is_idle:
            self.force_close()
        elif self.is_last_request:
            self.keep_alive(False)  # aiohttp sets it again after a response that is in progress

    def log_access(
        self, request: web.BaseRequest, response: web.StreamResponse, time: float | None
    ) -> None:
        """Log a request whose response was sent, and close the connection after the last one.

        Race: the response may have begun before the end, with headers that keep the connection.
        """
        if self.is_ending and self.is_last_request:
            response.force_close()
        super().log_access(request, response, time)

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
