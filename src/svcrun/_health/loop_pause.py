"""Pause a busy event loop while a thread needs the interpreter's lock.

A thread waits for the interpreter's lock after each of its system calls. A busy event loop releases
the lock in each iteration, for some microseconds. The interpreter passes it on to a waiting thread
only if it was held for 5 ms at a stretch. So on a busy machine, a thread that answers one request
could wait for seconds. During a pause the loop waits for that thread, usually for less than a
millisecond, and the thread has the lock for itself.

A loop that is blocked does not pause. Code that blocks it either holds the lock for more than 5 ms
or waits for something, and then the lock is free.
"""

from __future__ import annotations

import select
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

__all__ = ("LoopPause",)

LIMIT: Final = 0.02
"""Seconds for which the event loop pauses at most."""

SHARE: Final = 0.1
"""The part of its time that the loop pauses at most, so that a flood of clients hardly slows it."""

LEAST_INTERVAL: Final = 0.005
"""The least number of seconds between two pauses."""


class LoopPause:
    """Pauses of an event loop for a thread that serves the clients of a socket.

    :param loop: the running event loop.
    :param sock: the socket that listens, on which the thread waits for clients as well.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._loop = loop
        self._sock = sock
        self._is_done = threading.Event()
        self._next = 0.0
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}

    # In the loop.

    def open(self) -> None:
        """Pause whenever a client connects."""
        self._loop.add_reader(self._sock, self._on_client)

    def close(self) -> None:
        """Pause no more. The loop may be closed."""
        self._is_done.set()
        for timer in self._timers.values():
            timer.cancel()
        if not self._loop.is_closed():
            self._loop.remove_reader(self._sock)

    def _on_client(self) -> None:
        # Level-triggered: the loop would call this until the thread has accepted the client.
        self._loop.remove_reader(self._sock)
        self._timers[self.open] = self._loop.call_later(LEAST_INTERVAL, self.open)
        # Race: the thread may have served the client already, and wait for the next one.
        self._is_done.clear()
        if select.select([self._sock], [], [], 0)[0]:
            self._pause()

    def _pause(self) -> None:
        """Wait for the thread; if the last pause was too recent, or this one too short, later."""
        now = time.monotonic()
        if now >= self._next and not self._is_done.is_set():
            self._is_done.wait(LIMIT)
            began, now = now, time.monotonic()
            self._next = now + max((now - began) / SHARE, LEAST_INTERVAL)
        if not self._is_done.is_set():
            self._timers[self._pause] = self._loop.call_later(self._next - now, self._pause)

    # In the thread.

    def request(self) -> None:
        """Pause the loop until :meth:`end`."""
        self._is_done.clear()
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._pause)

    def end(self) -> None:
        """End the pause."""
        self._is_done.set()
