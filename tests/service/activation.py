"""A parent that passes sockets to a program as systemd does, and the programs of the tests."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support import PATIENCE, Program

# Above all numbers that the shell assigns.
FIRST = 60


def shell_prefix(numbers: Sequence[int], names: str | None, pid: str = "$$") -> list[str]:
    """Return a command that moves descriptors to 3, 4, ... and describes them to a program."""
    moves = " ".join(f"{3 + at}<&{number} {number}<&-" for at, number in enumerate(numbers))
    lines = [
        f"exec {moves}" if moves else ":",
        f"export LISTEN_FDS={len(numbers)} LISTEN_PID={pid}",
    ]
    if names is not None:
        lines.append(f"export LISTEN_FDNAMES='{names}'")
    return ["bash", "-c", "; ".join([*lines, 'exec "$@"']), "bash"]


def activated(
    run_program: Callable[..., Program],
    source: str | Path,
    *passed: Any,
    names: str | None = None,
    pid: str = "$$",
    **options: Any,
) -> Program:
    """Run a program with sockets or other files that were passed to it.

    :param passed: sockets, files or numbers of descriptors. They stay open.
    :param names: the names of the descriptors, separated by colons.
    """
    numbers = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, FIRST) for one in passed]
    try:
        prefix = shell_prefix(numbers, names, pid)
        return run_program(source, prefix=prefix, pass_fds=numbers, **options)
    finally:
        for number in numbers:
            os.close(number)


@contextlib.contextmanager
def listening(family: socket.AddressFamily = socket.AF_INET) -> Iterator[socket.socket]:
    """Listen on a free port, as systemd does for a unit."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as sock:
        yield sock


@contextlib.contextmanager
def bound_datagram() -> Iterator[socket.socket]:
    """Bind a datagram socket to a free port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


def ask(address: Any, request: bytes = b"hello\n") -> bytes:
    """Send a request and return all that the server sends before it closes the connection."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    if not isinstance(address, str) and ":" in address[0]:
        family = socket.AF_INET6
    with socket.socket(family) as client:
        client.settimeout(PATIENCE)
        client.connect(address)
        client.sendall(request)
        with client.makefile("rb") as answer:
            return answer.read()


PRELUDE = """
import asyncio, os, subprocess, sys
from svcrun import Service, entrypoint
from svcrun.service import TCPServer, TLSServer, UDPServer

class Echo(TCPServer):
    async def handle_client(self, reader, writer):
        writer.write(self.name.encode() + b" " + await reader.readline())

class Datagrams(UDPServer):
    async def handle_datagram(self, data, addr):
        self.sendto(b"datagram " + data, addr)

def serve(*services, loop_factory=None, **options):
    with entrypoint(*services, **options) as loop:
        print("started", flush=True)
        loop.run_forever()
"""
