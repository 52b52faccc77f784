"""TLS handshakes on the server's side, and the log messages about failed ones."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet, ref

from svcrun._net.addresses import format_address
from svcrun._net.proxied_transport import show_same_client, unwrap
from svcrun._net.stream_writer import extra_info
from svcrun._util.eager import start_eagerly

if TYPE_CHECKING:
    from svcrun._net.admission import Admission

__all__ = ("Handshake", "Handshakes", "TLSParameters", "accept_tls", "log_handshake_failure")

log = logging.getLogger("svcrun.net")

# OpenSSL's reasons for data that is not TLS.
_NOT_TLS = frozenset({"HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER"})


class TLSParameters(Protocol):
    """A server of TLS clients, as far as a handshake uses it."""

    @property
    def _svcrun_ssl_context(self) -> ssl.SSLContext:
        """The SSL context for the next handshake."""

    @property
    def ssl_handshake_timeout(self) -> float:
        """The time limit of a handshake, in seconds."""

    @property
    def minimum_version(self) -> ssl.TLSVersion:
        """The oldest version of TLS that is accepted."""


async def accept_tls(
    transport: Any, protocol: asyncio.BaseProtocol, context: ssl.SSLContext, **options: Any
) -> Any:
    """Put TLS between `transport` and `protocol`, as the server, and return the TLS transport.

    :param options: time limits, as of :meth:`asyncio.loop.start_tls`.
    :raises OSError: if the handshake fails.
    """
    tls = await asyncio.get_running_loop().start_tls(
        unwrap(transport), protocol, context, server_side=True, **options
    )
    if tls is None or tls.get_extra_info("ssl_object") is None:
        # The client disconnected during the handshake. No loop treats that as an error.
        raise ConnectionResetError("client disconnected")
    return show_same_client(tls, transport)


class Handshakes:
    """The handshakes of a server that are in progress, and the transports below TLS."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        # Output of TLS that is not sent yet is in their write buffers.
        self.transports: WeakSet[Any] = WeakSet()


class Handshake(asyncio.Protocol):
    """The protocol of a connection until TLS is established; then `protocol` replaces it.

    asyncio performs handshakes by itself. But it logs nothing when one fails, and its context is
    that of the moment when the server began to listen.

    :param server: has the SSL context for the next handshake.
    :param protocol: gets the transport of TLS.
    :param handshakes: the handshakes of the server, to which this one is added.
    :param admission: counts the clients whose handshake fails.
    """

    def __init__(
        self,
        server: TLSParameters,
        protocol: asyncio.Protocol,
        handshakes: Handshakes,
        admission: Admission,
    ) -> None:
        self._server = server
        self._protocol = protocol
        self._handshakes = handshakes
        self._admission = admission
        # Data that arrived in the same iteration of the loop as the end of the handshake.
        self._early: list[bytes] = []
        self._is_at_end = False

    def connection_made(self, transport: Any) -> None:
        """Begin the handshake."""
        self._handshakes.transports.add(unwrap(transport))
        task = start_eagerly(self._shake_hands(transport), asyncio.get_running_loop())
        if not task.done():
            self._handshakes.tasks.add(task)
            task.add_done_callback(self._handshakes.tasks.discard)

    def data_received(self, data: bytes) -> None:
        """Buffer data for the protocol."""
        self._early.append(data)

    def eof_received(self) -> None:
        """Record the end of the data for the protocol."""
        self._is_at_end = True

    async def _shake_hands(self, plain: Any) -> None:
        server = self._server
        try:
            transport = await accept_tls(
                plain,
                self,
                server._svcrun_ssl_context,
                ssl_handshake_timeout=server.ssl_handshake_timeout,
            )
        except OSError as error:
            log_handshake_failure(server, format_address(extra_info(plain, "peername")), error)
            self._refuse(plain)
            return
        except BaseException:
            self._refuse(plain)
            raise
        self._hand_over(transport, plain)

    def _refuse(self, plain: Any) -> None:
        self._admission.refused += 1
        plain.abort()

    def _hand_over(self, transport: Any, plain: Any) -> None:
        protocol = self._protocol
        _correct(transport, plain)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        for data in self._early:
            protocol.data_received(data)
        if self._is_at_end:
            protocol.eof_received()
        if transport.is_closing():
            # Race: the connection may have been lost while this was its protocol.
            transport.abort()


def _correct(transport: Any, plain: Any) -> None:
    """Correct two methods of asyncio's `transport` of TLS, which is above `plain`.

    ``is_closing()`` returns False until the loop reports a lost connection in its next iteration.
    Servers call it before they write, and asyncio logs a warning for each write to a lost
    connection.

    The second call of ``close()`` drops the reference to the connection, so that ``abort()`` has no
    effect after it. Servers do call it twice.
    """
    if not hasattr(transport, "__dict__"):
        return  # uvloop's transport has neither fault, and can't be changed
    of_tls = ref(transport)  # a reference cycle otherwise
    is_closing, close = type(transport).is_closing, type(transport).close

    def is_closing_or_lost() -> bool:
        return plain.is_closing() or (transport := of_tls()) is None or is_closing(transport)

    def close_once() -> None:
        transport = of_tls()
        if transport is not None and not is_closing(transport):
            close(transport)

    transport.is_closing = is_closing_or_lost
    transport.close = close_once


def log_handshake_failure(server: TLSParameters, peer: str, error: OSError) -> None:
    """Log in one line that a handshake with `peer` failed, and why."""
    # A port scanner or a health check that only connects deserves no warning.
    level = logging.INFO if isinstance(error, ConnectionResetError) else logging.WARNING
    log.log(level, "%r: TLS handshake with %s failed: %s", server, peer, _explain(error, server))


def _explain(error: OSError, server: TLSParameters) -> str:
    """Return why a handshake failed, in the terms of the server's parameters."""
    if not isinstance(error, ssl.SSLError):
        return str(error) or "client disconnected"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate is not accepted: {error.verify_message}"
    if error.reason == "UNSUPPORTED_PROTOCOL":
        return f"the client offers less than minimum_version={server.minimum_version.name}"
    if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "the client sent no certificate, which require_client_cert=True requires"
    if error.reason in _NOT_TLS:
        return f"the client does not speak TLS ({error.reason})"
    return error.reason or str(error)
