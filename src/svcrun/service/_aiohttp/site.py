"""Where an aiohttp server listens, and what runs it there."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from svcrun.errors import raise_together
from svcrun.service._accept import listen
from svcrun.service._aiohttp.server import Connection, Request, Server
from svcrun.service._handshake import Handshake

if TYPE_CHECKING:
    from svcrun.service._secure import Secure

__all__ = ("Runner", "Site")

# The socket module does not know it.
_SO_BINDTOIFINDEX: Final = 62


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

    async def _make_server(self) -> Server:
        made = await super()._make_server()
        make_request: Any = made.request_factory
        server = Server(
            made.request_handler,
            request_factory=partial(make_request, _cls=Request),
            handler_cancellation=made.handler_cancellation,
            loop=asyncio.get_running_loop(),
            **made._kwargs,  # noqa: SLF001 - what aiohttp gives to each connection
        )
        server()  # what can't be used is refused here, and not at each connection
        return server


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
        context = None if secure is None else secure.ssl_context
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
        if self._server is None:
            await super().stop()
            return
        # Those who wait in the backlog would be reset by the end of the socket.
        with self._sock.dup() as backlog:
            if not self._is_shared:
                _refuse_more(backlog)
            await super().stop()
            waiting = self._accept_waiting(backlog)
        loop = asyncio.get_running_loop()
        await asyncio.gather(
            *(loop.connect_accepted_socket(self._connect, one) for one in waiting),
            return_exceptions=True,  # who is gone, is gone
        )

    def _accept_waiting(self, sock: socket.socket) -> list[socket.socket]:
        """Accept who is waiting, and close `sock` at once: somebody else might still come."""
        accepted: list[socket.socket] = []
        for _ in range(self._backlog):
            try:
                accepted.append(sock.accept()[0])
            except BlockingIOError:
                break
            except OSError:
                continue  # one who has gone again, or no descriptor is left
        sock.close()
        for connection in accepted:
            connection.setblocking(False)
        return accepted

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


def _refuse_more(sock: socket.socket) -> None:
    """Have newcomers refused, if the system can, and keep those who wait to be accepted.

    Linux has no call for that, but a listening socket that is bound to an interface gets only
    what comes in there, and there is none of this number.
    """
    if sys.platform == "linux" and sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):  # before Linux 5.7 it takes a privilege
            sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, 2**31 - 1)
