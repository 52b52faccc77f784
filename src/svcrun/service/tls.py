"""A server of TLS clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcrun._net.connections import Clients
from svcrun._net.endpoint import bind_socket as bind_socket
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
from svcrun.utils import (
    OptionsType as OptionsType,
    TimeoutType as TimeoutType,
    awaitable as awaitable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcrun._net.connection import Connection

__all__ = ("SSLOptions", "TLSServer")


class TLSServer(StreamServer, Secure):
    """Serve TLS clients, each by a task of its own.

    As :class:`~svcrun.service.tcp.TCPServer`, with these parameters besides, all by keyword. A
    handshake that fails is one line in the log and concerns no other client.

    :param cert: a PEM file with the server's certificate, and those between it and its authority.
    :param key: a PEM file with its private key, not encrypted.
    :param ca: a PEM file with the authorities of clients' certificates.
    :param require_client_cert: refuse a client without a certificate of `ca`.
    :param verify: with `ca`, check the certificate of a client that shows one.
    :param minimum_version: the lowest version to speak; TLS 1.3 by default.
    :param maximum_version: the highest one.
    :param ciphers: OpenSSL's names of the ciphers for TLS 1.2 and before.
    :param ssl_handshake_timeout: seconds that a handshake may take; 10 by default.

    :raises FileNotFoundError: if a file is absent, naming the parameter and the path.
    :raises ValueError, TypeError: naming the parameter with a value that can't be used.

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

        :raises OSError: if a file can't be read, or the address not be bound.
        :raises ValueError: if a file does not contain what its parameter asks for.
        """
        self._svcrun_read_certificates()
        part_of(self, Clients).receive_buffer = memoryview(bytearray(RECEIVE_SIZE))
        await super().start()

    def _svcrun_is_serving(self) -> bool:
        return part_of(self, Clients).listener is not None

    def _svcrun_connection_factory(self, clients: Clients) -> Callable[[], Connection]:
        return lambda: TLSConnection(clients)
