"""Run long-lived asyncio programs as services.

Each name is imported at its first use, so that ``import svcrun`` alone costs next to nothing.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing it from `typing` takes longer than the rest of this module
if TYPE_CHECKING:
    from contextvars import ContextVar
    from typing import Any

    from svcrun import log as log, service as service
    from svcrun.context import Context, get_context
    from svcrun.context_vars import CURRENT_ENTRYPOINT, StrictContextVar
    from svcrun.entrypoint import Entrypoint, entrypoint, run
    from svcrun.periodic import PeriodicCallback
    from svcrun.plugins import plugins
    from svcrun.recurring import (
        RecurringCallback,
        StrategyException,
        StrategySkip,
        StrategyStop,
    )
    from svcrun.restart import Restart
    from svcrun.service.base import Service, parameter
    from svcrun.signal import Signal, receiver
    from svcrun.sockets import bind_socket
    from svcrun.state import ServiceState
    from svcrun.thread_pool import (
        IteratorWrapper,
        IteratorWrapperSeparate,
        ThreadPoolExecutor,
        sync_await,
        sync_wait_coroutine,
        threaded,
        threaded_iterable,
        threaded_iterable_separate,
        threaded_separate,
        wait_coroutine,
    )
    from svcrun.timeout import timeout
    from svcrun.utils import SelectResult, awaitable, cancel_tasks, chunk_list, select, shield

    current_service: ContextVar[Service | None]
    from svcrun.version import __version__, version_info

__all__ = (
    "CURRENT_ENTRYPOINT",
    "Context",
    "Entrypoint",
    "IteratorWrapper",
    "IteratorWrapperSeparate",
    "PeriodicCallback",
    "RecurringCallback",
    "Restart",
    "SelectResult",
    "Service",
    "ServiceState",
    "Signal",
    "StrategyException",
    "StrategySkip",
    "StrategyStop",
    "StrictContextVar",
    "ThreadPoolExecutor",
    "__version__",
    "awaitable",
    "bind_socket",
    "cancel_tasks",
    "chunk_list",
    "current_service",
    "entrypoint",
    "get_context",
    "parameter",
    "plugins",
    "receiver",
    "run",
    "select",
    "shield",
    "sync_await",
    "sync_wait_coroutine",
    "threaded",
    "threaded_iterable",
    "threaded_iterable_separate",
    "threaded_separate",
    "timeout",
    "version_info",
    "wait_coroutine",
)

# The module that defines each name.
_HOMES = {
    "CURRENT_ENTRYPOINT": "svcrun.context_vars",
    "Context": "svcrun.context",
    "Entrypoint": "svcrun.entrypoint",
    "IteratorWrapper": "svcrun.thread_pool",
    "IteratorWrapperSeparate": "svcrun.thread_pool",
    "PeriodicCallback": "svcrun.periodic",
    "RecurringCallback": "svcrun.recurring",
    "Restart": "svcrun.restart",
    "SelectResult": "svcrun.utils",
    "Service": "svcrun.service.base",
    "ServiceState": "svcrun.state",
    "Signal": "svcrun.signal",
    "StrategyException": "svcrun.recurring",
    "StrategySkip": "svcrun.recurring",
    "StrategyStop": "svcrun.recurring",
    "StrictContextVar": "svcrun.context_vars",
    "ThreadPoolExecutor": "svcrun.thread_pool",
    "__version__": "svcrun.version",
    "awaitable": "svcrun.utils",
    "bind_socket": "svcrun.sockets",
    "cancel_tasks": "svcrun.utils",
    "chunk_list": "svcrun.utils",
    "current_service": "svcrun._util.current_service",
    "entrypoint": "svcrun.entrypoint",
    "get_context": "svcrun.context",
    "parameter": "svcrun.service.base",
    "plugins": "svcrun.plugins",
    "receiver": "svcrun.signal",
    "run": "svcrun.entrypoint",
    "select": "svcrun.utils",
    "shield": "svcrun.utils",
    "sync_await": "svcrun.thread_pool",
    "sync_wait_coroutine": "svcrun.thread_pool",
    "threaded": "svcrun.thread_pool",
    "threaded_iterable": "svcrun.thread_pool",
    "threaded_iterable_separate": "svcrun.thread_pool",
    "threaded_separate": "svcrun.thread_pool",
    "timeout": "svcrun.timeout",
    "version_info": "svcrun.version",
    "wait_coroutine": "svcrun.thread_pool",
}

_MODULES = frozenset({"log", "service"})


class _Package(type(sys)):  # type: ignore[misc]  # ModuleType, without importing `types`
    """Import names on first use, and prefer them over submodules of the same name.

    After ``import svcrun.entrypoint``, the import system sets the attribute ``entrypoint`` of this
    package to the module. ``svcrun.entrypoint`` must be the class in any order of imports, so
    :meth:`__setattr__` stores the class instead.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and isinstance(value, type(sys)):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        home = f"svcrun.{name}" if name in _MODULES else _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'svcrun' has no attribute {name!r}")
        __import__(home)
        module = sys.modules[home]
        # Two threads may come here at the same time. Both store the same object, so no lock is
        # needed.
        value = module if name in _MODULES else getattr(module, name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__, *_MODULES})


# A module-level __getattr__() would not be enough: the import system sets attributes, too.
sys.modules[__name__].__class__ = _Package
