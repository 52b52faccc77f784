"""Laws of the service that notices when the event loop is blocked."""

import asyncio
import logging
import pickle
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from svcrun import Service, entrypoint
from svcrun._util.tasks import running_task_and_service
from svcrun.service.watchdog import LoopLag, LoopWatchdog
from tests.support import PATIENCE, LoopFactory, Program, eventually, nothing_left, refuses

LOGGER = "svcrun.service.watchdog"


def messages_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages of watchdogs, except those about a suspended process."""
    messages = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    return [it for it in messages if not it.startswith("the process did not run")]


def find_warning(caplog: pytest.LogCaptureFixture, text: str) -> tuple[str, str]:
    """Return the one warning with a given text, and the message after it.

    There may be other warnings, because a busy machine may be late by itself.
    """
    messages = [*messages_of(caplog), "", ""]
    (index,) = [number for number, it in enumerate(messages) if text in it]
    return messages[index], messages[index + 1]


def count_incidents(caplog: pytest.LogCaptureFixture) -> int:
    """Return the number of logged incidents."""
    return sum("unblocked after" not in it for it in messages_of(caplog))


def block_until(check: Callable[[], object]) -> None:
    """Block this thread, and so the loop that runs in it."""
    deadline = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < deadline, "the watchdog logged nothing"
        time.sleep(0.005)


def hold(seconds: float) -> None:
    """Block this thread for a while."""
    time.sleep(seconds)


def make(**options: Any) -> LoopWatchdog:
    return LoopWatchdog(**{"threshold": 0.2, "interval": 0.01, **options})


class Blocker(Service):
    """A service that blocks the loop once."""

    until: Callable[[], object]

    async def start(self) -> None:
        self.start_event.set()
        await self.work()

    async def work(self) -> None:
        await asyncio.sleep(0.05)
        block_until(self.until)
        hold(0.3)


def test_a_blocking_call_is_logged_while_it_blocks_and_its_duration_afterwards(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    blocker = Blocker(name="blocker", until=lambda: "in block_until\n" in caplog.text)
    watchdog = make()
    with entrypoint(watchdog, blocker, log_config=False, loop_factory=loop_factory) as loop:
        loop.run_until_complete(eventually(lambda: "in block_until\n" in caplog.text))
        loop.run_until_complete(eventually(lambda: find_warning(caplog, "in block_until\n")[1]))
    warning, end = find_warning(caplog, "in block_until\n")
    assert re.search(r"event loop blocked for \d+\.\d", warning)
    assert "of <Blocker name='blocker' RUNNING> is at\n" in warning
    assert "in start\n    await self.work()" in warning
    assert "in work\n    block_until(self.until)" in warning
    assert "    time.sleep(0.005)" in warning or "while not check()" in warning
    assert re.search(r"event loop unblocked after \d+\.\d", end)
    assert {record.levelno for record in caplog.records} == {logging.WARNING}

    lag = watchdog.lag
    assert lag.incidents == count_incidents(caplog)
    assert lag.blocked >= lag.max >= 0.19  # the threshold; the rest may be the machine's fault


async def test_each_blocking_call_is_logged_by_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with entrypoint(make(), log_config=False):
        for count in (1, 2):
            await asyncio.sleep(0.05)
            block_until(lambda count=count: caplog.text.count("in block_until\n") == count)  # type: ignore[misc]
            hold(0.5)
            before = len(messages_of(caplog))
            await eventually(lambda before=before: len(messages_of(caplog)) > before)  # type: ignore[misc]
            assert "unblocked after" in messages_of(caplog)[before]


def test_a_blocking_callback_is_logged_with_its_stack(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    def block() -> None:
        block_until(lambda: "in block\n" in caplog.text)

    async def main() -> None:
        await asyncio.sleep(0.05)
        asyncio.get_running_loop().call_soon(block)
        await eventually(lambda: "in block\n" in caplog.text)

    with entrypoint(make(), log_config=False, loop_factory=loop_factory) as loop:
        loop.run_until_complete(main())
    warning, _ = find_warning(caplog, "in block\n    block_until(")
    assert "; it is at\n" in warning
    assert warning.count(__file__) in {2, 3}  # no frame from outside of the loop


class Caller(Service):
    """Has the loop call something."""

    function: Callable[[], object]

    async def start(self) -> None:
        self.loop.call_later(0.05, self.function)


def test_a_blocking_callback_is_logged_with_the_service_that_scheduled_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    whose = "; a callback of <Caller name='caller' RUNNING> is at\n"
    caller = Caller(name="caller", function=lambda: block_until(lambda: whose in caplog.text))
    factory = asyncio.SelectorEventLoop
    with entrypoint(make(), caller, log_config=False, loop_factory=factory) as loop:
        loop.run_until_complete(eventually(lambda: whose in caplog.text))


def test_a_blocking_callback_written_in_c_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(time.sleep, 1)
        await eventually(lambda: "<Handle sleep(" in caplog.text)

    factory = asyncio.SelectorEventLoop
    with entrypoint(make(), log_config=False, loop_factory=factory) as loop:
        loop.run_until_complete(main())


async def test_a_callback_that_holds_the_interpreter_lock_is_logged_afterwards(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hold_the_lock(amount: int) -> None:
        sum(range(amount))

    # A busy machine runs this process for less than half of the time, which would excuse the loop.
    monkeypatch.setattr(time, "process_time", time.monotonic)
    amount = 1_000_000
    async with entrypoint(make(), log_config=False):
        while "in hold_the_lock\n" not in caplog.text:
            await asyncio.sleep(0.05)
            hold_the_lock(amount)
            amount *= 2  # some machines are fast
    assert "    sum(range(amount))" in caplog.text


async def test_time_spent_in_logging_does_not_count_as_a_suspended_process(
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
            block_until(lambda: "in block_until\n" in caplog.text)
            await eventually(lambda: find_warning(caplog, "in block_until\n")[1])
    finally:
        logger.removeHandler(slow)
    assert "did not run for 0.5" not in caplog.text


async def test_a_stack_that_may_belong_to_another_callback_is_not_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_looking, has_turned = threading.Event(), threading.Event()

    def look_for_long(*args: Any) -> Any:
        is_looking.set()
        assert has_turned.wait(PATIENCE)
        return running_task_and_service(*args)

    monkeypatch.setattr("svcrun._insight.loop_watch.running_task_and_service", look_for_long)
    watchdog = make()
    async with entrypoint(watchdog, log_config=False):
        await asyncio.sleep(0.05)
        block_until(is_looking.is_set)
        await asyncio.sleep(0.05)
        has_turned.set()
        await eventually(lambda: "unblocked before its stack could be read" in caplog.text)
    assert "in block_until\n" not in caplog.text
    assert watchdog.lag.incidents == count_incidents(caplog)


async def test_a_loop_that_iterates_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    watchdog = make(threshold=PATIENCE)
    async with entrypoint(watchdog, log_config=False):
        await eventually(lambda: watchdog.lag.count >= 10)
    assert not messages_of(caplog)
    lag = watchdog.lag
    assert (lag.incidents, lag.blocked) == (0, 0)
    assert 0 <= lag.mean <= lag.max < PATIENCE
    assert lag.mean == pytest.approx(lag.total / lag.count)
    assert lag == watchdog.lag  # the figures are final


async def test_another_thread_sees_the_lag_of_a_blocked_loop_grow() -> None:
    watchdog = make()
    seen: list[LoopLag] = []

    def look() -> None:
        seen.append(watchdog.lag)
        while seen[-1].last < 0.5 or seen[-1].incidents == seen[0].incidents:
            time.sleep(0.01)
            seen.append(watchdog.lag)

    async with entrypoint(watchdog, log_config=False):
        await asyncio.sleep(0.05)
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert seen[-1].max >= seen[-1].last >= 0.5
        # It counts when it is over, but for time in which the machine did not run the process.
        await eventually(lambda: watchdog.lag.blocked > seen[-1].blocked)


def test_the_statistics_are_a_snapshot() -> None:
    lag = make().lag
    assert lag == LoopLag()
    assert lag.mean == 0
    with pytest.raises(FrozenInstanceError):
        lag.last = 1  # type: ignore[misc]


def test_a_loop_that_does_not_run_is_not_blocked(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    watchdog = make()
    with entrypoint(watchdog, log_config=False, loop_factory=loop_factory) as loop:
        loop.run_until_complete(asyncio.sleep(0.05))
        time.sleep(1)
        assert watchdog.lag.last < 1
        loop.run_until_complete(asyncio.sleep(0.05))
    assert "turned for 1" not in caplog.text
    assert watchdog.lag.max < 1


async def test_a_program_halted_by_a_debugger_is_not_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    debugger: dict[str, Any] = {"__name__": "pdb", "sleep": time.sleep}
    exec("def interaction():\n    sleep(1)\n", debugger)  # noqa: S102 - a function of another module
    watchdog = make()
    async with entrypoint(watchdog, log_config=False):
        await asyncio.sleep(0.05)
        debugger["interaction"]()
        await asyncio.sleep(0.05)
    assert "interaction" not in caplog.text
    assert watchdog.lag.max < 1


PROGRAM = """
import asyncio
import time
from svcrun import entrypoint
from svcrun.service import LoopWatchdog

