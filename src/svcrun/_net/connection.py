"""One connection of a stream server, from its acceptance to its end.

A connection joins the transport of a peer to the task of its handler:

1. Accept: the listener (``_net/listener.py``) accepts a socket, and creates a connection and a
   transport for it.
2. Handler: :meth:`Connection.connection_made` starts the task of the handler, which runs at once,
   up to its first wait. With TLS (``_net/tls_connection.py``), the task begins with the handshake.
3. Data: the connection passes each piece of data to the reader (``_net/stream_reader.py``). The
   handler writes to the writer (``_net/stream_writer.py``).
4. Close: when the handler returns or raises, :meth:`Connection.close` closes the transport, which
   sends the rest of the output first. If the transport is lost first, the handler reads the end of
   the stream or gets the error.
5. Release: when both have ended, :meth:`Connection.release` removes the connection from its server.

When the server stops, it drains its connections (``_net/connections.py``): it closes the listener,
calls :meth:`Connection.end` for each handler, waits, and calls :meth:`Connection.abort` for each
transport that is still open.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, Protocol

from svcrun._net.addresses import format_address
from svcrun._net.handshake import accept_tls
from svcrun._net.stream_reader import Reader
from svcrun._net.stream_writer import Writer, extra_info
from svcrun._util.eager import start_eagerly

if TYPE_CHECKING:
    from collections.abc import MutableSet

    from svcrun._net.admission import Admission

__all__ = ("Connection", "ConnectionServer", "PlainConnection")

log = logging.getLogger("svcrun.net")

# A handler that never drains may leave this many bytes unsent before its reads wait for the peer.
MAX_UNSENT: Final = 1 << 20


class ConnectionServer(Protocol):
    """The server of a connection, as far as the connection uses it.

    Its representation names the service.
    """

    loop: asyncio.AbstractEventLoop
    limit: int
    """The maximum of bytes in a line."""
    stopping: bool
    """Whether new connections are refused."""
    task_name: str
    """The name of the handlers' tasks."""
    admission: Admission
    """The counters of the server, and its maximum of connections."""

    @property
    def open_connections(self) -> MutableSet[Connection]:
        """The connections whose handler or transport has not ended."""

    @property
    def service(self) -> Any:
        """The object with the method ``handle_client(reader, writer)``."""


