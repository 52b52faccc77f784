"""Profile one thread, and summarize the profile."""

from __future__ import annotations

import asyncio
import io
import logging
import marshal
import os
import sys
from cProfile import Profile
from pstats import Stats
from threading import get_ident
from typing import TYPE_CHECKING, Any

from svcrun.errors import ProfilerActive, show

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Recording", "summarize")

log = logging.getLogger("svcrun.service.profiler")

# The functions of asyncio in which the event loop makes all calls. A profile omits them.
_LOOP_FOLDER = os.path.dirname(asyncio.__file__)
_LOOP_FUNCTIONS = frozenset({"run_until_complete", "run_forever", "_run_once", "_run"})
_CONTEXT_RUN = ("~", 0, "<method 'run' of '_contextvars.Context' objects>")

# An interpreter, or on Python 3.11 a thread, has one active profiler. On 3.11, a `Profile` that was
# replaced by another one deactivates that when it is freed. So replaced ones are never freed.
_replaced: list[Profile] = []


class Recording:
    """Record the calls of the calling thread until :meth:`end`.

    :param service: the service that records, for messages.

    :raises ProfilerActive: if another profiler, or a debugger, is active.
    """

    def __init__(self, service: object) -> None:
        self.profile = _ThreadProfile()
        self._service = service
        self._thread = get_ident()
        self._is_replaced = False
        found = _find_profiler() or _find_debugger()
        if found is not None:
            raise ProfilerActive(service, found)
        self.profile.enable()

    def read(self) -> list[Any]:
        """Return the entries so far, and go on."""
        self._disable()
        entries = self.profile.getstats()
        if not self._is_replaced:
            self.profile.enable()
        return entries

    def end(self) -> list[Any]:
        """Stop the recording, and return all entries."""
        self._disable()
        return self.profile.getstats()

    def _disable(self) -> None:
        """Deactivate the profiler, which completes the entries of calls in progress."""
        if self._is_replaced:
            return
        found = self._find_replacement()
        if found is None:
            self.profile.disable()
            return
        self._is_replaced = True
        _replaced.append(self.profile)
        log.warning("%s: profiling ended: %s", show(self._service), found)

    def _find_replacement(self) -> str | None:
        if sys.version_info < (3, 12) and get_ident() != self._thread:
            return "the profiler can only be disabled in the thread that started it"
        found = _find_profiler()
        if found == ("cProfile" if sys.version_info >= (3, 12) else self.profile):
            return None
        return "the profiler was disabled" if found is None else f"replaced by {found!r}"


class _ThreadProfile(Profile):
    """A profile of the calling thread.

    Since Python 3.12, :class:`cProfile.Profile` gets the calls of all threads and takes them for
    those of one, so that times are wrong. This class ignores the calls of other threads.
    """

    def __init__(self) -> None:
        super().__init__()
        for name in dir(self):
            if name.endswith("_callback"):
                setattr(self, name, _in_this_thread(getattr(self, name)))


def _in_this_thread(callback: Callable[..., object]) -> Callable[..., None]:
    thread = get_ident()

    def filtered(*args: object) -> None:
        if get_ident() == thread:
            callback(*args)

    return filtered


def summarize(entries: list[Any], order: str, count: int) -> tuple[str, bytes]:
    """Return a table, and the content of a file, of the entries of a profile.

    This takes long. The table omits the functions in which the event loop makes all calls.

    :param order: as of :meth:`pstats.Stats.sort_stats`.
    :param count: the number of functions in the table.
    """
    profile = Profile()
    profile.getstats = lambda: entries  # type: ignore[method-assign]
    profile.snapshot_stats()
    content = marshal.dumps(profile.stats)

    table = io.StringIO()
    stats: Any = Stats(stream=table)  # Stats(profile) would refuse a profile without calls
    stats.stats = profile.stats
    stats.get_top_level_stats()
    stats.stats = {key: calls for key, calls in stats.stats.items() if not _is_of_loop(key)}
    stats.strip_dirs().sort_stats(order).print_stats(count)
    return table.getvalue().strip(), content


def _is_of_loop(key: tuple[str, int, str]) -> bool:
    filename, _, name = key
    is_in_asyncio = os.path.dirname(filename) == _LOOP_FOLDER
    return key == _CONTEXT_RUN or (is_in_asyncio and name in _LOOP_FUNCTIONS)


def _find_profiler() -> object:
    """Return the active profiler of this thread or its name; None without one."""
    if sys.version_info >= (3, 12):
        tool = sys.monitoring.get_tool(sys.monitoring.PROFILER_ID)
        if tool is not None:
            return tool
    return sys.getprofile()


def _find_debugger() -> object:
    """Return the active debugger of this thread or its name; None without one.

    A tool that measures coverage is not a debugger.
    """
    if sys.version_info >= (3, 12):
        tool = sys.monitoring.get_tool(sys.monitoring.DEBUGGER_ID)
        if tool is not None:
            return tool
    tracer = getattr(sys.gettrace(), "__self__", None)
    return tracer if "bdb" in sys.modules and isinstance(tracer, sys.modules["bdb"].Bdb) else None
