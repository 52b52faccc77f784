"""A server that collects events in threads, and misbehaves on request."""

import contextlib
import json
import socket
import ssl
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.parser import BytesParser
from typing import IO, TYPE_CHECKING, Any, Self

from tests.conftest import Certificates
from tests.support import PATIENCE

if TYPE_CHECKING:
    from email.message import Message

#: Does something with a connection in place of an answer; it is closed afterwards.
Misbehaviour = Callable[[socket.socket, threading.Event], None]


@dataclass(frozen=True)
class Answer:
    """An answer of HTTP."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b"{}"

    def __bytes__(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} Whatever", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join((*lines, "", "")).encode() + self.body


def answer(status: int, **headers: str) -> Answer:
    return Answer(status, tuple((n.replace("_", "-"), value) for n, value in headers.items()))


OK = answer(200)


def hang(connection: socket.socket, closing: threading.Event) -> None:
    """Answer nothing for longer than a test waits for the end of a client."""
    closing.wait(4 * PATIENCE)


def reset(connection: socket.socket, closing: threading.Event) -> None:
    """Break the connection off."""
    linger = struct.pack("ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def talk_nonsense(connection: socket.socket, closing: threading.Event) -> None:
    """Answer something that is no HTTP."""
    connection.sendall(b"\x00<html>\xff\r\n\r\n" * 100)


def talk_for_ever(connection: socket.socket, closing: threading.Event) -> None:
    """Answer with a body that has no end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
    while not closing.is_set():
        connection.sendall(bytes(65536))


@dataclass(frozen=True)
class Request:
    """A request of a client."""

    path: str
    headers: "Message[str, str]"
    body: bytes
    connection: int
    """The number of the connection that it came by."""

    @property
    def event(self) -> dict[str, Any]:
        """The event in it, as raven sends them."""
        event: dict[str, Any] = json.loads(zlib.decompress(self.body))
        return event


class Collector:
    """Collect events on a port of 127.0.0.1.

    :param certificates: speak TLS, with the certificate of the server.
    :param port: 0 takes a free one.
    :param listening: whether to begin at once.

    It answers with each of `answers` in order, and with `usual` after that.
    """

    def __init__(
        self,
        certificates: Certificates | None = None,
        *,
        port: int = 0,
        listening: bool = True,
    ) -> None:
        self.requests: list[Request] = []
        self.answers: deque[Answer | Misbehaviour] = deque()
        self.usual: Answer | Misbehaviour = OK
        self.connections = 0
        self._context = None if certificates is None else _make_context(certificates)
        self._arrival = threading.Condition()
        self._open: set[socket.socket] = set()
        self._closing = threading.Event()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        if listening:
            self.listen()

    def listen(self) -> None:
        """Accept connections; until then, they are refused."""
        self._listener.listen(100)
        self._begin(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Break off everything, and wait for the end of the threads."""
        self._closing.set()
        for one in (self._listener, *tuple(self._open)):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE)

    def dsn(self, options: str = "", *, host: str = "127.0.0.1") -> str:
        """Return the address of a project here."""
        scheme = "http" if self._context is None else "https"
        return f"{scheme}://public:secret@{host}:{self.port}/42{options}"

    @property
    def events(self) -> list[dict[str, Any]]:
        """The collected events, in the form that raven sends."""
        return [request.event for request in self.requests]

    @property
    def messages(self) -> list[str]:
        """The messages of the events."""
        return [event["message"] for event in self.events]

    def wait_for(self, count: int, within: float = PATIENCE) -> list[Request]:
        """Wait until so many requests were received, and return them."""
        with self._arrival:
            found = self._arrival.wait_for(lambda: len(self.requests) >= count, within)
        assert found, f"{len(self.requests)} of {count} requests came within {within:g} s"
        return self.requests

    def _begin(self, function: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(connection)
            self.connections += 1
            self._begin(self._serve, connection, self.connections)

    def _serve(self, plain: socket.socket, number: int) -> None:
        try:
            with (
                contextlib.suppress(OSError, ValueError),
                self._secure(plain) as connection,
                connection.makefile("rb") as stream,
            ):
                for request in _read_requests(stream, number):
                    if not self._respond(connection, request):
                        return
        finally:
            self._open.discard(plain)
            plain.close()

    def _secure(self, plain: socket.socket) -> socket.socket:
        if self._context is None:
            return plain
        plain.settimeout(PATIENCE)
        return self._context.wrap_socket(plain, server_side=True)

    def _respond(self, connection: socket.socket, request: Request) -> bool:
        """Record a request and answer it; return whether the connection stays open."""
        with self._arrival:
            self.requests.append(request)
            reaction = self.answers.popleft() if self.answers else self.usual
            self._arrival.notify_all()
        if isinstance(reaction, Answer):
            connection.sendall(bytes(reaction))
            return True
        reaction(connection, self._closing)
        return False


def _make_context(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server_cert, certificates.server_key)
    return context


def _read_requests(stream: IO[bytes], number: int) -> Iterator[Request]:
    while line := stream.readline():
        path = line.split()[1].decode()
        head = b""
        while (line := stream.readline()).strip():
            head += line
        headers = BytesParser().parsebytes(head)
        size = int(headers["Content-Length"])
        body = stream.read(size)
        if len(body) < size:
            return  # the program has ended
        yield Request(path, headers, body, number)
