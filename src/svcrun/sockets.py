"""Where a server listens, and how that becomes a bound socket.

All servers describe their place by an :class:`Endpoint`: it is checked when the service is made and bound when the
service starts. :func:`bind_socket` does both in one call.
"""

import errno
import logging
import os
import socket
import stat
import sys
from typing import TYPE_CHECKING, Any

from svcrun.errors import NoEndpoint, NotASocket, ParameterError, ParameterTypeError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    Option = tuple[int, int, int | bytes]

__all__ = ("Endpoint", "bind_socket", "format_address", "local_address")

log = logging.getLogger(__name__)

AF_UNIX: int | None = getattr(socket, "AF_UNIX", None)

#: The longest path of a Unix socket in bytes: ``sun_path`` less its final NUL.
MAX_PATH = 107 if sys.platform.startswith("linux") else 103


class Endpoint:
    """The place where a server listens: an address and port, a path, or a socket that is bound already.

    :param owner: what error messages call the server.
    :param address: an IP address, with ``%scope`` if it is link-local; a host name, of which the first IPv4 address
        is taken, or the first of all if it has none; a path (anything with a ``/``, a :class:`os.PathLike`, or after
        ``unix:``) of a Unix socket. ``"::"`` stands for all addresses, those of IPv4 included.
    :param port: 0 to 65535; 0 takes a free one.
    :param path: the path of a Unix socket, in place of `address` and `port`; ``"\\0name"`` is one in the abstract
        name space of Linux.
    :param sock: a bound socket, in place of everything else. The server closes it when it stops.
    :param options: socket options as ``(level, option, value)``, set before the socket is bound.
    :param reuse_addr: set ``SO_REUSEADDR``, so that a server can come back at once to the port of its last run. Not
        for datagrams, where it would let two sockets share a port.
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

    __slots__ = (
        "_file",
        "_rebind",
        "_resolved",
        "address",
        "family",
        "kind",
        "options",
        "owner",
        "path",
        "port",
        "reuse_addr",
        "reuse_port",
        "scheme",
        "sock",
    )

    def __init__(
        self,
        owner: str,
        *,
        address: "str | os.PathLike[str] | None" = None,
        port: int | None = None,
        path: "str | os.PathLike[str] | None" = None,
        sock: socket.socket | None = None,
        options: "Iterable[Option]" = (),
        reuse_addr: bool = True,
        reuse_port: bool = False,
        kind: int = socket.SOCK_STREAM,
        family: int | None = None,
        scheme: str = "tcp",
    ) -> None:
        self.owner = owner
        self.address: str | None = None
        self.port: int | None = None
        self.path: str | None = None
        self.sock = sock
        self.family = family
        self.kind = kind
        self.options = _check_options(owner, options)
        self.reuse_addr = reuse_addr
        self.reuse_port = reuse_port
        self.scheme = scheme
        # The Unix socket file that bind() made: path, device, inode.
        self._file: tuple[str, int, int] | None = None
        # Where a given socket was bound, to bind there again when the server is started a second time.
        self._rebind: tuple[int, Any, bool] | None = None
        self._resolved: tuple[int, Any] | None = None

        if port is not None:
            self.port = _check_port(owner, port)
        if address is not None and path is None:
            path = _path_of(address)
            if path is None:
                self.address, found = _check_address(owner, address)
                self.family = self.family or found
        elif address is not None:
            raise ParameterError(owner, "path", path, "either path or address, not both")
        if path is not None:
            self.path = _check_path(owner, path)
            self.family = AF_UNIX

        if sock is not None:
            _check_socket(owner, sock, kind)
        elif self.path is not None:
            if port:
                raise ParameterError(owner, "port", port, f"no port: {self.path!r} is a path")
        elif self.address is None:
            raise NoEndpoint(owner, "a place to listen at")
        elif self.port is None:
            raise NoEndpoint(owner, f"a port beside address={self.address!r}")

    def __repr__(self) -> str:
        return f"<Endpoint {self}>"

    def __str__(self) -> str:
        """Write the place as a URL, as configured."""
        if self.sock is not None and self.sock.fileno() != -1:
            return _url(self.scheme, self.sock.family, self.sock.getsockname())
        if self.path is not None:
            return f"unix://{_printable(self.path)}"
        if self.address is None and self._rebind is not None:
            return _url(self.scheme, *self._rebind[:2])
        host = f"[{self.address}]" if ":" in (self.address or "") else self.address
        return f"{self.scheme}://{host}:{self.port}"

    async def resolve(self, loop: "asyncio.AbstractEventLoop") -> None:
        """Look up a host name without blocking `loop`; nothing is done for any other place.

        :meth:`bind` would do it otherwise, and does so for ``localhost``, which no name server is asked for.
        """
        if self.family is not None or self.sock is not None or self.address == "localhost":
            return
        try:
            found = await loop.getaddrinfo(
                self.address, self.port, type=self.kind, flags=socket.AI_PASSIVE
            )
        except OSError as error:
            raise self._explain(error, self.owner) from error
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
            if backlog is not None:
                try:
                    sock.listen(backlog)
                except BaseException:
                    self.close(sock)
                    raise
        except OSError as error:
            raise self._explain(error, name) from error
        log.info("Listening %s", _url(self.scheme, sock.family, sock.getsockname()))
        return sock

    def close(self, sock: socket.socket) -> None:
        """Close what :meth:`bind` returned, and remove its file if it still is the one that was made then."""
        self.remove_file()
        sock.close()

    def remove_file(self) -> None:
        """Remove the Unix socket file that :meth:`bind` made, unless another has taken its place.

        To be called before the socket is closed: until then no other file can get the same inode.
        """
        if self._file is None:
            return
        path, device, inode = self._file
        self._file = None
        try:
            found = os.lstat(path)
            if (found.st_dev, found.st_ino) == (device, inode):
                os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("The file of %s can't be removed: %s", self.owner, error)

    def _adopt(self, sock: socket.socket, owner: object) -> socket.socket:
        """Prepare a given socket, which may have changed since the endpoint was made."""
        if sock.fileno() == -1:
            raise ParameterError(owner, "sock", sock, "an open socket")
        bound = sock.getsockname()
        if not bound or (sock.family != AF_UNIX and bound[1] == 0):
            raise ParameterError(owner, "sock", sock, "a socket that is bound to an address")
        if self.kind == socket.SOCK_STREAM and _is_connected(sock):
            raise ParameterError(owner, "sock", sock, "a listening socket, not a connection")
        sock.setblocking(False)
        for option in self.options:
            sock.setsockopt(*option)
        v6only = sock.family == socket.AF_INET6 and bool(
            sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        )
        self._rebind = (sock.family, bound, v6only)
        return sock

    def _open(self) -> socket.socket:
        """Make a socket and bind it."""
        v6only = False
        if self._rebind is not None:
            family, target, v6only = self._rebind
        elif self.path is not None:
            # Not relative: the file is to be found again after a chdir().
            path = self.path if self.path.startswith("\0") else os.path.abspath(self.path)
            family, target = self.family or 0, path
        elif self._resolved is not None:
            (family, target), self._resolved = self._resolved, None
        else:
            family, target = self._lookup()

        sock = socket.socket(family, self.kind)
        try:
            sock.setblocking(False)
            if family == socket.AF_INET6 and target[0] == "::":
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
            if family != AF_UNIX:
                if self.kind == socket.SOCK_STREAM:
                    if self.reuse_addr:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    # Inherited by what is accepted, on Linux.
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.reuse_port:
                    if not hasattr(socket, "SO_REUSEPORT"):
                        raise ParameterError(self.owner, "reuse_port", True, "False on this system")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            for option in self.options:
                sock.setsockopt(*option)
            if family == AF_UNIX and isinstance(target, str) and not target.startswith("\0"):
                self._file = _bind_path(sock, target)
            else:
                sock.bind(target)
        except BaseException:
            sock.close()
            raise
        return sock

    def _lookup(self) -> tuple[int, Any]:
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
        elif error.errno == errno.EACCES and self.port and self.port < 1024:
            reason = f"{reason}; a port below 1024 needs privileges"
        return type(error)(error.errno, f"{owner} can't listen on {self}: {reason}")


def bind_socket(
    *args: int,
    address: "str | os.PathLike[str]",
    port: int = 0,
    options: "Iterable[Option]" = (),
    reuse_addr: bool = True,
    reuse_port: bool = False,
    proto_name: str | None = None,
) -> socket.socket:
    """Make a non-blocking socket and bind it.

    :param args: address family and type, as for :class:`socket.socket`; by default a stream socket of the family
        that `address` asks for.
    :param address: an IP address, a host name or the path of a Unix socket, see :class:`Endpoint`.
    :param port: 0 to 65535; 0 takes a free one.
    :param options: socket options as ``(level, option, value)``.
    :param reuse_addr: set ``SO_REUSEADDR`` on a stream socket.
    :param reuse_port: set ``SO_REUSEPORT``, with which several processes may listen at this place.
    :param proto_name: how the log calls the protocol; ``tcp`` by default.
    :raises ValueError: if a value can't be right (:class:`TypeError`: a type).
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
    return endpoint.bind()


