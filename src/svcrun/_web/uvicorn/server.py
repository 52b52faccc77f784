"""A uvicorn server that leaves signals alone, and ends its connections in order and in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import WeakSet

import uvicorn

from svcrun._net.handshake import Handshake
from svcrun._net.listener import close_listener, listen
from svcrun._util.tasks import format_stack
from svcrun._web.event_streams import ended_event_streams
from svcrun._web.uvicorn.lifespan import GRACE, Lifespan
from svcrun._web.uvicorn.turns import leave_turns
from svcrun.errors import ServerEnded, show

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Generator

    from svcrun._net.endpoint import Endpoint
    from svcrun.service._listening import Listening
    from svcrun.service._secure import Secure

__all__ = ("STOPPED_EARLY", "Server")

logger = logging.getLogger("uvicorn.error")

STOPPED_EARLY: Final = "it was stopped while it started"

# Seconds for TLS handshakes that have begun when the stop comes.
LAST_CALL: Final = 0.1

# Seconds for the last output of what was cancelled, and for farewells of TLS.
LINGER: Final = 0.5

# Turns of the loop after which it has read what had been sent before, and closed what is aborted:
# a transport in the first turn, TLS above it in the second.
TURNS: Final = 3

# How often uvicorn counts in a second.
TICKS: Final = 10


class Connections(set[Any]):
    """The protocols of a server, which tell when one of them is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.change = asyncio.Event()

    def discard(self, protocol: object) -> None:
        """Forget a protocol."""
        super().discard(protocol)
        self.change.set()

    def remove(self, protocol: object) -> None:
        """Forget a protocol."""
        self.discard(protocol)


