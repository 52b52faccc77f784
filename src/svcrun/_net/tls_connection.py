"""One client of a TLS server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from svcrun._net.connection import Connection
from svcrun._net.handshake import log_handshake_failure

if TYPE_CHECKING:
    from svcrun._net.connections import Clients
    from svcrun.service.tls import TLSServer

__all__ = ("TLSConnection",)


class TLSConnection(Connection, asyncio.BufferedProtocol):
    """A connection that begins with a TLS handshake.

    A buffered protocol: TLS decrypts into a buffer that all connections of the server share,
    where asyncio would make one of 256 KiB for each piece of data.
    """

    def __init__(self, server: Clients) -> None:
        super().__init__(server)
        self._receive_buffer = server.receive_buffer

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the hint is not needed
        """Return where the next piece of data is to be put."""
        return self._receive_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take the data out of the shared buffer."""
        self.reader.data_received(self._receive_buffer[:nbytes].tobytes())

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
        service: TLSServer = self.server.service
        try:
            await self.start_tls(
                service._svcrun_ssl_context, ssl_handshake_timeout=service.ssl_handshake_timeout
            )
        except OSError as error:
            log_handshake_failure(service, self.peer, error)
        except asyncio.CancelledError:
            pass  # by stop(), before there was anything to finish
