"""Laws of the service that notices when the event loop is blocked."""

import asyncio
import logging
import pickle
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from svcrun import Service, entrypoint
from svcrun.service.watchdog import LoopLag, LoopWatchdog
from svcrun.tasks import at_work
from tests.support import PATIENCE, LoopFactory, Program, eventually, nothing_left

LOGGER = "svcrun.service.watchdog"


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what watchdogs have logged, but for times when others had the machine."""
    messages = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    return [it for it in messages if not it.startswith("the process did not run")]


def block_until(check: Callable[[], object]) -> None:
    """Block this thread, and so the loop that runs in it."""
    deadline = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < deadline, "nobody noticed"
        time.sleep(0.005)


def hold(seconds: float) -> None:
    """Block this thread for a while."""
    time.sleep(seconds)


def make(**options: Any) -> LoopWatchdog:
    return LoopWatchdog(**{"threshold": 0.1, "interval": 0.01, **options})


class Blocker(Service):
    """Blocks the loop once."""

    until: Callable[[], object]

    async def start(self) -> None:
        self.start_event.set()
        await self.work()

    async def work(self) -> None:
        await asyncio.sleep(0.05)
        block_until(self.until)
        hold(0.3)


def test_what_blocks_the_loop_is_logged_while_it_does_and_for_how_long_it_did(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    blocker, watchdog = Blocker(name="blocker", until=lambda: said(caplog)), make()
    with entrypoint(watchdog, blocker, log_config=False, loop_factory=loop_factory) as loop:
        loop.run_until_complete(eventually(lambda: len(said(caplog)) >= 2))
    warning, end = said(caplog)
    assert "has not turned for 0.1" in warning
    assert "of <Blocker name='blocker' RUNNING> is at\n" in warning
    assert "in start\n    await self.work()" in warning
    assert "in work\n    block_until(self.until)" in warning
    assert "    time.sleep(0.005)" in warning or "while not check()" in warning
    assert "turns again; it had not turned for 0." in end
    assert {record.levelno for record in caplog.records} == {logging.WARNING}

    lag = watchdog.lag
    assert lag.incidents == 1
    assert lag.max == lag.blocked
    assert lag.blocked >= 0.3


async def test_one_incident_is_one_warning_however_long_it_lasts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with entrypoint(make(), log_config=False):
        for count in (1, 2):
            await asyncio.sleep(0.05)
            block_until(lambda count=count: len(said(caplog)) == count * 2 - 1)  # type: ignore[misc]
            hold(0.3)
            await eventually(lambda count=count: len(said(caplog)) >= count * 2)  # type: ignore[misc]
    assert [("turns again" in it) for it in said(caplog)] == [False, True, False, True]


def test_a_callback_is_told_by_its_stack(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    def block() -> None:
        block_until(lambda: said(caplog))

    async def main() -> None:
        await asyncio.sleep(0.05)
        asyncio.get_running_loop().call_soon(block)
        await eventually(lambda: len(said(caplog)) >= 2)

    with entrypoint(make(), log_config=False, loop_factory=loop_factory) as loop:
        loop.run_until_complete(main())
    assert "; it is at\n" in said(caplog)[0]
    assert "in block\n    block_until(lambda: said(caplog))" in said(caplog)[0]
    assert said(caplog)[0].count(__file__) == 2  # nothing of what is around the loop


class Caller(Service):
    """Has the loop call something."""

    function: Callable[[], object]

    async def start(self) -> None:
        self.loop.call_later(0.05, self.function)


def test_a_callback_is_told_by_the_service_that_asked_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caller = Caller(name="caller", function=lambda: block_until(lambda: said(caplog)))
    factory = asyncio.SelectorEventLoop
    with entrypoint(make(), caller, log_config=False, loop_factory=factory) as loop:
        loop.run_until_complete(eventually(lambda: said(caplog)))
    assert "; a callback of <Caller name='caller' RUNNING> is at\n" in said(caplog)[0]


def test_a_callback_that_is_not_written_in_python_is_told_as_well(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(time.sleep, 0.5)
        await eventually(lambda: len(said(caplog)) >= 2)

    factory = asyncio.SelectorEventLoop
    with entrypoint(make(), log_config=False, loop_factory=factory) as loop:
        loop.run_until_complete(main())
    assert "<Handle sleep(" in said(caplog)[0]


async def test_who_keeps_all_threads_from_running_is_told_afterwards(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def hold_the_lock(amount: int) -> None:
        sum(range(amount))

    amount = 10_000_000
    async with entrypoint(make(), log_config=False):
        while not any("in hold_the_lock\n" in it for it in said(caplog)):
            await asyncio.sleep(0.05)
            hold_the_lock(amount)
            amount = min(amount * 2, 100_000_000)
    assert "    sum(range(amount))" in caplog.text


async def test_the_time_that_a_log_takes_is_none_in_which_the_process_did_not_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            hold(0.5)

    logger, slow = logging.getLogger(LOGGER), Slow()
    logger.addHandler(slow)
    try:
        async with entrypoint(make(), log_config=False):
            await asyncio.sleep(0.05)
            block_until(lambda: said(caplog))
            await eventually(lambda: len(said(caplog)) >= 2)
    finally:
        logger.removeHandler(slow)
    assert "did not run for 0.5" not in caplog.text


async def test_a_stack_that_may_be_that_of_something_else_is_not_shown(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_looking, has_turned = threading.Event(), threading.Event()

    def look_for_long(*args: Any) -> Any:
        is_looking.set()
        assert has_turned.wait(PATIENCE)
        return at_work(*args)

    monkeypatch.setattr("svcrun.service.watchdog.at_work", look_for_long)
    watchdog = make()
    async with entrypoint(watchdog, log_config=False):
        await asyncio.sleep(0.05)
        block_until(is_looking.is_set)
        await asyncio.sleep(0.05)
        has_turned.set()
        await eventually(lambda: said(caplog))
    assert "turned again before it could be seen" in said(caplog)[0]
    assert watchdog.lag.incidents == 1


async def test_a_loop_that_turns_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    watchdog = make(threshold=0.5)
    async with entrypoint(watchdog, log_config=False):
        await eventually(lambda: watchdog.lag.count >= 10)
    assert not said(caplog)
    lag = watchdog.lag
    assert (lag.incidents, lag.blocked) == (0, 0)
    assert 0 <= lag.mean <= lag.max < 0.5
    assert lag.mean == pytest.approx(lag.total / lag.count)
    assert lag == watchdog.lag  # nobody measures any more


async def test_while_the_loop_is_blocked_another_thread_sees_the_lag_grow() -> None:
    watchdog = make()
    seen: list[LoopLag] = []

    def look() -> None:
        while not seen or seen[-1].last < 0.2:
            seen.append(watchdog.lag)
            time.sleep(0.01)

    async with entrypoint(watchdog, log_config=False):
        await asyncio.sleep(0.05)
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert seen[-1].max >= seen[-1].last >= 0.2
        assert seen[-1].incidents == 1
        assert seen[-1].blocked == 0  # it is not over
        await eventually(lambda: watchdog.lag.blocked >= 0.2)


def test_figures_are_a_snapshot() -> None:
    lag = make().lag
    assert lag == LoopLag()
    assert lag.mean == 0
    with pytest.raises(FrozenInstanceError):
        lag.last = 1  # type: ignore[misc]


def test_a_loop_that_is_not_run_is_not_blocked(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    watchdog = make()
    with entrypoint(watchdog, log_config=False, loop_factory=loop_factory) as loop:
        loop.run_until_complete(asyncio.sleep(0.05))
        time.sleep(0.4)
        assert watchdog.lag.last < 0.1
        loop.run_until_complete(asyncio.sleep(0.05))
    assert not said(caplog)
    assert watchdog.lag.incidents == 0


async def test_a_program_that_a_debugger_holds_is_not_blocked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    debugger: dict[str, Any] = {"__name__": "pdb", "sleep": time.sleep}
    exec("def interaction():\n    sleep(0.5)\n", debugger)  # noqa: S102 - a function of another module
    async with entrypoint(make(), log_config=False):
        await asyncio.sleep(0.05)
        debugger["interaction"]()
        await asyncio.sleep(0.05)
    assert not said(caplog)


PROGRAM = """
import asyncio
import time
from svcrun import entrypoint
from svcrun.service import LoopWatchdog

