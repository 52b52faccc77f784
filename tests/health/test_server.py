"""Laws of the thread that answers HTTP requests, with real sockets."""

import contextlib
import logging
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from svcrun._health import server
from svcrun._health.http import Request, Response
from svcrun._health.server import MAX_CONNECTIONS, HTTPThread

DESCRIPTORS = Path("/proc/self/fd")
GET = b"GET /path HTTP/1.1\r\nHost: it\r\n\r\n"


def count_descriptors() -> int:
    return len(list(DESCRIPTORS.iterdir()))


class NoPause:
    """For a thread without an event loop."""

    def request(self) -> None: ...

    def end(self) -> None: ...


def respond(request: Request, _: object) -> Response:
    if request.path == "/broken":
        raise LookupError("of the responder")
    if request.path == "/large":
        return Response(HTTPStatus.OK, "x" * 10_000_000)
    return Response(HTTPStatus.OK, f"{request.path}\n")


@contextlib.contextmanager
def serving() -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0), backlog=MAX_CONNECTIONS) as sock:
        sock.setblocking(False)
        thread = HTTPThread(sock, respond, NoPause())
        thread.start()
        try:
            yield sock.getsockname()
        finally:
            thread.stop()
            assert not thread.is_alive()


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    with serving() as found:
        yield found


def connect(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=20)


def read(sock: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(1 << 16):
            pieces.append(piece)
    return b"".join(pieces)


def ask(address: tuple[str, int], data: bytes = GET) -> bytes:
    with connect(address) as sock:
        sock.sendall(data)
        return read(sock)


def test_a_request_is_answered_and_the_connection_closed(address: tuple[str, int]) -> None:
    response = ask(address)
    assert response.startswith(b"HTTP/1.1 200 OK\r\n")
    assert response.endswith(b"\r\n\r\n/path\n")


def test_a_request_may_arrive_byte_by_byte(address: tuple[str, int]) -> None:
    with connect(address) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in GET:
            sock.send(bytes([byte]))
        assert read(sock).endswith(b"/path\n")


def test_a_client_that_sends_more_than_its_request_receives_the_response(
    address: tuple[str, int],
) -> None:
    response = ask(address, GET + b"x" * 100_000)
    assert response.endswith(b"/path\n")


def test_a_response_that_is_larger_than_all_buffers_arrives_whole(
    address: tuple[str, int],
) -> None:
    with connect(address) as sock:
        sock.sendall(GET.replace(b"/path", b"/large"))
        assert len(read(sock).partition(b"\r\n\r\n")[2]) == 10_000_000


def test_a_refused_request_gets_its_status(address: tuple[str, int]) -> None:
    response = ask(address, GET.replace(b"GET", b"POST"))
    assert response.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
    assert b"\r\nAllow: GET, HEAD\r\n" in response
    assert ask(address, b"garbage\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_an_error_of_a_response_is_logged_and_not_shown_to_the_client(
    address: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    response = ask(address, GET.replace(b"/path", b"/broken"))
    assert response.startswith(b"HTTP/1.1 500 ")
    assert b"LookupError" not in response
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.getMessage().startswith("could not answer a health check from 127.0.0.1")
    assert ask(address).endswith(b"/path\n")


def test_clients_that_send_nothing_do_not_keep_others_from_an_answer(
    address: tuple[str, int],
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(4 * MAX_CONNECTIONS):
            stack.enter_context(connect(address)).send(b"GET /")
        assert ask(address).endswith(b"/path\n")


def test_a_connection_is_closed_at_its_time_limit(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "TIME_LIMIT", 0.05)
    with connect(address) as sock:
        sock.send(b"GET /")
        assert read(sock) == b""


def test_a_client_that_does_not_close_is_closed_after_the_response(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LINGER", 0.05)
    with connect(address) as sock:
        sock.sendall(GET)
        assert read(sock).endswith(b"/path\n")
        with pytest.raises(ConnectionError):  # noqa: PT012 - the first write may succeed
            while True:
                sock.send(b"x")


@pytest.mark.parametrize("data", [b"", b"GET", GET, b"\0" * 100])
def test_a_client_that_resets_the_connection_is_forgotten(
    address: tuple[str, int], data: bytes
) -> None:
    for _ in range(20):
        sock = connect(address)
        sock.send(data)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    assert ask(address).endswith(b"/path\n")


def test_it_answers_again_after_it_had_no_descriptor(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "RETRY_DELAY", 0.05)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with connect(address) as first, socket.socket() as late:
        first.sendall(GET)
        assert read(first).endswith(b"/path\n")
        first.close()
        highest = max(int(path.name) for path in DESCRIPTORS.iterdir()) + 1
        held = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.open("/dev/null", os.O_RDONLY))
            late.settimeout(20)
            late.connect(address)
            late.sendall(GET)
            while "could not accept a health check" not in caplog.text:
                time.sleep(0.01)
        finally:
            for descriptor in held:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert read(late).endswith(b"/path\n")


def test_a_stop_closes_all_connections_and_leaves_nothing() -> None:
    before = count_descriptors(), threading.active_count()
    with contextlib.ExitStack() as stack:
        with serving() as address:
            clients = [stack.enter_context(connect(address)) for _ in range(3)]
            clients[0].send(b"GET /")
            assert ask(address).endswith(b"/path\n")
        assert all(read(client) == b"" for client in clients)
    assert (count_descriptors(), threading.active_count()) == before


def test_without_a_thread_the_start_fails_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = count_descriptors()
    monkeypatch.setattr(threading.Thread, "start", fail)
    with (
        socket.create_server(("127.0.0.1", 0)) as sock,
        pytest.raises(RuntimeError, match="can't start new thread"),
    ):
        HTTPThread(sock, respond, NoPause()).start()
    assert count_descriptors() == before


def test_the_log_of_requests_is_silent(
    address: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ask(address)
    ask(address, b"garbage\r\n\r\n")
    assert not caplog.records
