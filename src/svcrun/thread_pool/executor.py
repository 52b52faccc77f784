"""A thread pool that never delays the end of a program."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import contextlib
import logging
import os
import queue
import threading
import weakref

from svcrun._util.hints import TYPE_CHECKING, Any, ParamSpec, TypeVar
from svcrun._util.per_loop import PerLoop
from svcrun._util.validation import number
from svcrun.errors import PoolClosed
from svcrun.thread_pool.thread_group import HungThread, ThreadGroup

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    Job = tuple[
        "concurrent.futures.Future[Any]",
        Callable[..., Any],
        tuple[Any, ...],
        dict[str, Any],
    ]

P = ParamSpec("P")
T = TypeVar("T")

__all__ = (
    "JobFuture",
    "ThreadPoolExecutor",
    "get_pool",
    "replace_unraisable",
    "run_job",
)

log = logging.getLogger("svcrun.thread_pool")


class JobFuture(concurrent.futures.Future[T]):
    """The future of a job in the pool; it is awaitable."""

    def result(self, timeout: float | None = None) -> T:
        """Return the result, or raise the exception of the job.

        The base class ignores an exception that is false, such as one whose ``__len__()`` is 0.
        """
        error = self.exception(timeout)
        if error is None:
            return super().result()
        try:
            raise error
        finally:
            del error, self  # the traceback refers to this frame

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self).__await__()


def replace_unraisable(error: BaseException) -> RuntimeError:
    """Return a RuntimeError that replaces a StopIteration or StopAsyncIteration.

    A future of asyncio refuses a StopIteration, and would stay pending. A StopAsyncIteration would
    end an ``async for`` loop as if there were no more items.
    """
    replacement = RuntimeError(f"a call in a thread raised {type(error).__name__}")
    replacement.__cause__ = error
    return replacement


def run_job(
    future: concurrent.futures.Future[T],
    function: Callable[..., T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Call `function`, and set its result or exception on `future`.

    Race: other code may set the result of the future before or during the call. Then that result
    stays. A StopIteration becomes a RuntimeError, see :func:`replace_unraisable`.
    """
    try:
        if future.done() and not future.cancelled():
            return
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = function(*args, **kwargs)
        except StopIteration as error:
            replacement = replace_unraisable(error)
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                future.set_exception(replacement)
            del replacement
        except BaseException as error:  # noqa: BLE001 - it is for the awaiting task
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                future.set_exception(error)
        else:
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                future.set_result(result)
    except BaseException:
        log.critical("a callback of %r failed", future, exc_info=True)
    finally:
        # A reference cycle: the future refers to its error, whose traceback refers to this frame.
        del future


class _WorkerThreads:
    """The threads of a pool and the queue of their jobs.

    Invariant: they do not refer to the pool, so a pool that the program drops is collected.
    """

    __slots__ = ("__weakref__", "idle", "jobs", "lock", "name", "size", "threads")

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self.name = name
        self.reset()

    def reset(self) -> None:
        """Start afresh without threads and jobs; a forked child calls this."""
        self.lock = threading.Lock()
        self.threads = ThreadGroup()
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        # The number of idle threads minus the number of queued jobs.
        self.idle = 0

    def put(self, job: Job) -> None:
        """Queue a job, and start a thread unless one is idle; the caller holds the lock.

        :raises RuntimeError: if the pool has no thread and cannot start one.
        """
        # Invariant: the thread that takes the job adds the 1 again when it is idle.
        self.idle -= 1
        if self.idle < 0 and len(self.threads) < self.size:
            try:
                self.start_thread()
            except Exception:
                if not len(self.threads):
                    self.idle += 1
                    raise
                log.warning("%s can't grow beyond %d threads", self.name, len(self.threads))
        self.jobs.put(job)

    def start_thread(self) -> None:
        number = len(self.threads) + 1
        if number == 1:
            _started.add(self)
        # The interpreter does not wait for daemon threads, so a hung job cannot delay its exit.
        self.threads.start(self.work, (), name=f"{self.name}-{number}", daemon=True)

    def work(self) -> None:
        """Run jobs until :meth:`stop`; each thread calls this."""
        while True:
            with self.lock:
                self.idle += 1
            job = self.jobs.get()
            if job is None:
                self.jobs.put(None)  # stop the next thread
                return
            run_job(*job)
            del job  # or the job would stay alive until the next one

    def stop(self) -> None:
        """Make the threads end after the queued jobs; safe in a finalizer."""
        self.jobs.put(None)

    def take_queued(self) -> list[concurrent.futures.Future[Any]]:
        """Remove the queued jobs, and return their futures."""
        futures = []
        with contextlib.suppress(queue.Empty):
            while True:
                job = self.jobs.get_nowait()
                if job is not None:
                    futures.append(job[0])
        return futures


