"""Resolve host names in threads that do not delay the exit of the program."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from contextlib import suppress
from typing import Any

__all__ = ("NameResolver",)

Address = tuple[int, int, int, str, Any]
"""Family, type, protocol, canonical name and address, as ``socket.getaddrinfo()`` returns them."""


class NameResolver:
    """Resolve host names in daemon threads, one at a time for each name.

    A name server that does not respond blocks a thread for half a minute. At its exit, a program
    waits for the threads of the loop's pool, in which ``loop.getaddrinfo()`` resolves names, but
    not for daemon threads.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lookups: dict[tuple[str, int, int], asyncio.Future[Any]] = {}

    async def resolve(self, host: str, port: int, family: int = 0) -> list[Address]:
        """Return the stream addresses of `host`; concurrent calls for a name share one lookup.

        :raises OSError: if the name can't be resolved, or no thread can be started.
        """
        if ":" in host or host.replace(".", "").isdecimal():
            return _look_up(host, port, family)  # an IP address needs no thread
        key = host, port, family
        lookup = self._lookups.get(key)
        if lookup is None:
            lookup = self._loop.create_future()
            self._start_thread(lookup, key)
            self._lookups[key] = lookup
            lookup.add_done_callback(lambda _: self._lookups.pop(key))
        # Other calls may wait for the same lookup, so the cancellation of this one must not reach
        # it.
        found = await asyncio.shield(lookup)
        if isinstance(found, Exception):
            raise found
        addresses: list[Address] = found
        return addresses

    def _start_thread(self, lookup: asyncio.Future[Any], key: tuple[str, int, int]) -> None:
        thread = threading.Thread(
            target=self._run, args=(lookup, key), name="svcrun-resolver", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, f"no thread to resolve {key[0]}: {error}") from error

    def _run(self, lookup: asyncio.Future[Any], key: tuple[str, int, int]) -> None:
        found: Any
        try:
            found = _look_up(*key)
        except UnicodeError as error:  # a label that is too long
            found = socket.gaierror(socket.EAI_NONAME, f"{key[0]!r} is not a host name: {error}")
        except Exception as error:  # noqa: BLE001 - passed on to the callers
            found = error
        with suppress(RuntimeError):  # race: the loop was closed
            self._loop.call_soon_threadsafe(lookup.set_result, found)


def _look_up(host: str, port: int, family: int) -> list[Address]:
    return [*socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)]
