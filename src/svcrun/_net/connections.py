"""The connections of a stream server, and the drain that ends them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from svcrun._net.admission import Admission
from svcrun._net.idle_timeout import IdleTimeout
from svcrun._util.drain import Drain
from svcrun._util.shared_stop import SharedStop
from svcrun._util.tasks import cancel_and_wait
from svcrun.errors import show

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcrun._net.connection import Connection

__all__ = ("Connections",)

log = logging.getLogger("svcrun.net")

# Seconds that a drain gives a peer to receive the output, or to confirm the end of TLS.
FLUSH_TIMEOUT: Final = 0.5


class Connections:
    """The connections of a stream server.

    Invariant: a connection is in :attr:`open_connections` until both its handler and its transport
    have ended, or until a drain has aborted it.

    :param service: the server, whose type names the tasks of the handlers.
    """

    service: Any = None
    """The server while it runs or a connection is open, otherwise None: a reference cycle."""

    loop: asyncio.AbstractEventLoop
    """The event loop of the current run."""
    limit: int
    """The maximum of bytes in a line."""
    receive_buffer: memoryview
    """The buffer that TLS decrypts into, for a TLS server."""

    def __init__(self, service: Any) -> None:
        self.open_connections: set[Connection] = set()
        self.admission = Admission(service, self.open_connections.__len__)
        self.task_name = f"{type(service).__name__}.handle_client"
        self.listener: asyncio.AbstractServer | None = None
        # Whether new connections are refused.
        self.stopping = False
        self._drain = Drain(log, self, lambda: _handlers(self._to_end()), self._describe)
        self.stop = SharedStop(on_call=self._drain.recheck)
        self._idle_timeout: IdleTimeout | None = None
        # The tasks that end the handlers of idle connections.
        self._endings: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return show(self.service)

    def limit_idle(self, idle_timeout: float, drain_timeout: float) -> None:
        """End each handler that waits for its peer for `idle_timeout` seconds, as a drain does."""
        self._idle_timeout = IdleTimeout(
            self.loop,
            idle_timeout,
            lambda: self.open_connections,
            lambda idle: self._end_idle(idle, idle_timeout, drain_timeout),
        )

    async def drain(self, drain_timeout: float) -> None:
        """End the handlers, then close the connections.

        A handler that waits for its peer is cancelled at once, one that is at work after
        `drain_timeout` seconds. The peers have that time to receive the output.
        """
        self._forget_idle()
        await cancel_and_wait(self._endings)
        if self.open_connections:
            # No connection joins these meanwhile: the listener is closed, and a connection that was
            # accepted before aborts itself while `stopping` is set.
            ending = _Ending(self._to_end, self._drain)
            await ending.run(drain_timeout, at_once=drain_timeout == 0)
            self.open_connections.difference_update(ending.aborted)

    def abort(self) -> None:
        """Cancel all handlers and abort all connections, without waiting for them."""
        self._forget_idle()
        for ending in self._endings:
            ending.cancel()
        for connection in tuple(self.open_connections):
            connection.end(at_once=True)
            connection.abort()

    def _end_idle(self, idle: list[Connection], idle_timeout: float, drain_timeout: float) -> None:
        log.info(
            "%r: %s for idle_timeout=%g s; ending %s",
            self,
            f"{idle[0].peer} has sent nothing"
            if len(idle) == 1
            else f"{len(idle)} clients have sent nothing, {idle[0].peer} among them,",
            idle_timeout,
            "its handler" if len(idle) == 1 else "their handlers",
        )

        def remaining() -> list[Connection]:
            callers = self.stop.callers
            return [one for one in idle if one in self.open_connections and one.task not in callers]

        drain = Drain(log, self, lambda: _handlers(remaining()), self._describe)
        task = self.loop.create_task(_Ending(remaining, drain).run(drain_timeout, at_once=False))
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    def _forget_idle(self) -> None:
        if self._idle_timeout is not None:
            self._idle_timeout.cancel()
            self._idle_timeout = None

    def _to_end(self) -> list[Connection]:
        """Return the connections, except those whose handlers wait for the stop themselves."""
        callers = self.stop.callers
        return [one for one in self.open_connections if one.task is None or one.task not in callers]

    def _describe(self, task: asyncio.Task[Any]) -> str:
        return next(f"handler for {one.peer}" for one in self.open_connections if one.task is task)


class _Ending:
    """The end of some connections: first of their handlers, then of their transports.

    :param connections: returns those of the connections that are still open.
    :param drain: waits for the tasks of their handlers.
    """

    def __init__(self, connections: Callable[[], list[Connection]], drain: Drain) -> None:
        self._connections = connections
        self._drain = drain
        self._timer: asyncio.TimerHandle | None = None
        self.aborted: list[Connection] = []

    async def run(self, drain_timeout: float, *, at_once: bool) -> None:
        """End the handlers, then close the connections.

        :param drain_timeout: seconds for the handlers that do not wait for their peers, and for the
            peers to receive the output.
        :param at_once: whether to cancel all handlers now.
        """
        self._loop = asyncio.get_running_loop()
        deadline = self._loop.time() + drain_timeout
        self._timer = self._loop.call_later(FLUSH_TIMEOUT, self._abort_flushed)
        try:
            ending = self._connections()
            for connection in ending:
                connection.end(at_once=at_once)
            await asyncio.sleep(0)  # a handler that ends at once is not late, whatever the limit
            abandoned = await self._drain.run(drain_timeout, "drain_timeout", deadline=deadline)
            for connection in ending:
                if connection.task in abandoned:
                    connection.abort()
            await self._close_transports(deadline)
        finally:
            self._timer.cancel()

    async def _close_transports(self, deadline: float) -> None:
        """Wait until the peers have received the output, then abort the remaining connections.

        Each handler has closed its transport when it ended. The transport is still sending.
        """
        remaining = self._connections()
        if remaining:
            timeout = max(deadline - self._loop.time(), FLUSH_TIMEOUT)
            await asyncio.wait([one.on_release() for one in remaining], timeout=timeout)
            still_open = set(self._connections())
            self.aborted = [one for one in remaining if one in still_open]
            for connection in self.aborted:
                connection.abort()
        # The loop may be closed afterwards, and a socket leaks unless its transport closes before.
        # An aborted transport closes in the next iteration of the loop, a TLS transport above it
        # in the one after that.
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def _abort_flushed(self) -> None:
        """Abort connections whose output is sent and which lack only the peer's end of TLS.

        The handler of such a connection may be waiting in ``wait_closed()``.
        """
        for connection in self._connections():
            if connection.is_sent():
                connection.abort()
        self._timer = self._loop.call_later(FLUSH_TIMEOUT, self._abort_flushed)


def _handlers(connections: list[Connection]) -> list[asyncio.Task[None]]:
    return [one.task for one in connections if one.task is not None]
