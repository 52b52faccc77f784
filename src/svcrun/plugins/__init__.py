"""Load the plug-ins of installed distributions before the first entrypoint is made.

A plug-in is a module. A distribution declares it as an entry point of the group
``svcrun.plugins``::

    [project.entry-points."svcrun.plugins"]
    example = "example.plugin"

The module has a function ``setup()`` without parameters. It is called once in a process, and
connects receivers to the signals of all entrypoints, for instance.
``python -m svcrun.plugins`` lists the plug-ins.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
from collections.abc import Mapping

from svcrun._util.environment import Environment
from svcrun._util.hints import TYPE_CHECKING, Any, Final
from svcrun.plugins.search import may_have

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from importlib.metadata import EntryPoint

__all__ = ("load_plugins", "plugins", "report_plugins")

log = logging.getLogger(__name__)

GROUP: Final = "svcrun.plugins"

_loaded: dict[str, Any] = {}
# Race: two threads may make the first entrypoint at the same time. One loads the plug-ins, and the
# other waits for it. The lock is reentrant, because setup() of a plug-in may make an entrypoint:
# a plain lock would deadlock there.
_lock = threading.RLock()
_is_done = False
_is_loading = False
# The log records until logging is configured: level, message, arguments, exception.
_reports: list[tuple[int, str, tuple[object, ...], BaseException | None]] = []


class Plugins(Mapping[str, Any]):
    """Map the name of each plug-in that was set up to its module.

    The first access loads the plug-ins. ``repr()`` does not load them.
    """

    def __getitem__(self, name: str) -> Any:
        load_plugins()
        return _loaded[name]

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(tuple(_loaded))

    def __len__(self) -> int:
        load_plugins()
        return len(_loaded)

    def __repr__(self) -> str:
        return f"<Plugins {', '.join(_loaded)}>"


plugins = Plugins()


def load_plugins() -> None:
    """Load and set up the plug-ins, once in a process, unless ``SVCRUN_NO_PLUGINS`` is on.

    A plug-in that fails is skipped, and :func:`report_plugins` logs its exception. A second thread
    waits until the first one has loaded the plug-ins.

    :raises ValueError: if the value of the variable means neither on nor off.
    """
    global _is_done, _is_loading  # noqa: PLW0603 - it is done once
    if _is_done or Environment().switch("NO_PLUGINS"):
        return
    with _lock:
        if _has_begun():
            return
        _is_loading = True
        try:
            if may_have(GROUP):
                _set_up(_find())
            _is_done = True
        finally:
            _is_loading = False
    # Without a handler, the records would be lost. The entrypoint logs them later.
    if log.hasHandlers() and log.isEnabledFor(logging.INFO):
        report_plugins()


def _has_begun() -> bool:
    return _is_done or _is_loading


def _find() -> list[EntryPoint]:
    from importlib.metadata import entry_points

    try:
        found: Iterable[EntryPoint] = entry_points(group=GROUP)
    except Exception:  # noqa: BLE001 - one unreadable distribution makes the whole call fail
        found = _find_one_by_one()
    return sorted(found, key=lambda entry_point: entry_point.name)


def _find_one_by_one() -> Iterable[EntryPoint]:
    from importlib.metadata import distributions

    found: dict[tuple[str, str], EntryPoint] = {}  # a distribution may be found twice
    for distribution in distributions():
        name = "a distribution"
        try:
            name = distribution.metadata["Name"] or name
            for entry_point in distribution.entry_points:
                if entry_point.group == GROUP:
                    found.setdefault((entry_point.name, entry_point.value), entry_point)
        except Exception as error:  # noqa: BLE001
            _report(logging.WARNING, "could not look for plug-ins of %s", name, error=error)
    return found.values()


def _set_up(found: Iterable[EntryPoint]) -> None:
    for entry_point in found:
        name = entry_point.name
        if name in _loaded:
            name = f"{name} ({entry_point.value})"
        try:
            plugin = entry_point.load()
            result = plugin.setup()
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError("setup() must be a plain function, not a coroutine function")
        # A module may run a program when it is imported, and raise SystemExit at its end.
        except (Exception, SystemExit, asyncio.CancelledError) as error:  # noqa: BLE001
            _report(logging.WARNING, "plug-in %s (%s) failed", name, entry_point.value, error=error)
        else:
            _loaded[name] = plugin
    if _loaded:
        _report(logging.INFO, "loaded plug-ins: %s", ", ".join(_loaded))


def _report(level: int, message: str, *args: object, error: BaseException | None = None) -> None:
    _reports.append((level, message, args, error))


def report_plugins() -> None:
    """Log the plug-ins that were loaded and those that failed, once.

    An entrypoint loads plug-ins before it configures logging, and calls this afterwards.
    """
    while _reports:
        level, message, args, error = _reports.pop(0)
        log.log(level, message, *args, exc_info=error)


def _after_fork() -> None:
    """Replace the lock in a forked child: the thread that held it does not exist there."""
    global _lock, _is_loading  # noqa: PLW0603
    _lock = threading.RLock()
    _is_loading = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
