"""The options of an entrypoint: what was given, else the environment, else the default."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
import threading

from svcrun._util.environment import Environment
from svcrun._util.hints import TYPE_CHECKING, Any, Generic, TypeVar
from svcrun._util.validation import number
from svcrun.errors import ParameterError, ParameterTypeError
from svcrun.restart import Restart

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from svcrun.log.formats import DateFormat, LogFormat


T = TypeVar("T")

__all__ = ("OptionAttributes", "Options")

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
        start_retry: Restart | None,
        log_config: bool | None,
        log: dict[str, Any],
        env: Environment | None = None,
    ) -> None:
        env = env or Environment()
        self.use_uvloop = env.switch("USE_UVLOOP", default=True)
        self.loop_factory = _factory(loop_factory)
        self.debug = _switch("debug", debug, env, default=_interpreter_debug())
        self.sets_debug = self.debug or debug is not None or env.text("DEBUG") is not None
        self.signals = _signals(catch_signals)
        self.pool_size = _count(*_choose("pool_size", pool_size, env.whole_number), "threads")
        self.start_timeout = _seconds("start_timeout", start_timeout)
        if not isinstance(start_retry, Restart | None):
            raise ParameterTypeError(OWNER, "start_retry", start_retry, "a svcrun.Restart or None")
        self.start_retry = start_retry
        self.shutdown_timeout = (
            _seconds(*_choose("shutdown_timeout", shutdown_timeout, env.number))
            or DEFAULT_SHUTDOWN_TIMEOUT
        )
        log = {**log, "handlers": _handlers(log["handlers"])}
        self.log: dict[str, Any] | None = None
        if _switch("log_config", log_config, env, default=True):
            self.log = _log_options(env, **log)
        # The arguments for change(); iterators among them are exhausted, so store their values.
        self._given: dict[str, Any] = {
            "pool_size": pool_size,
            "loop_factory": loop_factory,
            "debug": debug,
            "catch_signals": self.signals,
            "shutdown_timeout": shutdown_timeout,
            "start_timeout": start_timeout,
            "start_retry": start_retry,
            "log_config": log_config,
            "log": log,
            "env": env,
        }

    @classmethod
    def by_default(cls) -> Options:
        """Return the options of an entrypoint without arguments."""
        return cls(
            pool_size=None,
            loop_factory=None,
            debug=None,
            catch_signals=None,
            shutdown_timeout=None,
            start_timeout=None,
            start_retry=None,
            log_config=None,
            log={**dict.fromkeys(_LOG_NAMES.values()), "handlers": ()},
        )

    def signals_to_catch(self) -> tuple[int, ...]:
        """Return the signals that end an entrypoint which is entered in this thread."""
        if self.signals is not None:
            return self.signals
        in_main_thread = threading.current_thread() is threading.main_thread()
        return (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()

    def show(self, name: str) -> Any:
        """Return the value of an option by its name in :class:`svcrun.Entrypoint`."""
        if name == "log_config":
            return self.log is not None
        if name == "catch_signals":
            return self.signals_to_catch()
        if name not in _LOG_NAMES:
            return getattr(self, name)
        key = _LOG_NAMES[name]
        given = self._given["log"][key]
        if given is not None:
            return given
        if self.log is not None and key in self.log:
            return _name_of(self.log[key])
        return _default_of(key)

    def change(self, name: str, value: Any) -> None:
        """Set an option by its name in :class:`svcrun.Entrypoint`; others stay as they are.

        :raises ValueError, TypeError: as when the options are made; then nothing is changed.
        """
        given = dict(self._given)
        if name in _LOG_NAMES:
            given["log"] = {**given["log"], _LOG_NAMES[name]: value}
        else:
            given[name] = value
        vars(self).update(vars(Options(**given)))


# The names of the entrypoint's options for those of basic_config().
_LOG_NAMES = {
    "log_level": "level",
    "log_format": "log_format",
    "log_buffering": "buffered",
    "log_buffer_size": "buffer_size",
    "log_date_format": "date_format",
    "log_flush_interval": "flush_interval",
    "log_handlers": "handlers",
    "log_buffer_limit": "buffer_limit",
}


def _name_of(value: Any) -> Any:
    """Return the name of a level or a format, and any other value unchanged."""
    from svcrun.log import formats

    if type(value) is int and value in formats.LogLevel.__members__.values():
        return formats.LogLevel(value).name
    return value.name if isinstance(value, formats.LogFormat) else value


def _default_of(key: str) -> Any:
    if key in ("level", "log_format"):
        from svcrun.log import formats

        return (formats.LogLevel if key == "level" else formats.LogFormat).default()
    from svcrun.log import basic_config

    parameter = inspect.signature(basic_config).parameters[key]
    return parameter.default


class Option(Generic[T]):
    """An attribute of an entrypoint that returns and sets one of its options."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: OptionAttributes, owner: type | None = None) -> T:
        value: T = instance._options.show(self.name)  # noqa: SLF001 - made for that class
        return value

    def __set__(self, instance: OptionAttributes, value: T) -> None:
        instance._options.change(self.name, value)  # noqa: SLF001 - made for that class


class Default(Generic[T]):
    """An attribute of the class of entrypoints, the default of one option."""

    def __init__(self, option: str) -> None:
        self.option = option

    def __get__(self, instance: OptionAttributes | None, owner: type | None = None) -> T:
        value: T = Options.by_default().show(self.option)
        return value