def local_address(sock: socket.socket) -> tuple[str, int | None]:
    """Tell address and port that `sock` is bound to, so that they can be connected to; a path has no port."""
    return _host_and_port(sock.family, sock.getsockname())


def format_address(address: Any) -> str:
    """Return a socket address (of :meth:`socket.socket.getpeername`, say) as people write it.

    >>> format_address(("::1", 80, 0, 0))
    '[::1]:80'
    """
    if isinstance(address, tuple) and len(address) >= 2:
        return (
            f"[{address[0]}]:{address[1]}"
            if ":" in str(address[0])
            else f"{address[0]}:{address[1]}"
        )
    if isinstance(address, bytes):
        address = os.fsdecode(address)
    return _printable(address) if address else "a nameless peer"


# What follows checks one parameter each.


def _check_port(owner: str, port: object) -> int:
    accepted = "a number from 0 (any free port) to 65535"
    if isinstance(port, bool) or not isinstance(port, int):
        raise ParameterTypeError(owner, "port", port, accepted)
    if not 0 <= port <= 65535:
        raise ParameterError(owner, "port", port, accepted)
    return port


def _check_address(owner: str, address: object) -> tuple[str, int | None]:
    """Return the address and its family, None for a host name."""
    accepted = (
        "an IP address without brackets and port, a host name or a path ('::' for all addresses)"
    )
    if not isinstance(address, str):
        raise ParameterTypeError(owner, "address", address, accepted)
    try:
        if ":" in address:
            socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
            return address, socket.AF_INET6
        if address.replace(".", "").isdecimal():
            socket.inet_aton(address)
            return address, socket.AF_INET
    except (OSError, ValueError):
        raise ParameterError(owner, "address", address, accepted) from None
    if not address or not address.isprintable() or " " in address or "[" in address:
        raise ParameterError(owner, "address", address, accepted)
    return address, None


