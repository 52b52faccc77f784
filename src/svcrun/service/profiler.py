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
from svcrun.periodic import PeriodicCallback
from svcrun.service._internals import overridable, part_of
from svcrun.service._parameters import parameter
from svcrun.service.base import Service
from svcrun.thread_pool.separate_threads import start_in_new_thread

if TYPE_CHECKING:
    from cProfile import Profile

    from svcrun._insight.flame_graph import Sampler

__all__ = ("Profiler",)

log = logging.getLogger(__name__)

_ORDER = "a pstats.SortKey such as 'cumulative', 'tottime' or 'ncalls'"
_PATH = "the path of a file or None"


def _check_order(owner: object, name: str, value: Any) -> Any:
    if not isinstance(value, str):
        raise ParameterTypeError(owner, name, value, _ORDER)
    order = value.value if isinstance(value, SortKey) else value
    if order not in Stats().get_sort_arg_defs():
        raise ParameterError(owner, name, value, _ORDER)
    return value


def _check_path(owner: object, name: str, value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise ParameterTypeError(owner, name, value, _PATH)
    if not os.fspath(value):
        raise ParameterError(owner, name, value, _PATH)
    return value


class Profiler(Service, base=True):
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
    interval: float = parameter(default=10, check=number(above=0, unit="seconds"))
    top_results: int = parameter(default=10, check=number(low=1, whole=True))
    order: str | SortKey = parameter(default="cumulative", check=_check_order)
    path: str | os.PathLike[str] | None = parameter(default=None, check=_check_path)
    flamegraph: str | os.PathLike[str] | None = parameter(default=None, check=_check_path)
    sample_interval: float = parameter(
        default=0.01, check=number(above=0, high=threading.TIMEOUT_MAX, unit="seconds")
    )

    def _svcrun_check_together(self) -> None:
        super()._svcrun_check_together()
        part_of(self, _Profiling)
        if self.flamegraph is None:
            return
        try:
            import svcrun._insight.flame_graph  # noqa: F401 - to fail now, not in start()
        except ImportError as error:
            raise ImportError(
                "svcrun.service.Profiler(flamegraph=...) needs pyinstrument: "
                "pip install 'svcrun[flamegraph]'"
            ) from error
        path = os.path.abspath(self.flamegraph)
        if self.path is not None and os.path.abspath(self.path) == path:
            raise ParameterError(self, "flamegraph", self.flamegraph, "a file other than path")

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
        await start_in_new_thread(asyncio.get_running_loop(), write, name="svcrun-profiler")

    def _write_in_thread(self, entries: list[Any]) -> None:
        service = self._service
        table, content = summarize(entries, service.order, service.top_results)
        log.info("%s", table)
        if self._profile_file is not None:
            self._profile_file.write(content)
        if self._graph_file is not None and self.sampler is not None:
            self._graph_file.write(self.sampler.render().encode(errors="backslashreplace"))
