"""The base of TCP and TLS clients: attempts to connect, the handler, and reconnection.

The life of a client is one task, which ``start()`` creates and ``stop()`` cancels:

1. Connect: :meth:`StreamClient.connect` makes attempts, with a growing delay after each failure.
2. Ready: the first connection sets ``start_event``.
3. Handle: ``handle_connection()`` runs, and the connection is closed when it returns or raises.
4. A plain client ends. A robust one waits, and connects again.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import socket
import ssl
from abc import abstractmethod
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Final

from svcrun._net.connector import Connector, close_stream
from svcrun._net.keepalive import check_keepalive
from svcrun._net.name_resolver import NameResolver
from svcrun._util.per_loop import running_loop
from svcrun._util.raising import one_line
from svcrun._util.shared_stop import SharedStop
from svcrun._util.validation import number, optional
from svcrun.restart import Restart
from svcrun.service._internals import internals_of, overridable, part_of
from svcrun.service._keywords import check_present
from svcrun.service._parameters import several
from svcrun.service.base import SimpleClient, parameter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from svcrun._net.addresses import Option
    from svcrun._net.connector import Streams

__all__ = ("RobustStreamClient", "StreamClient")

log = logging.getLogger("svcrun.net")

_FACTOR: Final = 1.5
_MAX_DELAY: Final = 60.0
# A server that accepts and disconnects at once would otherwise keep a client with
# reconnect_timeout=0 busy.
_MIN_DELAY: Final = 0.01

_seconds = number(low=0, unit="seconds")
_time_limit = optional(number(above=0, high=inf, unit="seconds"), "no limit")


class StreamClient(SimpleClient, base=True):
    """A client of byte streams; see :class:`~svcrun.service.tcp.TCPClient`."""

    _svcrun_handlers: ClassVar[Any] = ("handle_connection",)

    PROTO_NAME: ClassVar[str] = "tcp"
    """The name of the protocol in the log."""

    address: str | os.PathLike[str] | None = parameter(default=None, kw_only=False)
    port: int | None = parameter(default=None, kw_only=False)
    options: Iterable[Option] = parameter(default=(), check=several)
    connect_attempts: int = parameter(default=5, check=number(low=1, whole=True, unit="attempts"))
    connect_retry_timeout: float = parameter(default=3, check=_seconds)
    connect_timeout: float | None = parameter(default=30.0, check=_time_limit)
    keepalive: float | None = parameter(default=60.0, check=check_keepalive)
    limit: int = parameter(default=1 << 16, check=number(low=1, whole=True, unit="bytes"))

    def _svcrun_check_together(self) -> None:
        super()._svcrun_check_together()
        self.__make_connector()

    @abstractmethod
    def handle_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
        """Use a connection.

        It is called once for each connection, which is closed when this method returns or raises.

        :param reader: the data from the server.
        :param writer: the data to the server.
        """
        raise NotImplementedError

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the streams of a new connection.

        :raises OSError: the error of the last attempt, naming service, endpoint and attempts.
        """
        state = part_of(self, ClientState)
        connector = self.__make_connector()
        failures = 0
        while True:
            try:
                streams = await self.__attempt(connector, state)
            except OSError as error:
                failures += 1
                if failures >= self._svcrun_attempts():
                    raise _explain(error, f"{self!r}: {connector}", failures) from error
                delay = state.next_delay()
                log.warning(
                    "%r: could not connect to %s: %s; retrying in %.1f s",
                    self,
                    connector,
                    _reason(error),
                    delay,
                )
                await asyncio.sleep(delay)
            else:
                log.info("%r: connected to %s", self, connector)
                return streams

    async def start(self) -> None:
        """Connect, and handle the connection.

        :raises OSError: if all attempts to connect fail.
        """
        check_present(self)
        state = part_of(self, ClientState)
        state.begin(self.connect_retry_timeout)
        task = self.create_task(self._svcrun_run())
        try:
            await task
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            # stop() has cancelled the task, and not this start.

    async def stop(self, exception: Any = None) -> None:
        """End the client at once in whatever it does: the attempt, the delay, or the handler."""
        state = part_of(self, ClientState)
        state.is_stopping = True
        if await state.stop.in_progress():
            return
        with state.stop:
            await super().stop(exception)

    async def _svcrun_run(self) -> None:
        reader, writer = await self.connect()
        internals_of(self).start_event.set()
        await self._svcrun_handle(reader, writer)
        log.info("%r: the connection has ended", self)

    async def _svcrun_handle(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Run the handler, and close the connection."""
        try:
            handled = self.handle_connection(reader, writer)
            if inspect.isawaitable(handled):
                await handled
        finally:
            await close_stream(writer)

    def _svcrun_attempts(self) -> float:
        """Return the number of attempts to connect."""
        return self.connect_attempts

    async def _svcrun_open(self, connector: Connector, resolver: NameResolver) -> Streams:
        """Make one attempt."""
        return await connector.open(resolver, limit=self.limit)

    async def __attempt(self, connector: Connector, state: ClientState) -> Streams:
        limit = self.connect_timeout
        try:
            async with asyncio.timeout(limit):
                return await self._svcrun_open(connector, state.resolver())
        except TimeoutError as error:
            if error.errno is not None:  # the system's
                raise
            raise TimeoutError(f"no connection within connect_timeout={limit:g} s") from error

    def __make_connector(self) -> Connector:
        return Connector(
            type(self).__qualname__,
            address=self.address,
            port=self.port,
            options=self.options,
            keepalive=self.keepalive,
            scheme=self.PROTO_NAME,
        )


class RobustStreamClient(StreamClient, base=True):
    """A client that connects again; see :class:`~svcrun.service.tcp.RobustTCPClient`."""

    reconnect_timeout: float = parameter(default=5, check=_seconds)

    @overridable
    def connected(self) -> asyncio.Event:
        """An event that is set while there is a connection."""
        return part_of(self, ClientState).connected()

    def _svcrun_attempts(self) -> float:
        return inf

    async def _svcrun_run(self) -> None:
        state = part_of(self, ClientState)
        loop = asyncio.get_running_loop()
        while True:
            reader, writer = await self.connect()
            began = loop.time()
            connected = state.connected()
            connected.set()
            internals_of(self).start_event.set()
            error: Exception | None = None
            try:
                await self._svcrun_handle(reader, writer)
            except asyncio.CancelledError:
                if state.is_stopping or _is_cancelled():
                    raise
                # The handler has cancelled itself.
            except Exception as failure:  # noqa: BLE001 - the client continues after any error
                error = failure
            finally:
                connected.clear()
            if state.is_stopping:  # the handler has called stop()
                return
            delay = state.delay_after_connection(loop.time() - began, self.reconnect_timeout)
            self.__report(error, delay)
            del error, reader, writer  # the traceback refers to this frame: a reference cycle
            await asyncio.sleep(delay)

    def __report(self, error: Exception | None, delay: float) -> None:
        if error is None:
            log.info("%r: the connection has ended; reconnecting in %.1f s", self, delay)
        elif isinstance(error, OSError | EOFError):
            log.warning(
                "%r: connection lost: %s; reconnecting in %.1f s", self, _reason(error), delay
            )
        else:
            log.error(
                "%r: handle_connection() failed; reconnecting in %.1f s",
                self,
                delay,
                exc_info=error,
            )


class ClientState:
    """The private state of a client."""

    def __init__(self, _: StreamClient) -> None:
        self.stop = SharedStop()
        self.is_stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._resolver: NameResolver | None = None
        self._connected: asyncio.Event | None = None
        self.begin(0)

    def begin(self, first_delay: float) -> None:
        """Prepare for a start."""
        self.is_stopping = False
        self._resolver = None
        self._last_delay = -1.0  # shorter than any connection
        self._restart_delays(first_delay)

    def resolver(self) -> NameResolver:
        """Return the resolver of this start."""
        if self._resolver is None:
            self._resolver = NameResolver()
        return self._resolver

    def connected(self) -> asyncio.Event:
        """Return the event of the running loop; an event can't be waited for in two loops."""
        loop = running_loop()
        if self._connected is None or (loop is not None and self._loop not in (None, loop)):
            self._connected = asyncio.Event()
        self._loop = loop or self._loop
        return self._connected

    def next_delay(self) -> float:
        """Return the seconds until the next attempt, more after each failure in a row."""
        self._failures += 1
        self._last_delay = max(_MIN_DELAY, self._delays.delay_after(self._failures))
        return self._last_delay

    def delay_after_connection(self, lasted: float, first_delay: float) -> float:
        """Return the seconds until the next attempt after a connection of `lasted` seconds.

        The delays start anew, unless the connection was shorter than the delay before it: then the
        server probably accepts connections that it can't serve.
        """
        if lasted > self._last_delay:
            self._restart_delays(first_delay)
        return self.next_delay()

    def _restart_delays(self, first_delay: float) -> None:
        self._failures = 0
        self._delays = Restart(delay=first_delay, factor=_FACTOR, max_delay=_MAX_DELAY)


def _is_cancelled() -> bool:
    """Return whether other code has cancelled the current task."""
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"the TLS handshake failed: {error.reason or error}"
    if isinstance(error, socket.gaierror):
        return error.strerror or "name not found"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)  # asyncio replaces the text by one of its own
    return one_line(error)


def _explain(error: OSError, client: str, failures: int) -> OSError:
    """Return an error of the same type and errno that names the client and the attempts."""
    attempts = "1 attempt" if failures == 1 else f"{failures} attempts"
    text = f"{client}: could not connect in {attempts}: {_reason(error)}"
    explained = type(error)(error.errno, text)
    explained.__dict__.update(vars(error))  # reason and verify_code of OpenSSL's errors
    return explained
