"""A uvicorn server that runs in the loop of a service, and is shut down gracefully by it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import uvicorn

from svcrun._net.handshake import Handshake, Handshakes
from svcrun._net.listener import listen
from svcrun._util.drain import Drain
from svcrun._util.raising import one_line
from svcrun._web.event_streams import ended_event_streams
from svcrun._web.graceful import accept_waiting, shut_down_connections
from svcrun._web.lifespan import Lifespan
from svcrun._web.uvicorn.application import wrap_application
from svcrun._web.uvicorn.last_response import is_idle_http
from svcrun.errors import ApplicationStartFailed, ServerEnded, show

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Generator

    from svcrun._net.admission import Admission
    from svcrun._net.endpoint import Endpoint
    from svcrun._net.proxy_protocol import ProxyProtocol

__all__ = ("STOPPED_EARLY", "Server")

logger = logging.getLogger("uvicorn.error")

STOPPED_EARLY: Final = "it was stopped while it started"

# The calls of on_tick() per second that uvicorn expects.
TICKS: Final = 10


class Server(uvicorn.Server):
    """Serve one application from :meth:`startup` to :meth:`shutdown`.

    :param config: the loaded configuration.
    :param owner: the service, named in messages.
    :param endpoint: the endpoint of the service.
    :param admission: counts the connections, and has their maximum.
    :param request_timeout: seconds that requests in flight may take during the shutdown.
    :param request_limit: the name of the parameter that set `request_timeout`.
    :param lifespan_timeout: seconds that the shutdown of the application may take.
    :param proxy: receives the header of each connection, None if they have none.
    :param idle_grace: seconds that idle connections stay open in a shutdown by SIGTERM.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        owner: object,
        endpoint: Endpoint,
        admission: Admission,
        *,
        request_timeout: float,
        request_limit: str,
        lifespan_timeout: float,
        proxy: ProxyProtocol | None,
        idle_grace: float,
    ) -> None:
        self._wake = asyncio.Event()
        self._should_exit = False
        super().__init__(config)
        app: Any = config.loaded_app
        self.lifespan: Any = Lifespan(
            owner, app, config.lifespan, lifespan_timeout, logger, config.asgi_version
        )
        config.loaded_app = wrap_application(app, lambda: self.should_exit)
        self.handshakes = Handshakes()
        self.drain = Drain(logger, owner, lambda: self.server_state.tasks, lambda _: "a request")
        self._owner = owner
        self._endpoint = endpoint
        self._admission = admission
        self._request_timeout = request_timeout
        self._request_limit = request_limit
        self._idle_grace = min(idle_grace, request_timeout)
        # The protocols to which the shutdown has sent a Close frame.
        self._closed: WeakSet[Any] = WeakSet()
        # The listener and its socket, until the shutdown.
        self._listener: asyncio.AbstractServer | None = None
        self._sock: socket.socket | None = None
        self._proxy = proxy
        self._tls = None if config.ssl is None else _TLSParameters(owner, config.ssl)

    @property
    def context(self) -> ssl.SSLContext | None:
        """The SSL context of new connections, None without TLS."""
        return None if self._tls is None else self._tls._svcrun_ssl_context

    @context.setter
    def context(self, value: ssl.SSLContext | None) -> None:
        if self._tls is not None and value is not None:
            self._tls._svcrun_ssl_context = value

    @property
    def should_exit(self) -> bool:
        """Whether :meth:`main_loop` is to return. It returns at once when this is set."""
        return self._should_exit

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        self._should_exit = value
        if value:
            self._wake.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture no signals: the entrypoint handles them."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then listen.

        :param sockets: the bound socket of the service.
        :raises ApplicationStartFailed: if the application replies that its start failed, or raises
            an error.
        :raises OSError: if another program listens at the endpoint meanwhile.
        :raises ServerEnded: if the service is stopped meanwhile.
        """
        await self._start_application()
        self._check_not_stopped()
        for sock in sockets or ():
            self._endpoint.listen(sock, self.config.backlog, self._owner)
            loop = asyncio.get_running_loop()
            self._listener = await listen(
                loop, sock, self._factory, self.config.backlog, self._admission
            )
            self._sock = sock
            self._check_not_stopped()
        self.started = True

    async def main_loop(self) -> None:
        """Call :meth:`on_tick` once a second, until the server is to exit."""
        # Requests are counted against limit_max_requests as often as uvicorn does it.
        step = TICKS if self.config.limit_max_requests is None else 1
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + step) % (86400 * TICKS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(step / TICKS):
                    await self._wake.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listener, handle the requests in flight, then shut down the application.

        :raises ApplicationStopFailed: if the application fails to shut down.
        """
        del sockets  # the server knows the socket that it listens on
        if self.started:
            logger.info("Shutting down")
        self.should_exit = True
        try:
            with ended_event_streams():
                self._call_exit_hooks()
                await self._close_listener()
                await shut_down_connections(
                    self,
                    self._request_timeout,
                    self._request_limit,
                    idle_grace=self._idle_grace,
                )
        except BaseException:
            # The caller was cancelled: there is no time left to wait for anything.
            self.abort()
            self.lifespan.cancel()
            raise
        if self.lifespan.is_running:
            logger.info("Waiting for application shutdown.")
            await self.lifespan.shutdown()
            logger.info("Application shutdown complete.")

    async def _start_application(self) -> None:
        logger.info("Waiting for application startup.")
        try:
            await self.lifespan.startup()
        except ApplicationStartFailed:
            raise
        except Exception as error:
            raise ApplicationStartFailed(self._owner, one_line(error)) from error
        if self.lifespan.is_running:
            logger.info("Application startup complete.")

    def _check_not_stopped(self) -> None:
        # Race: the service may be stopped at any ``await`` of the start.
        if self.should_exit:
            if self._listener is not None:
                self._listener.close()
            raise ServerEnded(self._owner, STOPPED_EARLY)

    def _call_exit_hooks(self) -> None:
        """Call :meth:`handle_exit`, which libraries replace to learn of the shutdown."""
        try:
            self.handle_exit(signal.SIGTERM, None)
        except Exception:
            logger.exception("%s: a hook in uvicorn's handle_exit() failed", show(self._owner))

    async def _close_listener(self) -> None:
        listener, self._listener = self._listener, None
        sock, self._sock = self._sock, None
        if listener is None or sock is None:
            return
        is_shared = self._endpoint.is_shared  # it was passed by the user, or inherited
        backlog = self.config.backlog
        await accept_waiting(
            listener,
            sock,
            backlog,
            self._factory,
            is_shared=is_shared,
            proxy=self._proxy,
            idle_grace=self._idle_grace,
        )

    @property
    def open_connections(self) -> int:
        """The number of open connections, those with a handshake in progress included."""
        return len(self.server_state.connections) + len(self.handshakes.tasks)

    # Methods for the graceful shutdown.

    def transports(self) -> list[Any]:
        """Return the transports of the open connections."""
        return [connection.transport for connection in self.server_state.connections]

    def http_connections(self) -> list[tuple[Any, bool]]:
        """Return the connections that may receive a request, each with whether it is idle."""
        return [
            (connection, is_idle)
            for connection in self.server_state.connections
            if (is_idle := is_idle_http(connection)) is not None
            and not connection.transport.is_closing()
        ]

    def end_connection(self, connection: Any) -> None:
        """Accept no further request on a connection, and close it if it is idle."""
        try:
            connection.shutdown()
        except Exception:
            logger.exception("%s: a connection failed to shut down", show(self._owner))
            connection.transport.abort()

    def end_web_sockets(self) -> None:
        """End the connections of web sockets, and those of protocols that are not known."""
        for connection in tuple(self.server_state.connections):
            if is_idle_http(connection) is None and connection not in self._closed:
                self._closed.add(connection)
                self.end_connection(connection)

    def end_connections(self) -> None:
        """End all connections, those of web sockets with a Close frame."""
        for connection, _ in self.http_connections():
            self.end_connection(connection)
        self.end_web_sockets()

    def abort(self) -> None:
        """Cancel all tasks and close all connections, without waiting for anything."""
        if self._listener is not None:
            self._listener.close()
        for task in (*self.handshakes.tasks, *self.server_state.tasks):
            task.cancel()
        for transport in self.transports():
            transport.abort()

    @property
    def _factory(self) -> Callable[[], asyncio.Protocol]:
        return self._connect if self._proxy is None else self._proxy.after_header(self._connect)

    def _connect(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        config: Any = self.config
        protocol: Any = config.http_protocol_class(
            config=config, server_state=self.server_state, app_state=self.lifespan.state
        )
        self._admission.accepted += 1
        # The protocol asks the logger, which all servers of the process share.
        if not config.access_log:
            protocol.access_log = False
        if self._tls is None:
            return protocol  # type: ignore[no-any-return]
        return Handshake(self._tls, protocol, self.handshakes, self._admission)


class _TLSParameters:
    """The TLS parameters of a server."""

    ssl_handshake_timeout = 60.0  # that of asyncio, and so of uvicorn

    def __init__(self, owner: object, context: ssl.SSLContext) -> None:
        self._owner = owner
        self._svcrun_ssl_context = context

    @property
    def minimum_version(self) -> ssl.TLSVersion:
        return self._svcrun_ssl_context.minimum_version

    def __repr__(self) -> str:
        return show(self._owner)
