"""The options of an entrypoint: each is an argument, an environment variable, and an attribute.

The class :class:`Options` declares them once, with check, default and variable. The argument counts
before the variable, and the variable before the default.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

from svcrun._util.environment import PREFIX, Environment
from svcrun._util.hints import TYPE_CHECKING, Any, Generic, TypeVar
from svcrun._util.validation import instance_of, number
from svcrun.errors import ParameterError, ParameterTypeError
from svcrun.restart import Restart

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from svcrun.log.formats import DateFormat, LogFormat


T = TypeVar("T")

__all__ = ("OPTIONS", "Options", "log_options", "sets_debug", "uses_uvloop")

OWNER = "entrypoint"

OPTIONS: dict[str, Option[Any]] = {}
"""The options by their names, in the order of their declaration."""


class Option(Generic[T]):
    """One option of an entrypoint, and the attribute that returns and sets it.

    :param check: a check of :mod:`svcrun._util.validation`.
    :param default: the value if none was given.
    :param find_default: called for the default in place of `default`, whenever the attribute is
        read.
    :param read: reads the environment variable and converts its text; None if there is no variable.
    :param variable: the name of the variable without ``SVCRUN_``; that of the option by default.
    """

    __slots__ = ("_check", "_default", "_find_default", "_read", "_variable", "name")

    def __init__(
        self,
        check: Callable[[object, str, Any], Any],
        default: Any = None,
        *,
        find_default: Callable[[], T] | None = None,
        read: Callable[[Environment, str], Any] | None = None,
        variable: str = "",
    ) -> None:
        self._check = check
        self._default = default
        self._find_default = find_default
        self._read = read
        self._variable = variable

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self._variable = self._variable or name.upper()
        OPTIONS[name] = self

    def resolve(self, given: Any, environment: Environment) -> T | None:
        """Return the checked argument or variable, None if there is neither."""
        if given is not None:
            checked: T = self._check(OWNER, self.name, given)
            return checked
        if self._read is None:
            return None
        value = self._read(environment, self._variable)
        return None if value is None else self._check(OWNER, PREFIX + self._variable, value)

    def __get__(self, instance: Options, owner: type | None = None) -> T:
        value: T | None = instance._values.get(self.name)  # noqa: SLF001 - made for that class
        if value is not None:
            return value
        default: T = self._default if self._find_default is None else self._find_default()
        return default

    def __set__(self, instance: Options, value: T | None) -> None:
        instance._change(self.name, value)  # noqa: SLF001 - made for that class


class Default(Generic[T]):
    """An attribute of the class of entrypoints: an option of one that is given no arguments."""

    def __init__(self, option: str) -> None:
        self._option = option

    def __get__(self, instance: object, owner: type | None = None) -> T:
        value: T = getattr(Options({}), self._option)
        return value


# Timers overflow beyond some centuries.
_SECONDS = number(above=0, high=threading.TIMEOUT_MAX, unit="seconds")
_INTERVAL = number(low=0, high=threading.TIMEOUT_MAX, unit="seconds")


def _factory(owner: object, name: str, value: Any) -> Any:
    if not callable(value):
        raise ParameterTypeError(owner, name, value, "a function that returns a new event loop")
    return value


def _switch(owner: object, name: str, value: Any) -> bool:
    if value not in (False, True):
        raise ParameterTypeError(owner, name, value, "True or False")
    return bool(value)


def _signals(owner: object, name: str, value: Any) -> tuple[int, ...]:
    accepted = "signals that can be caught, such as (signal.SIGINT, signal.SIGTERM)"
    try:
        signals = tuple(signal.Signals(signum) for signum in value)
    except TypeError:
        raise ParameterTypeError(owner, name, value, accepted) from None
    except ValueError:
        raise ParameterError(owner, name, value, accepted) from None
    if signal.SIGKILL in signals or signal.SIGSTOP in signals:
        raise ParameterError(owner, name, value, accepted)
    return signals


def _handlers(owner: object, name: str, value: Any) -> tuple[logging.Handler, ...]:
    try:
        handlers = tuple(value)
    except TypeError:
        handlers = None
    if handlers is None or not all(isinstance(handler, logging.Handler) for handler in handlers):
        raise ParameterTypeError(owner, name, value, "a list of logging.Handler instances")
    return handlers


# These import the log formats when one is given, to keep the start of other programs fast.


def _level(_: object, name: str, value: Any) -> int | str:
    from svcrun.log.formats import parse_level

    parse_level(value, name)
    level: int | str = value
    return level


def _format(_: object, name: str, value: Any) -> str | LogFormat:
    from svcrun.log.formats import parse_format

    parse_format(value, name)
    log_format: str | LogFormat = value
    return log_format


def _date_format(_: object, name: str, value: Any) -> str | DateFormat | None:
    from svcrun.log.formats import parse_date_format

    return parse_date_format(value, name, OWNER)


def _default_format() -> str:
    from svcrun.log.formats import LogFormat

    return LogFormat.default()


def _interpreter_debug() -> bool:
    """Return whether asyncio's debug mode was asked for when the interpreter was started."""
    flags = sys.flags
    variable = not flags.ignore_environment and bool(os.environ.get("PYTHONASYNCIODEBUG"))
    return flags.dev_mode or variable


