"""Handle datagrams with tasks that take turns at reading.

A task for each datagram costs more than the datagram. Here the task that reads also handles what it
has read, and then reads on, so a handler that never waits costs a plain ``await``. When a handler
does wait, its task waits with it, and the next datagram finds another task reading (the pattern is
known as leader and followers). To the handler it makes no difference: it runs in a task and a
context that it has for itself as long as it runs, and a task that it leaves changed is not used
again.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextvars import copy_context
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from svcrun._net.addresses import format_address
from svcrun._net.endpoint import is_connected
from svcrun._util.drain import Drain
from svcrun._util.eager import Waiter, start_eagerly
from svcrun._util.shared_stop import SharedStop
from svcrun._util.tasks import retrieve

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context

    from svcrun._util.rate_limited_log import RateLimitedLog

    Handler = Callable[[bytes, Any], Awaitable[object]]
    Receive = Callable[[int], tuple[bytes, Any]]

__all__ = ("WorkerPool",)

log = logging.getLogger("svcrun.service.udp")

# What is read at one wake-up, so that others have their turns in a flood: it ends with whichever of
# these, in datagrams and in seconds, comes first.
BATCH = 256
SLICE = 0.002

# More workers than this are not kept for the next burst.
SPARE = 64

# Every datagram of IP fits. A buffer of more than 128 KiB would be mapped and unmapped by malloc()
# for each read, which costs more than all the rest.
SIZE = 65_536

# The longest datagram of a Unix socket, by Linux' default (net.core.wmem_max) and some more.
UNIX_SIZE = 262_144

# Seconds without reading after an error that may well be there again at the next attempt.
PAUSE = 0.5


class Worker:
    """A task of a pool, its context, and where it waits while there is nothing to do."""

    __slots__ = ("context", "task", "waiter")

    task: asyncio.Task[None]

    def __init__(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        self.context = context
        self.waiter = Waiter(loop)


class WorkerPool:
    """Read datagrams from a socket and handle them, a limited number at the same time.

    :param owner: the server, as log lines show it.
    :param loop: the running event loop.
    :param sock: a bound socket that does not block; it stays open after :meth:`close`.
    :param handle: awaited with each datagram and the address of its sender.
    :param max_tasks: how many handlers may be under way; datagrams past that are dropped.
    :param dropped: counts them.
    :param failures: counts errors of reading.
    """

    def __init__(
        self,
        owner: object,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        handle: Handler,
        *,
        max_tasks: int,
        dropped: RateLimitedLog,
        failures: RateLimitedLog,
    ) -> None:
        self._owner = owner
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._receive = _receiver(sock)
        self._is_connected = is_connected(sock)
        self._handle = handle
        self._max_tasks = max_tasks
        self._dropped = dropped
        self._failures = failures

        self._closed = False
        self._context = copy_context()
        self._workers: dict[asyncio.Task[Any], Worker] = {}
        self._idle: list[Worker] = []
        # Whose turn it is, or was last, and when that ends (0: there is nothing left to read).
        self._reader: Worker | None = None
        self._turn_ends = 0.0
        self._pause: asyncio.TimerHandle | None = None
        self._drain = Drain(log, owner, self._in_flight)
        self.stop = SharedStop(on_call=self._drain.recheck)

        loop.add_reader(self._fd, self._on_readable)

    # Reading

    def _on_readable(self) -> None:
        """Let one worker after the other read, until nothing is left or the time is over."""
        if self._is_connected:
            # libuv watches no longer over a socket that had an error to tell, without telling that.
            self._loop.remove_reader(self._fd)
            self._loop.add_reader(self._fd, self._on_readable)
        self._turn_ends = monotonic() + SLICE
        for _ in range(BATCH):
            if self._idle:
                worker = self._idle.pop()
                worker.waiter.wake()
            elif len(self._workers) < self._max_tasks:
                worker = self._hire()
            else:
                self._drop()
                return
            # With a task factory, a new worker has not begun yet.
            if self._reader is not worker or monotonic() >= self._turn_ends:
                return

    def _hire(self) -> Worker:
        context = self._context.copy()
        worker = Worker(self._loop, context)
        name = f"{type(self._owner).__name__} handler"
        worker.task = start_eagerly(self._work(worker), self._loop, name=name, context=context)
        return worker

    async def _work(self, worker: Worker) -> None:
        """Take turns at reading, until the end or until a handler leaves the task changed."""
        task = worker.task = cast("asyncio.Task[None]", asyncio.current_task())
        self._workers[task] = worker
        try:
            while not self._closed and await self._take_turn(worker):
                # The end may have come while the handler waited: nobody would wake this any more.
                if self._is_over():
                    break
                self._idle.append(worker)
                await worker.waiter
        finally:
            del self._workers[task]
            if worker in self._idle:
                self._idle.remove(worker)

    def _is_over(self) -> bool:
        return self._closed or len(self._idle) >= SPARE

    async def _take_turn(self, worker: Worker) -> bool:
        """Read and handle until nothing is left; tell whether the worker may go on."""
        task, context, untouched = worker.task, worker.context, self._context
        receive, handle = self._receive, self._handle
        self._reader = worker
        for _ in range(BATCH):
            try:
                data, addr = receive(SIZE)
            except BlockingIOError:
                self._turn_ends = 0.0
                break
            except OSError as error:
                if self._is_serious(error):
                    break
                continue

            try:
                await handle(data, addr)
            except BaseException as error:  # noqa: BLE001 - it raises again what is not an error
                self._report(error, data, addr)

            if (
                context != untouched or task.cancelling() or task._callbacks  # noqa: SLF001 - the only way to know that someone waits for it
            ):
                return False
            # Another worker has read on if the handler waited.
            if self._reader is not worker or monotonic() >= self._turn_ends:
                break
        return True

    def _report(self, error: BaseException, data: bytes, addr: Any) -> None:
        """Log what a handler raised."""
        if isinstance(error, asyncio.CancelledError):
            return
        if isinstance(error, GeneratorExit):
            raise error
        if isinstance(error, SystemExit | KeyboardInterrupt):
            # The loop raises it as well, which is enough.
            cast("asyncio.Task[None]", asyncio.current_task()).add_done_callback(retrieve)
            raise error
        log.error(
            "%r failed to handle a datagram of %d bytes from %s",
            self._owner,
            len(data),
            format_address(addr),
            exc_info=error,
        )

    def _drop(self) -> None:
        """Read what there is no worker for, so that it does not wake the loop again and again."""
        for _ in range(BATCH):
            try:
                self._sock.recv(1)
            except BlockingIOError:
                return
            except OSError as error:
                if self._is_serious(error):
                    return
                continue
            self._dropped.add(
                "%r drops datagrams: all of its max_tasks=%d handlers are at work; "
                "make them quicker or allow for more",
                self._owner,
                self._max_tasks,
            )
            if monotonic() >= self._turn_ends:
                return

    def _is_serious(self, error: OSError) -> bool:
        """Tell whether an error of reading may come again at once; if so, make a pause."""
        if isinstance(error, ConnectionError):
            # A connected socket reports here, once, that what was sent earlier did not arrive.
            log.debug("%r heard from its peer: %s", self._owner, error)
            return False
        self._failures.add(
            "%r can't read from its socket, it tries again every %g s: %s",
            self._owner,
            PAUSE,
            error,
        )
        self._turn_ends = 0.0
        if not self._closed:
            self._loop.remove_reader(self._fd)
            self._pause = self._loop.call_later(
                PAUSE, self._loop.add_reader, self._fd, self._on_readable
            )
        return True

    # Ending

    def stop_reading(self) -> None:
        """Read no more; idempotent. Handlers under way go on."""
        if self._closed:
            return
        self._closed = True
        self._reader = None
        self._turn_ends = 0.0
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._fd)
        for worker in self._idle.copy():
            worker.waiter.wake()

    async def close(self, drain_timeout: float) -> None:
        """Stop reading, give handlers `drain_timeout` seconds to end, then cancel them."""
        self.stop_reading()
        await asyncio.sleep(0)  # the idle workers, which were woken, end now
        await self._drain.run(drain_timeout, "drain_timeout")

    def cancel(self) -> None:
        """Stop reading, and cancel the handlers in flight without waiting for them."""
        self.stop_reading()
        for task in self._in_flight():
            task.cancel()

    def _in_flight(self) -> set[asyncio.Task[Any]]:
        """Return the tasks of the workers, except those that wait for the stop themselves."""
        return self._workers.keys() - self.stop.callers


def _receiver(sock: socket.socket) -> Receive:
    """Return the quickest way to read any datagram from `sock`."""
    if sock.family in {socket.AF_INET, socket.AF_INET6}:
        return sock.recvfrom

    buffer = bytearray(UNIX_SIZE)
    view = memoryview(buffer)

    def receive(_: int) -> tuple[bytes, Any]:
        size, addr = sock.recvfrom_into(buffer)
        return bytes(view[:size]), addr

    return receive
