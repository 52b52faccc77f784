"""Laws of stream servers behind proxies (C40)."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import ipaddress
import logging
import pickle
import socket
import ssl
import struct
import sys
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from svcrun._net.proxy_protocol import MAX_LINES, ProxyProtocol
from svcrun.service.tcp import TCPServer
from svcrun.service.tls import TLSServer
from tests.proxies import HEADERS, LOCAL, v1, v2
from tests.service.streams import Transport, echo, raw_client, running
from tests.support import PATIENCE, eventually, nothing_left, refuses

if TYPE_CHECKING:
    from pathlib import Path

    from svcrun.service._stream import StreamServer
    from tests.conftest import Certificates

CLIENT = ("192.0.2.1", 56324)
NAMES = ("peername", "proxy")


async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send the addresses of the client, then each line back."""
    found = [writer.get_extra_info(name) for name in NAMES]
    found.append(writer.get_extra_info("socket").getpeername())
    writer.write(f"{found!r}\n".encode())
    await echo(reader, writer)


def exchange(sock: socket.socket, data: bytes, context: ssl.SSLContext | None) -> list[bytes]:
    """Send a header and a line, the line over TLS if there is a context; return the answers."""
    if context is None:
        sock.sendall(data + b"hello\n")
        over: socket.socket = sock
    else:
        sock.sendall(data)
        over = context.wrap_socket(sock, server_hostname="localhost")
        over.sendall(b"hello\n")
    with over, over.makefile("rb") as file:
        return [file.readline(), file.readline()]


async def ask(
    transport: Transport, server: StreamServer, header: bytes, sock: socket.socket | None = None
) -> Any:
    """Return the addresses that the server has of a client with this header, and of its proxy."""
    with contextlib.nullcontext(sock) if sock is not None else raw_client(server) as client:
        own = client.getsockname()
        context = transport.client_context()
        told, line = await asyncio.to_thread(exchange, client, header, context)
    assert line == b"hello\n"
    peer, proxy, of_socket = eval(told)  # noqa: S307 - our own tuple
    assert peer == of_socket
    return peer, proxy, own


def closing(sock: socket.socket) -> bytes:
    """Return the data until the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(1000):
            received += data
    return received


async def end_of(sock: socket.socket) -> bytes:
    return await asyncio.to_thread(closing, sock)


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]


@pytest.mark.parametrize("name", HEADERS)
async def test_the_peer_is_the_client_and_the_proxy_is_known(
    transport: Transport, name: str
) -> None:
    header, client = HEADERS[name]
    async with running(transport.server(tell, proxy_protocol="any")) as server:
        peer, proxy, own = await ask(transport, server, header)
    if client is None:
        assert (peer, proxy) == (own, None)
    else:
        assert (peer, proxy) == (client, own)


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_each_version_is_accepted_alone(
    transport: Transport, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"v1": v1(CLIENT), "v2": v2(CLIENT)}
    async with running(transport.server(tell, proxy_protocol=version)) as server:
        peer, _, _ = await ask(transport, server, headers.pop(version))
        assert peer == CLIENT
        with raw_client(server) as client:
            client.sendall(headers.popitem()[1])
            assert await end_of(client) == b""
    assert len(refusals(caplog)) == 1


async def test_a_header_may_arrive_byte_by_byte(transport: Transport) -> None:
    async with running(transport.server(tell, proxy_protocol="any")) as server:
        for header in (v1(CLIENT), v2(CLIENT, tlvs=b"\x04\0\x01x")):
            with raw_client(server) as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for byte in header:
                    client.sendall(bytes([byte]))
                    await asyncio.sleep(0)
                peer, proxy, own = await ask(transport, server, b"", client)
            assert (peer, proxy) == (CLIENT, own)


def first_flight(context: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.MemoryBIO, bytes]:
    """Begin a handshake; return TLS, its input, and what the client sends first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return tls, incoming, outgoing.read()


