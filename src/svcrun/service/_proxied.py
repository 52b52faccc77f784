"""The parameters of servers whose clients connect through proxies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from svcrun._util.validation import number
from svcrun.errors import ParameterError
from svcrun.service._accepting import Accepting
from svcrun.service._internals import part_of
from svcrun.service._parameters import check_parameters, kept, parameter

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcrun._net.proxy_protocol import ProxyProtocol, Trusted

__all__ = ("Proxied",)


def _version(owner: object, name: str, value: Any) -> Any:
    if value is not None and (not isinstance(value, str) or value not in {"v1", "v2", "any"}):
        raise ParameterError(owner, name, value, "'v1', 'v2', 'any' or None")
    return value


def _trusted(owner: object, name: str, value: Any) -> Any:
    from svcrun._net.proxy_protocol import networks_of

    value = kept(value)
    networks_of(owner, name, value)
    return value


class Proxied(Accepting, base=True):
    """A server of streams that may accept the PROXY protocol."""

    proxy_protocol: Literal["v1", "v2", "any"] | None = parameter(default=None, check=_version)
    proxy_trusted: Trusted = parameter(default=("127.0.0.0/8", "::1"), check=_trusted)
    proxy_timeout: float = parameter(default=5.0, check=number(above=0, unit="seconds"))

    def _svcrun_accept_proxies(
        self, on_lost: Callable[[Any], None] | None = None
    ) -> ProxyProtocol | None:
        """Return the receiver of the headers of new connections; None if they have no headers.

        :param on_lost: called with the protocol of a connection that has ended before its header.
        """
        headers = part_of(self, _Headers)
        version = self._svcrun_limit("proxy_protocol")
        if headers.current is None and version is not None:
            from svcrun._net.proxy_protocol import ProxyProtocol

            check_parameters(self, ("proxy_protocol", "proxy_trusted", "proxy_timeout"))
            headers.current = ProxyProtocol(self, version, self._svcrun_admission, on_lost)
        return headers.current

    def _svcrun_count_waiting(self) -> int:
        """Return the number of connections whose header is not complete."""
        current = part_of(self, _Headers).current
        return 0 if current is None else len(current.waiting)

    def _svcrun_unbind(self) -> None:
        headers = part_of(self, _Headers)
        current, headers.current = headers.current, None
        if current is not None:
            current.close()
        super()._svcrun_unbind()


class _Headers:
    """The connections of a service whose header is not complete."""

    def __init__(self, _: Proxied) -> None:
        self.current: ProxyProtocol | None = None
