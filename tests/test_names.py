"""C1: names, and the parameters behind them, that programs written for aiomisc use."""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal
import threading
import uuid
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

import svcrun
from svcrun import Service, chunk_list, entrypoint, timeout
from svcrun.context_vars import CURRENT_ENTRYPOINT, EVENT_LOOP, StrictContextVar, set_current_loop
from svcrun.log import LOG_FORMAT, LOG_LEVEL, DateFormat, LogFormat, create_logging_handler
from svcrun.thread_pool import run_in_executor, run_in_new_thread
from svcrun.utils import fast_uuid1, fast_uuid4

if TYPE_CHECKING:
    from collections.abc import Iterator

# The modules of aiomisc 18 and the names that they have, but for what is no part of svcrun: those
# that they export, and those that programs import from there although they live elsewhere.
NAMES = {
    "": "CURRENT_ENTRYPOINT Context Entrypoint IteratorWrapper IteratorWrapperSeparate "
    "PeriodicCallback RecurringCallback SelectResult Service Signal StrategyException StrategySkip "
    "StrategyStop StrictContextVar ThreadPoolExecutor __version__ awaitable bind_socket "
    "cancel_tasks chunk_list entrypoint get_context log plugins receiver run select shield "
    "sync_await sync_wait_coroutine threaded threaded_iterable threaded_iterable_separate "
    "threaded_separate timeout version_info wait_coroutine",
    "context": "Context get_context",
    "context_vars": "EVENT_LOOP StrictContextVar set_current_loop",
    "cron": "CronCallback",
    "entrypoint": "CURRENT_ENTRYPOINT Context Entrypoint LogFormat LogLevel Service Signal "
    "ThreadPoolExecutor basic_config cancel_tasks entrypoint get_context run",
    "iterator_wrapper": "ChannelClosed FromThreadChannel IteratorWrapper IteratorWrapperSeparate",
    "log": "DateFormat LOG_FORMAT LOG_LEVEL LogFormat LogLevel ThreadedHandler "
    "UnhandledLoopHook basic_config create_logging_handler",
    "log.enum": "DateFormat LogFormat LogLevel",
    "periodic": "PeriodicCallback",
    "plugins": "plugins",
    "recurring": "RecurringCallback StrategyException StrategySkip StrategyStop",
    "service": "MemoryTracer ProcessService Profiler RespawningProcessService RobustTCPClient "
    "RobustTLSClient Service ServiceMeta SimpleServer TCPClient TCPServer TLSClient TLSServer "
    "UDPServer",
    "service.aiohttp": "AIOHTTPSSLService AIOHTTPService PathOrStr RunnerKwargsType SSLOptions "
    "Service bind_socket",
    "service.asgi": "ASGIApplicationType ASGIHTTPSSLService ASGIHTTPService ASGIReceiveType "
    "ASGIScopeType ASGISendType",
    "service.base": "Context Service ServiceMeta SimpleClient SimpleServer TaskStoreBase "
    "cancel_tasks get_context",
    "service.cron": "CronCallback CronService Service",
    "service.periodic": "PeriodicCallback PeriodicService Service",
    "service.process": "ProcessService RespawningProcessService",
    "service.profiler": "PeriodicCallback Profiler Service",
    "service.raven": "AioHttpTransport AioHttpTransportBase DummyTransport QueuedAioHttpTransport "
    "QueuedKeepaliveAioHttpTransport RavenSender",
    "service.sdwatchdog": "SDWatchdogService WATCHDOG_INTERVAL",
    "service.tcp": "OptionsType RobustTCPClient SimpleClient SimpleServer TCPClient TCPServer "
    "TimeoutType awaitable bind_socket",
    "service.tls": "DEFAULT_SSL_CIPHERS DEFAULT_SSL_MAX_VERSION DEFAULT_SSL_MIN_VERSION "
    "OptionsType PathOrStr RobustTLSClient SSLOptions SimpleServer TLSClient TLSServer TimeoutType "
    "awaitable bind_socket",
    "service.tracer": "GroupBy MemoryTracer PeriodicCallback Service",
    "service.udp": "OptionsType SimpleServer TransportType UDPServer awaitable bind_socket",
    "service.uvicorn": "UvicornApplication UvicornService",
    "signal": "Signal receiver",
    "thread_pool": "ChannelClosed FromThreadChannel IteratorWrapper IteratorWrapperSeparate "
    "ThreadPoolException ThreadPoolExecutor run_in_executor run_in_new_thread sync_await "
    "sync_wait_coroutine threaded threaded_iterable threaded_iterable_separate threaded_separate "
    "wait_coroutine",
    "timeout": "timeout",
    "utils": "OptionsType SelectResult TimeoutType awaitable bind_socket cancel_tasks chunk_list "
    "fast_uuid1 fast_uuid4 select shield",
    "version": "__version__",
}
EXTRAS = {
    "service.aiohttp": "aiohttp",
    "service.asgi": "aiohttp_asgi",
    "service.cron": "croniter",
    "service.raven": "raven",
    "service.uvicorn": "uvicorn",
    "cron": "croniter",
}