async def main():
    while True:
        print("turn", flush=True)
        await asyncio.sleep(0.05)

watchdog = LoopWatchdog(threshold=0.3)
with entrypoint(watchdog, log_format="stream") as loop:
    loop.create_task(main())
    loop.run_forever()
print("incidents:", watchdog.lag.incidents)
"""

Run = Callable[..., Program]


def test_a_process_that_was_suspended_is_told_from_one_that_is_blocked(run_program: Run) -> None:
    program = run_program(PROGRAM)
    program.wait_for_line("turn")
    program.send_signal(signal.SIGSTOP)
    time.sleep(1.0)
    program.send_signal(signal.SIGCONT)
    program.wait_for_line("the process did not run for", stream="stderr")
    program.terminate()
    outcome = program.wait()
    assert outcome.returncode == 0
    assert "turned" not in outcome.stderr
    assert "incidents: 0" in outcome.stdout


def test_a_program_that_forgets_the_stop_comes_to_its_end(run_program: Run) -> None:
    source = """
import asyncio
from svcrun.service import LoopWatchdog

loop = asyncio.new_event_loop()
loop.run_until_complete(LoopWatchdog(threshold=0.1).start())
print("over")
"""
    outcome = run_program(source, options=()).wait()
    assert (outcome.returncode, outcome.stdout) == (0, "over\n")


def test_a_loop_that_is_closed_is_watched_no_longer(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    watchdog = make()
    with nothing_left():
        loop = loop_factory()
        loop.run_until_complete(watchdog.start())
        loop.close()
    asyncio.run(watchdog.stop())
    assert not caplog.records
    for _ in range(2):
        with asyncio.Runner(loop_factory=loop_factory) as runner:  # and now another one
            runner.run(watchdog.start())
            runner.run(watchdog.stop())
    assert watchdog.lag.count


async def test_at_the_stop_a_block_that_has_just_ended_is_accounted_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watchdog = make()
    await watchdog.start()
    await asyncio.sleep(0.05)
    block_until(lambda: said(caplog))
    await watchdog.stop()
    assert "turns again" in said(caplog)[-1]
    assert watchdog.lag.incidents == 1
    assert watchdog.lag.blocked >= 0.1


async def test_a_watch_that_fails_is_told_by_the_stop() -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise OSError("no log today")

    watchdog = make()
    logger = logging.getLogger(LOGGER)
    logger.addFilter(refuse)
    try:
        with nothing_left():
            await watchdog.start()
            await asyncio.sleep(0.05)
            hold(0.5)
            with pytest.raises(OSError, match="no log today"):
                await watchdog.stop()
    finally:
        logger.removeFilter(refuse)


async def test_nothing_is_left_by_any_number_of_lives() -> None:
    watchdog = make()
    with nothing_left():
        for _ in range(20):
            async with entrypoint(watchdog, log_config=False):
                assert watchdog.lag.count <= 1  # the figures are those of this life
                await eventually(lambda: watchdog.lag.count)


async def test_watchdogs_of_one_loop_do_not_disturb_each_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = make(name="first"), make(threshold=PATIENCE, name="second")
    async with entrypoint(first, second, log_config=False):
        await asyncio.sleep(0.05)
        block_until(lambda: said(caplog))
        await first.stop()
        await eventually(lambda: second.lag.max >= 0.1)
    assert (first.lag.incidents, second.lag.incidents) == (1, 0)


async def test_it_is_not_started_twice() -> None:
    watchdog = make()
    async with entrypoint(watchdog):
        with pytest.raises(RuntimeError, match="is running already"):
            await watchdog.start()


async def test_stops_without_a_start_and_after_a_stop_do_nothing() -> None:
    watchdog = make()
    await watchdog.stop()
    await watchdog.start()
    await asyncio.gather(watchdog.stop(), watchdog.stop())
    await watchdog.stop()


async def test_a_start_that_fails_after_it_leaves_nothing() -> None:
    class Failing(LoopWatchdog):
        async def start(self) -> None:
            await super().start()
            raise OSError("broken")

    with nothing_left(), pytest.raises(OSError, match="broken"):
        async with entrypoint(Failing(), log_config=False):
            pass


def test_without_a_stop_the_end_of_the_entrypoint_ends_it() -> None:
    with nothing_left(), entrypoint(log_config=False) as loop:
        loop.run_until_complete(make().start())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threshold": 0}, ValueError, "threshold=0 "),
        ({"threshold": float("inf")}, ValueError, "threshold=inf "),
        ({"threshold": "1"}, TypeError, "threshold='1' "),
        ({"threshold": None}, TypeError, "threshold=None "),
        ({"interval": 0}, ValueError, "interval=0 "),
        ({"interval": True}, TypeError, "interval=True "),
        ({"interval": 0.6}, ValueError, "interval=0.6 "),
    ],
)
def test_wrong_parameters_are_refused_at_once(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match="loop-watchdog") as raised:
        LoopWatchdog(**options)
    assert message in str(raised.value)


async def test_a_parameter_that_went_wrong_later_is_refused_at_the_start() -> None:
    watchdog = make()
    watchdog.threshold = -1
    with nothing_left(), pytest.raises(ValueError, match="threshold=-1 "):
        await watchdog.start()


def test_it_can_be_pickled_before_it_runs() -> None:
    copy = pickle.loads(pickle.dumps(LoopWatchdog(threshold=0.2)))  # noqa: S301 - our own
    assert copy.threshold == 0.2
    assert copy.lag == LoopLag()
