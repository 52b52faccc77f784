"""Serve HTTP requests in a thread of its own, without an event loop.

The event loop of the program may be blocked, and the health of the program is asked for just then.
So the thread has its own socket and its own time limits, and waits for nothing that the loop does.

A connection serves one request: it is read, answered, and closed. If the client has sent more than
the request, the connection lingers until the client has closed it too: after a close with unread
data, the client's system may discard the response.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

from svcrun._health.background import BUSY, LATE, Background
from svcrun._health.http import END_OF_HEAD, FAILED, MAX_HEAD, BadRequest, Request, Response, parse
from svcrun._net.addresses import format_address
from svcrun._util.rate_limited_log import RateLimitedLog

if TYPE_CHECKING:
    from collections.abc import Callable

    Respond = Callable[[Request, object], Response | Callable[[], Response]]

__all__ = ("HTTPThread",)

log = logging.getLogger("svcrun.service.health")

MAX_CONNECTIONS: Final = 128
"""The maximum number of connections; a further one replaces the oldest."""

TIME_LIMIT: Final = 5.0
"""Seconds within which a client has to send its request, and to read more of the response."""

LINGER: Final = 1.0
"""Seconds that a client has to close a connection after the response."""

SLOW_LIMIT: Final = 10.0
"""Seconds that a response may take that is made in the background."""

RETRY_DELAY: Final = 0.5
"""Seconds without accepting after an error, such as no descriptor left."""

_JOIN_TIMEOUT: Final = 1.0


class Pause(Protocol):
    """The pauses of an event loop, see :class:`svcrun._health.loop_pause.LoopPause`."""

    def request(self) -> None:
        """Pause the loop until :meth:`end`."""

    def end(self) -> None:
        """End the pause."""


class HTTPThread:
    """A thread that accepts connections, and answers each request by `respond`.

    :param sock: a socket that listens; the thread does not close it.
    :param respond: returns the response to a request from a peer, or a function that returns it and
        may take long. `respond` is called in the thread, that function in another one.
    :param pause: the pauses of the event loop in which the thread serves.
    """

    def __init__(self, sock: socket.socket, respond: Respond, pause: Pause) -> None:
        self._sock = sock
        self._pause = pause
        self._respond = respond
        self._wake_up, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        # The oldest is the first.
        self._connections: dict[_Connection, None] = {}
        self._accepts_after = 0.0
        self._is_accepting = False
        self._is_stopping = False
        self._errors = RateLimitedLog(log)
        self._background: Background[_Connection] = Background(self._wake)
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    def start(self) -> None:
        """Start the thread.

        :raises RuntimeError: if the system can't start a thread.
        """
        try:
            self._selector.register(self._woken, selectors.EVENT_READ)
            self._background.start()
            self._thread.start()
        except BaseException:
            self._background.stop()
            self._release()
            raise

    def stop(self) -> None:
        """End the thread, wait for it, and close all connections."""
        self._is_stopping = True
        self._background.stop()
        self._wake()
        self._thread.join(_JOIN_TIMEOUT)

    def is_alive(self) -> bool:
        """Return whether the thread runs."""
        return self._thread.is_alive()

    def _wake(self) -> None:
        """Wake the thread, in any thread."""
        with contextlib.suppress(OSError):  # it has ended
            self._wake_up.send(b"\0", socket.MSG_DONTWAIT)

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self._accept_again()
                if not self._background.is_busy:
                    self._pause.end()
                ready = self._selector.select(self._timeout())
                if ready:
                    self._pause.request()
                for key, _ in ready:
                    if key.fileobj is self._sock:
                        self._accept()
                    elif isinstance(key.data, _Connection):
                        self._advance(key.data)
                    else:
                        self._woken.recv(MAX_HEAD, socket.MSG_DONTWAIT)
                for connection, response in self._background.ready():
                    self._send(connection, response)
                self._close_late()
        finally:
            self._release()

    def _release(self) -> None:
        for connection in self._connections:
            connection.sock.close()
        self._connections.clear()
        self._selector.close()
        self._wake_up.close()
        self._woken.close()

    def _timeout(self) -> float | None:
        """Return the seconds until the first time limit, None if there is none."""
        limits = [connection.deadline for connection in self._connections]
        if not self._is_accepting:
            limits.append(self._accepts_after)
        return max(min(limits) - time.monotonic(), 0.0) if limits else None

    def _accept_again(self) -> None:
        if not self._is_accepting and time.monotonic() >= self._accepts_after:
            self._selector.register(self._sock, selectors.EVENT_READ)
            self._is_accepting = True

    def _accept(self) -> None:
        try:
            sock, peer = self._sock.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            self._errors.add("could not accept a health check: %s", error)
            self._selector.unregister(self._sock)
            self._is_accepting = False
            self._accepts_after = time.monotonic() + RETRY_DELAY
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            self._close(next(iter(self._connections)))
        connection = _Connection(sock, peer, time.monotonic() + TIME_LIMIT)
        self._connections[connection] = None
        self._advance(connection)  # the request has usually arrived

    def _advance(self, connection: _Connection) -> None:
        """Read, write and close, as far as it goes without waiting."""
        try:
            if connection.is_waiting or (connection.output is None and not self._read(connection)):
                return
            if connection.output:
                sent = connection.sock.send(connection.output, socket.MSG_DONTWAIT)
                connection.output = connection.output[sent:]
                connection.deadline = time.monotonic() + TIME_LIMIT
            if connection.output:
                self._wait_for(connection, selectors.EVENT_WRITE)
            elif connection.lingers:
                self._linger(connection)
            else:
                self._close(connection)
        except BlockingIOError:
            wanted = selectors.EVENT_WRITE if connection.output else selectors.EVENT_READ
            self._wait_for(connection, wanted)
        except OSError:
            self._close(connection)  # the client disconnected

    def _wait_for(self, connection: _Connection, event: int) -> None:
        if connection.awaited:
            self._selector.modify(connection.sock, event, connection)
        else:
            self._selector.register(connection.sock, event, connection)
        connection.awaited = event

    def _read(self, connection: _Connection) -> bool:
        """Read, and return whether a response is ready to be sent."""
        data = connection.sock.recv(MAX_HEAD, socket.MSG_DONTWAIT)
        connection.input += data
        try:
            request = parse(connection.input)
            if request is not None:
                connection.is_head = request.is_head
                connection.lingers = request.has_body or not connection.input.endswith(END_OF_HEAD)
                response = self._respond(request, connection.peer)
                if callable(response):
                    if self._begin(connection, response):
                        return False
                    response = BUSY
            elif data:
                self._wait_for(connection, selectors.EVENT_READ)
                return False
            else:
                self._close(connection)
                return False
        except BadRequest as error:
            allow = ("Allow: GET, HEAD",) if error.status is HTTPStatus.METHOD_NOT_ALLOWED else ()
            response = Response(error.status, f"{error.status.phrase}\n", headers=allow)
        except Exception:
            log.exception(
                "could not answer a health check from %s", format_address(connection.peer)
            )
            response = FAILED
        connection.output = response.encode(is_head=connection.is_head)
        return True

    def _begin(self, connection: _Connection, make: Callable[[], Response]) -> bool:
        """Begin to make a response in the background, and return whether that is possible."""
        if not self._background.begin(connection, make):
            return False
        connection.is_waiting = True
        connection.deadline = time.monotonic() + SLOW_LIMIT
        if connection.awaited:
            self._selector.unregister(connection.sock)
            connection.awaited = 0
        return True

    def _send(self, connection: _Connection, response: Response) -> None:
        """Send a response that was made in the background, unless it is too late."""
        if connection in self._connections and connection.is_waiting:
            connection.is_waiting = False
            connection.output = response.encode(is_head=connection.is_head)
            self._advance(connection)

    def _linger(self, connection: _Connection) -> None:
        """Read on until the client has closed the connection as well."""
        if not connection.is_shut:
            connection.is_shut = True
            connection.deadline = time.monotonic() + LINGER
            connection.sock.shutdown(socket.SHUT_WR)
        if connection.sock.recv(MAX_HEAD, socket.MSG_DONTWAIT):
            self._wait_for(connection, selectors.EVENT_READ)
        else:
            self._close(connection)

    def _close_late(self) -> None:
        now = time.monotonic()
        for connection in [c for c in self._connections if c.deadline <= now]:
            if connection.is_waiting:
                connection.deadline = now + TIME_LIMIT
                self._send(connection, LATE)
            else:
                self._close(connection)

    def _close(self, connection: _Connection) -> None:
        if connection in self._connections:
            del self._connections[connection]
            if connection.awaited:
                self._selector.unregister(connection.sock)
            connection.sock.close()


class _Connection:
    """A connection of a client, from the request to the close."""

    __slots__ = (
        "awaited",
        "deadline",
        "input",
        "is_head",
        "is_shut",
        "is_waiting",
        "lingers",
        "output",
        "peer",
        "sock",
    )

    def __init__(self, sock: socket.socket, peer: object, deadline: float) -> None:
        self.sock = sock
        self.peer = peer
        self.deadline = deadline
        self.awaited = 0
        """The event that the selector waits for, 0 for none."""
        self.input = bytearray()
        self.output: bytes | None = None
        """The rest of the response, None before it is ready."""
        self.is_head = False
        """Whether the response has no body."""
        self.is_waiting = False
        """Whether the response is being made in the background."""
        self.lingers = True
        """Whether the client may have sent more than was read."""
        self.is_shut = False
        """Whether the response has ended, and the client has not closed the connection."""
