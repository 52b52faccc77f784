"""Where an aiohttp server listens, and what runs it there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import web

from svcrun._net.handshake import Handshake
from svcrun._net.listener import close_listener, listen
from svcrun._util.raising import raise_together
from svcrun._web.aiohttp.connection import Connection
from svcrun._web.aiohttp.server import Server, request_factory

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from svcrun.service._secure import Secure

    RequestHandler = Callable[[Any], Awaitable[web.StreamResponse]]

__all__ = ("Runner", "Site")


class Runner(web.AppRunner):
    """Runs an application on a server that ends in order."""

    async def cleanup(self) -> None:
        """Listen no more, bring the connections to their ends, then clean up the application.

        Each step is taken, also when one before it fails.

        :raises Exception: what the application raised, several as a group.
        """
        steps = [site.stop for site in self.sites]
        server = self.server
        if isinstance(server, Server):
            server.pre_shutdown()
            steps += [self.shutdown, lambda: server.shutdown(self._shutdown_timeout)]
        steps.append(self._cleanup_server)
        errors: list[BaseException] = []
        try:
            for step in steps:
                try:
                    await step()
                except Exception as error:  # noqa: BLE001 - all come out together
                    errors.append(error)
        except BaseException:
            if isinstance(server, Server):
                server.abort()
            raise
        self._server = None
        raise_together("the application failed to stop", errors)

    async def _cleanup_server(self) -> None:
        try:
            await super()._cleanup_server()
        finally:
            _forget_contexts(self.app)

    async def _make_server(self) -> Server:
        made = await super()._make_server()
        make_request: Any = made.request_factory
        server = Server(
            self._choose_handler(made.request_handler),
            handler_cancellation=made.handler_cancellation,
            loop=asyncio.get_running_loop(),
            **made._kwargs,  # noqa: SLF001 - what aiohttp gives to each connection
        )
        server.request_factory = request_factory(make_request, server)
        server()  # what can't be used is refused here, and not at each connection
        return server

    def _choose_handler(self, handler: RequestHandler) -> RequestHandler:
        """Return what handles a request: the application's `handler`, or what it would come to."""
        return handler


def _forget_contexts(app: web.Application) -> None:
    """Have no clean-up context left again after the next start, as aiohttp would do."""
    app.cleanup_ctx._exits.clear()  # noqa: SLF001 - nothing else takes one out
    for part in app._subapps:  # noqa: SLF001 - nothing else tells
        _forget_contexts(part)


class Site(web.SockSite):
    """A listening socket whose connections go to the server of a runner.

    :param runner: its server makes the protocols.
    :param sock: is listening already.
    :param backlog: how many connections may wait to be accepted.
    :param secure: the service that tells what TLS needs; without one, connections are plain.
    :param is_shared: whether the socket came from somebody who may listen on it as well, or hand
        it to a successor; it is left as it is then.
    """

    def __init__(
        self,
        runner: web.BaseRunner,
        sock: socket.socket,
        *,
        backlog: int,
        secure: Secure | None = None,
        is_shared: bool = False,
    ) -> None:
        context = None if secure is None else secure._svcrun_ssl_context
        super().__init__(runner, sock, ssl_context=context, backlog=backlog)
        self._secure = secure
        self._is_shared = is_shared

    async def start(self) -> None:
        """Accept connections."""
        await super(web.SockSite, self).start()  # what all sites do
        loop = asyncio.get_running_loop()
        self._server = await listen(loop, self._sock, self._connect, self._backlog)

    async def stop(self) -> None:
        """Accept who is connected already, and then nobody any more."""
        waiting = []
        if self._server is not None:
            waiting = close_listener(
                self._server, self._sock, self._backlog, is_shared=self._is_shared
            )
        await super().stop()
        loop = asyncio.get_running_loop()
        await asyncio.gather(
            *(loop.connect_accepted_socket(self._connect, one) for one in waiting),
            return_exceptions=True,  # who is gone, is gone
        )

    def _connect(self) -> asyncio.Protocol:
        server: Any = self._runner.server
        protocol: asyncio.Protocol = server()
        if self._secure is None:
            return protocol
        under_way = server.handshakes if isinstance(server, Server) else set()
        handshake = Handshake(self._secure, protocol, under_way)
        if isinstance(protocol, Connection):
            protocol.handshake = handshake
        return handshake
