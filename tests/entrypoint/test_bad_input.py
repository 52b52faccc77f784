"""Wrong input raises an error that names it and the remedy, and leaves nothing running."""

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Any

import pytest

import svcrun
from svcrun import Service, entrypoint
from tests.entrypoint.actors import Brief, Log, Server
from tests.entrypoint.forms import Form
from tests.support import LoopFactory, nothing_left

Make = Callable[[], Any]

# For arguments that type checkers would refuse.
make: Any = entrypoint
run: Any = svcrun.run


def closed_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.close()
    return loop


# Errors raised by the constructor of the entrypoint.
WRONG: dict[str, tuple[Make, type[Exception], str]] = {
    "a class": (lambda: make(Brief), TypeError, r"Brief is a class.*Brief\(\.\.\.\)"),
    "a list": (lambda: make([Brief(log=[])]), TypeError, r"\[<Brief.*entrypoint\(\*"),
    "no service": (lambda: make(5), TypeError, "5 is not a svcrun.Service"),
    "an option": (lambda: make(poolsize=5), TypeError, "poolsize"),
    "pool_size": (lambda: make(pool_size=0), ValueError, "pool_size must be at least 1, not 0"),
    "pool_size type": (lambda: make(pool_size="5"), TypeError, "pool_size must be .*, not '5'"),
    "pool_size bool": (lambda: make(pool_size=True), TypeError, "pool_size must be .*, not True"),
    "shutdown_timeout": (
        lambda: make(shutdown_timeout=-1),
        ValueError,
        "shutdown_timeout must be greater than 0, not -1",
    ),
    "zero": (lambda: make(shutdown_timeout=0), ValueError, "shutdown_timeout must be .*, not 0"),
    "nan": (lambda: make(shutdown_timeout=float("nan")), ValueError, "nan"),
    "infinite": (lambda: make(shutdown_timeout=float("inf")), ValueError, "inf"),
    "too large": (lambda: make(shutdown_timeout=1e300), ValueError, "1e\\+300"),
    "timeout type": (
        lambda: make(shutdown_timeout="1"),
        TypeError,
        "shutdown_timeout must be .*, not '1'",
    ),
    "start_timeout": (
        lambda: make(start_timeout=-2),
        ValueError,
        "start_timeout must be .*, not -2",
    ),
    "signals": (lambda: make(catch_signals=signal.SIGTERM), TypeError, "catch_signals"),
    "signal": (
        lambda: make(catch_signals=["TERM"]),
        ValueError,
        "catch_signals must be .*, not .'TERM'",
    ),
    "signal number": (
        lambda: make(catch_signals=[500]),
        ValueError,
        "catch_signals must be .*, not .500",
    ),
    "uncatchable": (
        lambda: make(catch_signals=[signal.SIGKILL]),
        ValueError,
        "can be caught.*SIGKILL",
    ),
    "loop": (lambda: make(loop=5), TypeError, "loop must be .*, not 5"),
    "closed loop": (lambda: make(loop=closed_loop()), ValueError, "open loop.*closed=True"),
    "loop_factory": (lambda: make(loop_factory=5), TypeError, "loop_factory must be .*, not 5"),
    "debug": (lambda: make(debug="maybe"), TypeError, "debug must be .*, not 'maybe'"),
    "log_config": (lambda: make(log_config="x"), TypeError, "log_config must be .*, not 'x'"),
    "log_buffering": (
        lambda: make(log_buffering="x"),
        TypeError,
        "log_buffering must be .*, not 'x'",
    ),
    "log_level": (
        lambda: make(log_level="loud"),
        ValueError,
        "log_level must be .*info.*, not 'loud'",
    ),
    "log_format": (
        lambda: make(log_format="xml"),
        ValueError,
        "log_format must be .*stream.*, not 'xml'",
    ),
    "log_buffer_size": (
        lambda: make(log_buffer_size=0),
        ValueError,
        "log_buffer_size must be .*, not 0",
    ),
    "log_flush_interval": (
        lambda: make(log_flush_interval=-1),
        ValueError,
        "log_flush_interval must be .*, not -1",
    ),
    "log_buffer_limit": (
        lambda: make(log_buffer_limit="x"),
        TypeError,
        "log_buffer_limit must be .*, not 'x'",
    ),
    "log_handlers": (lambda: make(log_handlers=[5]), TypeError, "log_handlers must be .*, not .5"),
    "one log handler": (
        lambda: make(log_handlers=logging.NullHandler()),
        TypeError,
        "log_handlers must be a list .*, not <NullHandler",
    ),
    "log_date_format": (
        lambda: make(log_date_format=5),
        TypeError,
        "log_date_format must be .*, not 5",
    ),
    "main": (lambda: run(closed_loop), TypeError, r"run\(main\(\)\)"),
}


