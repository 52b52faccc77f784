"""Laws of a lost connection: its writer, and its log messages."""

import asyncio
import logging
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from svcrun.service._stream import StreamServer
from tests.service.streams import Handler, Transport, echo, raw_client, running
from tests.support import eventually

LINE = b"x" * 63 + b"\n"

Writer = asyncio.StreamWriter


class Client:
    """A client that decides which bytes share a packet; it blocks, so call it in a thread.

    :param transport: how the server speaks.
    :param maximum_version: the highest version of TLS to offer.
    """

    def __init__(
        self,
        transport: Transport,
        sock: socket.socket,
        maximum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ) -> None:
        self._sock = sock
        self._tls: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = transport.client_context()
        if context is not None:
            context.maximum_version = maximum_version
            self._tls = context.wrap_bio(
                self._incoming, self._outgoing, server_hostname="localhost"
            )

    def shake_hands(self) -> None:
        """Complete the handshake, and keep its last message (TLS 1.3) for the next packet."""
        if self._tls is None:
            return
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.send()
                self._incoming.write(self._sock.recv(65_536))
            else:
                return

    def write(self, data: bytes) -> None:
        """Put data into the next packet."""
        if self._tls is None:
            self._outgoing.write(data)
        else:
            self._tls.write(data)

    def say_goodbye(self) -> None:
        """Put the end of TLS into the next packet."""
        if self._tls is not None:
            with pytest.raises(ssl.SSLWantReadError):
                self._tls.unwrap()

    def send(self) -> None:
        """Send the packet."""
        self._sock.sendall(self._outgoing.read())

    def reset(self) -> None:
        """Close the socket in the way of a process that was killed."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()


@pytest.fixture(autouse=True)
def all_levels(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Collect log records from INFO on."""
    with caplog.at_level(logging.INFO):
        yield


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages, except that of the listener."""
    return [text for text in caplog.messages if not text.startswith("Listening")]


async def visit(
    server: StreamServer, transport: Transport, talk: Callable[[Client], object], **options: Any
) -> None:
    """Run a client against the server, and wait until the server has released it."""
    with raw_client(server) as sock:
        await eventually(lambda: server.connections)
        await asyncio.to_thread(talk, Client(transport, sock, **options))
    await eventually(lambda: not server.connections)


def on_a_reset_connection(
    use: Callable[[Writer], object],
) -> tuple[Handler, Callable[[Client], None]]:
    """Return a handler that uses its writer before the loop reports the reset, and a client.

    On the loopback interface a reset arrives before the call that sends it returns.
    """
    is_reset = threading.Event()

    async def handler(reader: asyncio.StreamReader, writer: Writer) -> None:
        await reader.readline()
        assert is_reset.wait(30)  # and so the loop does not turn
        result = use(writer)
        if asyncio.iscoroutine(result):
            await result

    def ask_and_vanish(client: Client) -> None:
        client.shake_hands()
        client.write(LINE)
        client.send()
        client.reset()
        is_reset.set()

    return handler, ask_and_vanish


async def drained_echo(reader: asyncio.StreamReader, writer: Writer) -> None:
    async for line in reader:
        writer.write(line)
        await writer.drain()


@pytest.mark.parametrize("handler", [echo, drained_echo])
@pytest.mark.parametrize("end", ["close", "reset", "goodbye"])
async def test_a_client_that_sends_much_and_disconnects_is_logged_in_one_line_at_most(
    transport: Transport, caplog: pytest.LogCaptureFixture, handler: Handler, end: str
) -> None:
    def talk(client: Client) -> None:
        client.shake_hands()
        for _ in range(5000):
            client.write(LINE)
        if end == "goodbye":
            client.say_goodbye()
        client.send()
        if end == "reset":
            client.reset()

    async with running(transport.server(handler)) as server:
        await visit(server, transport, talk)
    assert len(logged(caplog)) <= 1
    assert all(" lost: " in text for text in logged(caplog))


def write_much(writer: Writer) -> None:
    for _ in range(1000):
        writer.write(b"news")
        writer.writelines([b"more", b"news"])


async def write_and_drain(writer: Writer) -> None:
    while True:
        writer.write(b"news")
        await writer.drain()


def end_output(writer: Writer) -> None:
    if writer.can_write_eof():
        writer.write_eof()


def write_and_end_output(writer: Writer) -> None:
    writer.write(LINE * 100_000)
    end_output(writer)


async def close_and_wait(writer: Writer) -> None:
    writer.close()
    await writer.wait_closed()


async def secure(writer: Writer) -> None:
    writer.write(b"go\n")
    await writer.start_tls(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


@pytest.mark.parametrize(
    "use",
    [write_much, write_and_drain, end_output, write_and_end_output, close_and_wait, secure],
)
async def test_a_reset_connection_is_never_logged_as_an_error_of_the_handler(
    transport: Transport, caplog: pytest.LogCaptureFixture, use: Callable[[Writer], object]
) -> None:
    handler, ask_and_vanish = on_a_reset_connection(use)
    async with running(transport.server(handler)) as server:
        await visit(server, transport, ask_and_vanish)
    assert len(logged(caplog)) <= 1
    assert all(" lost: " in text for text in logged(caplog))


async def test_drain_raises_after_data_was_dropped(transport: Transport) -> None:
    errors: list[type[BaseException]] = []

    async def handler(reader: asyncio.StreamReader, writer: Writer) -> None:
        await reader.readline()
        await writer.drain()
        writer.close()
        writer.write(b"too late")
        for _ in range(2):
            try:
                await writer.drain()
            except OSError as error:
                errors.append(type(error))

    def talk(client: Client) -> None:
        client.shake_hands()
        client.write(LINE)
        client.send()

    async with running(transport.server(handler)) as server:
        await visit(server, transport, talk)
    assert errors == [ConnectionResetError] * 2


async def test_a_handler_that_ignores_errors_of_drain_does_not_block_the_loop(
    transport: Transport,
) -> None:
    over = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: Writer) -> None:
        while not over.is_set():
            try:
                writer.write(bytes(65_536))  # a few of them fill the buffers of the system
                await writer.drain()
            except OSError:
                asyncio.get_running_loop().call_soon(over.set)

    def talk(client: Client) -> None:
        client.shake_hands()
        client.send()
        client.reset()

    async with running(transport.server(handler)) as server:
        await visit(server, transport, talk)


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("lines", [0, 1, 20])
@pytest.mark.parametrize("end", ["goodbye", "close", "reset"])
async def test_an_end_that_arrives_with_the_handshake_is_logged_in_one_line_at_most(
    certificates: Any,
    caplog: pytest.LogCaptureFixture,
    version: ssl.TLSVersion,
    lines: int,
    end: str,
) -> None:
    transport = Transport(certificates)

    def talk(client: Client) -> None:
        client.shake_hands()
        for _ in range(lines):
            client.write(LINE)
        if end == "goodbye":
            client.say_goodbye()
        client.send()
        if end == "reset":
            client.reset()

    async with running(transport.server(echo, minimum_version=version)) as server:
        await visit(server, transport, talk, maximum_version=version)
    assert len(logged(caplog)) <= 1
    assert [r for r in caplog.records if r.name == "asyncio" or r.levelno > logging.INFO] == []


async def test_data_that_arrives_together_with_the_end_is_answered(
    certificates: Any,
) -> None:
    transport = Transport(certificates)
    context = transport.client_context()
    assert context is not None

    def ask(sock: socket.socket) -> bytes:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")

        def complete(step: Callable[[], Any]) -> Any:
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    incoming.write(sock.recv(65_536))

        complete(tls.do_handshake)
        sock.sendall(outgoing.read())
        tls.write(b"question\n")
        with pytest.raises(ssl.SSLWantReadError):
            tls.unwrap()
        answer: bytes = complete(tls.read)
        return answer

    async with running(transport.server(echo)) as server:
        for _ in range(3):
            with raw_client(server) as sock:
                assert await asyncio.to_thread(ask, sock) == b"question\n"
