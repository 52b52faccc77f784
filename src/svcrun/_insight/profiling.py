"""The interpreter's one place for a profiler: taken, read, and given back."""

from __future__ import annotations

import asyncio
import io
import logging
import marshal
import sys
from cProfile import Profile
from pstats import Stats
from threading import get_ident
from typing import TYPE_CHECKING, Any

from svcrun.errors import ProfilerActive, show

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcrun.service.base import Service

__all__ = ("Recording", "summarize")

log = logging.getLogger("svcrun.service.profiler")

# The functions of asyncio in which all others are called, as a profile names them. From Python 3.14
# on, a handle of call_soon_threadsafe() has a `_run` of its own.
_LOOP = {
    ("~", 0, "<method 'run' of '_contextvars.Context' objects>"),
    *(
        (code.co_filename, code.co_firstlineno, code.co_name)
        for code in (
            asyncio.BaseEventLoop.run_until_complete.__code__,
            asyncio.BaseEventLoop.run_forever.__code__,
            asyncio.BaseEventLoop._run_once.__code__,  # type: ignore[attr-defined]  # noqa: SLF001 - it is in a profile
            *(
                kind.__dict__["_run"].__code__
                for kind in (asyncio.Handle, *asyncio.Handle.__subclasses__())
                if "_run" in kind.__dict__
            ),
        )
    ),
}

# An interpreter, or on Python 3.11 a thread, has one place for a profiler. There, a `Profile` that
# has lost it empties the place when it is freed, whoever has it by then. So it is kept.
_ousted: list[Profile] = []


class Recording:
    """The calls of the thread that makes this, from then on until :meth:`end`.

    :param service: whom it is for.

    :raises ProfilerActive: if another profiler, or a debugger, is at work.
    """

    def __init__(self, service: Service) -> None:
        self.profile = _ThreadProfile()
        self._service = service
        self._thread = get_ident()
        self._is_ousted = False
        found = _find_profiler() or _find_debugger()
        if found is not None:
            raise ProfilerActive(service, found)
        self.profile.enable()

    def read(self) -> list[Any]:
        """Return what was measured so far, and go on."""
        self._disable()
        entries = self.profile.getstats()
        if not self._is_ousted:
            self.profile.enable()
        return entries

    def end(self) -> list[Any]:
        """Measure no more, and return all that was measured."""
        self._disable()
        return self.profile.getstats()

    def _disable(self) -> None:
        """Empty the place, which completes the calls under way, unless it is not ours any more."""
        if self._is_ousted:
            return
        found = self._find_usurper()
        if found is None:
            self.profile.disable()
            return
        self._is_ousted = True
        _ousted.append(self.profile)
        log.warning("%s measures no more: %s", show(self._service), found)

    def _find_usurper(self) -> str | None:
        if sys.version_info < (3, 12) and get_ident() != self._thread:
            return "it was started in another thread, which alone can switch it off"
        found = _find_profiler()
        if found == ("cProfile" if sys.version_info >= (3, 12) else self.profile):
            return None
        return "it was switched off" if found is None else f"{found!r} has taken its place"


class _ThreadProfile(Profile):
    """Measures the thread that makes it.

    From Python 3.12 on, a profile is told of the calls of all threads, and takes them for those of
    one: a call seems to last while others come and go. So it is told of those of one thread.
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
    """Return a table, and the content of a file, for the entries of a profile.

    This takes a while. The table leaves out what the event loop makes all calls in.

    :param order: as of :meth:`pstats.Stats.sort_stats`.
    :param count: how many functions the table has.
    """
    profile = Profile()
    profile.getstats = lambda: entries  # type: ignore[method-assign]
    profile.snapshot_stats()
    content = marshal.dumps(profile.stats)

    table = io.StringIO()
    stats: Any = Stats(stream=table)  # which would refuse a profile without a call
    stats.stats = profile.stats
    stats.get_top_level_stats()
    stats.stats = {key: calls for key, calls in stats.stats.items() if key not in _LOOP}
    stats.strip_dirs().sort_stats(order).print_stats(count)
    return table.getvalue().strip(), content


def _find_profiler() -> object:
    """Return what profiles this thread, or the name that it goes by; None if nothing does."""
    if sys.version_info >= (3, 12):
        tool = sys.monitoring.get_tool(sys.monitoring.PROFILER_ID)
        if tool is not None:
            return tool
    return sys.getprofile()


def _find_debugger() -> object:
    """Return what debugs this thread, or its name; what measures coverage does not."""
    if sys.version_info >= (3, 12):
        tool = sys.monitoring.get_tool(sys.monitoring.DEBUGGER_ID)
        if tool is not None:
            return tool
    tracer = getattr(sys.gettrace(), "__self__", None)
    return tracer if "bdb" in sys.modules and isinstance(tracer, sys.modules["bdb"].Bdb) else None
