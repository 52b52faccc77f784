"""Resolve host names for aiohttp in threads that do not delay the exit of the program."""

from __future__ import annotations

import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from svcrun._net.name_resolver import NameResolver

__all__ = ("Resolver",)

_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class Resolver(AbstractResolver):
    """Resolve host names in daemon threads, one at a time for each name."""

    def __init__(self) -> None:
        self._names = NameResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of `host`.

        :raises OSError: if the name can't be resolved.
        """
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=kind,
                proto=protocol,
                flags=_NUMERIC,
            )
            for kind, _, protocol, _, address in await self._names.resolve(host, port, family)
        ]

    async def close(self) -> None:
        """Do nothing: a thread ends when the name server responds, or with its time limit."""
