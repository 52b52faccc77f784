"""Where a server listens, and how that becomes a bound socket.

All servers describe their place by an :class:`Endpoint`: it is checked when the service is made,
and bound when the service starts. :func:`bind_socket` does both in one call.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
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
from svcrun.errors import NoEndpoint, ParameterError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from svcrun._net.addresses import Option

__all__ = ("Endpoint", "bind_socket", "is_connected", "local_address")

log = logging.getLogger("svcrun.net")

_FIRST_UNPRIVILEGED_PORT: Final = 1024

# Sockets that were given to servers, which close them in the end.
_adopted: WeakSet[socket.socket] = WeakSet()


class Endpoint:
    r"""The place where a server listens: address and port, a path, or a socket bound already.

    :param owner: what error messages call the server.
    :param address: an IP address, with ``%scope`` if it is link-local; a host name, of which the
        first IPv4 address is taken, or the first of all if it has none; a path (anything with a
        ``/``, a :class:`os.PathLike`, or after ``unix:``) of a Unix socket. ``"::"`` stands for
        all addresses, those of IPv4 included.
    :param port: 0 to 65535; 0 takes a free one.
    :param path: the path of a Unix socket, in place of `address` and `port`; ``"\0name"`` is one
        in the abstract name space of Linux.
    :param sock: a bound socket, in place of everything else. The server closes it when it stops,
        and binds another one to the same address if it is started again.
    :param options: socket options as ``(level, option, value)``, set before the socket is bound.
    :param reuse_addr: set ``SO_REUSEADDR``, so that a server can come back at once to the port of
        its last run. Not for datagrams, where it would let two sockets share a port.
    :param reuse_port: set ``SO_REUSEPORT``: several processes may listen at this place.
    :param kind: ``socket.SOCK_STREAM`` or ``socket.SOCK_DGRAM``.
    :param family: the address family, if it is not to be taken from the address.
    :param scheme: how the log calls the protocol.

    :raises NoEndpoint: a :class:`ValueError` and :class:`RuntimeError`, if no place is given.
    :raises NotASocket: a :class:`TypeError` and :class:`ValueError`, if `sock` is none.
    :raises ValueError: if a value can't be right.
    :raises TypeError: if it is of a wrong type.

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
        sock: socket.socket | None = None,
        options: Iterable[Option] = (),
        reuse_addr: bool = True,
        reuse_port: bool = False,
        kind: int = socket.SOCK_STREAM,
        family: int | None = None,
        scheme: str = "tcp",
    ) -> None:
        self.owner = owner
        self.address, self.path, self.family = _check_place(owner, address, path, family)
        self.port = None if port is None else check_port(owner, port)
        self.sock = sock
        self.kind = kind
        self.options = check_options(owner, options)
        self.reuse_addr = reuse_addr
        self.reuse_port = reuse_port
        self.scheme = scheme
        # The Unix socket file that bind() made: path, device, inode.
        self._file: tuple[str, int, int] | None = None
        # Where a given socket was bound: family, address, IPV6_V6ONLY.
        self._rebind: tuple[int, Any, bool] | None = None
        self._resolved: tuple[int, Any] | None = None

        if sock is not None:
            check_socket(owner, sock, kind)
        elif self.path is not None:
            if port:
                raise ParameterError(owner, "port", port, f"None beside the path {self.path!r}")
        elif self.address is None:
            raise NoEndpoint(owner, "a place to listen at")
        elif self.port is None:
            raise NoEndpoint(owner, f"a port beside address={self.address!r}")

    def __repr__(self) -> str:
        return f"<Endpoint {self}>"

    def __str__(self) -> str:
        """Write the place as a URL, as it was given."""
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
        """Look up a host name without blocking `loop`; do nothing for any other place.

        :meth:`bind` would do it otherwise, and does so for ``localhost``, for which no name server
        is asked.
        """
        if self.family is not None or self.sock is not None or self.address == "localhost":
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

        :param owner: what errors call the server; by default the `owner` of the endpoint.
        :param backlog: how many connections may wait to be accepted.
        :raises OSError: of the type and errno that the system gave, naming the place and `owner`.
        :raises ValueError: if a given socket is closed, not bound, or connected.
        """
        name = self.owner if owner is None else owner
        try:
            if self.sock is not None and self._rebind is None:
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
            self.tell(sock)
        return sock

    def listen(self, sock: socket.socket, backlog: int, owner: object = None) -> None:
        """Let clients connect to what :meth:`bind` returned.

        :param backlog: how many connections may wait to be accepted.
        :param owner: what errors call the server; by default the `owner` of the endpoint.
        :raises OSError: as of :meth:`bind`, if somebody else has begun to listen there meanwhile.
        """
        try:
            sock.listen(backlog)
        except OSError as error:
            raise self._explain(error, self.owner if owner is None else owner) from error
        self.tell(sock)

    def tell(self, sock: socket.socket) -> None:
        """Log where `sock` can be reached."""
        log.info("Listening %s", format_url(self.scheme, sock.family, sock.getsockname()))

    def close(self, sock: socket.socket) -> None:
        """Close what :meth:`bind` returned, and remove its file."""
        self.remove_file()
        sock.close()

    def remove_file(self) -> None:
        """Remove the file of the Unix socket that :meth:`bind` made, unless another took its place.

        Call this before the socket is closed: until then no other file can get the same inode.
        """
        made, self._file = self._file, None
        if made is None:
            return
        path, device, inode = made
        try:
            found = os.lstat(path)
            if (found.st_dev, found.st_ino) == (device, inode):
                os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("%s: the file of its socket can't be removed: %s", self.owner, error)

    def _adopt(self, sock: socket.socket, owner: object) -> socket.socket:
        """Prepare a given socket, which may have changed since the endpoint was made."""
        if sock.fileno() == -1:
            raise ParameterError(owner, "sock", sock, "an open socket")
        if sock in _adopted:
            raise ParameterError(owner, "sock", sock, "a socket that no other server uses")
        bound = sock.getsockname()
        if not bound or (sock.family != AF_UNIX and bound[1] == 0):
            raise ParameterError(owner, "sock", sock, "a bound socket")
        if self.kind == socket.SOCK_STREAM and is_connected(sock):
            raise ParameterError(owner, "sock", sock, "a socket without a connection")
        sock.setblocking(False)
        for option in self.options:
            sock.setsockopt(*option)
        v6only = sock.family == socket.AF_INET6 and bool(
            sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        )
        self._rebind = (sock.family, bound, v6only)
        _adopted.add(sock)
        return sock

    def _open(self) -> socket.socket:
        """Make a socket and bind it."""
        family, target, v6only = self._rebind or (*self._target(), False)
        sock = socket.socket(family, self.kind)
        try:
            sock.setblocking(False)
            if family == socket.AF_INET6 and target[0] == "::":
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
            if family != AF_UNIX:
                self._set_sharing(sock)
            for option in self.options:
                sock.setsockopt(*option)
            if isinstance(target, str) and not target.startswith("\0"):
                self._file = _bind_path(sock, target)
            else:
                sock.bind(target)
        except BaseException:
            sock.close()
            raise
        return sock

    def _set_sharing(self, sock: socket.socket) -> None:
        if self.kind == socket.SOCK_STREAM:
            if self.reuse_addr:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # On Linux, what is accepted inherits it.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.reuse_port:
            if not hasattr(socket, "SO_REUSEPORT"):
                raise ParameterError(self.owner, "reuse_port", True, "False on this system")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

    def _target(self) -> tuple[int, Any]:
        """Return the family and what the socket module calls an address."""
        if self.path is not None:
            # Absolute, so that the file is found again after a chdir().
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
        """Return an error of the same type and errno that tells what could not be done."""
        reason = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            reason = f"{reason}; stop what listens there, or choose another place"
        elif error.errno == errno.EACCES and self.port in range(1, _FIRST_UNPRIVILEGED_PORT):
            reason = f"{reason}; the port needs privileges, those from 1024 on do not"
        return type(error)(error.errno, f"{owner} can't listen on {self}: {reason}")


def bind_socket(
    *args: int,
    address: str | os.PathLike[str],
    port: int = 0,
    options: Iterable[Option] = (),
    reuse_addr: bool = True,
    reuse_port: bool = False,
    proto_name: str | None = None,
) -> socket.socket:
    """Make a non-blocking socket and bind it.

    :param args: address family and type, as for :class:`socket.socket`; by default a stream socket
        of the family that `address` asks for.
    :param address: an IP address, a host name or a path of a Unix socket, see :class:`Endpoint`.
    :param port: 0 to 65535; 0 takes a free one.
    :param options: socket options as ``(level, option, value)``.
    :param reuse_addr: set ``SO_REUSEADDR`` on a stream socket.
    :param reuse_port: set ``SO_REUSEPORT``, with which several processes may listen at this place.
    :param proto_name: how the log calls the protocol; ``tcp`` by default.
    :raises ValueError, TypeError: if a value can't be right.
    :raises OSError: if the system refuses the address, which it names.

    >>> with bind_socket(address="127.0.0.1") as sock:
    ...     sock.getsockname()[0]
    '127.0.0.1'
    """
    endpoint = Endpoint(
        "bind_socket",
        address=address,
        port=port,
        options=options,
        reuse_addr=reuse_addr,
        reuse_port=reuse_port,
        family=args[0] if args else None,
        kind=args[1] if len(args) > 1 else socket.SOCK_STREAM,
        scheme=proto_name or "tcp",
    )
    sock = endpoint.bind()
    if endpoint.kind != socket.SOCK_DGRAM:
        endpoint.tell(sock)  # it is for somebody who will listen
    return sock


def local_address(sock: socket.socket) -> tuple[str, int | None]:
    """Tell address and port that `sock` can be connected to at; a path has no port."""
    return host_and_port(sock.family, sock.getsockname())


def _check_place(
    owner: str,
    address: str | os.PathLike[str] | None,
    path: str | os.PathLike[str] | None,
    family: int | None,
) -> tuple[str | None, str | None, int | None]:
    """Return address or path, and the family, which a host name leaves open."""
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
    """Choose from what getaddrinfo() found: IPv4 first, as most clients of a bare name try it."""
    for family, _, _, _, address in found:
        if family == socket.AF_INET:
            return family, address
    return found[0][0], found[0][4]


def is_connected(sock: socket.socket) -> bool:
    """Tell whether `sock` has a peer."""
    with contextlib.suppress(OSError):
        sock.getpeername()
        return True
    return False


def _bind_path(sock: socket.socket, path: str) -> tuple[str, int, int]:
    """Bind to `path`, replacing a file that nobody listens on; return path, device and inode."""
    try:
        sock.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _is_stale(path, sock.type):
            raise
        os.unlink(path)
        sock.bind(path)
    made = os.lstat(path)
    return path, made.st_dev, made.st_ino


def _is_stale(path: str, kind: int) -> bool:
    """Tell whether `path` is a socket that nobody listens on: only then is it safe to remove."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, kind) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        pass  # a full backlog, another type of socket, no permission to ask: it may be alive
    return False