@pytest.mark.parametrize("module", NAMES)
def test_each_module_has_the_names_that_it_has_in_aiomisc(module: str) -> None:
    if module in EXTRAS:
        pytest.importorskip(EXTRAS[module])
    found = import_module(f"svcrun.{module}".rstrip("."))
    absent = [name for name in NAMES[module].split() if not hasattr(found, name)]
    assert not absent


# Parameters in the order of aiomisc; more may follow, by keyword alone.
PARAMETERS = {
    "awaitable": "func",
    "bind_socket": "args address port options reuse_addr reuse_port proto_name",
    "cancel_tasks": "tasks",
    "chunk_list": "iterable size",
    "context.get_context": "loop",
    "entrypoint.run": "coro services kwargs",
    "periodic.PeriodicCallback.start": "self interval loop delay shield suppress_exceptions",
    "receiver": "s",
    "recurring.RecurringCallback.start": "self strategy loop shield suppress_exceptions",
    "select": "awaitables return_exceptions cancel timeout wait loop",
    "shield": "func",
    "thread_pool.run_in_executor": "func executor args kwargs",
    "thread_pool.run_in_new_thread": "func args kwargs detach no_return statistic_name",
    "thread_pool.sync_wait_coroutine": "loop coro_func args kwargs",
    "threaded_separate": "func detach",
    "timeout": "value",
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_parameters_are_those_of_aiomisc(name: str) -> None:
    module, _, attributes = name.partition(".")
    found: Any = import_module(f"svcrun.{module}") if attributes else svcrun
    for attribute in (attributes or name).split("."):
        found = getattr(found, attribute)
    parameters = list(inspect.signature(found).parameters)
    expected = PARAMETERS[name].split()
    assert parameters[: len(expected)] == expected


# The options of an entrypoint


GIVEN = {
    "catch_signals": (signal.SIGUSR1,),
    "debug": True,
    "drain_delay": 7,
    "log_buffer_limit": 7000,
    "log_buffer_size": 70,
    "log_buffering": False,
    "log_config": False,
    "log_date_format": "%H",
    "log_flush_interval": 0.7,
    "log_format": "plain",
    "log_handlers": (logging.NullHandler(),),
    "log_level": "debug",
    "loop_factory": asyncio.new_event_loop,
    "pool_size": 7,
    "shutdown_timeout": 17,
    "start_timeout": 27,
}
DEFAULTS = {
    "catch_signals": (signal.SIGINT, signal.SIGTERM),
    "drain_delay": 0,
    "log_buffer_limit": 100_000,
    "log_buffer_size": 1024,
    "log_buffering": True,
    "log_config": True,
    "log_date_format": None,
    "log_flush_interval": 0.2,
    "log_format": LogFormat.default(),
    "log_handlers": (),
    "log_level": "info",
    "pool_size": None,
    "shutdown_timeout": 60,
    "start_timeout": None,
}


@pytest.mark.parametrize("name", GIVEN)
def test_an_option_is_an_attribute_and_setting_it_is_like_giving_it(name: str) -> None:
    value: Any = GIVEN[name]
    assert getattr(entrypoint(**{name: value}), name) == value
    changed = entrypoint()
    setattr(changed, name, value)
    assert getattr(changed, name) == value
    others = {**DEFAULTS, name: value}
    assert {one: getattr(changed, one) for one in others} == others


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_option_that_is_not_given_has_its_default(name: str) -> None:
    assert getattr(entrypoint(), name) == DEFAULTS[name]


def test_an_option_given_as_an_iterator_can_be_read_and_survives_another_change() -> None:
    handlers, signals = GIVEN["log_handlers"], GIVEN["catch_signals"]
    ep = entrypoint(log_handlers=iter(handlers), catch_signals=iter(signals))  # type: ignore[call-overload]
    ep.pool_size = 2
    assert (ep.log_handlers, ep.catch_signals) == (handlers, signals)


def test_attributes_return_values_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVCRUN_LOG_LEVEL", "warning")
    monkeypatch.setenv("SVCRUN_LOG_FORMAT", "plain")
    monkeypatch.setenv("SVCRUN_POOL_SIZE", "3")
    ep = entrypoint()
    monkeypatch.delenv("SVCRUN_POOL_SIZE")
    ep.log_buffer_size = 10
    assert (ep.log_level, ep.log_format, ep.pool_size) == ("warning", "plain", 3)
    assert entrypoint.DEFAULT_LOG_LEVEL == "warning"
    assert entrypoint.DEFAULT_SVCRUN_POOL_SIZE is None


def test_a_wrong_value_is_refused_by_name_and_changes_nothing() -> None:
    ep = entrypoint(pool_size=2)
    with pytest.raises(ValueError, match="pool_size must be at least 1, not 0"):
        ep.pool_size = 0
    assert ep.pool_size == 2


def test_an_option_that_is_set_counts_when_the_entrypoint_is_entered() -> None:
    made: list[asyncio.AbstractEventLoop] = []

    def make() -> asyncio.AbstractEventLoop:
        made.append(asyncio.new_event_loop())
        return made[0]

    ep = entrypoint(log_config=False)
    ep.loop_factory = make
    with ep as loop:
        assert made == [loop]


def test_no_signals_are_caught_by_default_beside_the_main_thread() -> None:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(entrypoint().catch_signals))
    thread.start()
    thread.join()
    assert found == [()]