@pytest.mark.parametrize("cut", [0, 1, 5, 100, None])
async def test_a_handshake_may_begin_in_the_segment_of_the_header(
    certificates: Certificates, cut: int | None
) -> None:
    transport = Transport(certificates)
    context = transport.client_context()
    assert context is not None
    tls, incoming, hello = first_flight(context)
    async with running(transport.server(tell, proxy_protocol="any")) as server:
        with raw_client(server) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(v2(CLIENT) + hello[:cut])
            client.sendall(hello[len(hello) if cut is None else cut :])
            while True:
                incoming.write(await asyncio.to_thread(client.recv, 65536))
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    pass
            assert tls.version() == "TLSv1.3"


@pytest.mark.parametrize("kind", ["none", "eager", "scheduled"])
@pytest.mark.parametrize("size", [20, 100_000])
async def test_the_data_after_the_header_arrives_whole_and_in_order(
    transport: Transport, kind: str, size: int
) -> None:
    """A task factory may let tasks begin later than the connection."""
    expected = b"".join(i.to_bytes(4) for i in range(size))
    received: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readexactly(len(expected)))
        writer.write(b"done")

    loop = asyncio.get_running_loop()
    if kind == "eager":
        if sys.version_info[:2] == (3, 13) and "uvloop" in type(loop).__module__:
            pytest.skip("uvloop can't call this factory of Python 3.13")
        loop.set_task_factory(getattr(asyncio, "eager_task_factory", None))
    elif kind == "scheduled":
        loop.set_task_factory(
            lambda loop, coro, **options: asyncio.Task(coro, loop=loop, **options)
        )

    def send(server: StreamServer) -> bytes:
        with raw_client(server) as client:
            if (context := transport.client_context()) is None:
                client.sendall(v1(CLIENT) + expected)
                return client.recv(4)
            tls, incoming, hello = first_flight(context)
            del tls, incoming
            client.sendall(v1(CLIENT))
            with context.wrap_socket(client, server_hostname="localhost") as over:
                over.sendall(expected)
                return over.recv(4)

    async with running(transport.server(handler, proxy_protocol="v1")) as server:
        assert await asyncio.to_thread(send, server) == b"done"
    assert received == [expected]


@pytest.mark.parametrize("kind", ["none", "scheduled"])
async def test_more_data_than_a_loop_reads_at_once_arrives_in_order(
    tcp: Transport, kind: str
) -> None:
    """libuv fills several buffers of 256 KiB before it runs callbacks."""
    expected = b"".join(i.to_bytes(4) for i in range(400_000))
    received: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readexactly(len(expected)))
        writer.write(b"done")

    if kind == "scheduled":
        asyncio.get_running_loop().set_task_factory(
            lambda loop, coro, **options: asyncio.Task(coro, loop=loop, **options)
        )
    options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_000_000)]
    async with running(tcp.server(handler, proxy_protocol="v1", options=options)) as server:
        with raw_client(server) as client:
            client.setblocking(False)
            sent = client.send(v1(CLIENT) + expected)  # before the loop reads anything
            client.settimeout(PATIENCE)
            rest = (v1(CLIENT) + expected)[sent:]
            await asyncio.to_thread(client.sendall, rest)
            assert await asyncio.to_thread(client.recv, 4) == b"done"
    assert received == [expected]


