"""HAProxy and nginx, started on free ports and in a folder of their own."""

import contextlib
import shutil
import socket
import subprocess
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.support import PATIENCE

SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

STREAM_MODULE: Final = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


def find_program(name: str) -> str:
    """Return the path of a program, or skip the test."""
    found = shutil.which(name) or shutil.which(name, path=SYSTEM_PATH)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


@contextlib.contextmanager
def haproxy(folder: Path, config: str, *ports: int) -> Iterator[None]:
    """Run HAProxy with a configuration for the block.

    :param ports: those that it listens on.
    """
    path = folder / "haproxy.cfg"
    path.write_text(textwrap.dedent(config), encoding="utf-8")
    with listening(folder, [find_program("haproxy"), "-db", "-f", str(path)], ports):
        yield


@contextlib.contextmanager
def nginx(folder: Path, config: str, *ports: int) -> Iterator[None]:
    """Run nginx with a configuration for the block.

    :param config: without the lines that load modules and name files.
    :param ports: those that it listens on.
    """
    program = find_program("nginx")
    if not STREAM_MODULE.exists():
        pytest.skip("needs the stream module of nginx")
    path = folder / "nginx.conf"
    path.write_text(config, encoding="utf-8")
    with listening(folder, [program, "-p", str(folder), "-c", str(path), "-e", "stderr"], ports):
        yield


@contextlib.contextmanager
def listening(folder: Path, command: Sequence[str], ports: Iterable[int]) -> Iterator[None]:
    """Run a program in a folder for the block, from when it listens on ports."""
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + PATIENCE
        while not all(map(_listens, ports)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{command[0]} does not listen:\n{log.read_text()}")
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        # A connection would reach the server behind. The port is in use if it can't be bound.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
