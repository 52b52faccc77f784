"""A service that profiles the event loop's thread."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from functools import partial
from pstats import SortKey, Stats
from typing import TYPE_CHECKING, Any

from svcrun._insight.atomic_file import AtomicFile
from svcrun._insight.profiling import Recording, summarize
from svcrun._util.current_service import name_of
from svcrun._util.validation import number
from svcrun.errors import AlreadyRunning, ParameterError, ParameterTypeError
from svcrun.periodic import PeriodicCallback, check_period
from svcrun.service._internals import overridable, part_of
from svcrun.service.base import Service
from svcrun.thread_pool.separate_threads import run_in_new_thread

if TYPE_CHECKING:
    from cProfile import Profile

    from svcrun._insight.flame_graph import Sampler

__all__ = ("Profiler",)

log = logging.getLogger(__name__)

_ORDER = "a pstats.SortKey such as 'cumulative', 'tottime' or 'ncalls'"
_PATH = "the path of a file or None"


class Profiler(Service):
    """Log, every `interval` seconds, the functions that took most time since the start.

    :class:`cProfile.Profile` records the calls of the event loop's thread; :attr:`profiler` is the
    one of the last start. Another thread makes the tables. It logs the first table at the start,
    and the last one at the stop.

    :param interval: seconds between two tables; 10 by default.
    :param top_results: the number of functions in a table; 10 by default.
    :param order: the order of a table: a :class:`pstats.SortKey`, or its value, which may be
        shortened; ``"cumulative"`` by default.
    :param path: a file that is replaced with each table by the profile so far, for
        :class:`pstats.Stats`, snakeviz and others; none by default.
    :param flamegraph: a file that is replaced with each table by a flame graph, an HTML page
        without external resources; none by default. Calls are grouped by service. The time in which
        the loop waits is omitted.
    :param sample_interval: seconds between two samples for the flame graph; 0.01 by default.

    A file that can't be written is retried with each table, and logged once.

    :raises ValueError, TypeError: naming the parameter that has a wrong value.
    :raises ImportError: if `flamegraph` is given and pyinstrument is not installed.

    >>> import time
    >>> from svcrun import entrypoint
    >>> from svcrun.service.profiler import Profiler
    >>> with entrypoint(profiler := Profiler(interval=60), log_config=False):
    ...     time.sleep(0.01)
    >>> any("time.sleep" in str(entry.code) for entry in profiler.profiler.getstats())
    True
    """

    name: str | None = "profiler"
    interval: float = 10
    top_results: int = 10
    order: str | SortKey = "cumulative"
    path: str | os.PathLike[str] | None = None
    flamegraph: str | os.PathLike[str] | None = None
    sample_interval: float = 0.01

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.__check_parameters()
        part_of(self, _Profiling)

    @overridable
    def profiler(self) -> Profile:
        """The profile since the last start."""
        return part_of(self, _Profiling).profile

    @overridable
    def periodic(self) -> PeriodicCallback:
        """The :class:`PeriodicCallback` that logs and counts the tables."""
        return part_of(self, _Profiling).periodic

    async def start(self) -> None:
        """Start the profile, and write the first table and files.

        :raises ProfilerActive: if another profiler, or a debugger, is active.
        """
        own = part_of(self, _Profiling)
        if own.recording is not None:
            raise AlreadyRunning(self)
        own.recording = Recording(self)
        own.profile = own.recording.profile
        loop = asyncio.get_running_loop()
        try:
            if self.flamegraph is not None:
                from svcrun._insight.flame_graph import Sampler

                own.sampler = Sampler(loop, self.sample_interval)
            own.has_reported = asyncio.Event()
            own.periodic.start(self.interval, loop=loop)
            await own.has_reported.wait()
        except BaseException:
            own.end()
            _ = own.periodic.stop(return_exceptions=True)
            raise

    async def stop(self, exception: Any = None) -> None:
        """Stop the profile, and write the last table and files."""
        own = part_of(self, _Profiling)
        if own.recording is not None:
            entries = own.end()
            await own.periodic.finish()
            await own.write(entries)
        await super().stop(exception)

    def __check_parameters(self) -> None:
        check_period(self, self.interval, 0)
        number(low=1, whole=True)(self, "top_results", self.top_results)
        self.__check_order()
        for name in ("path", "flamegraph"):
            self.__check_path(name)
        if self.flamegraph is not None:
            self.__check_flamegraph(self.flamegraph)

    def __check_order(self) -> None:
        if not isinstance(self.order, str):
            raise ParameterTypeError(self, "order", self.order, _ORDER)
        order = self.order.value if isinstance(self.order, SortKey) else self.order
        if order not in Stats().get_sort_arg_defs():
            raise ParameterError(self, "order", self.order, _ORDER)

    def __check_path(self, name: str) -> None:
        path = getattr(self, name)
        if path is None:
            return
        if not isinstance(path, str | os.PathLike):
            raise ParameterTypeError(self, name, path, _PATH)
        if not os.fspath(path):
            raise ParameterError(self, name, path, _PATH)

    def __check_flamegraph(self, path: str | os.PathLike[str]) -> None:
        try:
            import svcrun._insight.flame_graph  # noqa: F401 - to fail now, not in start()
        except ImportError as error:
            raise ImportError(
                "svcrun.service.Profiler(flamegraph=...) needs pyinstrument: "
                "pip install 'svcrun[flamegraph]'"
            ) from error
        seconds, longest = self.sample_interval, threading.TIMEOUT_MAX
        number(above=0, high=longest, unit="seconds")(self, "sample_interval", seconds)
        if self.path is not None and os.path.abspath(self.path) == os.path.abspath(path):
            raise ParameterError(self, "flamegraph", path, "a file other than path")


class _Profiling:
    """The recording of a service, and the files that it writes."""

    profile: Profile

    def __init__(self, service: Profiler) -> None:
        self._service = service
        self._profile_file = None if service.path is None else AtomicFile(service, service.path)
        self._graph_file = (
            None if service.flamegraph is None else AtomicFile(service, service.flamegraph)
        )
        self.periodic = PeriodicCallback(self.report, name=name_of(service))
        self.recording: Recording | None = None
        self.sampler: Sampler | None = None
        self.has_reported = asyncio.Event()

    def end(self) -> list[Any]:
        """Stop the recording, and return its entries."""
        recording, self.recording = self.recording, None
        if self.sampler is not None:
            self.sampler.stop()
        return [] if recording is None else recording.end()

    async def report(self) -> None:
        """Log a table, and write the files."""
        try:
            if self.recording is not None:
                await self.write(self.recording.read())
        finally:
            self.has_reported.set()

    async def write(self, entries: list[Any]) -> None:
        """Log a table of `entries` and write the files, in a thread."""
        write = partial(self._write_in_thread, entries)
        await run_in_new_thread(asyncio.get_running_loop(), write, name="svcrun-profiler")

    def _write_in_thread(self, entries: list[Any]) -> None:
        service = self._service
        table, content = summarize(entries, service.order, service.top_results)
        log.info("%s", table)
        if self._profile_file is not None:
            self._profile_file.write(content)
        if self._graph_file is not None and self.sampler is not None:
            self._graph_file.write(self.sampler.render().encode(errors="backslashreplace"))
