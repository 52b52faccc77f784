"""The stream writer of a connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from svcrun.service._connection import Connection

__all__ = ("Writer", "extra_info")


def extra_info(transport: Any, name: str, default: Any = None) -> Any:
    """Return what a transport knows, by names like ``"peername"``."""
    try:
        return transport.get_extra_info(name, default)
    except (AttributeError, OSError):
        # uvloop asks a closed socket, if the client had gone before it was accepted.
        return default


def _ignore(_: object) -> None:
    """Do nothing."""


class Writer(asyncio.StreamWriter):
    """What a handler writes to: to its user an :class:`asyncio.StreamWriter`.

    Of the base class only the type is used.
    """

    def __init__(self, connection: Connection, transport: Any) -> None:
        # Not super().__init__(): it would make what is replaced here.
        self._connection = connection
        self._transport = transport
        # The method itself, for a call less with each piece of data.
        self.write = transport.write  # type: ignore[method-assign]

    def use(self, transport: Any) -> None:
        """Write to `transport` from now on."""
        self._transport = transport
        self.write = transport.write  # type: ignore[method-assign]

    def lose(self) -> None:
        """Write into the void from now on, as asyncio does; uvloop would raise an error."""
        self.write = _ignore  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} transport={self._transport!r}>"

    def __del__(self) -> None:
        """Do nothing: the connection outlives this and closes the transport."""

    @property
    def transport(self) -> Any:
        """The transport that is written to."""
        return self._transport

    def writelines(self, data: Iterable[Any]) -> None:
        """Write several pieces of data."""
        if not self._connection.lost:
            self._transport.writelines(data)

    def write_eof(self) -> None:
        """Close the writing half of the connection, after what was written was sent."""
        if not self._connection.lost:
            self._transport.write_eof()

    def can_write_eof(self) -> bool:
        """Tell whether the transport can close its writing half only; TLS can't."""
        can: bool = self._transport.can_write_eof()
        return can

    def close(self) -> None:
        """Close the connection, after what was written was sent."""
        self._connection.close()

    def is_closing(self) -> bool:
        """Tell whether the connection is closed or being closed."""
        closing: bool = self._transport.is_closing()
        return closing

    async def wait_closed(self) -> None:
        """Wait until the connection is closed.

        :raises OSError: if it was lost by an error.
        """
        await self._connection.closed()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the transport knows, by names like ``"peername"``."""
        return extra_info(self._transport, name, default)

    async def drain(self) -> None:
        """Wait until most of what was written is sent.

        :raises ConnectionResetError: if the connection is lost.
        """
        connection = self._connection
        if connection.paused or connection.error is not None or self._transport.is_closing():
            await connection.drained()

    async def start_tls(
        self,
        sslcontext: ssl.SSLContext,
        *,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        """Go on with TLS, as the server that the client expects (``STARTTLS``).

        What the client sent before and nobody has read is dropped: it was not encrypted.

        :raises OSError: if the handshake fails, and so the connection is lost.
        """
        await self.drain()
        await self._connection.start_tls(
            sslcontext,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
