"""The thread pool."""

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
    """The future of a job in the pool, which can be awaited as well."""

    def result(self, timeout: float | None = None) -> T:
        """Return the result, or raise the exception of the job.

        The base class takes an exception that is false, such as an empty one with a ``__len__``,
        for none at all and returns None.
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
    """Return the error that replaces a StopIteration or StopAsyncIteration.

    asyncio's future refuses a StopIteration, and would stay pending. A StopAsyncIteration would end
    an ``async for`` loop as if there were no more items.
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
    """Call `function` and settle `future`, whatever happens.

    Somebody else may have settled it before, or may do so meanwhile; then their outcome stays.
    It gets a RuntimeError for a StopIteration, see :func:`replace_unraisable`.
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
        except BaseException as error:  # noqa: BLE001 - it belongs to who waits, and not to the thread
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                future.set_exception(error)
        else:
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                future.set_result(result)
    except BaseException:
        log.critical("a callback of %r failed", future, exc_info=True)
    finally:
        # The traceback of an error refers to this frame, and the future to the error.
        del future


class _WorkerThreads:
    """The threads of a pool and the jobs they take.

    They know nothing of the pool itself, so a pool that nobody holds can be collected.
    """

    __slots__ = ("__weakref__", "jobs", "lock", "name", "size", "spare", "threads")

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self.name = name
        self.reset()

    def reset(self) -> None:
        """Begin without threads and without jobs."""
        self.lock = threading.Lock()
        self.threads = ThreadGroup()
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        # Threads that wait for a job, less jobs that wait for a thread.
        self.spare = 0

    def put(self, job: Job) -> None:
        """Queue a job, and start a thread for it unless one is waiting; call it under the lock.

        :raises RuntimeError: if there is no thread and none can be started.
        """
        self.spare -= 1
        if self.spare < 0 and len(self.threads) < self.size:
            try:
                self.start_thread()
            except Exception:
                if not len(self.threads):
                    self.spare += 1
                    raise
                log.warning("%s can't grow beyond %d threads", self.name, len(self.threads))
        self.jobs.put(job)

    def start_thread(self) -> None:
        number = len(self.threads) + 1
        if number == 1:
            _started.add(self)
        # Daemon threads: the interpreter does not wait for them at exit, so a job that hangs can't
        # hold the process.
        self.threads.start(self.work, (), name=f"{self.name}-{number}", daemon=True)

    def work(self) -> None:
        """Run jobs until dismissed; this is the life of a thread."""
        while True:
            with self.lock:
                self.spare += 1
            job = self.jobs.get()
            if job is None:
                self.jobs.put(None)  # for the next thread
                return
            run_job(*job)
            del job  # or it would live until the next one comes

    def dismiss(self) -> None:
        """Have the threads end when the jobs are done; safe in a finalizer."""
        self.jobs.put(None)

    def drain(self) -> list[concurrent.futures.Future[Any]]:
        """Take away the jobs that no thread has begun."""
        futures = []
        with contextlib.suppress(queue.Empty):
            while True:
                job = self.jobs.get_nowait()
                if job is not None:
                    futures.append(job[0])
        return futures


# Those with threads. A child process has none of its parent's threads, and locks as they were.
_started: weakref.WeakSet[_WorkerThreads] = weakref.WeakSet()


def _reset_in_child() -> None:
    for workers in tuple(_started):
        workers.reset()
    _started.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_child)

_pools: PerLoop[ThreadPoolExecutor] = PerLoop()


def get_pool(loop: asyncio.AbstractEventLoop) -> ThreadPoolExecutor | None:
    """Return the pool that was attached to `loop` last, None without one."""
    return _pools.get(loop)


class ThreadPoolExecutor(concurrent.futures.thread.ThreadPoolExecutor):
    """A :class:`concurrent.futures.ThreadPoolExecutor` that can't hold up the end of a program.

    Threads are started when there is a job for them, and are used again. They are daemons, so a
    job that never returns does not keep the process alive, and :meth:`close` tells what it does.

    :param max_workers: the largest number of threads; one for each processor by default, but at
        least 4 and at most 32.
    :param thread_name_prefix: threads are called this, ``-`` and a number.
    :param statistic_name: aiomisc's name for the same parameter.

    :raises ValueError: if there would be no thread.
    :raises TypeError: if a parameter is of another type.

    An entrypoint makes one of its ``pool_size`` for the event loop. By hand:

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
        # The base class is there for asyncio, which accepts no other; nothing of it is used.
        if max_workers is None:
            max_workers = self.DEFAULT_POOL_SIZE
        number(low=1, whole=True, unit="threads")(self, "max_workers", max_workers)
        self._max_workers = max_workers
        self._shutdown = False
        self._loops: list[asyncio.AbstractEventLoop] = []
        self._workers = _WorkerThreads(max_workers, statistic_name or thread_name_prefix)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> JobFuture[T]:
        """Have ``fn(*args, **kwargs)`` called in a thread, and return the future of its result.

        It can be awaited. ``asyncio.wait()`` needs ``loop.run_in_executor()`` instead.

        :raises PoolClosed: a :class:`RuntimeError`, after :meth:`shutdown` or :meth:`close`.
        :raises RuntimeError: if there is no thread and none can be started.
        """
        future: JobFuture[T] = JobFuture()
        workers = self._workers
        with workers.lock:
            if self._shutdown:
                raise PoolClosed(f"{workers.name} is shut down and takes no more work; got {fn!r}")
            workers.put((future, fn, args, kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs, and let the threads end when those at hand are done.

        :param wait: block until the threads have ended.
        :param cancel_futures: cancel the jobs that no thread has begun.
        """
        workers = self._workers
        with workers.lock:
            self._shutdown = True
            dropped = workers.drain() if cancel_futures else []
            workers.dismiss()
        while self._loops:
            _pools.discard(self._loops.pop(), self)
        # Not under the lock: this runs callbacks.
        for future in dropped:
            if future.cancel():
                future.set_running_or_notify_cancel()
        if wait:
            workers.threads.join()

    async def close(self, timeout: float | None = None) -> list[HungThread]:
        """End the pool without blocking the event loop.

        Jobs that no thread has begun are cancelled, the others are waited for.

        :param timeout: seconds to wait; without limit by default.

        Returns the threads that have not ended by then. They are given up: nothing waits for them
        any more.
        """
        self.shutdown(wait=False, cancel_futures=True)
        return await self._workers.threads.wait(timeout)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have `threaded` functions that are called on `loop` use this pool until its end.

        The default executor of the loop stays as it is.
        """
        self._loops.append(loop)
        _pools.add(loop, self)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # its construction failed
            self._workers.dismiss()
