"""A group of threads that an event loop can wait for without being blocked."""

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

__all__ = ("HungThread", "ThreadGroup", "stoppable")

# How long a thread may take from its last line of ours until it is gone: some microseconds, but
# destructors of thread-local values run in it.
_EXIT_TIME = 1.0
_EXIT_STEP = 0.002

_this_thread = threading.local()


class HungThread:
    """A thread that did not end in time: its name and where it was then.

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
    """Threads that are started and waited for together."""

    __slots__ = ("_leaving", "_lock", "_stops", "_threads", "_waiters")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        # Those that have run their last line and may still be there.
        self._leaving: list[threading.Thread] = []
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._stops: list[Callable[[], object]] = []

    def __len__(self) -> int:
        return len(self._threads)

    def start(
        self, target: Callable[..., object], args: tuple[Any, ...], *, name: str, daemon: bool
    ) -> None:
        """Start a thread that belongs to the group until ``target(*args)`` returns.

        :raises RuntimeError: if the system has no more threads to give.
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
            # The traceback of an error leads to this frame, and the arguments perhaps to the error.
            del args
            self._leave()

    def _leave(self) -> None:
        thread = threading.current_thread()
        with self._lock:
            self._threads.discard(thread)
            self._leaving = [other for other in self._leaving if other.is_alive()]
            self._leaving.append(thread)
            if self._threads:
                return
            waiters, self._waiters = self._waiters, []
        for loop, ended in waiters:
            with contextlib.suppress(RuntimeError):  # a closed loop waits for nothing
                loop.call_soon_threadsafe(_set, ended)

    def join(self) -> None:
        """Block until all threads have ended."""
        with self._lock:
            threads = (*self._threads, *self._leaving)
        for thread in threads:
            thread.join()

    async def wait(self, timeout: float | None = None) -> list[HungThread]:
        """Wait for the end of all threads, and give up those that take too long.

        :param timeout: seconds to wait; without limit by default.

        Returns the threads that did not end. The group forgets them.
        """
        if self._threads:
            loop = asyncio.get_running_loop()
            deadline = None if timeout is None else loop.time() + timeout
            # It may fill again before this task gets to run.
            while self._threads and await self._becomes_empty(
                None if deadline is None else deadline - loop.time()
            ):
                pass
        with self._lock:
            hung, self._threads = self._threads, set()
            leaving, self._leaving = self._leaving, []
        if leaving:
            await _wait_until_gone(leaving)
        threads = sorted(hung, key=lambda thread: thread.name)
        return [found for found in map(HungThread, threads) if found.stack]

    async def _becomes_empty(self, timeout: float | None) -> bool:
        """Wait until there are no threads, and tell whether that happened in time."""
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
        """Call `stop` when somebody waits for the group, now if somebody does so already."""
        with self._lock:
            self._stops.append(stop)
            late = bool(self._waiters)
        if late:
            stop()

    def remove_stop(self, stop: Callable[[], object]) -> None:
        """Don't call `stop` any more."""
        with self._lock:
            self._stops.remove(stop)


@contextlib.contextmanager
def stoppable(stop: Callable[[], object]) -> Iterator[None]:
    """Mark what this thread does in the block as something that `stop` ends.

    It is called when the group of the thread is waited for.
    """
    group: ThreadGroup | None = getattr(_this_thread, "group", None)
    if group is None:  # a thread of somebody else's pool
        yield
        return
    group.add_stop(stop)
    try:
        yield
    finally:
        group.remove_stop(stop)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _wait_until_gone(threads: list[threading.Thread]) -> None:
    """Wait until threads that have run their last line are gone, so that none counts as alive."""
    deadline = time.monotonic() + _EXIT_TIME
    for thread in threads:
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(_EXIT_STEP)
            await asyncio.sleep(0)
