"""The base of services that accept connections: their limits and counters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from svcrun._net.addresses import AF_UNIX
from svcrun._net.admission import Admission
from svcrun._net.keepalive import check_keepalive
from svcrun._util.validation import number, optional
from svcrun.service._internals import overridable, part_of
from svcrun.service._listening import Listening
from svcrun.service._parameters import parameter

if TYPE_CHECKING:
    import socket

    from svcrun._net.endpoint import Endpoint

__all__ = ("Accepting",)


class Accepting(Listening, base=True):
    """A service that accepts connections at an endpoint."""

    max_connections: int | None = parameter(
        default=None,
        check=optional(number(low=1, whole=True, unit="connections"), "no limit"),
    )
    keepalive: float | None = parameter(default=None, check=check_keepalive)

    @overridable
    def accepted(self) -> int:
        """The number of connections accepted so far, in all runs, those refused included."""
        return self._svcrun_admission.accepted

    @overridable
    def refused(self) -> int:
        """The number of clients that were disconnected before their handler ran, in all runs.

        For example, their TLS handshake failed, or the server was stopping.
        """
        return self._svcrun_admission.refused

    @overridable
    def open_connections(self) -> int:
        """The number of open connections."""
        return self._svcrun_count_connections()

    @property
    def _svcrun_admission(self) -> Admission:
        return part_of(self, Admission)

    def _svcrun_count_connections(self) -> int:
        return 0

    def _svcrun_measure(self) -> dict[str, float]:
        admission = self._svcrun_admission
        return {
            "connections_accepted_total": admission.accepted,
            "connections_refused_total": admission.refused,
            "connections_open": self._svcrun_count_connections(),
        }

    def _svcrun_limit(self, name: str) -> Any:
        """Return the value of a limit; None if a subclass has a method of that name."""
        value = getattr(self, name)
        return None if callable(value) else value

    def _svcrun_make_endpoint(self) -> Endpoint:
        endpoint = super()._svcrun_make_endpoint()
        endpoint.keepalive = self._svcrun_limit("keepalive")
        return endpoint

    async def _svcrun_bind(self, backlog: int | None = None) -> socket.socket:
        sock = await super()._svcrun_bind(backlog)
        # Clients may have connected before keep-alive was set on a socket that others listen on.
        is_late = self._svcrun_endpoint.is_shared and sock.family != AF_UNIX
        self._svcrun_admission.begin(
            self._svcrun_limit("max_connections"),
            self._svcrun_limit("keepalive") if is_late else None,
        )
        return sock