class Connection(asyncio.BaseProtocol):
    """A protocol between the transport of a peer and the task that handles the peer.

    It adds itself to the connections of `server`, and removes itself when both the handler and the
    transport have ended.
    """

    # Defaults on the class make it faster to create a connection. Access to an attribute of both
    # class and instance is slow, so `paused` and `error`, which each drain() reads, have none.

    # The transport that the handler writes to, and that of the socket. They differ with TLS.
    transport: Any = None
    socket_transport: Any = None
    writer: Writer
    task: asyncio.Task[None] | None = None
    # Whether no handler is running: it has not begun, or it has ended.
    finished = True
    # Done when both the handler and the transport have ended.
    _released: asyncio.Future[None] | None = None
    # Whether the transport is closed.
    lost = False
    # Whether the transport asked to pause writing.
    paused: bool
    # The error that closed the transport, None if one of the two sides closed it.
    error: BaseException | None
    # The error that drain() raises in the latter case.
    _reset: ConnectionResetError | None = None
    # Whether a TLS handshake is in progress, and whether one has succeeded.
    shaking_hands = False
    over_tls = False
    # Futures of tasks that wait for the next of resume_writing() and connection_lost().
    _waiters: list[asyncio.Future[None]] | None = None

    def __init__(self, server: ConnectionServer) -> None:
        self.server = server
        self.paused = False
        self.error = None
        self.reader = Reader(self, server.loop, server.limit)
        server.open_connections.add(self)
        server.admission.accepted += 1

    @property
    def peer(self) -> str:
        """The address of the peer, for log messages."""
        return format_address(extra_info(self.socket_transport, "peername"))

    # Called by the transport.

    def connection_made(self, transport: Any) -> None:
        """Start the handler."""
        self.transport = self.socket_transport = transport
        server = self.server
        if server.stopping:
            # Race: uvloop accepted the connection before the listener was closed.
            server.admission.refused += 1
            transport.abort()
            return
        self.reader.transport = transport
        self.writer = Writer(self, transport)
        self.finished = False
        # An eager start saves an iteration of the loop: 20 % of the processor time of a connection
        # on asyncio's loop and 10 % on uvloop, if the handler does not wait.
        self.task = start_eagerly(self._serve(), server.loop, name=server.task_name)

    def eof_received(self) -> bool:
        """Pass the end of the stream to the reader.

        Return whether the transport stays open, so that the handler can go on writing.
        """
        # A handler that waits for the end of the input can send until this returns.
        self.reader.feed_eof()
        if self.over_tls or self.shaking_hands:
            # TLS ends in both directions. Race: the end may arrive together with the last message
            # of the handshake, before the task of the handshake is resumed.
            self.writer.lose()
            return False
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        """End the reads, writes and waits of the handler, with an error if there is one."""
        if self.lost:
            return  # after a failed handshake, some versions of the TLS layer call this, some don't
        self.lost = True
        self.error = exc
        if "writer" in self.__dict__:
            self.writer.lose()
        if self._waiters is not None:
            self._release_waiters()
        if exc is None:
            self.reader.feed_eof()
        else:
            self.reader.set_exception(exc)
        if self.finished:
            self.release()

    def pause_writing(self) -> None:
        """Make ``drain()`` wait."""
        self.paused = True
        self.reader.recheck()

    def resume_writing(self) -> None:
        """Make ``drain()`` return."""
        self.paused = False
        self._release_waiters()

    # Called by the reader and the writer.

    async def drained(self, *, dropped: bool) -> None:
        """Wait until the transport accepts more data.

        :param dropped: whether data was dropped because the connection was closed.
        :raises OSError: if the connection is lost, or data was dropped.
        """
        if dropped or self.error is not None or self.transport.is_closing():
            # Allow an iteration of the loop: for connection_lost(), and so that a handler that
            # ignores the error does not block the loop.
            await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        if self.lost or dropped:
            raise self.reset_error()
        if self.paused:
            await self._wait()
            if self.error is not None:
                raise self.error

    def reset_error(self) -> ConnectionResetError:
        """Return the exception to raise for a connection that was lost without an error."""
        if self._reset is None:
            self._reset = ConnectionResetError("Connection lost")
        return self._reset

    async def unsent_below_limit(self) -> None:
        """Wait until at most :data:`MAX_UNSENT` bytes are unsent, or the connection is lost."""
        while self.paused and not self.lost and self.transport.get_write_buffer_size() > MAX_UNSENT:
            await self._wait()

    async def closed(self) -> None:
        """Wait until the transport is closed.

        :raises OSError: if it was lost by an error.
        """
        while not self.lost:
            await self._wait()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Close the transport after the rest of the output is sent."""
        # asyncio's TLS transport must not be closed twice: abort() would have no effect afterwards.
        if not self.transport.is_closing():
            self.writer.lose()
            self.transport.close()

    async def start_tls(self, context: Any, **options: Any) -> None:
        """Put TLS between the transport and this protocol.

        :raises OSError: if the handshake fails. The connection is lost then.
        """
        if dropped := self.reader.drop():
            # Command injection: an attacker between client and server may have sent these bytes,
            # which would pass for the client's as if they had come over TLS.
            log.warning(
                "%r: dropped %d bytes that %s sent in clear text before the TLS handshake",
                self.server,
                dropped,
                self.peer,
            )
        # The reader must not pause the present transport from now on: nothing would resume it.
        self.reader.set_transport(None)
        self.shaking_hands = True
        try:
            transport = await accept_tls(self.transport, self, context, **options)
        except BaseException as error:
            # The TLS layer does not always report the loss of a connection in a handshake.
            self.socket_transport.abort()
            self.connection_lost(None)
            if isinstance(error, OSError):
                self.error = error
            raise
        finally:
            self.shaking_hands = False
        self.over_tls = True
        self.transport = transport
        self.reader.set_transport(transport)
        self.writer.use(transport)

    def log_reads_at_eof(self) -> None:
        """Log that the handler is cancelled because it reads on at the end of the stream."""
        log.debug(
            "%r: handler for %s reads on at the end of the stream; cancelling",
            self.server,
            self.peer,
        )

    async def _wait(self) -> None:
        """Wait for the next of resume_writing() and connection_lost()."""
        waiter = self.server.loop.create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if self._waiters and waiter in self._waiters:
                self._waiters.remove(waiter)

    def _release_waiters(self) -> None:
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    # Called by the server.

    def end(self, *, at_once: bool) -> None:
        """End the handler: cancel it if it waits for its peer, else as soon as it does.

        :param at_once: cancel the handler in any case.
        """
        self.reader.end()
        if self.task is not None and (at_once or self.reader.waiting or self.shaking_hands):
            self.task.cancel()

    def is_sent(self) -> bool:
        """Return whether the transport is closed and the system has all of the output."""
        return self.transport is None or (
            self.transport.is_closing()
            and self.transport.get_write_buffer_size() == 0
            and self.socket_transport.get_write_buffer_size() == 0
        )

    def abort(self) -> None:
        """Close the transport at once; discard unsent output."""
        if self.transport is None:
            self.release()
        else:
            self.transport.abort()

    def release(self) -> None:
        """Leave the server: the handler and the transport have both ended."""
        self.server.open_connections.discard(self)
        self.server.admission.recheck()
        if self._released is not None and not self._released.done():
            self._released.set_result(None)
        # Break the reference cycles, so that the connection needs no garbage collector.
        self.__dict__.pop("reader", None)
        self.__dict__.pop("writer", None)

    def on_release(self) -> asyncio.Future[None]:
        """Return a future that is done when the handler and the transport have both ended."""
        if self._released is None:
            self._released = self.server.loop.create_future()
        return self._released

    # The task of the handler.

    async def _serve(self) -> None:
        # Race: connection_made() sets the task after its first step only. A handler may stop the
        # server in that step, and the stop must not wait for it.
        self.task = asyncio.current_task()
        try:
            handled = self.server.service.handle_client(self.reader, self.writer)
            if isinstance(handled, CoroutineType) or inspect.isawaitable(handled):
                await handled
        except asyncio.CancelledError:
            pass  # by the server, by the handler itself, or by an owner of its task: it ends anyway
        except (GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - the server continues after any error
            self._log_failure(error)
        finally:
            self._finish()

    def _log_failure(self, error: BaseException) -> None:
        if error is self.error or error is self._reset:
            reason = str(error) or "client disconnected"
            log.info("%r: connection to %s lost: %s", self.server, self.peer, reason)
        else:
            log.error("%r: handler for %s failed", self.server, self.peer, exc_info=error)

    def _finish(self) -> None:
        self.finished = True
        self.task = None
        if self.lost:
            self.release()
        else:
            self.close()


class PlainConnection(Connection, asyncio.Protocol):
    """A connection without TLS."""

    def data_received(self, data: bytes) -> None:
        """Pass `data` to the reader."""
        self.reader.data_received(data)
