"""A server of TLS clients, and clients of TLS servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcrun._net.addresses import path_of
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
from svcrun.errors import ParameterError
from svcrun.service._internals import part_of
from svcrun.service._secure import SecureClient, SecureServer
from svcrun.service._stream import StreamServer
from svcrun.service.base import SimpleServer as SimpleServer, tasks_of
from svcrun.service.tcp import RobustTCPClient, TCPClient
from svcrun.sockets import bind_socket as bind_socket
from svcrun.utils import (
    OptionsType as OptionsType,
    TimeoutType as TimeoutType,
    awaitable as awaitable,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from svcrun._net.connector import Connector
    from svcrun._net.name_resolver import NameResolver

__all__ = ("RobustTLSClient", "SSLOptions", "TLSClient", "TLSServer")


class TLSServer(StreamServer, SecureServer, base=True):
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


class TLSClient(SecureClient, TCPClient, base=True):
    r"""Connect to a TLS server, and handle the connection.

    It has the parameters of :class:`~svcrun.service.tcp.TCPClient` and, as keywords, those below.

    The server's certificate is checked, its chain and its name. A failed handshake counts as a
    failed attempt.

    :param cert: a PEM file with a certificate for a server that requires one.
    :param key: a PEM file with the private key, not encrypted; by default, `cert` contains it.
    :param ca: a PEM file with the authorities that may have issued the server's certificate; by
        default, the authorities of the system.
    :param verify: whether to check the server's certificate. On by default.
    :param server_hostname: the name that the certificate must have; `address` by default.
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


        class SecureGreeter(TLSClient):
            depends_on = SecureEchoServer

            async def handle_connection(self, reader, writer):
                writer.write(b"hello\n")
                print(await reader.readline())


        server = SecureEchoServer("localhost", 8900, cert="cert.pem", key="key.pem")
        client = SecureGreeter("localhost", 8900, ca="ca.pem")
        with entrypoint(server, client) as loop:
            loop.run_forever()
    """

    PROTO_NAME = "tls"

    def _svcrun_check_together(self) -> None:
        super()._svcrun_check_together()
        if self.verify and self.server_hostname is None and path_of(self.address) is not None:
            raise ParameterError(
                type(self).__qualname__,
                "server_hostname",
                None,
                f"the name in the server's certificate beside the path {self.address!r}",
            )

    async def start(self) -> None:
        """Read the certificates, connect, and handle the connection.

        :raises OSError: if a file can't be read, or all attempts to connect fail.
        :raises ValueError: if a file has other contents than its parameter requires.
        """
        self._svcrun_read_certificates()
        await super().start()

    def _svcrun_is_serving(self) -> bool:
        return bool(tasks_of(self))

    async def _svcrun_open(
        self, connector: Connector, resolver: NameResolver
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await connector.open(
            resolver,
            limit=self.limit,
            context=self._svcrun_ssl_context,
            server_hostname=self.server_hostname,
            handshake_timeout=self.ssl_handshake_timeout,
        )


class RobustTLSClient(TLSClient, RobustTCPClient, base=True):
    """Connect as :class:`TLSClient` does, and again whenever the connection ends.

    See :class:`~svcrun.service.tcp.RobustTCPClient`.
    """
