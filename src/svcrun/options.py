"""The options of an entrypoint: what was given, else the environment, else the default."""

from __future__ import annotations

import logging
import signal
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from svcrun.checks import check_number
from svcrun.environment import Environment
from svcrun.errors import ParameterError, ParameterTypeError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

T = TypeVar("T")

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
        env = Environment()
        self.use_uvloop = env.switch("USE_UVLOOP", default=True)
        self.loop_factory = _factory(loop_factory)
        self.debug = _switch("debug", debug, env, default=False)
        self.signals = _signals(catch_signals)
        self.pool_size = _count(*_choose("pool_size", pool_size, env.whole_number), "threads")
        self.start_timeout = _seconds("start_timeout", start_timeout)
        self.shutdown_timeout = (
            _seconds(*_choose("shutdown_timeout", shutdown_timeout, env.number))
            or DEFAULT_SHUTDOWN_TIMEOUT
        )
        self.log: dict[str, Any] | None = None
        if _switch("log_config", log_config, env, default=True):
            self.log = _log_options(env, **log)


def _variable(option: str) -> str:
    return f"SVCRUN_{option.upper()}"


def _choose(
    option: str, given: T | None, read: Callable[[str], T | None], variable: str | None = None
) -> tuple[str, T | None]:
    """Return what counts, the argument or else the variable, after the name of the one it is."""
    if given is not None:
        return option, given
    variable = variable or option.upper()
    return _variable(variable), read(variable)


def _switch(option: str, given: bool | None, env: Environment, *, default: bool) -> bool:
    if given is None:
        return env.switch(option.upper(), default=default)
    if given not in (False, True):
        raise ParameterTypeError(OWNER, option, given, "True or False")
    return bool(given)


def _count(name: str, value: int | None, what: str) -> int | None:
    if value is None:
        return None
    check_number(OWNER, name, value, f"a number of {what}, at least 1", low=1, whole=True)
    return value


def _seconds(name: str, value: float | None, *, or_none: bool = False) -> float | None:
    if value is None:
        return None
    accepted = "a number of seconds, 0 or more" if or_none else "a number of seconds above 0"
    above = -1 if or_none else 0
    # Beyond some centuries, timers overflow.
    check_number(OWNER, name, value, accepted, low=0, above=above, high=threading.TIMEOUT_MAX)
    return float(value)


def _factory(
    value: Callable[[], asyncio.AbstractEventLoop] | None,
) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if value is not None and not callable(value):
        raise ParameterTypeError(
            OWNER, "loop_factory", value, "a function that returns a new event loop"
        )
    return value


def _signals(value: Iterable[int] | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    accepted = "signals that can be caught, such as (signal.SIGINT, signal.SIGTERM)"
    try:
        signals = tuple(signal.Signals(signum) for signum in value)
    except TypeError:
        raise ParameterTypeError(OWNER, "catch_signals", value, accepted) from None
    except ValueError:
        raise ParameterError(OWNER, "catch_signals", value, accepted) from None
    if signal.SIGKILL in signals or signal.SIGSTOP in signals:
        raise ParameterError(OWNER, "catch_signals", value, accepted)
    return signals


def _log_options(
    env: Environment,
    *,
    level: int | str | None,
    log_format: str | int | None,
    buffered: bool | None,
    buffer_size: int | None,
    date_format: str | None,
    flush_interval: float | None,
    handlers: Iterable[logging.Handler],
    buffer_limit: int | None,
) -> dict[str, Any]:
    level_name, level = _choose("log_level", level, env.text)
    format_name, log_format = _choose("log_format", log_format, env.text)
    if level is not None or log_format is not None:
        from svcrun.log.formats import parse_format, parse_level

        level = None if level is None else parse_level(level, level_name)
        log_format = None if log_format is None else parse_format(log_format, format_name)
    name, date_format = _choose("log_date_format", date_format, env.text)
    if date_format is not None and not isinstance(date_format, str):
        raise ParameterTypeError(OWNER, name, date_format, "a format such as '%H:%M:%S'")

    size = _choose("log_buffer_size", buffer_size, env.whole_number, "LOG_BUFFER")
    interval = _choose("log_flush_interval", flush_interval, env.number, "LOG_FLUSH")
    options = {
        "level": level,
        "log_format": log_format,
        "buffered": _switch("log_buffering", buffered, env, default=True),
        "buffer_size": _count(*size, "records"),
        "date_format": date_format,
        "flush_interval": _seconds(*interval, or_none=True),
        "handlers": _handlers(handlers),
        "buffer_limit": _count("log_buffer_limit", buffer_limit, "records"),
    }
    return {name: value for name, value in options.items() if value is not None}


def _handlers(value: Iterable[logging.Handler]) -> tuple[logging.Handler, ...]:
    try:
        handlers = tuple(value)
    except TypeError:
        handlers = None
    if handlers is None or not all(isinstance(handler, logging.Handler) for handler in handlers):
        raise ParameterTypeError(
            OWNER, "log_handlers", value, "logging.Handler instances, in a list"
        )
    return handlers
