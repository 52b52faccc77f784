"""A server of TCP clients, and clients of TCP servers.

``svcrun/_net/connection.py`` describes the life of a server's connection: accept, handler, close,
drain. ``svcrun/service/_client.py`` describes the life of a client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcrun._net.connection import PlainConnection
from svcrun.service._client import RobustStreamClient, StreamClient
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

__all__ = ("RobustTCPClient", "TCPClient", "TCPServer")


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
        stops. Or ``"fd:NAME"``, the socket that systemd has passed under that name. It stays open
        for the next start. If none was passed, `address` and `port` are bound.
    :param path: the path of a Unix socket, instead of `address` and `port`. The server removes the
        file when it stops.
    :param reuse_port: let several processes listen on the port. Off by default.
    :param backlog: the maximum number of connections that wait to be accepted; 1024 by default.
    :param limit: the maximum number of bytes in a line; 65536 by default. A longer line makes
        ``readline()`` raise :class:`ValueError`, as in asyncio.
    :param drain_timeout: seconds that a handler at work may continue during a stop; 5 by default, 0
        to cancel it at once.
    :param max_connections: the maximum number of open connections; None, the default, for no limit.
        Further clients wait in the backlog until a connection ends.
    :param idle_timeout: seconds that a handler may wait for the next bytes of its client; None, the
        default, for no limit. Then the handler is ended as by a stop. A handler at work is not
        idle, nor is one whose client does not read.
    :param keepalive: seconds of silence after which TCP checks whether a client is still there;
        None, the default, for no checks. A client that vanished is noticed in twice that time.
    :param proxy_protocol: the version of the PROXY protocol whose header each connection begins
        with, sent by a proxy such as HAProxy: ``"v1"``, ``"v2"`` or ``"any"``; None by default, for
        no header. See :ref:`proxy-protocol`.
    :param proxy_trusted: the addresses and networks of the proxies; loopback by default.
    :param proxy_timeout: seconds that the header may take; 5 by default.

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


class TCPClient(StreamClient, base=True):
    r"""Connect to a TCP port or to a Unix socket, and handle the connection.

    Override :meth:`handle_connection`, which gets asyncio's reader and writer. The service counts
    as started with the connection. It runs on when :meth:`handle_connection` returns, without a
    connection; an exception of it is a crash of the service, for which ``on_crash`` holds. The stop
    cancels whatever the client does and closes the connection.

    :param address: an IP address, a host name, which is resolved for each attempt, or the path of a
        Unix socket.
    :param port: 1 to 65535; None beside a path.
    :param options: socket options as ``(level, option, value)``.
    :param connect_attempts: the number of attempts until the start fails; 5 by default. An attempt
        fails with any :class:`OSError`: refused, unreachable, name not found, timed out.
    :param connect_retry_timeout: seconds between the first two attempts; 3 by default. Each further
        delay is longer by half, up to 60 seconds, and up to a tenth of it is left out at random.
    :param connect_timeout: seconds that an attempt may take, from the name to the TLS handshake; 30
        by default, None for no limit.
    :param keepalive: seconds of silence after which TCP checks whether the server is still there;
        60 by default, None for no checks. A server that vanished is noticed in twice that time.
    :param limit: the maximum number of bytes in a line; 65536 by default.

    :raises ValueError, TypeError: naming a parameter whose value is not accepted.

    .. code-block:: python

        class EchoServer(TCPServer):
            async def handle_client(self, reader, writer):
                async for line in reader:
                    writer.write(line)


        class Greeter(TCPClient):
            depends_on = EchoServer

            async def handle_connection(self, reader, writer):
                writer.write(b"hello\n")
                print(await reader.readline())


        with entrypoint(EchoServer("localhost", 8901), Greeter("localhost", 8901)) as loop:
            loop.run_forever()
    """


class RobustTCPClient(RobustStreamClient, TCPClient, base=True):
    r"""Connect as :class:`TCPClient` does, and connect again whenever the connection ends.

    It makes attempts without end; ``start_timeout`` limits the time until the first connection.
    :meth:`handle_connection` is called for each connection. When it returns or raises, the
    connection is closed and the client connects again after a delay. An exception is logged.

    It has the parameters of :class:`TCPClient`, without `connect_attempts`, and as a keyword:

    :param reconnect_timeout: seconds from the end of a connection until the next attempt; 5 by
        default. The delays of further failures grow from there. They start anew after a connection
        that lasted longer than the delay before it.

    .. code-block:: python

        class TimeServer(TCPServer):
            async def handle_client(self, reader, writer):
                writer.write(b"It is noon.\n")


        class Subscriber(RobustTCPClient):
            depends_on = TimeServer

            async def handle_connection(self, reader, writer):
                async for line in reader:
                    print(line)


        subscriber = Subscriber("localhost", 8901, reconnect_timeout=1)
        with entrypoint(TimeServer("localhost", 8901), subscriber) as loop:
            loop.run_forever()
    """
