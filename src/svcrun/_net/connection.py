"""One client of a stream server, from its acceptance to its end."""

from __future__ import annotations

import asyncio
import inspect
import logging
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

from svcrun._net.addresses import format_address
from svcrun._net.stream_reader import Reader
from svcrun._net.stream_writer import Writer, extra_info
from svcrun._util.eager import start_eagerly

if TYPE_CHECKING:
    from svcrun._net.connections import Clients

__all__ = ("Connection", "PlainConnection")

log = logging.getLogger("svcrun.net")

# A handler may leave this many bytes unsent before its reads wait for its client.
MAX_UNSENT: Final = 1 << 20


class Connection(asyncio.BaseProtocol):
    """What stands between the transport of a client and the task that handles the client.

    :param server: the clients of the service. Its :attr:`~Clients.connections` contain this one
        until both the handler and the transport have ended.
    """

    # Defaults on the class, so that creating a connection is fast. Access to an attribute of both
    # class and instance is slow, so `paused` and `error`, which each drain() reads, have none.
    # What is written to, and the transport of the socket: another one once there is TLS.
    transport: Any = None
    socket_transport: Any = None
    writer: Writer
    task: asyncio.Task[None] | None = None
    # Whether no handler is running: not yet, or no more.
    finished = True
    # Done when both the handler and the transport have ended.
    _released: asyncio.Future[None] | None = None
    # Whether the transport is closed.
    lost = False
    # Whether more is unsent than the transport likes.
    paused: bool
    # What the transport was closed by, None if by one of the two sides.
    error: BaseException | None
    # What drain() raises after that.
    _reset: ConnectionResetError | None = None
    # Whether a TLS handshake is in progress, and whether one has succeeded.
    shaking_hands = False
    over_tls = False
    _waiters: list[asyncio.Future[None]] | None = None

    def __init__(self, server: Clients) -> None:
        self.server = server
        self.paused = False
        self.error = None
        self.reader = Reader(self, server.loop, server.limit)
        server.connections.add(self)

    @property
    def peer(self) -> str:
        """The address of the client, as people write it."""
        return format_address(extra_info(self.socket_transport, "peername"))

    # What the transport calls.

    def connection_made(self, transport: Any) -> None:
        """Start the handler."""
        self.transport = self.socket_transport = transport
        server = self.server
        if server.stopping:
            transport.abort()
            return
        self.reader.transport = transport
        self.writer = Writer(self, transport)
        self.finished = False
        self.task = start_eagerly(self._serve(), server.loop, name=server.task_name)

    def eof_received(self) -> bool:
        """Let the handler read the end, and write on if the transport can do that."""
        # A handler that waits for the end of the input can send until this returns.
        self.reader.feed_eof()
        if self.over_tls or self.shaking_hands:
            # TLS ends in both directions. Race: the end may arrive together with that of the
            # handshake, before the task of the handshake is resumed.
            self.writer.lose()
            return False
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell the handler."""
        if self.lost:
            return  # a handshake that failed; some versions of the TLS layer tell, others don't
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
        """Let drain() wait."""
        self.paused = True
        self.reader.look_up()

    def resume_writing(self) -> None:
        """Let drain() return."""
        self.paused = False
        self._release_waiters()

    # What reader and writer call.

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

    async def relieved(self) -> None:
        """Wait until less is unsent, if it is very much."""
        while self.paused and not self.lost and self.transport.get_write_buffer_size() > MAX_UNSENT:
            await self._wait()

    async def closed(self) -> None:
        """Wait until the transport is closed, and raise what it was lost by."""
        while not self.lost:
            await self._wait()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Close the transport after what was written is sent."""
        # Closed twice, asyncio's transport of TLS is good for nothing, not even to be aborted.
        if not self.transport.is_closing():
            self.writer.lose()
            self.transport.close()

    async def start_tls(self, context: Any, **options: Any) -> None:
        """Put TLS between the transport and this protocol.

        :raises OSError: if the handshake fails, and so the connection is lost.
        """
        if dropped := self.reader.drop():
            # Somebody between client and server may have put it there, to pass for the client's.
            log.warning(
                "%r: %d bytes that %s sent in the clear before the TLS handshake are dropped",
                self.server,
                dropped,
                self.peer,
            )
        # Nothing may pause the present transport meanwhile: nobody would resume it.
        self.reader.set_transport(None)
        self.shaking_hands = True
        try:
            transport = await self.server.loop.start_tls(
                self.transport, self, context, server_side=True, **options
            )
            if transport is None or transport.get_extra_info("ssl_object") is None:
                # The client closed the connection meanwhile, which no loop takes for an error.
                raise ConnectionResetError("the client closed the connection")
        except BaseException as error:
            # The TLS layer need not tell of the end of a connection that it has not established.
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

    def log_end_ignored(self) -> None:
        """Tell that the handler is ended since it reads on after the end of the stream."""
        log.debug("%r: handler for %s reads on after its end, cancelled", self.server, self.peer)

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

    # What the server calls.

    def end(self, *, at_once: bool) -> None:
        """Cancel the handler if it waits for its client; let one that works do so until it waits.

        :param at_once: cancel it whatever it does.
        """
        self.reader.end()
        if self.task is not None and (at_once or self.reader.waiting or self.shaking_hands):
            self.task.cancel()

    def is_sent(self) -> bool:
        """Tell whether the transport is closed, and all that was written is with the system."""
        return self.transport is None or (
            self.transport.is_closing()
            and self.transport.get_write_buffer_size() == 0
            and self.socket_transport.get_write_buffer_size() == 0
        )

    def abort(self) -> None:
        """Close the transport at once; what is unsent is lost."""
        if self.transport is None:
            self.release()
        else:
            self.transport.abort()

    def release(self) -> None:
        """Leave the server: the handler and the transport have both ended."""
        self.server.connections.discard(self)
        if self._released is not None and not self._released.done():
            self._released.set_result(None)
        # Break the circles of references, so that no garbage collector is needed.
        self.__dict__.pop("reader", None)
        self.__dict__.pop("writer", None)
        self.__dict__.pop("data_received", None)

    def on_release(self) -> asyncio.Future[None]:
        """Return a future that is done when the handler and the transport have both ended."""
        if self._released is None:
            self._released = self.server.loop.create_future()
        return self._released

    # The life of a handler.

    async def _serve(self) -> None:
        # Race: in its first step, before connection_made() has the task, a handler may stop the
        # server, which must not wait for it.
        self.task = asyncio.current_task()
        try:
            handled = self.server.service.handle_client(self.reader, self.writer)
            if isinstance(handled, CoroutineType) or inspect.isawaitable(handled):
                await handled
        except asyncio.CancelledError:
            pass  # by stop(), by the handler itself or whoever has its task: it ends either way
        except (GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, the server lives on
            self._log_failure(error)
        finally:
            self._finish()

    def _log_failure(self, error: BaseException) -> None:
        if error is self.error or error is self._reset:
            reason = str(error) or "the client closed it"
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
    """A connection whose bytes are the handler's."""

    def __init__(self, server: Clients) -> None:
        super().__init__(server)
        # The reader's method itself, for a call less with each piece of data.
        self.data_received = self.reader.data_received  # type: ignore[method-assign]
