"""A server of TLS clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcrun._net.connections import Connections
from svcrun._net.listener import RECEIVE_SIZE
from svcrun._net.tls_connection import TLSConnection
from svcrun._net.tls_options import (
    DEFAULT_SSL_CIPHERS as DEFAULT_SSL_CIPHERS,
    DEFAULT_SSL_MAX_VERSION as DEFAULT_SSL_MAX_VERSION,
    DEFAULT_SSL_MIN_VERSION as DEFAULT_SSL_MIN_VERSION,
    PathOrStr as PathOrStr,
    SSLOptions,
)
from svcrun.service._internals import part_of
from svcrun.service._secure import Secure
from svcrun.service._stream import StreamServer
from svcrun.service.base import SimpleServer as SimpleServer
from svcrun.sockets import bind_socket as bind_socket
from svcrun.utils import (
    OptionsType as OptionsType,
    TimeoutType as TimeoutType,
    awaitable as awaitable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("SSLOptions", "TLSServer")


class TLSServer(StreamServer, Secure, base=True):
    """Serve TLS clients, each in a task of its own.

    It has the parameters of :class:`~svcrun.service.tcp.TCPServer` and, as keywords, those below. A
    failed handshake is logged in one line and does not affect other clients.

    :param cert: a PEM file with the server's certificate and its intermediate certificates.
    :param key: a PEM file with the private key, not encrypted.
    :param ca: a PEM file with the authorities of the clients' certificates.
    :param require_client_cert: refuse a client without a certificate of `ca`. Off by default.
    :param verify: with `ca`, check the certificate of a client that sends one. On by default.
    :param minimum_version: the lowest TLS version to accept; TLS 1.3 by default.
    :param maximum_version: the highest TLS version to accept; TLS 1.3 by default.
    :param ciphers: OpenSSL's names of the ciphers for TLS 1.2 and earlier.
    :param ssl_handshake_timeout: seconds that a handshake may take; 10 by default.

    :raises FileNotFoundError: if a file does not exist, naming the parameter and the path.
    :raises ValueError, TypeError: naming a parameter whose value is not accepted.

    .. code-block:: python

        class SecureEchoServer(TLSServer):
            async def handle_client(self, reader, writer):
                async for line in reader:
                    writer.write(line)


        service = SecureEchoServer(address="::1", port=8900, cert="cert.pem", key="key.pem")
        with entrypoint(service) as loop:
            loop.run_forever()
    """

    PROTO_NAME = "tls"

    async def start(self) -> None:
        """Read the certificates, bind the socket and listen.

        :raises OSError: if a file can't be read, or the address can't be bound.
        :raises ValueError: if a file has other contents than its parameter requires.
        """
        self._svcrun_read_certificates()
        part_of(self, Connections).receive_buffer = memoryview(bytearray(RECEIVE_SIZE))
        await super().start()

    def _svcrun_is_serving(self) -> bool:
        return part_of(self, Connections).listener is not None

    def _svcrun_connection_factory(self, connections: Connections) -> Callable[[], TLSConnection]:
        return lambda: TLSConnection(connections)
