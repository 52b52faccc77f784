"""A server of TCP clients."""

from svcrun._net.endpoint import bind_socket as bind_socket
from svcrun.service._stream import StreamServer
from svcrun.service.base import SimpleClient as SimpleClient, SimpleServer as SimpleServer
from svcrun.utils import (
    OptionsType as OptionsType,
    TimeoutType as TimeoutType,
    awaitable as awaitable,
)

__all__ = ("TCPServer",)


class TCPServer(StreamServer):
    """Serve the clients of a TCP port, or of a Unix socket, each by a task of its own.

    Override :meth:`handle_client`. Its reader and writer are asyncio's; when it returns or raises,
    the connection is closed. What it raises is logged and concerns no other client.

    :param address: an IP address (``"::"`` for all, of IPv6 and IPv4), a host name, or the path of
        a Unix socket.
    :param port: 0 to 65535; 0 takes a free one. Once started, :attr:`address` and :attr:`port`
        tell what was bound.
    :param options: socket options as ``(level, option, value)``.
    :param sock: a bound socket, in place of `address` and `port`; closed at the end.
    :param path: the path of a Unix socket, in place of `address` and `port`. Its file is removed
        at the end.
    :param reuse_port: let several processes listen on this port. Off by default.
    :param backlog: how many connections may wait to be accepted; 1024 by default.
    :param limit: how many bytes a line may have, 64 KiB by default. Longer ones make
        ``readline()`` raise :class:`ValueError`, as in asyncio.
    :param drain_timeout: seconds that handlers at work get at the end; 5 by default, 0 for none.

    :raises ValueError, TypeError: naming the parameter with a value that can't be used.

    .. code-block:: python

        class EchoServer(TCPServer):
            async def handle_client(self, reader, writer):
                async for line in reader:
                    writer.write(line)


        with entrypoint(EchoServer(address="::1", port=8901)) as loop:
            loop.run_forever()
    """