async def main():
    while True:
        print("turn", flush=True)
        await asyncio.sleep(0.05)

watchdog = LoopWatchdog(threshold=1)
with entrypoint(watchdog, log_format="stream") as loop:
    loop.create_task(main())
    loop.run_forever()
print("incidents:", watchdog.lag.incidents)
"""

Run = Callable[..., Program]


def test_a_suspended_process_is_distinguished_from_a_blocked_loop(run_program: Run) -> None:
    program = run_program(PROGRAM)
    program.wait_for_line("turn")
    program.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    program.send_signal(signal.SIGCONT)
    program.wait_for_line("process did not run for", stream="stderr")
    program.terminate()
    outcome = program.wait()
    assert outcome.returncode == 0
    assert "turned" not in outcome.stderr
    assert "incidents: 0" in outcome.stdout


def test_a_program_without_a_stop_of_the_watchdog_ends(run_program: Run) -> None:
    source = """
import asyncio
from svcrun.service import LoopWatchdog

loop = asyncio.new_event_loop()
loop.run_until_complete(LoopWatchdog(threshold=0.1).start())
print("over")
"""
    outcome = run_program(source, options=()).wait()
    assert (outcome.returncode, outcome.stdout) == (0, "over\n")


def test_a_closed_loop_is_no_longer_watched(
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


async def test_a_stop_counts_a_blocking_call_that_has_just_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watchdog = make()
    await watchdog.start()
    await asyncio.sleep(0.05)
    block_until(lambda: "in block_until\n" in caplog.text)
    await watchdog.stop()
    assert "unblocked after" in messages_of(caplog)[-1]
    assert watchdog.lag.incidents == count_incidents(caplog)
    assert watchdog.lag.blocked >= 0.1


async def test_the_error_of_a_failed_watchdog_thread_is_raised_by_the_stop() -> None:
    is_refused = threading.Event()

    def refuse(record: logging.LogRecord) -> bool:
        is_refused.set()
        raise OSError("no log today")

    watchdog = make()
    logger = logging.getLogger(LOGGER)
    logger.addFilter(refuse)
    try:
        with nothing_left():
            await watchdog.start()
            await asyncio.sleep(0.05)
            block_until(is_refused.is_set)
            with pytest.raises(OSError, match="no log today"):
                await watchdog.stop()
    finally:
        logger.removeFilter(refuse)


async def test_many_starts_and_stops_leave_nothing_behind() -> None:
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
        block_until(lambda: messages_of(caplog))
        await first.stop()
        count = second.lag.count
        await eventually(lambda: second.lag.count > count)
    assert first.lag.incidents == count_incidents(caplog)
    assert second.lag.incidents == 0


async def test_a_running_watchdog_is_not_started_again() -> None:
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


async def test_a_failed_start_of_a_subclass_leaves_nothing_behind() -> None:
    class Failing(LoopWatchdog):
        async def start(self) -> None:
            await super().start()
            raise OSError("broken")

    with nothing_left(), pytest.raises(OSError, match="broken"):
        async with entrypoint(Failing(), log_config=False):
            pass


def test_the_end_of_the_entrypoint_ends_a_watchdog_without_a_stop() -> None:
    with nothing_left(), entrypoint(log_config=False) as loop:
        loop.run_until_complete(make().start())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threshold": 0}, ValueError, "threshold=0"),
        ({"threshold": float("inf")}, ValueError, "threshold=inf"),
        ({"threshold": "1"}, TypeError, "threshold='1'"),
        ({"threshold": None}, TypeError, "threshold=None"),
        ({"interval": 0}, ValueError, "interval=0"),
        ({"interval": True}, TypeError, "interval=True"),
        ({"interval": 0.6}, ValueError, "interval=0.6"),
    ],
)
def test_wrong_parameters_are_refused_at_once(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match="loop-watchdog") as raised:
        LoopWatchdog(**options)
    assert refuses(raised.value, message)


async def test_a_parameter_changed_to_a_wrong_value_is_refused_at_the_start() -> None:
    watchdog = make()
    watchdog.threshold = -1
    with (
        nothing_left(),
        pytest.raises(ValueError, match="threshold must be greater than 0, not -1"),
    ):
        await watchdog.start()


def test_a_watchdog_can_be_pickled_before_it_runs() -> None:
    copy = pickle.loads(pickle.dumps(LoopWatchdog(threshold=0.2)))  # noqa: S301 - our own
    assert copy.threshold == 0.2
    assert copy.lag == LoopLag()
