"""The runner of an aiohttp application, and the site on which its server listens."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import web

from svcrun._net.handshake import Handshake, Handshakes
from svcrun._net.listener import listen
from svcrun._util.raising import raise_together
from svcrun._web.aiohttp.server import Server, request_factory
from svcrun._web.graceful import accept_waiting

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from svcrun._net.admission import Admission
    from svcrun._net.handshake import TLSParameters
    from svcrun._net.proxy_protocol import ProxyProtocol

    RequestHandler = Callable[[Any], Awaitable[web.StreamResponse]]

__all__ = ("Runner", "Site")


class Runner(web.AppRunner):
    """Run an application on a server that is shut down gracefully.

    :param app: the application.
    :param owner: the service, named in log messages; the application by default.
    :param shutdown_timeout: seconds that requests in flight may take during the shutdown.
    :param idle_grace: seconds that idle connections stay open in a shutdown by SIGTERM.
    :param kwargs: other options of :class:`aiohttp.web.AppRunner`.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        owner: object = None,
        shutdown_timeout: float = 60.0,
        idle_grace: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(app, shutdown_timeout=shutdown_timeout, **kwargs)
        self._owner = app if owner is None else owner
        self._timeout = shutdown_timeout
        self._idle_grace = min(idle_grace, shutdown_timeout)
        self._graceful_server: Server | None = None

    @property
    def addresses(self) -> list[Any]:
        """The addresses on which the sites listen."""
        own = [site.sock.getsockname() for site in self.sites if isinstance(site, Site)]
        return own + super().addresses

    @property
    def server(self) -> web.Server | None:
        """The server whose connections are shut down gracefully, while the runner is set up."""
        return self._graceful_server

    async def setup(self) -> None:
        """Start the application, and create the server.

        The server of aiohttp's runner has the handler and the options, and accepts no connection.
        """
        await super().setup()
        made: Any = super().server
        server = Server(
            self._choose_handler(made.request_handler),
            self._owner,
            handler_cancellation=made.handler_cancellation,
            options=made._kwargs,  # noqa: SLF001 - the application may have added options
            idle_grace=self._idle_grace,
        )
        server.request_factory = request_factory(made.request_factory)
        server()  # raise errors of the options now, not at each connection
        self._graceful_server = server

    async def cleanup(self) -> None:
        """Close the listeners, shut down the connections, then clean up the application.

        A step that fails does not keep the following steps from being executed.

        :raises Exception: the error of a step; those of several steps as a group.
        """
        server = self._graceful_server
        steps = [site.stop for site in self.sites]
        if server is not None:
            server.pre_shutdown()
            steps += [super().shutdown, partial(server.shutdown, self._timeout)]
        steps.append(super().cleanup)
        errors: list[BaseException] = []
        try:
            for step in steps:
                try:
                    await step()
                except Exception as error:  # noqa: BLE001 - they are raised together
                    errors.append(error)
        except BaseException:
            if server is not None:
                server.abort()
            raise
        finally:
            _forget_contexts(self.app)
        self._graceful_server = None
        raise_together("the application failed to stop", errors)

    async def shutdown(self) -> None:
        """Do nothing: before aiohttp calls this, :meth:`cleanup` has shut down the application."""

    def _choose_handler(self, handler: RequestHandler) -> RequestHandler:
        """Return the function that handles requests: by default `handler`, the application's."""
        return handler


def _forget_contexts(app: web.Application) -> None:
    """Forget the clean-up contexts of `app`.

    aiohttp would exit them a second time when the application is started again and stopped.
    """
    app.cleanup_ctx._exits.clear()  # noqa: SLF001 - nothing else removes one
    for part in app._subapps:  # noqa: SLF001 - nothing else returns them
        _forget_contexts(part)


class Site(web.SockSite):
    """A listening socket whose connections belong to the server of a runner.

    :param runner: its server creates the protocols.
    :param sock: a socket that is listening.
    :param admission: counts the connections, and has their maximum.
    :param backlog: the maximum number of connections that wait to be accepted.
    :param tls: the TLS parameters; without them, connections are plain.
    :param is_shared: whether another process listens on the socket, or will.
    :param proxy: receives the header of each connection; without it, connections have none.
    """

    def __init__(
        self,
        runner: web.BaseRunner,
        sock: socket.socket,
        *,
        admission: Admission,
        backlog: int,
        tls: TLSParameters | None = None,
        is_shared: bool = False,
        proxy: ProxyProtocol | None = None,
    ) -> None:
        context = None if tls is None else tls._svcrun_ssl_context
        super().__init__(runner, sock, ssl_context=context, backlog=backlog)
        self.runner = runner
        self.sock = sock
        self.backlog = backlog
        self._admission = admission
        self._tls = tls
        self._is_shared = is_shared
        self._listener: asyncio.AbstractServer | None = None
        self._proxy = proxy

    async def start(self) -> None:
        """Accept connections."""
        await super(web.SockSite, self).start()  # registers the site, without listening
        loop = asyncio.get_running_loop()
        self._listener = await listen(loop, self.sock, self._factory, self.backlog, self._admission)

    async def stop(self) -> None:
        """Close the listener, after accepting the connections that wait in its backlog."""
        if self._listener is not None:
            server = self.runner.server
            await accept_waiting(
                self._listener,
                self.sock,
                self.backlog,
                self._factory,
                is_shared=self._is_shared,
                proxy=self._proxy,
                idle_grace=server.idle_grace if isinstance(server, Server) else 0,
            )
        await super().stop()

    @property
    def _factory(self) -> Callable[[], asyncio.Protocol]:
        return self._connect if self._proxy is None else self._proxy.after_header(self._connect)

    def _connect(self) -> asyncio.Protocol:
        server: Any = self.runner.server
        protocol: asyncio.Protocol = server()
        self._admission.accepted += 1
        if self._tls is None:
            return protocol
        # A runner of another class has a server that does not wait for handshakes.
        handshakes = server.handshakes if isinstance(server, Server) else Handshakes()
        return Handshake(self._tls, protocol, handshakes, self._admission)