@pytest.mark.parametrize("kind", ["none", "scheduled"])
async def test_a_handler_may_begin_tls_at_once(certificates: Certificates, kind: str) -> None:
    """The first bytes of the handshake arrive with the header, before the handler reads."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.server_cert, certificates.server_key)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writer.start_tls(context)
        await tell(reader, writer)

    if kind == "scheduled":
        asyncio.get_running_loop().set_task_factory(
            lambda loop, coro, **options: asyncio.Task(coro, loop=loop, **options)
        )
    transport = Transport(certificates)
    tls = transport.client_context()
    assert tls is not None
    _, _, hello = first_flight(tls)
    async with running(Transport(None).server(handler, proxy_protocol="any")) as server:
        peer, proxy, own = await ask(transport, server, v2(CLIENT))
        assert (peer, proxy) == (CLIENT, own)
        with raw_client(server) as client:
            client.sendall(v2(CLIENT) + hello)
            assert (await asyncio.to_thread(client.recv, 1)) == b"\x16"  # a message of TLS


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "it sent b'GET / HTTP/1.1\\r\\n' instead of a PROXY header"),
        (b"\x16\x03\x01\x02\0\x01", "instead of a PROXY header (v1 or v2)"),
        (b"PROXY TCP4 nonsense\r\n", "it sent a malformed PROXY header (v1): b'PROXY TCP4 non"),
        (b"PROXY UNKNOWN" + b"x" * 200, "it sent a PROXY header (v1) of more than 107 bytes"),
        (v2(CLIENT, tlvs=b"\0" * 20_000), "it sent a PROXY header (v2) of 20028 bytes"),
        (v2(CLIENT, command=0x31), "it sent a PROXY header (v2) with version and command 0x31"),
    ],
)
async def test_a_wrong_header_closes_the_connection_with_one_line(
    transport: Transport, data: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(reader: Any, writer: Any) -> None:
        pytest.fail("the handler was called")

    async with running(transport.server(handler, proxy_protocol="any")) as server:
        with raw_client(server) as client:
            client.sendall(data)
            assert await end_of(client) == b""
            await eventually(lambda: not server.connections)
            peer = f"127.0.0.1:{client.getsockname()[1]}"
    (line,) = refusals(caplog)
    assert f"refused the connection from {peer}: " in line
    assert reason in line
    assert repr(server) in line
    assert [record.levelname for record in caplog.records if record.levelno > logging.INFO] == [
        "WARNING"
    ]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [(b"", "no PROXY header"), (b"PROXY TCP4 192.0.2.1", "only a part of its PROXY header")],
)
async def test_a_late_header_closes_the_connection_with_one_line(
    transport: Transport, sent: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = transport.server(tell, proxy_protocol="any", proxy_timeout=0.1)
    async with running(server):
        with raw_client(server) as client:
            client.sendall(sent)
            assert await end_of(client) == b""
    (line,) = refusals(caplog)
    assert line.endswith(f": it sent {reason} within proxy_timeout=0.1 s")


async def test_the_time_limit_of_the_header_ends_with_the_header(transport: Transport) -> None:
    async with running(transport.server(tell, proxy_protocol="any", proxy_timeout=0.05)) as server:
        with raw_client(server) as client:
            client.sendall(v1(CLIENT))
            await asyncio.sleep(0.2)
            peer, _, _ = await ask(transport, server, b"", client)
            assert peer == CLIENT


async def test_a_header_that_arrives_while_the_loop_is_blocked_is_not_late(tcp: Transport) -> None:
    server = tcp.server(tell, proxy_protocol="any", proxy_timeout=1)
    async with running(server):
        with raw_client(server) as client:
            await eventually(lambda: server.connections)
            await asyncio.sleep(0.05)
            client.sendall(v1(CLIENT))
            time.sleep(1.1)  # noqa: ASYNC251 - a handler that blocks
            await asyncio.sleep(0.05)
            assert (await ask(tcp, server, b"", client))[0] == CLIENT


@pytest.mark.parametrize(("sent", "level"), [(b"", logging.INFO), (b"PROXY UNK", logging.WARNING)])
@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
async def test_a_peer_that_disconnects_before_its_header_is_one_line(
    transport: Transport, sent: bytes, level: int, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A health check that only connects is no reason for a warning."""
    caplog.set_level(logging.INFO)
    async with running(transport.server(tell, proxy_protocol="any")) as server:
        with raw_client(server) as client:
            await eventually(lambda: server.connections)
            client.sendall(sent)
            await asyncio.sleep(0.05)
            if how == "half-close":
                client.shutdown(socket.SHUT_WR)
                assert await end_of(client) == b""
            elif how == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await eventually(lambda: not server.connections)
    (record,) = [record for record in caplog.records if "refused" in record.getMessage()]
    assert record.getMessage().endswith("it disconnected before its PROXY header was complete")
    assert record.levelno == level


# Trust.