@pytest.mark.parametrize(("attempt", "kind", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_refused(attempt: Make, kind: type[Exception], message: str) -> None:
    with nothing_left(), pytest.raises(kind, match=message):
        attempt()


VARIABLES = {
    "SVCRUN_POOL_SIZE": ("many", "a whole number"),
    "SVCRUN_SHUTDOWN_TIMEOUT": ("soon", "a number"),
    "SVCRUN_DEBUG": ("maybe", "1, on, yes, true, 0, off, no or false"),
    "SVCRUN_USE_UVLOOP": ("maybe", "1, on, yes, true, 0, off, no or false"),
    "SVCRUN_LOG_CONFIG": ("maybe", "1, on, yes, true, 0, off, no or false"),
    "SVCRUN_LOG_BUFFERING": ("maybe", "1, on, yes, true, 0, off, no or false"),
    "SVCRUN_LOG_BUFFER": ("big", "a whole number"),
    "SVCRUN_LOG_FLUSH": ("often", "a number"),
    "SVCRUN_LOG_LEVEL": ("loud", "info"),
    "SVCRUN_LOG_FORMAT": ("xml", "stream"),
}
OUT_OF_RANGE = {
    "SVCRUN_POOL_SIZE": "0",
    "SVCRUN_SHUTDOWN_TIMEOUT": "-1",
    "SVCRUN_LOG_BUFFER": "0",
    "SVCRUN_LOG_FLUSH": "-1",
}


@pytest.mark.parametrize("name", VARIABLES)
def test_a_wrong_environment_variable_is_refused_by_name_with_the_accepted_values(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, accepted = VARIABLES[name]
    monkeypatch.setenv(name, value)
    with nothing_left(), pytest.raises(ValueError, match=name) as caught:
        entrypoint()
    assert repr(value) in str(caught.value)
    assert accepted in str(caught.value)


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE.items())
def test_an_environment_variable_out_of_its_range_is_refused_by_name(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=name) as caught:
        entrypoint()
    assert value in str(caught.value)


def test_a_valid_argument_wins_over_an_invalid_environment_variable(
    monkeypatch: pytest.MonkeyPatch, loop_factory: LoopFactory
) -> None:
    monkeypatch.setenv("SVCRUN_POOL_SIZE", "many")
    with entrypoint(pool_size=1, loop_factory=loop_factory, log_config=False) as loop:
        assert loop.run_until_complete(asyncio.to_thread(int)) == 0


# Errors raised when the entrypoint is entered.


def test_a_cycle_is_refused_before_anything_starts(live: Form) -> None:
    log: Log = []
    first, second = Server(log=log, name="first"), Server(log=log, name="second")
    first.depends_on, second.depends_on = second, first
    with pytest.raises(ValueError, match=r"first.*second") as caught:
        live(Brief(log=log), first, second)
    assert "depend on each other" in str(caught.value)
    assert log == []


def test_an_unknown_dependency_is_refused_before_anything_starts(live: Form) -> None:
    log: Log = []

    class Missing(Brief):
        pass

    with pytest.raises(ValueError, match=r"lonely.*depends on Missing.*entrypoint"):
        live(Brief(log=log), Brief(log=log, name="lonely", depends_on=Missing))
    assert log == []


def test_a_wrong_late_service_is_refused_before_any_hook(live: Form) -> None:
    called: list[Any] = []

    async def hook(**_: Any) -> None:
        called.append(1)

    async def body(ep: entrypoint) -> None:
        ep.pre_start._is_frozen = False
        ep.pre_start.connect(hook)
        with pytest.raises(TypeError, match="is a class"):
            await ep.start_services(Brief)  # type: ignore[arg-type]

    live(body=body)
    assert not called


def test_a_loop_that_runs_in_another_thread_is_refused(loop_factory: LoopFactory) -> None:
    import threading

    loop = loop_factory()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        while not loop.is_running():
            pass
        with pytest.raises(ValueError, match=r"loop must be .*does not run"), entrypoint(loop=loop):
            pass
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def test_an_async_block_refuses_a_loop_that_does_not_run_it(
    loop_factory: LoopFactory,
) -> None:
    loop = loop_factory()
    with pytest.raises(ValueError, match="loop must be an open loop"):
        async with entrypoint(loop=loop):
            pass
    loop.close()


def test_a_loop_factory_that_makes_no_loop_is_refused() -> None:
    with (
        nothing_left(),
        pytest.raises(TypeError, match="loop_factory"),
        make(loop_factory=lambda: 5),
    ):
        pass


def test_a_loop_factory_that_makes_a_closed_loop_is_refused() -> None:
    with (
        nothing_left(),
        pytest.raises(
            ValueError, match=r"loop_factory must be .*new event loop \(it returned .*closed=True"
        ),
        make(loop_factory=closed_loop),
    ):
        pass


def test_a_coroutine_that_run_refuses_is_closed() -> None:
    with pytest.raises(TypeError):
        run(asyncio.sleep(0), Brief)
    with pytest.raises(ValueError, match="pool_size"):
        svcrun.run(asyncio.sleep(0), pool_size=-1)


async def test_run_in_a_running_loop_is_refused_and_its_coroutine_closed() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        svcrun.run(asyncio.sleep(0))


def test_a_start_that_is_no_coroutine_function_is_refused_at_class_creation() -> None:
    with pytest.raises(TypeError, match=r"Plain\.start"):

        class Plain(Service):
            def start(self) -> None: ...  # type: ignore[override]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("run_forever", "await ep.closing()"),
        ("run_until_complete", "await ep.closing()"),
        ("create_task", "ep.loop.create_task(...)"),
    ],
)
async def test_a_method_of_the_loop_called_on_an_entrypoint_is_an_error_with_the_remedy(
    name: str, remedy: str
) -> None:
    async with entrypoint(log_config=False) as ep:
        with pytest.raises(AttributeError) as caught:
            getattr(ep, name)
    assert f"an entrypoint has no attribute {name!r}" in str(caught.value)
    assert remedy in str(caught.value)


def test_an_unknown_attribute_of_an_entrypoint_is_an_ordinary_error() -> None:
    with pytest.raises(AttributeError, match=r"an entrypoint has no attribute 'closed'$"):
        _ = make().closed
