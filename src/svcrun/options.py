"""The options of an entrypoint: what was given, else the environment, else the default."""

from __future__ import annotations

import math
import signal
from typing import TYPE_CHECKING, Any

from svcrun.environment import Environment
from svcrun.errors import ParameterError, ParameterTypeError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

__all__ = ("Options",)

OWNER = "entrypoint"
DEFAULT_SHUTDOWN_TIMEOUT = 60.0


class Options:
    """The options that :class:`svcrun.Entrypoint` documents, except for the services and the loop.

    :param log: the options for :func:`svcrun.log.basic_config` by its names, with None for those
        not given.

    :raises ValueError, TypeError: naming an option, or an environment variable, with a wrong value.
    """

    def __init__(
        self,
        *,
        pool_size: int | None,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None,
        debug: bool | None,
        catch_signals: Iterable[int] | None,
        shutdown_timeout: float | None,
        start_timeout: float | None,
        log_config: bool | None,
        log: dict[str, Any],
    ) -> None:
        environment = Environment()
        self.use_uvloop = environment.switch("USE_UVLOOP", default=True)
        self.pool_size = _pool_size(pool_size, environment)
        self.loop_factory = loop_factory
        self.debug = environment.switch("DEBUG", default=False) if debug is None else debug
        self.signals = _signals(catch_signals)
        self.shutdown_timeout = _shutdown_timeout(shutdown_timeout, environment)
        self.start_timeout = _seconds("start_timeout", start_timeout)
        if log_config is None:
            log_config = environment.switch("LOG_CONFIG", default=True)
        self.log = _complete_log_options(log, environment) if log_config else None


def _seconds(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    accepted = "a number of seconds above 0"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ParameterTypeError(OWNER, name, value, accepted)
    if not value > 0 or math.isinf(value):
        raise ParameterError(OWNER, name, value, accepted)
    return float(value)


def _shutdown_timeout(value: float | None, environment: Environment) -> float:
    if value is None:
        name, value = "SVCRUN_SHUTDOWN_TIMEOUT", environment.number("SHUTDOWN_TIMEOUT")
    else:
        name = "shutdown_timeout"
    return _seconds(name, value) or DEFAULT_SHUTDOWN_TIMEOUT


def _pool_size(value: int | None, environment: Environment) -> int | None:
    name = "pool_size"
    if value is None:
        name, value = "SVCRUN_POOL_SIZE", environment.whole_number("POOL_SIZE")
    if value is None:
        return None
    accepted = "a number of threads, at least 1"
    if isinstance(value, bool) or not isinstance(value, int):
        raise ParameterTypeError(OWNER, name, value, accepted)
    if value < 1:
        raise ParameterError(OWNER, name, value, accepted)
    return value


def _signals(value: Iterable[int] | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    accepted = "signals, such as (signal.SIGINT, signal.SIGTERM)"
    try:
        return tuple(signal.Signals(signum) for signum in value)
    except TypeError:
        raise ParameterTypeError(OWNER, "catch_signals", value, accepted) from None
    except ValueError:
        raise ParameterError(OWNER, "catch_signals", value, accepted) from None


def _complete_log_options(given: dict[str, Any], environment: Environment) -> dict[str, Any]:
    found = {
        "level": environment.text("LOG_LEVEL"),
        "log_format": environment.text("LOG_FORMAT"),
        "date_format": environment.text("LOG_DATE_FORMAT"),
        "buffered": environment.switch("LOG_BUFFERING", default=True),
        "buffer_size": environment.whole_number("LOG_BUFFER"),
        "flush_interval": environment.number("LOG_FLUSH"),
    }
    found.update((name, value) for name, value in given.items() if value is not None)
    return {name: value for name, value in found.items() if value is not None}
