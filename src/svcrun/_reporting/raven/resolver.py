"""Resolve host names in threads that do not delay the exit of the program."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

__all__ = ("Resolver",)

_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class Resolver(AbstractResolver):
    """Resolve host names in daemon threads, one at a time for each name.

    A name server that does not respond blocks a thread for half a minute. At its exit, a program
    waits for the threads of the loop's pool, but not for daemon threads.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lookups: dict[tuple[str, int, int], asyncio.Future[Any]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of `host`; concurrent calls for the same name share one lookup.

        :raises OSError: if the name can't be resolved.
        """
        key = host, port, family
        lookup = self._lookups.get(key)
        if lookup is None:
            lookup = self._lookups[key] = self._loop.create_future()
            lookup.add_done_callback(lambda _: self._lookups.pop(key))
            threading.Thread(
                target=self._look_up, args=(lookup, key), name="svcrun-resolver", daemon=True
            ).start()
        # Other calls may wait for the same lookup, so the cancellation of this one must not reach
        # it.
        found = await asyncio.shield(lookup)
        if isinstance(found, Exception):
            raise found
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=kind,
                proto=protocol,
                flags=_NUMERIC,
            )
            for kind, _, protocol, _, address in found
        ]

    def _look_up(self, lookup: asyncio.Future[Any], key: tuple[str, int, int]) -> None:
        host, port, family = key
        found: Any
        try:
            found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        except Exception as error:  # noqa: BLE001 - an invalid name raises UnicodeError
            found = error
        with suppress(RuntimeError):  # race: the loop was closed
            self._loop.call_soon_threadsafe(lookup.set_result, found)

    async def close(self) -> None:
        """Do nothing: a thread ends when the name server responds, or with its time limit."""
