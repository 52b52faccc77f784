"""The options of an entrypoint: what was given, else the environment, else the default; checked before all else."""

from __future__ import annotations

import math
import signal
from typing import TYPE_CHECKING, Any

from svcrun import environment
from svcrun.errors import ParameterError, ParameterTypeError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("log_options", "pool_size", "seconds", "shutdown_timeout", "signals")

OWNER = "entrypoint"


def seconds(name: str, value: float | None, default: float | None) -> float | None:
    """Check a time limit, in seconds.

    :raises ValueError, TypeError: naming the option, if `value` is no positive number.
    """
    if value is None:
        return default
    accepted = "a number of seconds above 0"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ParameterTypeError(OWNER, name, value, accepted)
    if not value > 0 or math.isinf(value):
        raise ParameterError(OWNER, name, value, accepted)
    return float(value)


def shutdown_timeout(value: float | None, default: float) -> float:
    """Check the time limit of the shutdown; None stands for the environment, else for `default`.

    :raises ValueError, TypeError: naming the option or the variable, if `value` is no positive number.
    """
    if value is None:
        value = environment.read_float("SHUTDOWN_TIMEOUT")
        return seconds("SVCRUN_SHUTDOWN_TIMEOUT", value, None) or default
    return seconds("shutdown_timeout", value, None) or default


def pool_size(value: int | None) -> int | None:
    """Check the size of the thread pool; None stands for its default.

    :raises ValueError, TypeError: naming the option or the variable, if `value` is no positive whole number.
    """
    name = "pool_size"
    if value is None:
        value = environment.read_int("POOL_SIZE")
        name = "SVCRUN_POOL_SIZE"
        if value is None:
            return None
    accepted = "a number of threads, at least 1"
    if isinstance(value, bool) or not isinstance(value, int):
        raise ParameterTypeError(OWNER, name, value, accepted)
    if value < 1:
        raise ParameterError(OWNER, name, value, accepted)
    return value


def signals(value: Iterable[int] | None) -> tuple[int, ...] | None:
    """Check the signals to catch; None stands for the default of the thread that enters.

    :raises ValueError, TypeError: naming the option, if something in `value` is no signal.
    """
    if value is None:
        return None
    accepted = "signals, such as (signal.SIGINT, signal.SIGTERM)"
    try:
        return tuple(signal.Signals(signum) for signum in value)
    except TypeError:
        raise ParameterTypeError(OWNER, "catch_signals", value, accepted) from None
    except ValueError:
        raise ParameterError(OWNER, "catch_signals", value, accepted) from None


def log_options(given: dict[str, Any]) -> dict[str, Any]:
    """Complete the options for :func:`svcrun.log.basic_config`.

    :param given: options by the names of that function; None stands for an option that was not given.

    :raises ValueError: naming the variable, if the environment has one that can't be used.
    """
    from_environment = {
        "level": environment.read_str("LOG_LEVEL"),
        "log_format": environment.read_str("LOG_FORMAT"),
        "date_format": environment.read_str("LOG_DATE_FORMAT"),
        "buffered": environment.read_bool("LOG_BUFFERING", default=True),
        "buffer_size": environment.read_int("LOG_BUFFER"),
        "flush_interval": environment.read_float("LOG_FLUSH"),
    }
    merged = {name: given.get(name) if given.get(name) is not None else value for name, value in from_environment.items()}
    merged.update((name, value) for name, value in given.items() if name not in merged)
    return {name: value for name, value in merged.items() if value is not None}
