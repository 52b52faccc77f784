"""A server of TCP clients.

``svcrun/_net/connection.py`` describes the life of a connection: accept, handler, close, drain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcrun._net.connection import PlainConnection
from svcrun.service._stream import StreamServer
from svcrun.service.base import SimpleClient as SimpleClient, SimpleServer as SimpleServer
from svcrun.sockets import bind_socket as bind_socket
from svcrun.utils import (
    OptionsType as OptionsType,
    TimeoutType as TimeoutType,
    awaitable as awaitable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcrun._net.connections import Connections

__all__ = ("TCPServer",)


class TCPServer(StreamServer, base=True):
    """Serve the clients of a TCP port or of a Unix socket, each in a task of its own.

    Override :meth:`handle_client`, which gets asyncio's reader and writer. The connection is closed
    when it returns or raises. An exception is logged and does not affect other clients.

    :param address: an IP address (``"::"`` for all, of IPv6 and IPv4), a host name, or the path of
        a Unix socket.
    :param port: 0 to 65535; 0 selects a free port. While the server runs, :attr:`address` and
        :attr:`port` are those of the bound socket.
    :param options: socket options as ``(level, option, value)``.
    :param sock: a bound socket, instead of `address` and `port`. The server closes it when it
        stops.
    :param path: the path of a Unix socket, instead of `address` and `port`. The server removes the
        file when it stops.
    :param reuse_port: let several processes listen on the port. Off by default.
    :param backlog: the maximum number of connections that wait to be accepted; 1024 by default.
    :param limit: the maximum number of bytes in a line; 65536 by default. A longer line makes
        ``readline()`` raise :class:`ValueError`, as in asyncio.
    :param drain_timeout: seconds that a handler at work may continue during a stop; 5 by default, 0
        to cancel it at once.

    :raises ValueError, TypeError: naming a parameter whose value is not accepted.

    .. code-block:: python

        class EchoServer(TCPServer):
            async def handle_client(self, reader, writer):
                async for line in reader:
                    writer.write(line)


        with entrypoint(EchoServer(address="::1", port=8901)) as loop:
            loop.run_forever()
    """

    def _svcrun_connection_factory(self, connections: Connections) -> Callable[[], PlainConnection]:
        return lambda: PlainConnection(connections)
