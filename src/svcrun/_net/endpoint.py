"""The endpoint of a server: an address and port, a path, or a socket, and how it is bound."""

from __future__ import annotations

import errno
import logging
import os
import socket
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from svcrun._net.addresses import (
    AF_UNIX,
    check_address,
    check_options,
    check_path,
    check_port,
    check_socket,
    format_path,
    format_url,
    host_and_port,
    path_of,
)
from svcrun._net.keepalive import set_keepalive
from svcrun._net.passed_sockets import PREFIX, PassedSocket, is_connected, is_unbound
from svcrun._net.unix_socket import SocketFile, bind_path
from svcrun._util.passed_descriptors import is_spawned, mark_as_used
from svcrun.errors import NoEndpoint, ParameterError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from svcrun._net.addresses import Option

__all__ = ("Endpoint", "local_address")

log = logging.getLogger("svcrun.net")

_FIRST_UNPRIVILEGED_PORT: Final = 1024

# Sockets that were passed to servers as parameters. Each server closes its socket in the end.
_adopted: WeakSet[socket.socket] = WeakSet()


class Endpoint:
    r"""An address and port, a path, or a bound socket, at which a server listens.

    The parameters are checked when the endpoint is created. The socket is bound by :meth:`bind`,
    when the server starts.

    :param owner: how error messages name the server.
    :param address: an IP address (a link-local one with ``%scope``), a host name, or a path.
        ``"::"`` stands for all addresses, of IPv6 and IPv4. Of a host name, the first IPv4 address
        is bound, or the first of all if it has none. A path is a string with a ``/``, a
        :class:`os.PathLike`, or follows ``unix:``.
    :param port: 0 to 65535; 0 selects a free port.
    :param path: the path of a Unix socket, instead of `address` and `port`. ``"\0name"`` is a name
        in the abstract name space of Linux.
    :param sock: a bound socket, instead of all other parameters. The server closes it when it
        stops. When the server is started again, it binds another socket to the same address. Or
        ``"fd:NAME"``, the socket that the parent of the process has passed under that name. It
        stays open, and each run of the server uses a duplicate. If none was passed, the address or
        path is bound.
    :param options: socket options as ``(level, option, value)``, which are set before the socket is
        bound.
    :param reuse_addr: set ``SO_REUSEADDR`` on a stream socket, so that a server can bind the port
        of its previous run at once. With datagrams, it would let two sockets share a port.
    :param reuse_port: set ``SO_REUSEPORT``, so that several processes can share the port.
    :param keepalive: seconds of silence after which TCP checks whether the peer of a connection is
        still there; None for no checks.
    :param kind: ``socket.SOCK_STREAM`` or ``socket.SOCK_DGRAM``.
    :param family: the address family; by default that of the address.
    :param scheme: how log messages name the protocol.

    :raises NoEndpoint: a :class:`ValueError` and :class:`RuntimeError`, if there is no endpoint.
    :raises PassedSocketError: a :class:`ValueError`, if no usable socket was passed under the name.
    :raises NotASocket: a :class:`TypeError` and :class:`ValueError`, if `sock` is not a socket.
    :raises ValueError: if a value is not accepted.
    :raises TypeError: if a value has a wrong type.

    >>> endpoint = Endpoint("Example", address="127.0.0.1", port=0)
    >>> sock = endpoint.bind(backlog=1024)
    >>> sock.getsockname()[0]
    '127.0.0.1'
    >>> endpoint.close(sock)
    """

    def __init__(
        self,
        owner: str,
        *,
        address: str | os.PathLike[str] | None = None,
        port: int | None = None,
        path: str | os.PathLike[str] | None = None,
        sock: socket.socket | str | None = None,
        options: Iterable[Option] = (),
        reuse_addr: bool = True,
        reuse_port: bool = False,
        keepalive: float | None = None,
        kind: int = socket.SOCK_STREAM,
        family: int | None = None,
        scheme: str = "tcp",
    ) -> None:
        self.owner = owner
        self.address, self.path, self.family = _check_address_or_path(owner, address, path, family)
        self.port = None if port is None else check_port(owner, port)
        self.sock = None if isinstance(sock, str) else sock
        self.kind = kind
        self.options = check_options(owner, options)
        self.reuse_addr = reuse_addr
        self.reuse_port = reuse_port
        self.keepalive = keepalive
        self.scheme = scheme
        # The file of the Unix socket that bind() created.
        self._file: SocketFile | None = None
        # Family, address and IPV6_V6ONLY of the socket passed as `sock`, for the next run.
        self._rebind: tuple[int, Any, bool] | None = None
        # Family and address of a host name.
        self._resolved: tuple[int, Any] | None = None

        # The name of a passed socket, and whether the server listens on it.
        self._passed: PassedSocket | None = None
        self._is_passed = False
        if isinstance(sock, str) and len(sock) > len(PREFIX) and sock.startswith(PREFIX):
            self._passed = PassedSocket(owner, sock, kind)
            if self._passed.exists:
                return
            if self.path is None and (self.address is None or self.port is None):
                if is_spawned():  # it imports the main module, and the parent runs the services
                    return
                raise self._passed.missing(owner)
        elif sock is not None:
            check_socket(owner, sock, kind)
            return
        if self.path is not None:
            if port:
                raise ParameterError(owner, "port", port, f"None beside the path {self.path!r}")
        elif self.address is None:
            raise NoEndpoint(owner, "a place to listen at")
        elif self.port is None:
            raise NoEndpoint(owner, f"a port beside address={self.address!r}")

    def __repr__(self) -> str:
        return f"<Endpoint {self}>"

    def __str__(self) -> str:
        """Return the endpoint as a URL, before it is bound."""
        if self._passed is not None and (self._is_passed or self._passed.exists):
            return str(self._passed)
        if self._rebind is not None:
            return format_url(self.scheme, *self._rebind[:2])
        if self.sock is not None:
            if self.sock.fileno() == -1:
                return f"{self.scheme}://a-closed-socket"
            return format_url(self.scheme, self.sock.family, self.sock.getsockname())
        if self.path is not None:
            return f"unix://{format_path(self.path)}"
        host = f"[{self.address}]" if ":" in (self.address or "") else self.address
        return f"{self.scheme}://{host}:{self.port}"

    async def resolve(self, loop: asyncio.AbstractEventLoop, owner: object = None) -> None:
        """Resolve a host name without blocking `loop`; do nothing for any other endpoint.

        Without this, :meth:`bind` resolves the name. It does so for ``localhost``, which needs no
        name server.
        """
        if self.family is not None or self.sock is not None or self.address == "localhost":
            return
        if self._passed is not None and (self._passed.exists or self.address is None):
            return
        try:
            found = await loop.getaddrinfo(
                self.address, self.port, type=self.kind, flags=socket.AI_PASSIVE
            )
        except OSError as error:
            raise self._explain(error, self.owner if owner is None else owner) from error
        self._resolved = _choose(found)

    def bind(self, owner: object = None, backlog: int | None = None) -> socket.socket:
        """Return a bound, non-blocking socket, which listens if a `backlog` is given.

        :param owner: the server, as errors show it; by default the `owner` of the endpoint.
        :param backlog: the maximum number of connections that wait to be accepted.
        :raises OSError: with the type and errno of the system, naming endpoint and `owner`.
        :raises ValueError: if `sock` is closed, not bound, or connected, or if the passed socket
            is in use.
        """
        name = self.owner if owner is None else owner
        try:
            passed = self._open_passed(name)
            if passed is not None:
                sock = passed
            elif self.sock is not None and self._rebind is None:
                sock = self._adopt(self.sock, name)
            else:
                sock = self._open()
        except OSError as error:
            raise self._explain(error, name) from error
        if backlog is not None:
            try:
                self.listen(sock, backlog, name)
            except BaseException:
                self.close(sock)
                raise
        elif self.kind == socket.SOCK_DGRAM:
            self.log_listening(sock)
        return sock

    def listen(self, sock: socket.socket, backlog: int, owner: object = None) -> None:
        """Listen on `sock`, which :meth:`bind` returned.

        :param backlog: the maximum number of connections that wait to be accepted.
        :param owner: the server, as errors show it; by default the `owner` of the endpoint.
        :raises OSError: as of :meth:`bind`, if another socket listens there by now.
        """
        try:
            sock.listen(backlog)
        except OSError as error:
            raise self._explain(error, self.owner if owner is None else owner) from error
        self.log_listening(sock)

    def log_listening(self, sock: socket.socket) -> None:
        """Log the address of `sock`."""
        log.info("Listening %s", format_url(self.scheme, sock.family, sock.getsockname()))

    def close(self, sock: socket.socket) -> None:
        """Close `sock`, which :meth:`bind` returned, and remove its file."""
        self.remove_file()
        sock.close()

    def remove_file(self) -> None:
        """Remove the file of a Unix socket. Call this before the socket is closed. Idempotent."""
        file, self._file = self._file, None
        if file is not None:
            file.remove(self.owner)

    @property
    def is_shared(self) -> bool:
        """Whether another process may listen on the same socket, now or later."""
        return self._is_passed or self.sock is not None

    def _open_passed(self, owner: object) -> socket.socket | None:
        """Return a duplicate of the passed socket, None if there is none."""
        if self._passed is None:
            return None
        sock = self._passed.open(owner)
        self._is_passed = sock is not None
        if sock is None:
            if self.path is None and (self.address is None or self.port is None):
                raise self._passed.missing(owner)
            self._passed.log_absence(owner, self)
            return None
        try:
            sock.setblocking(False)
            self._set_options(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def _adopt(self, sock: socket.socket, owner: object) -> socket.socket:
        """Prepare the socket passed as `sock`, which may have changed since then."""
        if sock.fileno() == -1:
            raise ParameterError(owner, "sock", sock, "an open socket")
        if sock in _adopted:
            raise ParameterError(owner, "sock", sock, "a socket that no other server uses")
        if is_unbound(sock):
            raise ParameterError(owner, "sock", sock, "a bound socket")
        if self.kind == socket.SOCK_STREAM and is_connected(sock):
            raise ParameterError(owner, "sock", sock, "a socket without a connection")
        sock.setblocking(False)
        self._set_options(sock)
        v6only = sock.family == socket.AF_INET6 and bool(
            sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        )
        self._rebind = (sock.family, sock.getsockname(), v6only)
        _adopted.add(sock)
        mark_as_used(sock.fileno())
        return sock

    def _open(self) -> socket.socket:
        """Create a socket and bind it."""
        family, target, v6only = self._rebind or (*self._target(), False)
        sock = socket.socket(family, self.kind)
        try:
            sock.setblocking(False)
            if family == socket.AF_INET6 and target[0] == "::":
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
            if family != AF_UNIX:
                self._set_sharing(sock)
            self._set_options(sock)
            if isinstance(target, str) and not target.startswith("\0"):
                self._file = bind_path(sock, target)
            else:
                sock.bind(target)
        except BaseException:
            sock.close()
            raise
        return sock

    def _set_options(self, sock: socket.socket) -> None:
        # On Linux, accepted sockets inherit them.
        if self.keepalive is not None and sock.family != AF_UNIX:
            set_keepalive(sock, self.keepalive)
        for option in self.options:
            sock.setsockopt(*option)

    def _set_sharing(self, sock: socket.socket) -> None:
        if self.kind == socket.SOCK_STREAM:
            if self.reuse_addr:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # On Linux, accepted sockets inherit it.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.reuse_port:
            if not hasattr(socket, "SO_REUSEPORT"):
                raise ParameterError(self.owner, "reuse_port", True, "False on this system")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

    def _target(self) -> tuple[int, Any]:
        """Return the address family, and the address as the socket module takes it."""
        if self.path is not None:
            # An absolute path finds the file again after a chdir().
            path = self.path if self.path.startswith("\0") else os.path.abspath(self.path)
            return self.family or 0, path
        if self._resolved is not None:
            resolved, self._resolved = self._resolved, None
            return resolved
        if self.family is not None and "%" not in (self.address or ""):
            return self.family, (self.address, self.port)
        return _choose(
            socket.getaddrinfo(
                self.address,
                self.port,
                family=self.family or 0,
                type=self.kind,
                flags=socket.AI_PASSIVE,
            )
        )

    def _explain(self, error: OSError, owner: object) -> OSError:
        """Return an error of the same type and errno that names endpoint, owner and remedy."""
        reason = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            reason = f"{reason}; stop the program that listens there, or change the address"
        elif error.errno == errno.EACCES and self.port in range(1, _FIRST_UNPRIVILEGED_PORT):
            reason = f"{reason}; ports below 1024 require privileges"
        return type(error)(error.errno, f"{owner}: could not listen on {self}: {reason}")


def local_address(sock: socket.socket) -> tuple[str, int | None]:
    """Return the address and port that `sock` is bound to. A path has no port."""
    return host_and_port(sock.family, sock.getsockname())


def _check_address_or_path(
    owner: str,
    address: str | os.PathLike[str] | None,
    path: str | os.PathLike[str] | None,
    family: int | None,
) -> tuple[str | None, str | None, int | None]:
    """Return address, path, and address family; the family of a host name is None."""
    if address is not None:
        if path is not None:
            raise ParameterError(owner, "path", path, f"None beside address={address!r}")
        path = path_of(address)
        if path is None:
            checked, found = check_address(owner, address)
            return checked, None, family or found
    if path is not None:
        return None, check_path(owner, path), AF_UNIX
    return None, None, family


def _choose(found: list[tuple[Any, ...]]) -> tuple[int, Any]:
    """Return family and address from the result of getaddrinfo().

    Prefer IPv4, which most clients of a bare host name try.
    """
    for family, _, _, _, address in found:
        if family == socket.AF_INET:
            return family, address
    return found[0][0], found[0][4]