class Server(uvicorn.Server):
    """Serves one application from :meth:`startup` to :meth:`shutdown`.

    :param config: is loaded already.
    :param owner: the service.
    :param endpoint: where the service listens.
    :param request_timeout: seconds that requests have to end at the stop.
    :param lifespan_timeout: seconds that the application has then.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        owner: Listening,
        endpoint: Endpoint,
        *,
        request_timeout: float,
        lifespan_timeout: float,
    ) -> None:
        self._wake = asyncio.Event()
        self._should_exit = False
        super().__init__(config)
        app: Any = config.loaded_app
        config.loaded_app = leave_turns(app, lambda: self.should_exit)
        self.server_state.connections = self._connections = Connections()
        self.lifespan = config.lifespan_class(config)
        self._owner = owner
        self._endpoint = endpoint
        self._request_timeout = request_timeout
        self._lifespan_timeout = lifespan_timeout
        self._loop = asyncio.get_running_loop()
        self._listener: asyncio.AbstractServer | None = None
        self._sock: socket.socket | None = None
        self._tls = None if config.ssl is None else _Tls(owner, config.ssl)
        self._make_protocol: Callable[[], Any] = self._protocol_factory()
        # TLS handshakes under way, and the transports below TLS.
        self._handshakes: set[asyncio.Task[Any]] = set()
        self._plain: WeakSet[Any] = WeakSet()

    @property
    def should_exit(self) -> bool:
        """Whether the server is to end; it does so at once when this is set."""
        return self._should_exit

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        self._should_exit = value
        if value:
            self._wake.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none: signals are the entrypoint's."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, and let clients in.

        :param sockets: the one that the service has bound.
        :raises ApplicationStartFailed: if the application says that it can't start, or fails to.
        :raises OSError: if somebody else has begun to listen at this place meanwhile.
        """
        await self.lifespan.startup()
        self._check_goes_on()
        if self.lifespan.should_exit and isinstance(self.lifespan, Lifespan):
            raise self.lifespan.start_failure(self._owner)
        backlog = self.config.backlog
        for sock in sockets or ():
            self._endpoint.listen(sock, backlog, self._owner)
            listener = await listen(self._loop, sock, self._connect, backlog)
            self._listener, self._sock = listener, sock
            self._check_goes_on()
        self.started = True

    async def main_loop(self) -> None:
        """Do what uvicorn does once a second, until the server is to end."""
        # Requests are counted against their limit as often as uvicorn does it.
        step = TICKS if self.config.limit_max_requests is None else 1
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + step) % (86400 * TICKS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(step / TICKS):
                    await self._wake.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let nobody in any more, bring all requests to their ends, then end the application.

        :raises ApplicationStopFailed: if the application did not come to a good end.
        """
        del sockets
        if self.started:
            logger.info("Shutting down")
        self.should_exit = True
        try:
            with ended_event_streams():
                self._tell_hooks()
                await self._end_requests()
        except BaseException:
            self._abort()
            if isinstance(self.lifespan, Lifespan):
                self.lifespan.abandon()
            raise
        if isinstance(self.lifespan, Lifespan):
            await self.lifespan.close(self._owner, self._lifespan_timeout)

    def _check_goes_on(self) -> None:
        if self.should_exit:
            if self._listener is not None:
                self._listener.close()
            raise ServerEnded(self._owner, STOPPED_EARLY)

    def _tell_hooks(self) -> None:
        """Call :meth:`handle_exit`, which libraries replace to be notified of the shutdown."""
        try:
            self.handle_exit(signal.SIGTERM, None)
        except Exception:
            logger.exception("%s: a hook in uvicorn's handle_exit() failed", show(self._owner))

    async def _end_requests(self) -> None:
        deadline = self._loop.time() + self._request_timeout
        await self._close_listener()
        await self._hear_out()
        for connection in tuple(self._connections):
            try:
                connection.shutdown()
            except Exception:
                logger.exception("%s: a connection could not be closed in order", show(self._owner))
                connection.transport.abort()
        hung: list[asyncio.Task[None]] = []
        if not await self._wait_for_tasks(deadline):
            hung = await self._cancel()
        await self._flush(max(deadline, self._loop.time() + LINGER))
        self._abort()
        for _ in range(TURNS):
            await asyncio.sleep(0)
        for task in hung:
            if not task.done():  # it may have been waiting for its client
                logger.error(
                    "%s: a request ignores that it was cancelled; it is waiting at\n%s",
                    show(self._owner),
                    format_stack(task),
                )

    async def _close_listener(self) -> None:
        """Accept who is connected already, and then nobody any more."""
        listener, self._listener = self._listener, None
        sock, self._sock = self._sock, None
        if listener is None or sock is None:
            return
        is_shared = self._endpoint.sock is not None  # given, or inherited
        waiting = close_listener(listener, sock, self.config.backlog, is_shared=is_shared)
        await asyncio.gather(
            *(self._loop.connect_accepted_socket(self._connect, one) for one in waiting),
            return_exceptions=True,  # who is gone, is gone
        )

    async def _hear_out(self) -> None:
        """Read what has been sent already: those requests are answered."""
        for _ in range(TURNS):
            await asyncio.sleep(0)
        if not self._handshakes:
            return
        limit = min(LAST_CALL, self._request_timeout)
        _, late = await asyncio.wait(tuple(self._handshakes), timeout=limit)
        for handshake in late:
            handshake.cancel()
        for _ in range(TURNS):
            await asyncio.sleep(0)

    async def _wait_for_tasks(self, deadline: float) -> bool:
        """Wait until no request is being answered; tell whether it came to that."""
        tasks = self.server_state.tasks
        while tasks:
            left = deadline - self._loop.time()
            if left <= 0:
                return False
            await asyncio.wait(tuple(tasks), timeout=left)
        return True

    async def _cancel(self) -> list[asyncio.Task[None]]:
        tasks = [task for task in self.server_state.tasks if not task.done()]
        if not tasks:
            return []
        logger.warning(
            "%s: %d requests or web sockets were not done within %g s and are cancelled; "
            "one waits at\n%s",
            show(self._owner),
            len(tasks),
            self._request_timeout,
            format_stack(tasks[0]),
        )
        for task in tasks:
            task.cancel()
        _, hung = await asyncio.wait(tasks, timeout=GRACE)
        return list(hung)

    async def _flush(self, deadline: float) -> None:
        """Wait until clients have taken what they were sent; a few of them never will."""
        connections = self._connections
        while connections and (left := deadline - self._loop.time()) > 0:
            connections.change.clear()
            try:
                async with asyncio.timeout(min(left, LINGER)):
                    await connections.change.wait()
            except TimeoutError:
                self._abort_what_is_sent()

    def _abort_what_is_sent(self) -> None:
        """Abort connections of TLS that only lack the farewell of the client."""
        if any(_unsent(plain) for plain in self._plain):
            return
        for connection in tuple(self._connections):
            if connection.transport.is_closing() and not _unsent(connection.transport):
                connection.transport.abort()

    def _abort(self) -> None:
        """Close and cancel all that is left, without waiting for it."""
        if self._listener is not None:
            self._listener.close()
        for task in (*self._handshakes, *self.server_state.tasks):
            task.cancel()
        for connection in tuple(self._connections):
            connection.transport.abort()

    def _protocol_factory(self) -> Callable[[], Any]:
        config: Any = self.config
        protocol_class = config.http_protocol_class
        state = self.server_state
        loop = self._loop
        lifespan_state = self.lifespan.state

        def make() -> Any:
            return protocol_class(
                config=config, server_state=state, app_state=lifespan_state, _loop=loop
            )

        def make_without_log() -> Any:
            protocol = make()
            protocol.access_log = False
            return protocol

        return make if config.access_log else make_without_log

    def _connect(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self._make_protocol()
        if self._tls is None:
            return protocol
        return _Handshake(self._tls, protocol, self._handshakes, self._plain)


class _Tls:
    """What a handshake asks a service for."""

    ssl_handshake_timeout = 60.0  # asyncio's, and so uvicorn's

    def __init__(self, owner: Listening, context: ssl.SSLContext) -> None:
        self._owner = owner
        self._svcrun_ssl_context = context

    @property
    def minimum_version(self) -> ssl.TLSVersion:
        return self._svcrun_ssl_context.minimum_version

    def __repr__(self) -> str:
        return show(self._owner)


class _Handshake(Handshake):
    """A handshake that makes its transport known."""

    def __init__(
        self,
        tls: _Tls,
        protocol: asyncio.Protocol,
        under_way: set[asyncio.Task[Any]],
        transports: WeakSet[Any],
    ) -> None:
        super().__init__(cast("Secure", tls), protocol, under_way)
        self._transports = transports

    def connection_made(self, transport: Any) -> None:
        self._transports.add(transport)
        super().connection_made(transport)


def _unsent(transport: Any) -> int:
    try:
        size: int = transport.get_write_buffer_size()
    except RuntimeError:
        return 0  # uvloop's, and closed
    return size
