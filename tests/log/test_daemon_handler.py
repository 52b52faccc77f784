"""Formats that send records to a local daemon, which may be missing or restart."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from svcrun.log import basic_config, create_logging_handler, syslog
from tests.support import PATIENCE, has

root = logging.getLogger()
needs_journald = pytest.mark.skipif(not has("logging_journald"), reason="needs logging-journald")
KINDS = [socket.SOCK_DGRAM, socket.SOCK_STREAM]


class Daemon:
    """A log daemon that can be stopped and started again at the same path."""

    def __init__(self, path: Path, kind: socket.SocketKind) -> None:
        self.path = str(path)
        self._kind = kind
        self._sockets: list[socket.socket] = []
        self.start()

    def start(self) -> None:
        sock = socket.socket(socket.AF_UNIX, self._kind)
        sock.settimeout(PATIENCE)
        sock.bind(self.path)
        self._sockets.append(sock)
        if self._kind == socket.SOCK_STREAM:
            sock.listen()

    def stop(self, *, keep_file: bool = False) -> None:
        while self._sockets:
            self._sockets.pop().close()
        if not keep_file:
            Path(self.path).unlink(missing_ok=True)

    def receive(self) -> bytes:
        if self._kind == socket.SOCK_STREAM and len(self._sockets) == 1:
            self._accept()
        return self._sockets[-1].recv(10_000)

    def _accept(self) -> None:
        while True:  # one that was tried out is closed again
            connection, _ = self._sockets[0].accept()
            connection.settimeout(PATIENCE)
            if connection.recv(1, socket.MSG_PEEK):
                self._sockets.append(connection)
                return
            connection.close()


@pytest.fixture(params=KINDS, ids=["datagrams", "stream"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "socket", request.param)
    yield daemon
    daemon.stop()


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the paths at which a daemon of the machine may have its socket."""

    def set_paths(*paths: object) -> None:
        monkeypatch.setattr(syslog, "_SOCKETS", tuple(map(str, paths)))

    return set_paths


def test_a_path_that_is_not_a_socket_is_skipped(
    daemon: Daemon, sockets: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    stale = Daemon(tmp_path / "stale", socket.SOCK_DGRAM)
    stale.stop(keep_file=True)
    sockets(tmp_path / "file", tmp_path / "folder", tmp_path / "none", stale.path, daemon.path)
    with basic_config("info", "syslog"):
        root.info("x")
        assert daemon.receive() == b"<14>x\0"


def test_without_a_socket_records_go_to_the_port(
    sockets: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    sockets(tmp_path)
    # On some machines, the first address of localhost is an IPv6 address.
    family, _, _, _, (host, *_) = socket.getaddrinfo("localhost", 0)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.bind((host, 0))
        monkeypatch.setattr(syslog, "SYSLOG_UDP_PORT", sock.getsockname()[1])
        with basic_config("info", "syslog"):
            root.info("x")
        received = sock.recv(100) or sock.recv(100)
    assert received == b"<14>x\0"
    assert not capfd.readouterr().err


def test_a_missing_daemon_is_reported_once(
    sockets: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    sockets(tmp_path)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        monkeypatch.setattr(syslog, "SYSLOG_UDP_PORT", sock.getsockname()[1])
    with basic_config("info", "syslog"):
        for _ in range(100):
            root.info("x")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"no syslog daemon has a socket at {tmp_path}, or listens at UDP port" in lines[0]


def test_a_host_without_addresses_is_a_clear_error(
    sockets: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    sockets()
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(
        OSError, match=r"log: format 'syslog' can't use .*choose another log_format"
    ):
        create_logging_handler("syslog")


@pytest.mark.parametrize(
    "make", [Path.touch, Path.mkdir, lambda path: None], ids=["file", "folder", "none"]
)
@pytest.mark.parametrize(
    ("log_format", "option", "text"),
    [
        ("syslog", "address", "needs a socket"),
        pytest.param("journald", "socket_path", "needs systemd-journald", marks=needs_journald),
    ],
)
def test_an_address_that_is_no_socket_is_a_clear_error(
    tmp_path: Path, make: Callable[[Path], Any], log_format: str, option: str, text: str
) -> None:
    path = tmp_path / "place"
    make(path)
    with pytest.raises(FileNotFoundError, match=f"{text}.*choose another log_format.*{path}"):
        create_logging_handler(log_format, **{option: str(path)})  # type: ignore[arg-type]


@needs_journald
def test_a_journal_that_refuses_is_a_clear_error(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "socket", socket.SOCK_DGRAM)
    daemon.stop(keep_file=True)
    with pytest.raises(ConnectionRefusedError, match=f"needs systemd-journald.*{daemon.path}"):
        create_logging_handler("journald", socket_path=daemon.path)


@pytest.mark.parametrize("keep_file", [False, True])
def test_records_are_sent_again_after_a_restart_of_the_syslog_daemon(
    daemon: Daemon, capfd: pytest.CaptureFixture[str], keep_file: bool
) -> None:
    with basic_config("info", "syslog", address=daemon.path) as session:
        root.info("before")
        session.flush()
        assert daemon.receive() == b"<14>before\0"
        daemon.stop(keep_file=keep_file)
        for _ in range(20):
            root.info("lost")
            root.error("lost", exc_info=LookupError())
        session.flush()
        Path(daemon.path).unlink(missing_ok=True)
        daemon.start()
        root.info("after")
        session.flush()
        received = daemon.receive()
        while b"could not be written" not in received:
            received += daemon.receive()
    assert b"<14>after\0" in received
    # The first write to a broken stream may still succeed.
    lost = int(received.split(b"<12>")[1].split()[0])
    assert 35 <= lost <= 40
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"svcrun.log: can't write to {daemon.path}: ")


@needs_journald
def test_records_are_sent_again_after_a_restart_of_the_journal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    daemon = Daemon(tmp_path / "socket", socket.SOCK_DGRAM)
    with basic_config("info", "journald", socket_path=daemon.path) as session:
        for _ in range(2):
            root.info("before")
            session.flush()
            assert b"MESSAGE=before" in daemon.receive()
            daemon.stop()
            for _ in range(20):
                root.info("lost")
            session.flush()
            daemon.start()
            root.info("after")
            session.flush()
            assert b"MESSAGE=after" in daemon.receive()
            assert b"MESSAGE=20 log records could not be written" in daemon.receive()
    daemon.stop()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("svcrun.log: can't write to") for line in lines)


def test_text_that_cannot_be_encoded_is_escaped(daemon: Daemon) -> None:
    with basic_config("info", "syslog", address=daemon.path):
        root.info("caf\u00e9 %s", os.fsdecode(b"\xff"))
        assert daemon.receive() == "<14>caf\u00e9 \\udcff\0".encode()


@pytest.mark.skipif(not Path("/proc").exists(), reason="names without a file are Linux's")
def test_an_abstract_address_is_accepted() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.bind(f"\0svcrun-test-{os.getpid()}")
        with basic_config("info", "syslog", address=f"\0svcrun-test-{os.getpid()}"):
            root.info("x")
        assert sock.recv(100) == b"<14>x\0"