def test_a_date_format_may_be_one_of_aiomisc() -> None:
    with entrypoint(log_date_format=DateFormat.stream, log_format="stream", log_level="error"):
        assert (LOG_LEVEL.get(), LOG_FORMAT.get()) == (logging.ERROR, LogFormat.stream)
    handler = create_logging_handler("stream", DateFormat.color)
    assert handler is not None
    assert handler.formatter is not None
    assert handler.formatter.datefmt == DateFormat.color.value
    with pytest.raises(TypeError, match=r"log_date_format must be a str .*, not 42"):
        entrypoint(log_date_format=42)  # type: ignore[arg-type]


# The current entrypoint, loop and service


class Idle(Service):
    async def start(self) -> None: ...


def test_the_current_entrypoint_and_its_loop_are_found_under_their_old_names() -> None:
    with entrypoint(Idle(), log_config=False) as loop:
        assert CURRENT_ENTRYPOINT.get().loop is loop
        assert EVENT_LOOP.get() is loop

        async def inside() -> None:
            assert CURRENT_ENTRYPOINT.get() is entrypoint.get_current()
            assert EVENT_LOOP.get() is loop

        loop.run_until_complete(inside())
    for variable in (CURRENT_ENTRYPOINT, EVENT_LOOP):
        with pytest.raises(RuntimeError):
            variable.get()


def test_the_current_loop_can_be_set_in_a_context() -> None:
    async def main() -> None:
        ep = entrypoint(log_config=False)
        CURRENT_ENTRYPOINT.set(ep)
        assert entrypoint.get_current() is ep
        set_current_loop(loop)
        assert EVENT_LOOP.get() is loop

    loop = asyncio.new_event_loop()
    asyncio.run(main())
    loop.close()


def test_a_strict_variable_raises_its_error_until_it_is_set() -> None:
    error = LookupError("no user")
    variable: StrictContextVar[str] = StrictContextVar("user", error)
    for _ in range(2):
        with pytest.raises(LookupError, match="no user") as caught:
            variable.get()
        assert len(caught.traceback) == 2  # it does not grow
    variable.set("ada")
    assert variable.get() == "ada"


# Small tools


def test_a_limit_may_be_given_by_name() -> None:
    @timeout(value=60)
    async def answer() -> int:
        return 42

    assert asyncio.run(answer()) == 42


def test_chunks_have_the_size_and_the_last_one_the_rest() -> None:
    def count() -> Iterator[int]:
        yield from range(5)

    assert list(chunk_list(count(), 2)) == [[0, 1], [2, 3], [4]]
    assert list(chunk_list([1, 2], 2)) == [[1, 2]]
    assert list(chunk_list([], 2)) == []


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_a_wrong_size_of_chunks_is_refused_at_once(size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"chunk_list\(\): size must be"):
        chunk_list([1], size)


def test_fast_identifiers_are_valid_and_differ() -> None:
    for make, version in ((fast_uuid1, 1), (fast_uuid4, 4)):
        made = {make() for _ in range(1000)}
        assert len(made) == 1000
        assert {(one.version, one.variant) for one in made} == {(version, uuid.RFC_4122)}


async def test_a_single_call_runs_in_the_pool_or_in_a_thread_of_its_own() -> None:
    here = threading.get_ident()

    def work(a: int, *, b: int) -> tuple[int, bool]:
        return a + b, threading.get_ident() != here

    assert await run_in_executor(work, args=(1,), kwargs={"b": 2}) == (3, True)
    assert await run_in_new_thread(work, (1,), {"b": 2}) == (3, True)
    assert await run_in_new_thread(work, (1,), {"b": 2}, no_return=True) is None


def test_a_call_in_the_pool_may_be_made_before_there_is_a_loop() -> None:
    later: Any = run_in_executor(divmod, args=(7, 4))

    async def main() -> None:
        assert await later == (1, 3)

    asyncio.run(main())