def _default_signals() -> tuple[int, ...]:
    in_main_thread = threading.current_thread() is threading.main_thread()
    return (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()


class Options:
    """The options of an entrypoint, as attributes.

    Setting an attribute before the entrypoint is entered is equivalent to passing the argument.

    :param given: the arguments by the names of options; None stands for one that was not given.

    :raises ValueError, TypeError: naming an option, or an environment variable, with a wrong value.
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

    pool_size: Option[int | None] = Option(
        number(low=1, whole=True, unit="threads"), read=Environment.whole_number
    )
    log_level: Option[int | str] = Option(_level, "info", read=Environment.text)
    log_format: Option[str | LogFormat] = Option(
        _format, find_default=_default_format, read=Environment.text
    )
    log_buffering: Option[bool] = Option(_switch, default=True, read=Environment.switch)
    log_buffer_size: Option[int] = Option(
        number(low=1, whole=True, unit="records"),
        1024,
        read=Environment.whole_number,
        variable="LOG_BUFFER",
    )
    log_date_format: Option[str | DateFormat | None] = Option(_date_format, read=Environment.text)
    log_flush_interval: Option[float] = Option(
        _INTERVAL, 0.2, read=Environment.number, variable="LOG_FLUSH"
    )
    log_config: Option[bool] = Option(_switch, default=True, read=Environment.switch)
    log_handlers: Option[tuple[logging.Handler, ...]] = Option(_handlers, ())
    loop_factory: Option[Callable[[], asyncio.AbstractEventLoop] | None] = Option(_factory)
    debug: Option[bool] = Option(_switch, find_default=_interpreter_debug, read=Environment.switch)
    catch_signals: Option[tuple[int, ...]] = Option(_signals, find_default=_default_signals)
    shutdown_timeout: Option[float] = Option(_SECONDS, 60.0, read=Environment.number)
    start_timeout: Option[float | None] = Option(_SECONDS)
    start_retry: Option[Restart | None] = Option(instance_of(Restart, "a svcrun.Restart or None"))
    log_buffer_limit: Option[int] = Option(number(low=1, whole=True, unit="records"), 100_000)
    drain_delay: Option[float] = Option(_INTERVAL, 0.0, read=Environment.number)

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._environment = Environment()
        self._use_uvloop = self._environment.switch("USE_UVLOOP") is not False
        self._resolve(given)

    def _resolve(self, given: Mapping[str, Any]) -> None:
        environment = self._environment
        log_config = OPTIONS["log_config"].resolve(given.get("log_config"), environment)
        unused = () if log_config is not False else _LOG_OPTIONS
        values = {name: value for name, value in given.items() if value is not None}
        # Most programs set no variable, so that only the arguments have to be looked at.
        for name in OPTIONS if environment else tuple(values):
            if name not in unused or name == "log_handlers":  # which may be an iterator
                value = OPTIONS[name].resolve(values.get(name), environment)
                if value is not None:
                    values[name] = value
        # The checked values replace the arguments: an iterator among these is exhausted by now.
        self._given = {name: values[name] for name in given if name in values}
        self._values = values

    def _change(self, name: str, value: Any) -> None:
        """Set one option; a value that is refused changes nothing."""
        self._resolve({**self._given, name: value})


def sets_debug(options: Options) -> bool:
    """Return whether a loop gets a debug mode that may differ from the one it was made with."""
    return options.debug or "debug" in options._values  # noqa: SLF001 - the same module


def uses_uvloop(options: Options) -> bool:
    """Return whether ``SVCRUN_USE_UVLOOP`` allows uvloop."""
    return options._use_uvloop  # noqa: SLF001


def log_options(options: Options) -> dict[str, Any]:
    """Return the arguments for :func:`svcrun.log.basic_config`, which knows these names as well."""
    values = options._values  # noqa: SLF001
    return {name: values[name] for name in _LOG_OPTIONS if name in values}


_LOG_OPTIONS = tuple(name for name in OPTIONS if name.startswith("log_") and name != "log_config")