@pytest.mark.parametrize("header", [b"", v1(CLIENT), LOCAL])
async def test_a_peer_that_is_not_trusted_is_closed_with_or_without_a_header(
    transport: Transport, header: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    server = transport.server(tell, proxy_protocol="any", proxy_trusted=["192.0.2.0/24", "::1"])
    async with running(server):
        with raw_client(server) as client:
            with contextlib.suppress(OSError):
                client.sendall(header)
            assert await end_of(client) == b""
        await eventually(lambda: not server.connections)
    (line,) = refusals(caplog)
    assert line.endswith(": it is not in proxy_trusted")


@pytest.mark.parametrize(
    "trusted",
    [
        ["127.0.0.1"],
        {"127.0.0.0/8"},
        ("10.0.0.0/8", "127.0.0.1/32"),
        ["127.0.0.1"].__iter__,
        dict.fromkeys(["127.0.0.1"]).keys(),
        [ipaddress.ip_address("127.0.0.1")],
        [ipaddress.ip_network("127.0.0.0/30")],
        ["::ffff:127.0.0.1"],
        ["0.0.0.0/0"],
    ],
)
async def test_trusted_are_addresses_and_networks_in_any_iterable(
    tcp: Transport, trusted: Any
) -> None:
    trusted = trusted() if callable(trusted) else trusted
    server = tcp.server(tell, proxy_protocol="any", proxy_trusted=trusted)
    for _ in range(2):  # an iterator is still there for the second start
        async with running(server):
            assert (await ask(tcp, server, v1(CLIENT)))[0] == CLIENT


async def test_an_ipv4_proxy_of_an_ipv6_server_is_trusted_by_its_ipv4_address(
    tcp: Transport,
) -> None:
    async with running(tcp.server(tell, address="::", proxy_protocol="any")) as server:
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, server.port or 0), PATIENCE) as client:
                peer, proxy, own = await ask(tcp, server, v1(CLIENT), client)
                assert (peer, proxy[1]) == (CLIENT, own[1])