class OptionAttributes:
    """The options of an entrypoint, as attributes.

    Each is the argument, else the value in the environment, else the default. Setting an attribute
    before the entrypoint is entered is equivalent to passing the argument.
    """

    DEFAULT_LOG_LEVEL: Default[str] = Default("log_level")
    DEFAULT_LOG_FORMAT: Default[str] = Default("log_format")
    DEFAULT_LOG_DATE_FORMAT: Default[str | None] = Default("log_date_format")
    DEFAULT_SVCRUN_DEBUG: Default[bool] = Default("debug")
    DEFAULT_SVCRUN_LOG_CONFIG: Default[bool] = Default("log_config")
    DEFAULT_SVCRUN_LOG_FLUSH: Default[float] = Default("log_flush_interval")
    DEFAULT_SVCRUN_BUFFERING: Default[bool] = Default("log_buffering")
    DEFAULT_SVCRUN_BUFFER_SIZE: Default[int] = Default("log_buffer_size")
    DEFAULT_SVCRUN_POOL_SIZE: Default[int | None] = Default("pool_size")
    SVCRUN_SHUTDOWN_TIMEOUT: Default[float] = Default("shutdown_timeout")

    pool_size: Option[int | None] = Option()
    log_level: Option[int | str] = Option()
    log_format: Option[str | LogFormat] = Option()
    log_buffering: Option[bool] = Option()
    log_buffer_size: Option[int] = Option()
    log_date_format: Option[str | DateFormat | None] = Option()
    log_flush_interval: Option[float] = Option()
    log_config: Option[bool] = Option()
    log_handlers: Option[tuple[logging.Handler, ...]] = Option()
    loop_factory: Option[Callable[[], asyncio.AbstractEventLoop] | None] = Option()
    debug: Option[bool] = Option()
    catch_signals: Option[tuple[int, ...]] = Option()
    shutdown_timeout: Option[float] = Option()
    start_timeout: Option[float | None] = Option()
    start_retry: Option[Restart | None] = Option()
    log_buffer_limit: Option[int] = Option()

    _options: Options


def _variable(option: str) -> str:
    return f"SVCRUN_{option.upper()}"


def _choose(
    option: str, given: T | None, read: Callable[[str], T | None], variable: str | None = None
) -> tuple[str, T | None]:
    """Return what counts, the argument or else the variable, after the name of the one it is."""
    if given is not None:
        return option, given
    variable = variable or option.upper()
    value = read(variable)
    return option if value is None else _variable(variable), value


def _switch(option: str, given: bool | None, env: Environment, *, default: bool) -> bool:
    if given is None:
        return env.switch(option.upper(), default=default)
    if given not in (False, True):
        raise ParameterTypeError(OWNER, option, given, "True or False")
    return bool(given)


def _interpreter_debug() -> bool:
    """Return whether asyncio's debug mode was asked for when the interpreter was started."""
    flags = sys.flags
    variable = not flags.ignore_environment and bool(os.environ.get("PYTHONASYNCIODEBUG"))
    return flags.dev_mode or variable


def _count(name: str, value: int | None, what: str) -> int | None:
    if value is None:
        return None
    number(low=1, whole=True, unit=what)(OWNER, name, value)
    return value


# Timers overflow beyond some centuries.
_seconds_above_zero = number(above=0, high=threading.TIMEOUT_MAX, unit="seconds")
_seconds_or_none = number(low=0, high=threading.TIMEOUT_MAX, unit="seconds")


def _seconds(name: str, value: float | None, *, or_none: bool = False) -> float | None:
    if value is None:
        return None
    check = _seconds_or_none if or_none else _seconds_above_zero
    check(OWNER, name, value)
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
    date_format: str | DateFormat | None,
    flush_interval: float | None,
    handlers: tuple[logging.Handler, ...],
    buffer_limit: int | None,
) -> dict[str, Any]:
    level_name, level = _choose("log_level", level, env.text)
    format_name, log_format = _choose("log_format", log_format, env.text)
    if level is not None or log_format is not None:
        from svcrun.log.formats import parse_format, parse_level

        level = None if level is None else parse_level(level, level_name)
        log_format = None if log_format is None else parse_format(log_format, format_name)
    name, date_format = _choose("log_date_format", date_format, env.text)
    if date_format is not None:
        from svcrun.log.formats import parse_date_format

        date_format = parse_date_format(date_format, name, OWNER)

    size = _choose("log_buffer_size", buffer_size, env.whole_number, "LOG_BUFFER")
    interval = _choose("log_flush_interval", flush_interval, env.number, "LOG_FLUSH")
    options = {
        "level": level,
        "log_format": log_format,
        "buffered": _switch("log_buffering", buffered, env, default=True),
        "buffer_size": _count(*size, "records"),
        "date_format": date_format,
        "flush_interval": _seconds(*interval, or_none=True),
        "handlers": handlers,
        "buffer_limit": _count("log_buffer_limit", buffer_limit, "records"),
    }
    return {name: value for name, value in options.items() if value is not None}


def _handlers(value: Iterable[logging.Handler]) -> tuple[logging.Handler, ...]:
    try:
        handlers = tuple(value)
    except TypeError:
        handlers = None
    if handlers is None or not all(isinstance(handler, logging.Handler) for handler in handlers):
        accepted = "a list of logging.Handler instances"
        raise ParameterTypeError(OWNER, "log_handlers", value, accepted)
    return handlers
