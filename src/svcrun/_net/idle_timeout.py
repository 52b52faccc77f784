"""The time limit for clients that send nothing.

A timer for each read would be created and cancelled with each piece of data. Instead, one timer
for each server looks at all of its connections from time to time, and remembers those whose handler
waits for its client. A handler that is still in the same wait later, and has received nothing,
is idle. So data costs nothing more with a time limit than without one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection

    from svcrun._net.connection import Connection

__all__ = ("IdleTimeout",)

# Looks at the connections during a time limit. A handler is ended late by one such interval.
_LOOKS: Final = 8

# The shortest interval, in seconds, so that a short time limit does not keep the loop busy.
_LEAST_INTERVAL: Final = 0.01


class IdleTimeout:
    """End the handlers that have waited for their clients for too long.

    :param loop: the running loop.
    :param timeout: the time limit, in seconds.
    :param connections: returns the open connections.
    :param end: called with the connections whose handlers are idle.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout: float,
        connections: Callable[[], Collection[Connection]],
        end: Callable[[list[Connection]], object],
    ) -> None:
        self._loop = loop
        self._timeout = timeout
        self._connections = connections
        self._end = end
        # The waits in progress, each with the time when it was seen first.
        self._waits: dict[Connection, tuple[object, int, float]] = {}
        self._interval = max(timeout / _LOOKS, _LEAST_INTERVAL)
        self._timer = loop.call_later(self._interval, self._look)

    def cancel(self) -> None:
        """End no further handlers."""
        self._timer.cancel()
        self._waits.clear()

    def _look(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._look)
        now = self._loop.time()
        before, self._waits = self._waits, {}
        idle = {}
        for connection in self._connections():
            wait, received = connection.reader.wait_in_progress
            if wait is None:
                continue
            seen = before.get(connection)
            if seen is None or seen[0] is not wait or seen[1] != received:
                self._waits[connection] = (wait, received, now)
            elif now - seen[2] < self._timeout:
                self._waits[connection] = seen
            else:
                idle[connection] = seen
        if idle:
            # Race: if the loop was blocked, data of these clients may wait to be received. uvloop
            # calls timers before it receives; it has received in the second iteration from here.
            self._loop.call_soon(self._loop.call_soon, self._confirm, idle)

    def _confirm(self, idle: dict[Connection, tuple[object, int, float]]) -> None:
        """End the handlers that are still in the wait that was found."""
        open_connections = self._connections()
        still = []
        for connection, (wait, received, _) in idle.items():
            if connection in open_connections:
                now_wait, now_received = connection.reader.wait_in_progress
                if now_wait is wait and now_received == received:
                    still.append(connection)
        if still and not self._timer.cancelled():
            self._end(still)
