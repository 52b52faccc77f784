"""One connection of a TLS server."""

from __future__ import annotations

import asyncio

from svcrun._net.connection import Connection
from svcrun._net.handshake import TLSParameters, log_handshake_failure

__all__ = ("TLSConnection",)


class TLSConnection(Connection):
    """A connection that begins with a TLS handshake."""

    def end(self, *, at_once: bool) -> None:
        """End the handler; a handshake is cancelled at once."""
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
        parameters: TLSParameters = self.server.service
        try:
            await self.start_tls(
                parameters._svcrun_ssl_context,
                ssl_handshake_timeout=parameters.ssl_handshake_timeout,
            )
        except OSError as error:
            log_handshake_failure(parameters, self.peer, error)
        except asyncio.CancelledError:
            pass  # by a stop: the handler has not begun
