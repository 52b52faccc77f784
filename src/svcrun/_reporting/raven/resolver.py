"""Resolve host names in threads that do not delay the exit of the program."""

from __future__ import annotations

import socket
import threading

from aiohttp.abc import AbstractResolver, ResolveResult

from svcrun.thread_pool.executor import JobFuture, run_job

__all__ = ("Resolver",)

_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class Resolver(AbstractResolver):
    """Resolve each host name in a daemon thread.

    A name server that does not respond blocks a thread for half a minute. At its exit, a program
    waits for the threads of the loop's pool, but not for daemon threads.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of `host`.

        aiohttp makes one call at a time for each name: all connections wait for its result, and the
        call goes on when they are cancelled. So a retry starts no second thread for a name.

        :raises OSError, UnicodeError: if the name can't be resolved.
        """
        job: JobFuture[list[tuple[int, int, int, str, tuple[str, int]]]] = JobFuture()
        lookup = (host, port, family, socket.SOCK_STREAM)
        threading.Thread(
            target=run_job,
            args=(job, socket.getaddrinfo, lookup, {}),
            name="svcrun-resolver",
            daemon=True,
        ).start()
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=kind,
                proto=protocol,
                flags=_NUMERIC,
            )
            for kind, _, protocol, _, address in await job
        ]

    async def close(self) -> None:
        """Do nothing: a thread ends when the name server responds, or with its time limit."""
