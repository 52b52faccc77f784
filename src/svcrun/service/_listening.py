"""A service that listens at a place: the parameters that name it, and the socket bound there."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, ClassVar

from svcrun.service.base import Service
from svcrun.sockets import Endpoint, local_address

if TYPE_CHECKING:
    import os
    from collections.abc import Collection

    from svcrun.addresses import Option

__all__ = ("Listening",)


class Listening(Service):
    """A service with an endpoint: an address and port, a path, or a socket that is given.

    The endpoint is checked when the service is made, and bound by :meth:`_bind` when it starts.
    """

    PROTO_NAME: ClassVar[str] = "tcp"
    """How the log calls the protocol."""
    SOCKET_KIND: ClassVar[int] = socket.SOCK_STREAM

    address: str | os.PathLike[str] | None = None
    port: int | None = None
    options: Collection[Option] = ()
    sock: socket.socket | None = None
    path: str | os.PathLike[str] | None = None
    reuse_port: bool = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # The bound socket, as long as the service has one.
        self.socket: socket.socket | None = None
        self._check_parameters()
        self._endpoint = self._make_endpoint()
        self._configured = (self.address, self.port)

    def _check_parameters(self) -> None:
        """Refuse values that can't be used, before the endpoint is made."""

    def _make_endpoint(self) -> Endpoint:
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
        if self.socket is not None:  # the bound address is this instance's
            for name, value in zip(("address", "port"), self._configured, strict=True):
                if name in state:
                    state[name] = value
        return state

    async def _bind(self, backlog: int | None = None) -> socket.socket:
        """Bind the socket, which listens if a `backlog` is given, and tell where.

        :raises OSError: if the address can't be bound; it names address, port and service.
        """
        if (self.address, self.port) != self._configured:
            self._configured = (self.address, self.port)
            self._endpoint = self._make_endpoint()
        await self._endpoint.resolve(self.loop, self)
        sock = self.socket = self._endpoint.bind(self, backlog)
        self.address, self.port = local_address(sock)
        return sock

    def _unbind(self) -> None:
        """Close the socket, remove its file, and tell the address that was asked for again."""
        sock, self.socket = self.socket, None
        if sock is not None:
            self._endpoint.close(sock)
            self.address, self.port = self._configured
