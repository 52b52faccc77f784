"""The base of services that listen at an endpoint."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, ClassVar

from svcrun._net.endpoint import Endpoint, local_address
from svcrun.service._internals import overridable, part_of
from svcrun.service._keywords import check_present
from svcrun.service._parameters import check_parameters, parameter, several
from svcrun.service.base import Service

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from svcrun._net.addresses import Option

    Socket = socket.socket

__all__ = ("Listening", "Place")


class Listening(Service, base=True):
    """A service with an endpoint: an address and port, a path, or a socket.

    The endpoint is checked when the service is created, and bound when it starts.
    """

    _svcrun_is_server: ClassVar[bool] = True

    PROTO_NAME: ClassVar[str] = "tcp"
    """The name of the protocol in the log."""
    SOCKET_KIND: ClassVar[int] = socket.SOCK_STREAM

    address: str | os.PathLike[str] | None = parameter(default=None, kw_only=False)
    port: int | None = parameter(default=None, kw_only=False)
    options: Iterable[Option] = parameter(default=(), check=several, kw_only=False)
    sock: Socket | str | None = parameter(default=None, kw_only=False)
    path: str | os.PathLike[str] | None = None
    reuse_port: bool = False

    def _svcrun_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        kwargs = super()._svcrun_arguments(args, kwargs)
        if "path" in kwargs or not isinstance(kwargs.get("sock", ""), str):
            # The default endpoint of a class does not apply beside another one. But a socket that
            # is only named may be absent.
            for name in ("address", "port"):
                if getattr(type(self), name) is not None:
                    kwargs.setdefault(name, None)
        return kwargs

    def _svcrun_check_together(self) -> None:
        super()._svcrun_check_together()
        part_of(self, Place)

    @overridable
    def socket(self) -> Socket | None:
        """The bound socket, as long as the service has one."""
        return self._svcrun_socket

    @property
    def _svcrun_socket(self) -> Socket | None:
        return part_of(self, Place).socket

    @property
    def _svcrun_endpoint(self) -> Endpoint:
        return part_of(self, Place).endpoint

    def _svcrun_listens(self) -> bool:
        if part_of(self, Place).socket is not None:
            return True
        # A subclass may listen by a server of its own, in an attribute.
        kept = [value for name, value in vars(self).items() if name != "sock"]
        for value in tuple(kept):
            if isinstance(value, list | tuple | set):
                kept += value
        return any(map(_is_listener, kept))

    def _svcrun_make_endpoint(self) -> Endpoint:
        return Endpoint(
            type(self).__qualname__,
            address=self.address,
            port=self.port,
            path=self.path,
            sock=self.sock,
            options=self.options,
            reuse_port=self.reuse_port,
            kind=self.SOCKET_KIND,
            scheme=self.PROTO_NAME,
        )

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        place = part_of(self, Place)
        if place.socket is not None:  # the bound address is this instance's
            for name, value in zip(("address", "port"), place.configured, strict=True):
                if name in state:
                    state[name] = value
        return state

    async def _svcrun_bind(self, backlog: int | None = None) -> Socket:
        """Bind the socket, which listens if a `backlog` is given, and show its address.

        :raises OSError: if the address can't be bound; it names address, port and service.
        """
        await self.__configured().endpoint.resolve(asyncio.get_running_loop(), self)
        return self._svcrun_bind_at_once(backlog)

    def _svcrun_bind_at_once(self, backlog: int | None = None) -> Socket:
        """Bind the socket as :meth:`_svcrun_bind` does, but block the loop to resolve a name."""
        place = self.__configured()
        sock = place.socket = place.endpoint.bind(self, backlog)
        self.__show(local_address(sock))
        return sock

    def __configured(self) -> Place:
        place = part_of(self, Place)
        if (self.address, self.port) != place.configured:
            place.configure(self)
        return place

    def _svcrun_unbind(self) -> None:
        """Close the socket, remove its file, and show the configured address again."""
        place = part_of(self, Place)
        sock, place.socket = place.socket, None
        if sock is not None:
            place.endpoint.close(sock)
            self.__show(place.configured)

    def __show(self, address: tuple[Any, Any]) -> None:
        for name, value in zip(("address", "port"), address, strict=True):
            # A property of a subclass returns a value of its own.
            if not isinstance(getattr(type(self), name, None), property):
                setattr(self, name, value)


class Place:
    """The endpoint of a service as it was configured, and the bound socket."""

    endpoint: Endpoint
    configured: tuple[Any, Any]

    def __init__(self, service: Listening) -> None:
        check_present(service)
        if not service._svcrun_given:  # the __init__ of a subclass may have assigned attributes
            check_parameters(service)
        self.socket: Socket | None = None
        self.configure(service)

    def configure(self, service: Listening) -> None:
        """Create the endpoint from the current parameters."""
        self.endpoint = service._svcrun_make_endpoint()
        self.configured = (service.address, service.port)


# Attributes of asyncio's servers and transports, of sockets, and of aiohttp's runners and sites.
_SIGNS = ("is_serving", "get_extra_info", "getsockname", "sites")


def _is_listener(value: object) -> bool:
    """Return whether `value` is probably an object that listens, by the attributes of its class."""
    kind = type(value)
    return any(hasattr(kind, sign) for sign in _SIGNS) or "servers" in getattr(
        value,
        "__dict__",
        (),  # uvicorn's
    )
