"""The parameters of servers and clients that speak TLS, and the certificates that they name."""

from __future__ import annotations

import logging
import ssl
from abc import abstractmethod
from math import inf
from typing import TYPE_CHECKING, Any

from svcrun._net.tls_options import DEFAULT_CIPHERS, DEFAULT_VERSION, SSLOptions
from svcrun._util.validation import instance_of, number, optional
from svcrun.errors import NotRunning
from svcrun.service._internals import overridable, part_of
from svcrun.service._listening import Listening, Place
from svcrun.service._parameters import parameter, several
from svcrun.service.base import Service

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

__all__ = ("Secure", "SecureClient", "SecureServer")

log = logging.getLogger("svcrun.service.tls")


class Secure(Service, base=True):
    """A service whose connections use TLS.

    Each connection takes its context from :attr:`ssl_context` when it is made, so that another
    one may take its place at any time.
    """

    ca: str | os.PathLike[str] | None = None
    verify: bool = True
    minimum_version: ssl.TLSVersion = DEFAULT_VERSION
    maximum_version: ssl.TLSVersion = DEFAULT_VERSION
    ciphers: str | Iterable[str] = parameter(default=DEFAULT_CIPHERS, check=several)
    ssl_handshake_timeout: float = parameter(
        default=10.0, check=number(above=0, high=inf, unit="seconds")
    )

    @overridable
    def ssl_context(self) -> ssl.SSLContext:
        """The SSL context for new connections."""
        return self._svcrun_ssl_context

    @property
    def _svcrun_ssl_context(self) -> ssl.SSLContext:
        return part_of(self, Certificates).context

    @abstractmethod
    def _svcrun_is_serving(self) -> bool:
        """Return whether the service makes connections, and so has a context to replace."""

    def reload_certificates(self) -> None:
        """Read the files again, and use them from the next handshake on.

        Open connections are not affected. If a file is invalid, nothing changes.

        :raises RuntimeError: if the service is not running.
        :raises OSError: if a file can't be read; :class:`FileNotFoundError` if there is none.
        :raises ValueError: if a file does not contain a valid certificate or key.
        """
        if not self._svcrun_is_serving():
            raise NotRunning(self, "reload_certificates()")
        self._svcrun_read_certificates()
        log.info("%r: certificates read again", self)

    async def reload(self) -> None:
        """Read the certificates again; SIGHUP calls this."""
        self.reload_certificates()

    def _svcrun_read_certificates(self) -> None:
        # The files are short: a thread would take longer than to read them here.
        part_of(self, Certificates).context = self._svcrun_make_options().create_context()

    @abstractmethod
    def _svcrun_make_options(self) -> SSLOptions:
        """Return the checked parameters, by :meth:`_svcrun_options`."""

    def _svcrun_options(
        self, cert: Any, key: Any, purpose: ssl.Purpose, *, require_client_cert: bool = False
    ) -> SSLOptions:
        return SSLOptions(
            cert,
            key,
            self.ca,
            self.verify,
            require_client_cert,
            purpose,
            self.minimum_version,
            self.maximum_version,
            self.ciphers,
            owner=type(self).__qualname__,
        )

    def _svcrun_check_together(self) -> None:
        super()._svcrun_check_together()
        self._svcrun_make_options()  # for its checks


class SecureServer(Secure, Listening, base=True):
    """A server whose clients have to speak TLS."""

    cert: str | os.PathLike[str] = parameter()
    key: str | os.PathLike[str] = parameter()
    require_client_cert: bool = False

    def _svcrun_read_certificates(self) -> None:
        part_of(self, Place)  # checks the parameters on first use
        super()._svcrun_read_certificates()

    def _svcrun_make_options(self) -> SSLOptions:
        purpose, required = ssl.Purpose.CLIENT_AUTH, self.require_client_cert
        return self._svcrun_options(self.cert, self.key, purpose, require_client_cert=required)


class SecureClient(Secure, base=True):
    """A client whose server has to speak TLS."""

    cert: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    server_hostname: str | None = parameter(default=None, check=optional(instance_of(str, "a str")))

    def _svcrun_make_options(self) -> SSLOptions:
        return self._svcrun_options(self.cert, self.key, ssl.Purpose.SERVER_AUTH)


class Certificates:
    """The SSL context with the certificates that a service has read."""

    context: ssl.SSLContext

    def __init__(self, _: Secure) -> None: ...
