"""Laws of the options of an entrypoint; tests/entrypoint/test_bad_input.py has the refused ones."""

import asyncio
import logging
import signal
from typing import Any

import pytest

from svcrun._runtime.options import Options, log_options, uses_uvloop


def options(**given: Any) -> Options:
    return Options(given)


def test_an_option_without_argument_and_variable_has_its_default() -> None:
    found = options()
    assert uses_uvloop(found)
    assert found.debug is asyncio.coroutines._is_debug_mode()  # type: ignore[attr-defined]
    assert found.pool_size is None
    assert found.catch_signals == (signal.SIGINT, signal.SIGTERM)
    assert found.shutdown_timeout == 60
    assert found.start_timeout is None
    assert found.log_config
    assert log_options(found) == {}


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
    assert not uses_uvloop(found)
    assert found.debug is True
    assert found.pool_size == 7
    assert found.shutdown_timeout == 1.5
    assert log_options(found) == {
        "log_level": "Warning",
        "log_format": "plain",
        "log_date_format": "%H",
        "log_buffering": False,
        "log_buffer_size": 12,
        "log_flush_interval": 0.0,
    }


def test_an_argument_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *("DEBUG", "POOL_SIZE", "SHUTDOWN_TIMEOUT", "LOG_LEVEL", "LOG_FORMAT"),
        *("LOG_BUFFERING", "LOG_BUFFER", "LOG_FLUSH", "LOG_CONFIG"),
    ):
        monkeypatch.setenv(f"SVCRUN_{name}", "wrong, but not read")
    handler = logging.NullHandler()
    log = {
        "log_level": "debug",
        "log_format": "json",
        "log_buffering": False,
        "log_buffer_size": 5,
        "log_flush_interval": 0.5,
        "log_buffer_limit": 100,
    }
    found = options(
        debug=True,
        pool_size=3,
        shutdown_timeout=2,
        start_timeout=4,
        catch_signals=[signal.SIGUSR1, 12],
        log_config=True,
        log_handlers=iter([handler]),
        **log,
    )
    assert found.debug is True
    assert found.pool_size == 3
    assert found.shutdown_timeout == 2.0
    assert found.start_timeout == 4.0
    assert found.catch_signals == (signal.SIGUSR1, signal.SIGUSR2)
    assert log_options(found) == {**log, "log_handlers": (handler,)}


def test_an_empty_list_of_signals_differs_from_the_default() -> None:
    assert options(catch_signals=()).catch_signals == ()


@pytest.mark.parametrize("given", [False, None])
def test_options_of_the_log_are_not_checked_without_log_config(
    given: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SVCRUN_LOG_CONFIG", "off")
    monkeypatch.setenv("SVCRUN_LOG_LEVEL", "wrong, but not needed")
    found = options(log_config=given, log_format="wrong as well")
    assert not found.log_config
    with pytest.raises(ValueError, match=r"wrong as well|not needed"):
        found.log_config = True
    assert not found.log_config


@pytest.mark.parametrize("level", [0, 15, "0", "NOTSET"])
def test_a_level_may_be_a_number_or_a_name(level: object) -> None:
    assert log_options(options(log_level=level)) == {"log_level": level}


def test_an_option_that_is_set_to_none_has_its_variable_or_default_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SVCRUN_POOL_SIZE", "3")
    found: Any = options(pool_size=2, shutdown_timeout=5)
    found.pool_size = found.shutdown_timeout = None
    assert (found.pool_size, found.shutdown_timeout) == (3, 60)
