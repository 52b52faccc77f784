"""The stream writer of a connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

__all__ = ("Writer", "extra_info")


def extra_info(transport: Any, name: str, default: Any = None) -> Any:
    """Return information from a transport, by a name like ``"peername"``."""
    try:
        return transport.get_extra_info(name, default)
    except (AttributeError, OSError):
        # uvloop asks a closed socket if the client disconnected before it was accepted.
        return default


class WriterConnection(Protocol):
    """The connection of a writer, as far as the writer uses it."""

    paused: bool
    """Whether the transport asked to pause writing."""
    error: BaseException | None
    """The error that closed the transport, if one did."""

    async def drained(self, *, dropped: bool) -> None:
        """Wait until the transport accepts more data."""

    async def closed(self) -> None:
        """Wait until the transport is closed."""

    def close(self) -> None:
        """Close the transport after the rest of the output is sent."""

    def reset_error(self) -> ConnectionResetError:
        """Return the exception to raise for a connection that was lost without an error."""

    async def start_tls(self, context: ssl.SSLContext, **options: Any) -> None:
        """Put TLS between the transport and the connection."""


class Writer(asyncio.StreamWriter):
    """The writer of a handler, with the interface of :class:`asyncio.StreamWriter`.

    Once the connection is closed or lost, data is dropped and :meth:`drain` raises
    :class:`ConnectionResetError`. Dropped data does not reach the transport, which would log a
    warning for each write. The base class provides the type only.
    """

    def __init__(self, connection: WriterConnection, transport: Any) -> None:
        # super().__init__() would create objects that are replaced here.
        self._connection = connection
        self._output = transport
        # The method of the socket's transport, also under TLS. Race: the TLS transport learns of
        # the loss of the transport below it only later.
        self._is_socket_closing = transport.is_closing
        self._is_lost = False
        # Whether data was dropped.
        self._has_dropped = False

    def use(self, transport: Any) -> None:
        """Write to `transport`, a TLS transport above that of the socket, from now on."""
        self._output = transport

    def lose(self) -> None:
        """Drop all data from now on."""
        self._is_lost = True

    def _drops(self) -> bool:
        """Return whether the next data is dropped, and record that."""
        if self._is_lost or self._is_socket_closing():
            self._has_dropped = True
            return True
        return False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} transport={self._output!r}>"

    def __del__(self) -> None:
        """Do nothing: the connection outlives the writer and closes the transport."""

    @property
    def transport(self) -> Any:
        """The transport that the data goes to."""
        return self._output

    def write(self, data: Any) -> None:
        """Write a piece of data."""
        if self._is_lost or self._is_socket_closing():
            self._has_dropped = True
        else:
            self._output.write(data)

    def writelines(self, data: Iterable[Any]) -> None:
        """Write several pieces of data."""
        if not self._drops():
            self._output.writelines(data)

    def write_eof(self) -> None:
        """Close the writing half of the connection after all data is sent.

        :raises NotImplementedError: if the connection uses TLS, which has no half-close.
        """
        if self._drops():
            return
        try:
            self._output.write_eof()
        except OSError:
            # Race: the peer reset the connection, and connection_lost() was not called yet.
            self.lose()
            self._has_dropped = True

    def can_write_eof(self) -> bool:
        """Return whether the transport can close its writing half alone; TLS can't."""
        can: bool = self._output.can_write_eof()
        return can

    def close(self) -> None:
        """Close the connection after the rest of the output is sent."""
        self._connection.close()

    def is_closing(self) -> bool:
        """Return whether the connection is closed or being closed."""
        closing: bool = self._is_lost or self._is_socket_closing() or self._output.is_closing()
        return closing

    async def wait_closed(self) -> None:
        """Wait until the connection is closed.

        :raises OSError: if it was lost by an error.
        """
        await self._connection.closed()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return information from the transport, by a name like ``"peername"``."""
        return extra_info(self._output, name, default)

    async def drain(self) -> None:
        """Wait until most of the output is sent.

        :raises ConnectionResetError: if the connection is lost, or if data was dropped because the
            connection was closed.
        """
        connection = self._connection
        if (
            connection.paused
            or connection.error is not None
            or self._is_lost
            or self._is_socket_closing()
        ):
            await connection.drained(dropped=self._has_dropped)

    async def start_tls(
        self,
        sslcontext: ssl.SSLContext,
        *,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        """Upgrade the connection to TLS, as its server (``STARTTLS``).

        Data that the client sent before and that was not read yet is dropped, because it was not
        encrypted.

        :raises OSError: if the handshake fails. The connection is lost then.
        """
        await self.drain()
        if self.is_closing():
            raise self._connection.reset_error()
        await self._connection.start_tls(
            sslcontext,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
