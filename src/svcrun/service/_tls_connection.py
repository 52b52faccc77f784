"""One client of a TLS server."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING

from svcrun.service._connection import Connection

if TYPE_CHECKING:
    from svcrun.service.tls import TLSServer

__all__ = ("TLSConnection",)

log = logging.getLogger(__name__)

# How OpenSSL calls what is no TLS at all.
_NOT_TLS = frozenset({"HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER"})


class TLSConnection(Connection, asyncio.BufferedProtocol):
    """A connection that begins with a TLS handshake.

    A buffered protocol: TLS decrypts into a buffer that all connections of the server share,
    where asyncio would make one of 256 KiB for each piece of data.
    """

    server: TLSServer

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the hint is not needed
        """Return where the next piece of data is to be put."""
        return self.server.receive_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take the data out of the shared buffer."""
        self.reader.data_received(bytes(self.server.receive_buffer[:nbytes]))

    def end(self, *, at_once: bool) -> None:
        """End a handshake at once, too."""
        super().end(at_once=at_once or not self.over_tls)

    async def _serve(self) -> None:
        try:
            await self._shake_hands()
        finally:
            if not self.over_tls:
                self._finish()
        if self.over_tls:
            await super()._serve()

    async def _shake_hands(self) -> None:
        try:
            await self.start_tls(
                self.server.ssl_context, ssl_handshake_timeout=self.server.ssl_handshake_timeout
            )
        except OSError as error:
            # Who only looks whether the port is open is not worth a warning.
            level = logging.INFO if isinstance(error, ConnectionResetError) else logging.WARNING
            reason = explain(error, self.server)
            log.log(level, "%r: TLS handshake with %s failed: %s", self.server, self.peer, reason)
        except asyncio.CancelledError:
            pass  # by stop(), before there was anything to finish


def explain(error: OSError, server: TLSServer) -> str:
    """Tell why a handshake failed, in terms of who reads the log."""
    if not isinstance(error, ssl.SSLError):
        return str(error) or "the client closed the connection"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate is not accepted: {error.verify_message}"
    if error.reason == "UNSUPPORTED_PROTOCOL":
        return f"the client offers less than minimum_version={server.minimum_version.name}"
    if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "the client shows no certificate, as require_client_cert=True asks for"
    if error.reason in _NOT_TLS:
        return f"the client does not speak TLS ({error.reason})"
    return error.reason or str(error)
