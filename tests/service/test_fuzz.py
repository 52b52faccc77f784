"""The law of hostile clients: whatever they send, others are answered, and nothing is left."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from tests.conftest import Certificates
from tests.service.streams import Transport, echo
from tests.support import LoopFactory, eventually, examples, has, nothing_left

HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
LINE = b"a line for the echo\n"
HEADERS = [
    b"PROXY TCP4 192.0.2.1 198.51.100.7 52011 80\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\2\1\xc6\x33\x64\7\xcb\x2b\0P",
]

KINDS = ["tcp", "tls"]
WEBS = ["aiohttp"] + ["asgi"] * has("aiohttp_asgi") + ["uvicorn"] * has("uvicorn")
KINDS += [f"{web}{tls}" for web in WEBS * has("aiohttp") for tls in ("", "-tls")]

CLIENTS = 12
STEPS = 60

PATIENCE = 20

# Hostile clients do not wait longer for the server than this.
IMPATIENCE = 0.05


class Target:
    """A server of one kind, and the number of calls of its handler.

    :param kind: one of :data:`KINDS`.
    """

    def __init__(self, kind: str, certificates: Certificates, limits: dict[str, Any]) -> None:
        self.handled = 0
        self.is_stream = kind in {"tcp", "tls"}
        self.context: ssl.SSLContext | None = None
        if kind.endswith("tls"):
            self.context = ssl.create_default_context(cafile=certificates.ca)
        self.message = LINE if self.is_stream else HTTP
        self.is_proxied = "proxy_protocol" in limits
        self.service: Any
        if self.is_stream:
            transport = Transport(certificates if self.context else None)
            self.service = transport.server(self.handle, drain_timeout=0.5, **limits)
        else:
            from tests.service.web_services import Kind

            web = Kind(kind.removesuffix("-tls"), certificates if self.context else None)
            self.service = web.service(**limits)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a client of a stream server."""
        self.handled += 1
        with contextlib.suppress(ValueError):  # of a line that is too long
            await echo(reader, writer)

    @property
    def place(self) -> tuple[str, int]:
        return str(self.service.address), self.service.port

    def ask(self) -> bool:
        """Return whether a good client is answered."""
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.create_connection(self.place, PATIENCE))
            if self.is_proxied:
                sock.sendall(HEADERS[0])
            if self.context is not None:
                sock = stack.enter_context(
                    self.context.wrap_socket(sock, server_hostname="localhost")
                )
            sock.sendall(self.message)
            if self.is_stream:
                return sock.recv(100) == LINE
            answer = b""
            while data := sock.recv(1000):
                answer += data
            return answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"hello")


class Attack:
    """Clients that do whatever comes to mind, all of them at the same time.

    :param random: the mind.
    """

    def __init__(self, target: Target, random: Random) -> None:
        self.target = target
        self.random = random
        self.steps: list[Callable[[socket.socket], object]] = [
            self.send_fragment,
            self.send_fragment,
            self.send_message,
            self.send_garbage,
            self.flood,
            self.receive,
            self.half_close,
            self.stop_receiving,
            self.reset,
            socket.socket.close,
        ]

    @contextlib.contextmanager
    def clients(self) -> Iterator[None]:
        """Attack, then hold the connections that are left for the block."""
        with contextlib.ExitStack() as stack:
            clients: list[socket.socket] = []
            for _ in range(STEPS):
                if len(clients) < CLIENTS:
                    clients.append(stack.enter_context(self.connect()))
                client = self.random.choice(clients)
                with contextlib.suppress(OSError, ValueError):
                    self.random.choice(self.steps)(client)
                if client.fileno() == -1:
                    clients.remove(client)
            yield

    def connect(self) -> socket.socket:
        sock = socket.create_connection(self.target.place, PATIENCE)
        sock.settimeout(IMPATIENCE)
        if self.target.is_proxied and self.random.random() < 0.8:
            sock.sendall(self.random.choice(HEADERS))
        if self.target.context is None or self.random.random() < 0.5:
            return sock
        with contextlib.suppress(OSError):
            return self.target.context.wrap_socket(
                sock, server_hostname="localhost", suppress_ragged_eofs=False
            )
        return socket.socket()  # it is closed, or was never open

    def send_fragment(self, sock: socket.socket) -> None:
        message = self.target.message
        if self.target.context is not None and not isinstance(sock, ssl.SSLSocket):
            message = client_hello(self.target.context)
        if self.target.is_proxied:
            message = self.random.choice(HEADERS) + message
        cut = sorted(self.random.choices(range(len(message) + 1), k=2))
        sock.sendall(message[cut[0] : cut[1]])

    def send_message(self, sock: socket.socket) -> None:
        sock.sendall(self.target.message)

    def send_garbage(self, sock: socket.socket) -> None:
        sock.sendall(self.random.randbytes(self.random.randint(1, 3000)))

    def flood(self, sock: socket.socket) -> None:
        sock.sendall(self.random.choice([b"x", b"x\n", b"\r\n\r\n", b"\0"]) * 200_000)

    def receive(self, sock: socket.socket) -> None:
        sock.recv(self.random.randint(1, 100_000))

    def half_close(self, sock: socket.socket) -> None:
        sock.shutdown(socket.SHUT_WR)

    def stop_receiving(self, sock: socket.socket) -> None:
        sock.shutdown(socket.SHUT_RD)

    def reset(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()


def client_hello(context: ssl.SSLContext) -> bytes:
    """Return the first message of a TLS client."""
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(received, sent, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return sent.read()


LIMITS: dict[str, dict[str, Any]] = {
    "unlimited": {},
    "limited": {"max_connections": 4, "keepalive": 60},
    "proxied": {"proxy_protocol": "any", "proxy_timeout": 1},
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("kind", KINDS)
def test_good_clients_are_answered_during_and_after_attacks_and_nothing_is_left(
    kind: str,
    limits: dict[str, Any],
    certificates: Certificates,
    loop_factory: LoopFactory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    target = Target(kind, certificates, limits)
    service = target.service
    seed = 0

    async def main() -> None:
        nonlocal seed
        loop = asyncio.get_running_loop()
        running = loop.create_task(service.start())
        started = loop.create_task(service.start_event.wait())
        await asyncio.wait((running, started), return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        for seed in range(examples(3)):
            await asyncio.to_thread(attack, seed)
        await eventually(lambda: service.open_connections == 0)
        if target.is_stream:
            assert service.accepted == service.refused + target.handled
        with Attack(target, Random("the last one")).clients():  # the stop has to end these
            async with asyncio.timeout(PATIENCE):
                await service.stop()
                await running
        assert service.open_connections == 0
        await eventually(lambda: len(asyncio.all_tasks()) == 1)

    def attack(seed: int) -> None:
        with Attack(target, Random(seed)).clients():
            if service.max_connections is None:
                assert target.ask()
        assert target.ask()

    with nothing_left(), asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    assert not [one for one in caplog.records if one.name == "asyncio"], f"seed {seed}"
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR], f"seed {seed}"
