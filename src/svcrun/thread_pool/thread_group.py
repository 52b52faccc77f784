"""A group of threads that a coroutine can wait for."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
import traceback

from svcrun._util.hints import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("HungThread", "ThreadGroup", "set_if_pending", "stoppable")

# Seconds that a thread may take to end after its target has returned. Usually these are
# microseconds, but the thread runs the destructors of thread-local values.
_EXIT_TIME = 1.0
_EXIT_STEP = 0.002

_this_thread = threading.local()


class HungThread:
    """The name and the stack of a thread that did not end in time.

    :param thread: the thread, which is alive.
    """

    __slots__ = ("name", "stack")

    def __init__(self, thread: threading.Thread) -> None:
        self.name = thread.name
        frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - documented
        self.stack = "".join(traceback.format_stack(frame)).rstrip() if frame else ""

    def __str__(self) -> str:
        return f"thread {self.name!r} is at\n{self.stack}"

    def __repr__(self) -> str:
        return f"<HungThread {self.name!r}>"


class ThreadGroup:
    """Threads that a coroutine waits for together."""

    __slots__ = ("_ending", "_lock", "_stops", "_threads", "_waiters")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        # Threads whose target has returned and that may still be alive.
        self._ending: list[threading.Thread] = []
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._stops: list[Callable[[], object]] = []

    def __len__(self) -> int:
        return len(self._threads)

    def start(
        self, target: Callable[..., object], args: tuple[Any, ...], *, name: str, daemon: bool
    ) -> None:
        """Start a thread that belongs to the group until ``target(*args)`` returns.

        :raises RuntimeError: if the system cannot start a thread.
        """
        thread = threading.Thread(target=self._run, args=(target, args), name=name, daemon=daemon)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except Exception:
            with self._lock:
                self._threads.discard(thread)
            raise

    def _run(self, target: Callable[..., object], args: tuple[Any, ...]) -> None:
        _this_thread.group = self
        try:
            target(*args)
        finally:
            # A reference cycle: the traceback of an error refers to this frame, and the arguments
            # may refer to the error.
            del args
            self._remove_current()

    def _remove_current(self) -> None:
        thread = threading.current_thread()
        with self._lock:
            self._threads.discard(thread)
            self._ending = [other for other in self._ending if other.is_alive()]
            self._ending.append(thread)
            if self._threads:
                return
            waiters, self._waiters = self._waiters, []
        for loop, ended in waiters:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(set_if_pending, ended)

    def join(self) -> None:
        """Block until all threads have ended."""
        with self._lock:
            threads = (*self._threads, *self._ending)
        for thread in threads:
            thread.join()

    async def wait(self, timeout: float | None = None) -> list[HungThread]:
        """Wait until all threads have ended, and abandon those that do not end in time.

        :param timeout: seconds to wait; by default without limit.
        :return: the abandoned threads.
        """
        if self._threads:
            loop = asyncio.get_running_loop()
            deadline = None if timeout is None else loop.time() + timeout
            # Race: threads may start after the last one ended and before this task resumes.
            while self._threads and await self._becomes_empty(
                None if deadline is None else deadline - loop.time()
            ):
                pass
        # The abandoned threads keep running, but the group no longer counts them.
        with self._lock:
            hung, self._threads = self._threads, set()
            ending, self._ending = self._ending, []
        if ending:
            await _wait_until_ended(ending)
        threads = sorted(hung, key=lambda thread: thread.name)
        # A thread without a stack has ended in the meantime.
        return [found for found in map(HungThread, threads) if found.stack]

    async def _becomes_empty(self, timeout: float | None) -> bool:
        """Wait until the group has no threads, and return whether that happened in time."""
        loop = asyncio.get_running_loop()
        waiter = (loop, loop.create_future())
        with self._lock:
            if not self._threads:
                return True
            self._waiters.append(waiter)
            stops = tuple(self._stops)
        for stop in stops:
            stop()
        try:
            await asyncio.wait((waiter[1],), timeout=timeout)
        finally:
            with self._lock, contextlib.suppress(ValueError):
                self._waiters.remove(waiter)
        return waiter[1].done()

    def add_stop(self, stop: Callable[[], object]) -> None:
        """Call `stop` when :meth:`wait` is called, or now if a task is waiting already."""
        with self._lock:
            self._stops.append(stop)
            is_waiting = bool(self._waiters)
        if is_waiting:
            stop()

    def remove_stop(self, stop: Callable[[], object]) -> None:
        """Undo :meth:`add_stop`."""
        with self._lock:
            self._stops.remove(stop)


@contextlib.contextmanager
def stoppable(stop: Callable[[], object]) -> Iterator[None]:
    """Call `stop` to end the block early, as soon as a task waits for the group of this thread."""
    group: ThreadGroup | None = getattr(_this_thread, "group", None)
    if group is None:  # a thread of another pool
        yield
        return
    group.add_stop(stop)
    try:
        yield
    finally:
        group.remove_stop(stop)


def set_if_pending(future: asyncio.Future[None]) -> None:
    """Set the result None, unless the future is done."""
    if not future.done():
        future.set_result(None)


async def _wait_until_ended(threads: list[threading.Thread]) -> None:
    """Wait until threads whose target has returned are not alive any more."""
    deadline = time.monotonic() + _EXIT_TIME
    for thread in threads:
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(_EXIT_STEP)
            await asyncio.sleep(0)
