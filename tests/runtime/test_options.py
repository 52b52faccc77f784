"""Laws of the options of an entrypoint; tests/entrypoint/test_bad_input.py has what is refused."""

import asyncio
import logging
import signal
from typing import Any

import pytest

from svcrun._runtime.options import Options
from svcrun.log import LogFormat

GIVEN: dict[str, Any] = {
    "pool_size": None,
    "loop_factory": None,
    "debug": None,
    "catch_signals": None,
    "shutdown_timeout": None,
    "start_timeout": None,
    "start_retry": None,
    "log_config": None,
}
LOG: dict[str, Any] = {
    "level": None,
    "log_format": None,
    "buffered": None,
    "buffer_size": None,
    "date_format": None,
    "flush_interval": None,
    "handlers": (),
    "buffer_limit": None,
}


def options(*, log: dict[str, Any] | None = None, **given: Any) -> Options:
    return Options(**{**GIVEN, **given}, log={**LOG, **(log or {})})


def test_without_anything_the_defaults_hold() -> None:
    found = options()
    assert found.use_uvloop is True
    assert found.debug is asyncio.coroutines._is_debug_mode()  # type: ignore[attr-defined]
    assert found.pool_size is None
    assert found.signals is None
    assert found.shutdown_timeout == 60
    assert found.start_timeout is None
    assert found.log == {"buffered": True, "handlers": ()}


def test_the_environment_comes_before_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "USE_UVLOOP": "off",
        "DEBUG": "on",
        "POOL_SIZE": "7",
        "SHUTDOWN_TIMEOUT": "1.5",
        "LOG_LEVEL": "Warning",
        "LOG_FORMAT": "plain",
        "LOG_DATE_FORMAT": "%H",
        "LOG_BUFFERING": "no",
        "LOG_BUFFER": "12",
        "LOG_FLUSH": "0",
    }.items():
        monkeypatch.setenv(f"SVCRUN_{name}", value)
    found = options()
    assert found.use_uvloop is False
    assert found.debug is True
    assert found.pool_size == 7
    assert found.shutdown_timeout == 1.5
    assert found.log == {
        "level": logging.WARNING,
        "log_format": LogFormat.plain,
        "date_format": "%H",
        "buffered": False,
        "buffer_size": 12,
        "flush_interval": 0.0,
        "handlers": (),
    }


def test_an_argument_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *("DEBUG", "POOL_SIZE", "SHUTDOWN_TIMEOUT", "LOG_LEVEL", "LOG_FORMAT"),
        *("LOG_BUFFERING", "LOG_BUFFER", "LOG_FLUSH", "LOG_CONFIG"),
    ):
        monkeypatch.setenv(f"SVCRUN_{name}", "wrong, but not read")
    handler = logging.NullHandler()
    found = options(
        debug=True,
        pool_size=3,
        shutdown_timeout=2,
        start_timeout=4,
        catch_signals=[signal.SIGUSR1, 12],
        log_config=True,
        log={
            "level": "debug",
            "log_format": "json",
            "buffered": False,
            "buffer_size": 5,
            "flush_interval": 0.5,
            "handlers": iter([handler]),
            "buffer_limit": 100,
        },
    )
    assert found.debug is True
    assert found.pool_size == 3
    assert found.shutdown_timeout == 2.0
    assert found.start_timeout == 4.0
    assert found.signals == (signal.SIGUSR1, signal.SIGUSR2)
    assert found.log == {
        "level": logging.DEBUG,
        "log_format": LogFormat.json,
        "buffered": False,
        "buffer_size": 5,
        "flush_interval": 0.5,
        "handlers": (handler,),
        "buffer_limit": 100,
    }


def test_no_signals_is_something_else_than_the_default() -> None:
    assert options(catch_signals=()).signals == ()


@pytest.mark.parametrize("given", [False, None])
def test_logging_can_be_left_alone(given: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVCRUN_LOG_CONFIG", "off")
    monkeypatch.setenv("SVCRUN_LOG_LEVEL", "wrong, but not needed")
    assert options(log_config=given).log is None


@pytest.mark.parametrize("level", [0, 15, "0", "NOTSET"])
def test_a_level_may_be_a_number_or_a_name(level: object) -> None:
    assert options(log={"level": level}).log["level"] in (0, 15)  # type: ignore[index]
