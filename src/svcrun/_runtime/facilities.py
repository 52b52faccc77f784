"""The log and the thread pool of an entrypoint."""

from __future__ import annotations

from svcrun._runtime.loop_cleanup import end_executor, end_threads
from svcrun._runtime.options import log_options
from svcrun._util.drain import GRACE_PERIOD
from svcrun._util.hints import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from svcrun._runtime.loop_cleanup import Deadline
    from svcrun._runtime.options import Options
    from svcrun.log import LogSession
    from svcrun.thread_pool.executor import ThreadPoolExecutor

__all__ = ("Facilities",)


class Facilities:
    """The log configuration and the default executor, from :meth:`set_up` to :meth:`dispose`.

    :param options: the options of the entrypoint.
    :param owns_loop: whether the entrypoint has created `loop` and will close it.
    """

    def __init__(
        self, options: Options, loop: asyncio.AbstractEventLoop, *, owns_loop: bool
    ) -> None:
        self._options = options
        self._loop = loop
        self._owns_loop = owns_loop
        self.pool: ThreadPoolExecutor | None = None
        """The thread pool of the entrypoint, if it has one."""
        self._log: LogSession | None = None

    def set_up(self) -> None:
        """Configure the log, and create the thread pool."""
        if self._options.log_config:
            from svcrun.log import basic_config

            self._log = basic_config(loop=self._loop, **log_options(self._options))
        if self._owns_loop or self._options.pool_size is not None:
            from svcrun.thread_pool.executor import ThreadPoolExecutor  # asyncio's own is as late

            self.pool = pool = ThreadPoolExecutor(self._options.pool_size)
            if self._owns_loop:
                self._loop.set_default_executor(pool)
            else:
                pool.attach(self._loop)

    async def end_threads(self, deadline: Deadline) -> bool:
        """End the threads of the pool and of an owned loop; return whether all ended in time."""
        ended = self.pool is None or await end_threads(self.pool, deadline)
        if self._owns_loop:
            ended &= await end_executor(self._loop, deadline)
        return ended

    def flush_log(self) -> None:
        """Write the buffered records."""
        if self._log is not None:
            self._log.flush(timeout=GRACE_PERIOD)

    def dispose(self, timeout: float) -> None:
        """Undo :meth:`set_up` as far as it came.

        :param timeout: seconds for writing the log.
        """
        if self.pool is not None and not self._owns_loop:  # loop.close() shuts down its executor
            self.pool.shutdown(wait=False, cancel_futures=True)
        if self._log is not None:
            self._log.close(timeout=timeout)
