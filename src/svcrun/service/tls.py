"""A server of TLS clients."""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING, Any, ClassVar

from svcrun.errors import NotRunning, ParameterError, ParameterTypeError
from svcrun.service._accept import RECEIVE_SIZE
from svcrun.service._stream import StreamServer
from svcrun.service._tls_connection import TLSConnection
from svcrun.tls_options import DEFAULT_CIPHERS, DEFAULT_VERSION, SSLOptions

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    from svcrun.service._connection import Connection

__all__ = ("SSLOptions", "TLSServer")

log = logging.getLogger(__name__)


class TLSServer(StreamServer):
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

    __required__: ClassVar[Any] = ("cert", "key")

    cert: str | os.PathLike[str]
    key: str | os.PathLike[str]
    ca: str | os.PathLike[str] | None = None
    require_client_cert: bool = False
    verify: bool = True
    minimum_version: ssl.TLSVersion = DEFAULT_VERSION
    maximum_version: ssl.TLSVersion = DEFAULT_VERSION
    ciphers: str | Iterable[str] = DEFAULT_CIPHERS
    ssl_handshake_timeout: float = 10.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._make_options()  # for its checks

    async def start(self) -> None:
        """Read the certificates, bind the socket and listen.

        :raises OSError: if a file can't be read, or the address not be bound.
        :raises ValueError: if a file does not contain what its parameter asks for.
        """
        # A few short files: to read them in a thread would take longer than to read them.
        self.ssl_context = self._make_options().create_context()
        self.receive_buffer = memoryview(bytearray(RECEIVE_SIZE))
        await super().start()

    def reload_certificates(self) -> None:
        """Read the files again, and use what they contain from the next handshake on.

        Connections that there are stay as they are. If a file can't be used, nothing changes.

        :raises RuntimeError: if the server is not running.
        :raises OSError: if a file can't be read; :class:`FileNotFoundError` if there is none.
        :raises ValueError: if a file does not contain what its parameter asks for.
        """
        if self.server is None:
            raise NotRunning(self, "reload_certificates()")
        self.ssl_context = self._make_options().create_context()
        log.info("%r: certificates read again", self)

    def _connection_factory(self) -> Callable[[], Connection]:
        return lambda: TLSConnection(self)

    def _make_options(self) -> SSLOptions:
        return SSLOptions(
            self.cert,
            self.key,
            self.ca,
            self.verify,
            self.require_client_cert,
            ssl.Purpose.CLIENT_AUTH,
            self.minimum_version,
            self.maximum_version,
            self.ciphers,
            owner=type(self).__qualname__,
        )

    def _check_parameters(self) -> None:
        super()._check_parameters()
        value = self.ssl_handshake_timeout
        accepted = "a number of seconds above 0"
        owner = type(self).__qualname__
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ParameterTypeError(owner, "ssl_handshake_timeout", value, accepted)
        if not value > 0:
            raise ParameterError(owner, "ssl_handshake_timeout", value, accepted)