# The instances with threads. A forked child has none of these threads, and its copies of their
# locks may be held.
_started: weakref.WeakSet[_WorkerThreads] = weakref.WeakSet()


def _reset_in_child() -> None:
    for workers in tuple(_started):
        workers.reset()
    _started.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_child)

_pools: PerLoop[ThreadPoolExecutor] = PerLoop()


def get_pool(loop: asyncio.AbstractEventLoop) -> ThreadPoolExecutor | None:
    """Return the pool that was last attached to `loop`, or None."""
    return _pools.get(loop)


class ThreadPoolExecutor(concurrent.futures.thread.ThreadPoolExecutor):
    """A :class:`concurrent.futures.ThreadPoolExecutor` that never delays the end of a program.

    Threads start on demand and are reused. They are daemon threads, so a job that never returns
    does not keep the process alive. :meth:`close` returns such threads with their stacks.

    An entrypoint creates a pool of ``pool_size`` threads for its event loop.

    :param max_workers: the most threads; by default one per processor, at least 4 and at most 32.
    :param thread_name_prefix: the beginning of the names of threads; ``-`` and a number follow.
    :param statistic_name: aiomisc's name of the same parameter.

    :raises ValueError: if `max_workers` is less than 1.
    :raises TypeError: if `max_workers` is not an integer.

    >>> import asyncio
    >>> async def main():
    ...     pool = ThreadPoolExecutor(4)
    ...     asyncio.get_running_loop().set_default_executor(pool)
    ...     print(await asyncio.to_thread(divmod, 7, 4))
    ...     for hung in await pool.close(timeout=10):
    ...         print(hung)
    >>> asyncio.run(main())
    (1, 3)
    """

    DEFAULT_POOL_SIZE = min(max(os.cpu_count() or 1, 4), 32)

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "svcrun-pool",
        *,
        statistic_name: str | None = None,
    ) -> None:
        # asyncio requires this base class; no method of it is used, not even __init__().
        if max_workers is None:
            max_workers = self.DEFAULT_POOL_SIZE
        number(low=1, whole=True, unit="threads")(self, "max_workers", max_workers)
        self._is_shut_down = False
        self._loops: list[asyncio.AbstractEventLoop] = []
        self._workers = _WorkerThreads(max_workers, statistic_name or thread_name_prefix)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> JobFuture[T]:
        """Call ``fn(*args, **kwargs)`` in a thread, and return an awaitable future of its result.

        ``asyncio.wait()`` does not accept this future; it needs ``loop.run_in_executor()``.

        :raises PoolClosed: a :class:`RuntimeError`, after :meth:`shutdown` or :meth:`close`.
        :raises RuntimeError: if the pool has no thread and cannot start one.
        """
        workers = self._workers
        with workers.lock:
            if self._is_shut_down:
                raise PoolClosed(f"{workers.name} is shut down and takes no more work; got {fn!r}")
            future: JobFuture[T] = JobFuture()
            workers.put((future, fn, args, kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more jobs, and end the threads after the accepted ones.

        :param wait: whether to block until the threads have ended.
        :param cancel_futures: whether to cancel the jobs that have not started.
        """
        workers = self._workers
        with workers.lock:
            self._is_shut_down = True
            dropped = workers.take_queued() if cancel_futures else []
            workers.stop()
        while self._loops:
            _pools.discard(self._loops.pop(), self)
        # Without the lock, because this runs callbacks of the program.
        for future in dropped:
            if future.cancel():
                future.set_running_or_notify_cancel()
        if wait:
            workers.threads.join()

    async def close(self, timeout: float | None = None) -> list[HungThread]:
        """Close the pool without blocking the event loop.

        Jobs that have not started are cancelled. Then the pool waits for the others.

        :param timeout: seconds to wait; by default without limit.
        :return: the threads that did not end in time. They are abandoned.
        """
        self.shutdown(wait=False, cancel_futures=True)
        return await self._workers.threads.wait(timeout)

    @property
    def size(self) -> int:
        """The maximum number of threads."""
        return self._workers.size

    @property
    def busy(self) -> int:
        """The number of threads that run a job."""
        workers = self._workers
        return max(len(workers.threads) - max(workers.idle, 0), 0)

    @property
    def waiting(self) -> int:
        """The number of jobs that wait for a thread."""
        workers = self._workers
        return max(-workers.idle, 0)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use this pool for :func:`threaded` functions that are called on `loop`, until its end.

        The default executor of the loop does not change.
        """
        self._loops.append(loop)
        _pools.add(loop, self)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # __init__() raised
            self._workers.stop()
