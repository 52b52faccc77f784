"""A service that listens at a place: the parameters that name it, and the socket bound there."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, ClassVar

from svcrun.service._keywords import check_present, keep
from svcrun.service._record import part_of, shown
from svcrun.service.base import Service
from svcrun.sockets import Endpoint, local_address

if TYPE_CHECKING:
    import os
    from collections.abc import Collection

    from svcrun.addresses import Option

    Socket = socket.socket

__all__ = ("Listening", "Place")


class Listening(Service):
    """A service with an endpoint: an address and port, a path, or a socket that is given.

    The endpoint is checked when the service is made, and bound by :meth:`_bind` when it starts.
    """

    _svcrun_is_server: ClassVar[bool] = True

    _svcrun_several: ClassVar[Any] = ("options",)

    PROTO_NAME: ClassVar[str] = "tcp"
    """How the log calls the protocol."""
    SOCKET_KIND: ClassVar[int] = socket.SOCK_STREAM

    address: str | os.PathLike[str] | None = None
    port: int | None = None
    options: Collection[Option] = ()
    sock: Socket | None = None
    path: str | os.PathLike[str] | None = None
    reuse_port: bool = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        part_of(self, Place)

    @shown
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
        # A subclass may listen in its own way, and keep the server that does so.
        kept = [value for name, value in vars(self).items() if name != "sock"]
        for value in tuple(kept):
            if isinstance(value, list | tuple | set):
                kept += value
        return any(map(_is_listener, kept))

    def _svcrun_check_parameters(self) -> None:
        """Refuse values that can't be used, before the endpoint is made."""

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
        """Bind the socket, which listens if a `backlog` is given, and show where.

        :raises OSError: if the address can't be bound; it names address, port and service.
        """
        place = part_of(self, Place)
        if (self.address, self.port) != place.configured:
            place.configure(self)
        await place.endpoint.resolve(asyncio.get_running_loop(), self)
        sock = place.socket = place.endpoint.bind(self, backlog)
        self.__show(local_address(sock))
        return sock

    def _svcrun_unbind(self) -> None:
        """Close the socket, remove its file, and show the address that was asked for again."""
        place = part_of(self, Place)
        sock, place.socket = place.socket, None
        if sock is not None:
            place.endpoint.close(sock)
            self.__show(place.configured)

    def __show(self, address: tuple[Any, Any]) -> None:
        for name, value in zip(("address", "port"), address, strict=True):
            # A property of a subclass shows what that wants.
            if not isinstance(getattr(type(self), name, None), property):
                setattr(self, name, value)


class Place:
    """Where a service listens: what it was asked to, and the socket that it has bound."""

    endpoint: Endpoint
    configured: tuple[Any, Any]

    def __init__(self, service: Listening) -> None:
        check_present(service)
        for name in type(service)._svcrun_several:
            keep(service, name)
        service._svcrun_check_parameters()
        self.socket: Socket | None = None
        self.configure(service)

    def configure(self, service: Listening) -> None:
        """Make the endpoint for the present parameters."""
        self.endpoint = service._svcrun_make_endpoint()
        self.configured = (service.address, service.port)


# Of asyncio's servers and transports, sockets, aiohttp's runners and sites.
_SIGNS = ("is_serving", "get_extra_info", "getsockname", "sites")


def _is_listener(value: object) -> bool:
    """Whether `value` is an object that listens, as far as its class shows."""
    kind = type(value)
    return any(hasattr(kind, sign) for sign in _SIGNS) or "servers" in getattr(
        value,
        "__dict__",
        (),  # uvicorn's
    )