async def test_a_peer_of_a_unix_socket_is_trusted(transport: Transport, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    server = transport.server(
        tell, address=None, port=None, path=path, proxy_protocol="any", proxy_trusted=()
    )
    async with running(server):
        for header, expected in ((v1(CLIENT), (CLIENT, "")), (LOCAL, ("", None))):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                client.connect(path)
                peer, proxy, _ = await ask(transport, server, header, client)
            assert (peer, proxy) == expected


# Log.


async def test_refusals_past_ten_a_second_share_a_line(
    tcp: Transport, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("svcrun._net.proxy_protocol.monotonic", lambda: now)
    async with running(tcp.server(tell, proxy_protocol="any")) as server:

        async def refuse(count: int) -> None:
            for _ in range(count):
                with raw_client(server) as client:
                    client.sendall(b"x")
                    await end_of(client)

        await refuse(MAX_LINES + 30)
        assert len(refusals(caplog)) == MAX_LINES + 1
        now += 1
        await refuse(1)
        assert len(refusals(caplog)) == MAX_LINES + 2
    assert refusals(caplog)[-1].endswith("(29 times, 30 in all)")


async def test_any_number_of_health_checks_is_no_warning(
    tcp: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(tcp.server(tell, proxy_protocol="any")) as server:
        for _ in range(MAX_LINES + 30):
            with raw_client(server):
                pass
        await eventually(lambda: server.refused == MAX_LINES + 30)
    assert {record.levelname for record in caplog.records} == {"INFO"}
    assert len(refusals(caplog)) < MAX_LINES + 30


async def test_messages_about_a_connection_name_the_client(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        raise ValueError

    async with running(transport.server(handler, proxy_protocol="any")) as server:
        with raw_client(server) as client, contextlib.suppress(OSError):
            await asyncio.to_thread(exchange, client, v1(CLIENT), transport.client_context())
        await eventually(lambda: "failed" in caplog.text)
    assert "handler for 192.0.2.1:56324 failed" in caplog.text


async def test_a_failed_handshake_names_the_client(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(Transport(certificates).server(tell, proxy_protocol="any")) as server:
        with raw_client(server) as client:
            client.sendall(v2(CLIENT) + b"GET / HTTP/1.1\r\n\r\n")
            await end_of(client)
        await eventually(lambda: not server.connections)
    assert "TLS handshake with 192.0.2.1:56324 failed: the client does not speak TLS" in caplog.text


# Stop.


async def test_a_connection_without_its_header_is_open_and_a_stop_closes_it_at_once(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    server = transport.server(tell, proxy_protocol="any", proxy_timeout=1000, drain_timeout=1000)
    await server.start()
    with raw_client(server) as silent, raw_client(server) as half:
        half.sendall(b"PROXY ")
        await eventually(lambda: len(server.connections) == 2)
        async with asyncio.timeout(PATIENCE):
            await server.stop()
        assert not server.connections
        assert await end_of(silent) == await end_of(half) == b""
    assert not refusals(caplog)


async def test_a_stop_in_the_iteration_in_which_a_client_connects_leaves_nothing(
    transport: Transport, no_leaks: None
) -> None:
    for turns in range(6):
        server = transport.server(tell, proxy_protocol="any", proxy_timeout=1000)
        await server.start()
        with raw_client(server) as client:
            for _ in range(turns):
                await asyncio.sleep(0)
            async with asyncio.timeout(PATIENCE):
                await server.stop()
            assert await end_of(client) == b""
        assert not server.connections


async def test_200_starts_and_stops_with_headers_leave_nothing(tcp: Transport) -> None:
    server = tcp.server(tell, proxy_protocol="any")

    async def once() -> None:
        async with (
            running(server),
            tcp.client(server) as good,
            tcp.client(server) as bad,
            tcp.client(server),
        ):
            bad[1].write(b"nonsense")
            assert await bad[0].read() == b""
            good[1].write(v1(CLIENT) + b"hello\n")
            assert b"192.0.2.1" in await good[0].readline()

    await once()
    logging.getLogger("svcrun").setLevel(logging.ERROR)
    try:
        with nothing_left():
            for _ in range(200):
                await once()
            for _ in range(3):
                await asyncio.sleep(0)
    finally:
        logging.getLogger("svcrun").setLevel(logging.NOTSET)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio's own transports need one there")
async def test_a_closed_connection_needs_no_garbage_collection(tcp: Transport) -> None:
    transports: list[weakref.ref[Any]] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transports.append(weakref.ref(writer.transport))
        writer.write(b"x")

    async with running(tcp.server(handler, proxy_protocol="any")) as server:
        gc.collect()
        gc.disable()
        try:
            with raw_client(server) as client:
                client.sendall(v1(CLIENT))
                assert await end_of(client) == b"x"
            await eventually(lambda: not server.connections)
            await eventually(lambda: transports[0]() is None)
        finally:
            gc.enable()


# Counters and limits.


async def test_a_connection_is_counted_before_its_header_and_a_refused_one_as_refused(
    tcp: Transport,
) -> None:
    server = tcp.server(tell, proxy_protocol="any", proxy_timeout=1000)
    async with running(server):
        with raw_client(server) as bad, raw_client(server):
            await eventually(lambda: server.open_connections == 2)
            bad.sendall(b"nonsense")
            await eventually(lambda: server.open_connections == 1)
            assert (server.accepted, server.refused) == (2, 1)
            await ask(tcp, server, v1(CLIENT))
            assert (server.accepted, server.refused) == (3, 1)
            await server.stop()
        assert (server.accepted, server.refused) == (3, 2)


async def test_clients_wait_while_as_many_as_may_be_have_not_sent_their_header(
    transport: Transport,
) -> None:
    server = transport.server(tell, proxy_protocol="any", proxy_timeout=1000, max_connections=2)
    async with running(server):
        with raw_client(server) as bad, raw_client(server) as gone:
            await eventually(lambda: server.open_connections == 2)
            answer = asyncio.create_task(ask(transport, server, v1(CLIENT)))
            await asyncio.sleep(0.05)
            assert not answer.done()
            assert server.accepted == 2
            bad.sendall(b"nonsense")
            assert (await answer)[0] == CLIENT
            gone.close()
            assert (await ask(transport, server, v2(CLIENT)))[0] == CLIENT


# Parameters.


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"proxy_protocol": "v3"}, "proxy_protocol='v3'"),
        ({"proxy_protocol": True}, "proxy_protocol=True"),
        ({"proxy_protocol": ""}, "proxy_protocol=''"),
        ({"proxy_protocol": 2}, "proxy_protocol=2"),
        ({"proxy_trusted": "10.0.0.0/8"}, "proxy_trusted='10.0.0.0/8'"),
        ({"proxy_trusted": None}, "proxy_trusted=None"),
        ({"proxy_trusted": 5}, "proxy_trusted=5"),
        ({"proxy_trusted": ["127.0.0.1", "10.0.0.0/33"]}, "proxy_trusted='10.0.0.0/33'"),
        ({"proxy_trusted": ["10.0.0.1/8"]}, "proxy_trusted='10.0.0.1/8'"),
        ({"proxy_trusted": ["localhost"]}, "proxy_trusted='localhost'"),
        ({"proxy_trusted": [""]}, "proxy_trusted=''"),
        ({"proxy_trusted": [b"127.0.0.1"]}, "proxy_trusted=b'127.0.0.1'"),
        ({"proxy_trusted": [1]}, "proxy_trusted=1"),
        ({"proxy_timeout": 0}, "proxy_timeout=0"),
        ({"proxy_timeout": None}, "proxy_timeout=None"),
        ({"proxy_timeout": float("inf")}, "proxy_timeout=inf"),
    ],
)
@pytest.mark.parametrize("cls", [TCPServer, TLSServer])
def test_a_wrong_parameter_is_refused_by_its_name(
    cls: Any, parameters: dict[str, Any], message: str, certificates: Certificates
) -> None:
    if cls is TLSServer:
        parameters = {
            **parameters,
            "cert": certificates.server_cert,
            "key": certificates.server_key,
        }
    with pytest.raises((ValueError, TypeError)) as caught:
        type("Echo", (cls,), {"handle_client": echo})("127.0.0.1", 0, **parameters)
    assert refuses(caught.value, message)
    assert str(caught.value).startswith("Echo: ")


def test_the_message_about_a_version_names_those_that_are_accepted() -> None:
    with pytest.raises(ValueError, match="must be 'v1', 'v2', 'any' or None, not 'v3'"):
        type("Echo", (TCPServer,), {"handle_client": echo})("::1", 0, proxy_protocol="v3")


class Behind(TCPServer):
    proxy_protocol = "any"
    proxy_trusted = ["127.0.0.1"]  # noqa: RUF012 - as users write it
    handle_client = staticmethod(echo)


async def test_a_subclass_may_set_the_parameters() -> None:
    async with running(Behind("127.0.0.1", 0)) as server:
        with raw_client(server) as client:
            client.sendall(v1(CLIENT) + b"hello\n")
            assert await asyncio.to_thread(client.recv, 100) == b"hello\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [("proxy_protocol", "v3"), ("proxy_trusted", ["nowhere"]), ("proxy_timeout", -1)],
)
async def test_a_value_that_is_assigned_later_is_checked_by_the_start(
    name: str, value: Any
) -> None:
    server = Behind("127.0.0.1", 0)
    setattr(server, name, value)
    with nothing_left(), pytest.raises(ValueError, match=f"{name} must be"):
        await server.start()
    assert server.socket is None


async def test_a_subclass_may_use_the_name_for_a_method_of_its_own() -> None:
    class Own(TCPServer):
        handle_client = staticmethod(echo)

        def proxy_protocol(self) -> str:  # type: ignore[misc, override]
            return "own"

    async with running(Own("127.0.0.1", 0)) as server, Transport(None).client(server) as streams:
        streams[1].write(b"hello\n")
        assert await streams[0].readline() == b"hello\n"


async def test_a_pickle_and_a_copy_have_the_parameters() -> None:
    trusted = [ipaddress.ip_network("10.0.0.0/8"), "127.0.0.1"]
    server = Behind(
        "127.0.0.1", 0, proxy_protocol="v2", proxy_trusted=iter(trusted), proxy_timeout=3
    )
    async with running(server):
        for made in (pickle.loads(pickle.dumps(server)), copy.copy(server)):  # noqa: S301
            assert made.proxy_protocol == "v2"
            assert list(made.proxy_trusted) == trusted
            assert made.proxy_timeout == 3


async def test_a_server_without_the_protocol_takes_a_header_for_data(
    tcp: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProxyProtocol, "__init__", None)
    async with running(tcp.server(echo)) as server, tcp.client(server) as (reader, writer):
        writer.write(v1(CLIENT))
        assert await reader.readline() == v1(CLIENT)