def _path_of(address: object) -> "str | os.PathLike[str] | None":
    """Return the path that `address` is, or None if it is a network address."""
    if isinstance(address, os.PathLike):
        return address
    if not isinstance(address, str):
        return None
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        return path.removeprefix("//") if path.startswith("///") else path
    return address if "/" in address or address.startswith("\0") else None


def _check_path(owner: str, path: object) -> str:
    accepted = f"a path of at most {MAX_PATH} bytes"
    if not isinstance(path, str | os.PathLike):
        raise ParameterTypeError(owner, "path", path, accepted)
    path = os.fspath(path)
    if AF_UNIX is None:
        raise ParameterError(
            owner, "path", path, "address and port: this system has no Unix sockets"
        )
    if not isinstance(path, str):
        raise ParameterTypeError(owner, "path", path, "a path as str")
    if not path or path == "\0" or "\0" in path[1:] or len(os.fsencode(path)) > MAX_PATH:
        raise ParameterError(owner, "path", path, accepted)
    return path


def _check_socket(owner: str, sock: object, kind: int) -> None:
    if not isinstance(sock, socket.socket) or hasattr(sock, "do_handshake"):
        raise NotASocket(owner, sock)
    if sock.fileno() == -1:
        raise ParameterError(owner, "sock", sock, "an open socket")
    if sock.type != kind:
        wanted = "stream" if kind == socket.SOCK_STREAM else "datagram"
        raise ParameterError(owner, "sock", sock, f"a {wanted} socket")
    if sock.family not in {socket.AF_INET, socket.AF_INET6, AF_UNIX}:
        raise ParameterError(
            owner, "sock", sock, "a socket of the family AF_INET, AF_INET6 or AF_UNIX"
        )


def _check_options(owner: str, options: "Iterable[Option]") -> "tuple[Option, ...]":
    accepted = "triples (level, option, value) as of socket.setsockopt()"
    try:
        checked = tuple((level, option, value) for level, option, value in options)
    except TypeError:
        raise ParameterTypeError(owner, "options", options, accepted) from None
    except ValueError:
        raise ParameterError(owner, "options", options, accepted) from None
    for level, option, value in checked:
        if not (
            isinstance(level, int)
            and isinstance(option, int)
            and isinstance(value, int | bytes | bytearray)
        ):
            raise ParameterTypeError(owner, "options", options, accepted)
    return checked


# And what follows knows about sockets.


def _choose(found: "list[tuple[Any, ...]]") -> tuple[int, Any]:
    """Choose from what getaddrinfo() found: IPv4 first, since a name without a colon always meant that."""
    for family, _, _, _, address in found:
        if family == socket.AF_INET:
            return family, address
    return found[0][0], found[0][4]


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _bind_path(sock: socket.socket, path: str) -> tuple[str, int, int]:
    """Bind to `path`, in place of a socket file that nobody listens on any more; return path, device and inode."""
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
    """Tell whether `path` is a socket that nobody listens on: only then is it safe to remove it."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, kind) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False  # it may well be alive: a full backlog, another type of socket, no permission to ask
    return False


def _host_and_port(family: int, address: Any) -> tuple[str, int | None]:
    if family == AF_UNIX:
        return os.fsdecode(address), None
    host, port, *rest = address
    if len(rest) == 2 and rest[1]:
        host = f"{host}%{socket.if_indextoname(rest[1])}"
    return host, port


def _url(scheme: str, family: int, address: Any) -> str:
    host, port = _host_and_port(family, address)
    if port is None:
        return f"unix://{_printable(host)}"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _printable(path: str) -> str:
    """Write an abstract name with ``@`` in place of its NUL, as ``ss`` and ``lsof`` do."""
    return "@" + path[1:] if path.startswith("\0") else path
