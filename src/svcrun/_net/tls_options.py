"""The parameters of TLS, and the SSL context created from them."""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

from svcrun.errors import ParameterError, ParameterTypeError

__all__ = ("SSLOptions",)

#: Ciphers of TLS 1.2, if ``minimum_version`` allows it. Those of TLS 1.3 can't be configured.
DEFAULT_CIPHERS: Final = (
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
)
DEFAULT_VERSION: Final = ssl.TLSVersion.TLSv1_3

# The names of these defaults in aiomisc.
DEFAULT_SSL_CIPHERS: Final = DEFAULT_CIPHERS
DEFAULT_SSL_MAX_VERSION: Final = DEFAULT_VERSION
DEFAULT_SSL_MIN_VERSION: Final = DEFAULT_VERSION

PathOrStr: TypeAlias = str | os.PathLike[str]
"""The type of the path of a file."""


class SSLOptions:
    """The parameters of TLS on a server or a client.

    :param cert: a PEM file with the own certificate and its intermediate certificates.
    :param key: a PEM file with the private key, not encrypted; by default, `cert` contains it.
    :param ca: a PEM file with the authorities that may have issued the peer's certificate. Without
        it, a client trusts the authorities of the system.
    :param verify: check the peer's certificate. A client checks chain and host name. A server with
        `ca` checks the certificate of a client that sends one.
    :param require_client_cert: on a server, refuse a client without a certificate of `ca`,
        independent of `verify`.
    :param purpose: ``ssl.Purpose.CLIENT_AUTH`` on a server, ``SERVER_AUTH`` on a client.
    :param minimum_version: the lowest version to accept; TLS 1.3 by default.
    :param maximum_version: the highest version to accept; TLS 1.3 by default.
    :param ciphers: OpenSSL's names of the ciphers for TLS 1.2 and earlier.
    :param owner: how error messages name the service.

    :raises FileNotFoundError: if a file does not exist, naming the parameter and the path.
    :raises ValueError, TypeError: naming a parameter whose value is not accepted.

    .. code-block:: python

        options = SSLOptions("cert.pem", "key.pem", "ca.pem", True, True, ssl.Purpose.CLIENT_AUTH)
        context = options.create_context()
    """

    __slots__ = (
        "ca",
        "cert",
        "ciphers",
        "key",
        "maximum_version",
        "minimum_version",
        "owner",
        "purpose",
        "require_client_cert",
        "verify",
    )

    def __init__(
        self,
        cert: str | os.PathLike[str] | None,
        key: str | os.PathLike[str] | None,
        ca: str | os.PathLike[str] | None,
        verify: bool,
        require_client_cert: bool,
        purpose: ssl.Purpose,
        minimum_version: ssl.TLSVersion = DEFAULT_VERSION,
        maximum_version: ssl.TLSVersion = DEFAULT_VERSION,
        ciphers: str | Iterable[str] = DEFAULT_CIPHERS,
        *,
        owner: str = "SSLOptions",
    ) -> None:
        self.owner = owner
        self.cert = self._check_file("cert", cert)
        self.key = self._check_file("key", key)
        self.ca = self._check_file("ca", ca)
        self.verify = verify
        self.require_client_cert = require_client_cert
        self.purpose = purpose
        self.minimum_version = self._check_version("minimum_version", minimum_version)
        self.maximum_version = self._check_version("maximum_version", maximum_version)
        self.ciphers = self._check_ciphers(ciphers)
        if purpose not in (ssl.Purpose.CLIENT_AUTH, ssl.Purpose.SERVER_AUTH):
            raise ParameterError(owner, "purpose", purpose, "a member of ssl.Purpose")
        for name in ("verify", "require_client_cert"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ParameterTypeError(owner, name, value, "True or False")
        if self.key is not None and self.cert is None:
            raise ParameterError(owner, "cert", cert, f"the certificate of key={self.key!r}")
        if purpose is ssl.Purpose.CLIENT_AUTH:
            if self.cert is None:
                raise ParameterError(owner, "cert", cert, "the path of a PEM file for a server")
            if require_client_cert and self.ca is None:
                accepted = "a PEM file of authorities beside require_client_cert=True"
                raise ParameterError(owner, "ca", ca, accepted)
        if self.minimum_version > self.maximum_version > ssl.TLSVersion.MAXIMUM_SUPPORTED:
            accepted = f"at least minimum_version ({self.minimum_version.name})"
            raise ParameterError(owner, "maximum_version", maximum_version, accepted)

    def create_context(self) -> ssl.SSLContext:
        """Read the files and return a new context.

        :raises OSError: if a file can't be read, naming the parameter and the path.
        :raises ValueError: if a file has other contents than its parameter requires, or OpenSSL
            does not support a version or cipher.
        """
        is_server = self.purpose is ssl.Purpose.CLIENT_AUTH
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
        context.options |= ssl.OP_NO_COMPRESSION  # CRIME
        try:
            context.minimum_version = self.minimum_version
            context.maximum_version = self.maximum_version
        except ValueError as error:
            accepted = f"a version that OpenSSL supports ({error})"
            raise ParameterError(
                self.owner, "minimum_version", self.minimum_version, accepted
            ) from error
        try:
            context.set_ciphers(":".join(self.ciphers))
        except ssl.SSLError as error:
            accepted = "known to OpenSSL (see openssl ciphers -v)"
            raise ParameterError(self.owner, "ciphers", self.ciphers, accepted) from error
        self._set_checks(context, is_server=is_server)
        if self.cert is not None:
            self._load_own(context, self.cert)
        return context

    def _set_checks(self, context: ssl.SSLContext, *, is_server: bool) -> None:
        if is_server:
            if self.require_client_cert:
                context.verify_mode = ssl.CERT_REQUIRED
            elif self.verify and self.ca is not None:
                context.verify_mode = ssl.CERT_OPTIONAL
            else:
                context.verify_mode = ssl.CERT_NONE
        else:
            context.check_hostname = self.verify
            context.verify_mode = ssl.CERT_REQUIRED if self.verify else ssl.CERT_NONE

        if self.ca is not None:
            try:
                context.load_verify_locations(cafile=self.ca)
            except ssl.SSLError as error:
                accepted = "a PEM file with certificates of authorities"
                raise ParameterError(self.owner, "ca", self.ca, accepted) from error
            except OSError as error:
                raise self._unreadable("ca", self.ca, error) from error
        elif not is_server and self.verify:
            context.load_default_certs(self.purpose)

    def _load_own(self, context: ssl.SSLContext, cert: str) -> None:
        # The SSL module does not say which of the files it could not read.
        for name, path in (("cert", cert), ("key", self.key)):
            if path is not None:
                try:
                    with open(path, "rb"):
                        pass
                except OSError as error:
                    raise self._unreadable(name, path, error) from error

        encrypted = False

        def password() -> str:
            # Without this function, OpenSSL would ask at the terminal, and block.
            nonlocal encrypted
            encrypted = True
            return ""

        try:
            context.load_cert_chain(cert, self.key, password)
        except ssl.SSLError as error:
            name, value, accepted = self._explain(error, cert, encrypted=encrypted)
            raise ParameterError(self.owner, name, value, accepted) from error

    def _explain(self, error: ssl.SSLError, cert: str, *, encrypted: bool) -> tuple[str, str, str]:
        """Return the parameter that OpenSSL rejected, its value, and what is accepted."""
        key_name, key = ("cert", cert) if self.key is None else ("key", self.key)
        if encrypted:
            return key_name, key, "a private key that is not encrypted"
        if error.reason == "KEY_VALUES_MISMATCH":
            return key_name, key, f"the private key of the certificate in {cert!r}"
        # If the certificate alone can be loaded, the error is in the key.
        probe = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            probe.load_verify_locations(cafile=cert)
        except (ssl.SSLError, OSError):
            return "cert", cert, f"a PEM file with a certificate ({error.reason or error})"
        return key_name, key, f"a PEM file with a private key ({error.reason or error})"

    def _check_ciphers(self, ciphers: str | Iterable[str]) -> tuple[str, ...]:
        given: object = (ciphers,) if isinstance(ciphers, str) else ciphers
        names = tuple(given) if isinstance(given, Iterable) else (given,)
        if not all(isinstance(name, str) for name in names):
            raise ParameterTypeError(self.owner, "ciphers", ciphers, "a str or several")
        return names

    def _check_file(self, name: str, path: Any) -> str | None:
        if path is None:
            return None
        accepted = "the path of a PEM file"
        if not isinstance(path, str | os.PathLike):
            raise ParameterTypeError(self.owner, name, path, accepted)
        found = os.fspath(path)
        if not found:
            raise ParameterError(self.owner, name, path, accepted)
        if not os.path.isfile(found):
            text = f"{self.owner}: {name} must be {accepted} that exists"
            raise FileNotFoundError(errno.ENOENT, text, found)
        return found

    def _check_version(self, name: str, version: Any) -> ssl.TLSVersion:
        if not isinstance(version, ssl.TLSVersion):
            raise ParameterTypeError(self.owner, name, version, "a member of ssl.TLSVersion")
        return version

    def _unreadable(self, name: str, path: str, error: OSError) -> OSError:
        text = f"{self.owner}: {name} can't be read: {error.strerror}"
        return type(error)(error.errno, text, path)
