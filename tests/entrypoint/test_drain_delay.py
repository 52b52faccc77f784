"""After SIGTERM, a program with a drain delay goes on for that long (C37).

Each program sends the signal to itself at the point in question.
"""

import asyncio
import re
import signal as signals
import textwrap
from pathlib import Path

import pytest

from svcrun import Service, entrypoint
from tests.entrypoint.forms import Form
from tests.entrypoint.programs import Run, lines
from tests.service.managers import managed
from tests.support import Outcome

# Long enough that a test which waits for its end fails.
FOREVER = "drain_delay=3600"

TICKING = """
class Ticking(Server):
    '''A service with a timer, and a task that waits for the shutdown.'''

    async def start(self):
        self.waiter = asyncio.create_task(self.wait())
        await super().start()

    async def wait(self):
        await svcrun.entrypoint.get_current().closing()
        say("closing")


async def tick(times):
    for _ in range(times):
        await asyncio.sleep(0.02)
    say("ticked", svcrun.entrypoint.get_current().is_ready)
"""

ENDINGS = {
    "run_forever": """
        with entrypoint(Ticking(), {option}) as loop:
            send()
            task = loop.create_task(tick(5))
            loop.run_forever()
        say("after")
        """,
    "run_until_complete": """
        async def main():
            send()
            await tick(5)
            await asyncio.sleep(60)

        with entrypoint(Ticking(), {option}) as loop:
            loop.run_until_complete(main())
            say("never")
        say("after")
        """,
    "async with": """
        async def main():
            async with entrypoint(Ticking(), {option}):
                send()
                await tick(5)
                await asyncio.sleep(60)
                say("never")
            say("after")

        run_async(main())
        """,
    "closing": """
        async def main():
            async with entrypoint(Ticking(), {option}) as ep:
                send()
                await tick(5)
                await ep.closing()
            say("after")

        run_async(main())
        """,
    "run": """
        async def main():
            send()
            await tick(5)
            await asyncio.sleep(60)

        try:
            svcrun.run(main(), Ticking(), {option})
        except SystemExit as error:
            assert error.code == 143
            say("after")
        """,
    "by hand": """
        loop = asyncio.new_event_loop()
        ep = entrypoint(Ticking(), {option})
        loop.run_until_complete(ep.__aenter__())
        send()
        task = loop.create_task(tick(5))
        loop.run_forever()
        loop.run_until_complete(ep.__aexit__(None, None, None))
        loop.close()
        say("after")
        """,
    "a loop of the program": """
        loop = asyncio.new_event_loop()
        with entrypoint(Ticking(), loop=loop, {option}):
            send()
            task = loop.create_task(tick(5))
            loop.run_forever()
        loop.close()
        say("after")
        """,
}

BY_ENDING = pytest.mark.parametrize(
    "source", [*map(textwrap.dedent, ENDINGS.values())], ids=ENDINGS
)


def assert_orderly(outcome: Outcome, *expected: str) -> None:
    assert outcome.returncode == 0, outcome.stderr
    assert lines(outcome) == list(expected)
    assert "Traceback" not in outcome.stderr
    assert "Warning" not in outcome.stderr


def seconds(outcome: Outcome) -> float:
    """Return the time between the two last numbers that the program printed as times."""
    first, last = re.findall(r"^at ([\d.]+)$", outcome.stdout, re.MULTILINE)
    return float(last) - float(first)


@BY_ENDING
def test_the_program_goes_on_and_is_not_ready_until_the_delay_is_over(
    run: Run, source: str
) -> None:
    outcome = run(TICKING + source.replace("{option}", "drain_delay=0.5"))
    assert_orderly(outcome, "started", "ticked False", "closing", "stopped", "cancelled", "after")


def test_the_log_says_how_long_the_delay_is_and_when_it_is_over(run: Run) -> None:
    outcome = run(
        """
        with entrypoint(Server(), drain_delay=0.25) as loop:
            loop.call_soon(send)
            loop.run_forever()
        """
    )
    assert outcome.stderr.splitlines()[:2] == [
        "INFO:svcrun.entrypoint:SIGTERM received; shutting down in 0.25 s (drain_delay)",
        "INFO:svcrun.entrypoint:drain_delay has ended, shutting down",
    ]


def test_the_environment_sets_the_delay(run: Run) -> None:
    outcome = run(
        """
        with entrypoint(Server()) as loop:
            say("at", time.monotonic())
            loop.call_soon(send)
            loop.run_forever()
            say("at", time.monotonic())
        """,
        env={"SVCRUN_DRAIN_DELAY": "0.4"},
    )
    assert outcome.returncode == 0
    assert seconds(outcome) >= 0.4


def test_without_a_delay_readiness_ends_with_the_signal(run: Run) -> None:
    outcome = run(
        """
        class Watching(Server):
            async def stop(self, exception=None):
                say("ready in stop()", ep.is_ready)
                await super().stop(exception)

        ep = entrypoint(Watching())
        say("ready before the start", ep.is_ready)
        with ep as loop:
            say("ready", ep.is_ready)
            send()
            say("ready", ep.is_ready)
            loop.run_forever()
        say("ready at the end", ep.is_ready)
        """
    )
    assert_orderly(
        outcome,
        "ready before the start False",
        "started",
        "ready True",
        "ready False",
        "ready in stop() False",
        "stopped",
        "cancelled",
        "ready at the end False",
    )


def test_a_thread_sees_the_end_of_readiness_while_the_loop_is_blocked(run: Run) -> None:
    outcome = run(
        """
        def watch():
            while ep.is_ready:
                time.sleep(0.001)
            say("not ready")
            seen.set()

        seen = threading.Event()
        with entrypoint(Server(), drain_delay=0.2) as loop:
            ep = svcrun.entrypoint.get_current()
            thread = threading.Thread(target=watch)
            thread.start()
            loop.call_soon(send)
            loop.call_soon(seen.wait, 20)  # blocks the loop
            loop.call_soon(say, "unblocked")
            loop.run_forever()
            thread.join()
        """
    )
    assert_orderly(outcome, "started", "not ready", "unblocked", "stopped", "cancelled")


@pytest.mark.parametrize("during", ["start", "crash", "end", "graceful_shutdown"])
def test_readiness_ends_with_every_begin_of_a_shutdown(live: Form, during: str) -> None:
    seen: list[bool] = []

    class Watching(Service):
        async def start(self) -> None:
            if during == "start":
                seen.append(entrypoint.get_current().is_ready)

        async def stop(self, exception: BaseException | None = None) -> None:
            seen.append(entrypoint.get_current().is_ready)

    class Failing(Service):
        async def start(self) -> None:
            self.start_event.set()
            await asyncio.Event().wait() if during != "crash" else await asyncio.sleep(0.01)
            raise LookupError("crash")

    async def body(ep: entrypoint) -> None:
        assert ep.is_ready
        if during == "graceful_shutdown":
            await ep.graceful_shutdown()
        elif during == "crash":
            await asyncio.Event().wait()

    services = (Watching(), Failing()) if during == "crash" else (Watching(),)
    if during == "crash":
        with pytest.raises(LookupError):
            live(*services, body=body)
    else:
        live(*services, body=body)
    assert seen == [False] * (2 if during == "start" else 1)


# Signals that do not begin a delay.


@BY_ENDING
def test_a_first_sigint_skips_the_delay(run: Run, source: str) -> None:
    source = source.replace("{option}", FOREVER).replace("SystemExit", "KeyboardInterrupt")
    source = source.replace("assert error.code == 143", "pass")
    outcome = run(TICKING + source, signal="SIGINT")
    assert_orderly(outcome, "started", "closing", "stopped", "cancelled", "after")


def test_another_signal_skips_the_delay(run: Run) -> None:
    outcome = run(
        f"""
        with entrypoint(Server(), {FOREVER}, catch_signals=[signal.SIGUSR1]) as loop:
            send()
            loop.run_forever()
        """,
        signal="SIGUSR1",
    )
    assert_orderly(outcome, "started", "stopped", "cancelled")


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT"])
def test_a_signal_during_the_start_is_not_delayed(run: Run, signal: str) -> None:
    outcome = run(
        f"""
        class Slow(Service):
            async def start(self):
                send()
                await asyncio.sleep(60)

        try:
            with entrypoint(Slow(), {FOREVER}):
                say("never")
        finally:
            say("after")
        """,
        signal=signal,
    )
    assert_orderly(outcome, "after")


def test_a_signal_in_the_last_step_of_the_start_is_not_delayed(run: Run) -> None:
    outcome = run(
        f"""
        @svcrun.receiver(entrypoint.POST_START)
        async def hook(**_):
            send()

        try:
            with entrypoint(Server(), {FOREVER}):
                say("never")
        finally:
            say("after")
        """
    )
    assert_orderly(outcome, "started", "stopped", "cancelled", "after")


# The end of the delay.


@pytest.mark.parametrize(
    ("form", "second"),
    [
        ("run_forever", "SIGTERM"),
        ("run_forever", "SIGINT"),
        ("async with", "SIGINT"),
        ("run", "SIGTERM"),
    ],
)
def test_a_second_signal_after_a_second_ends_the_delay_alone(
    run: Run, form: str, second: str
) -> None:
    source = textwrap.dedent(ENDINGS[form])
    source = source.replace("tick(5)", "again()").replace("{option}", FOREVER)
    again = f"""
async def again():
    await asyncio.sleep(1.2)
    send(signal.{second})

class Slow(Ticking):
    async def stop(self, exception=None):
        await asyncio.sleep(0.1)  # a cancelled stop() would not go on
        await super().stop(exception)
"""
    outcome = run(TICKING + again + source.replace("Ticking", "Slow"))
    assert_orderly(outcome, "started", "closing", "stopped", "cancelled", "after")


def test_a_signal_repeated_within_a_second_does_not_end_the_delay(run: Run) -> None:
    outcome = run(
        """
        with entrypoint(Server(), drain_delay=1.5) as loop:
            say("at", time.monotonic())
            send()
            loop.call_later(0.1, send, signal.SIGTERM)
            loop.call_later(0.5, send, signal.SIGINT)
            loop.run_forever()
            say("at", time.monotonic())
        """
    )
    assert outcome.returncode == 0
    assert seconds(outcome) >= 1.5


@pytest.mark.parametrize("second", ["SIGTERM", "SIGINT"])
def test_the_sigint_after_the_end_of_the_delay_cuts_the_shutdown_short(
    run: Run, second: str
) -> None:
    outcome = run(
        f"""
        class Slow(Server):
            async def stop(self, exception=None):
                say("stopping")
                send_later(0.1, signal.SIGINT)  # a duplicate of the second signal
                await asyncio.sleep(1.2)
                send(signal.SIGTERM)
                await asyncio.sleep(0.1)
                say("still stopping")
                send(signal.SIGINT)
                await asyncio.sleep(60)
                say("never")

        with entrypoint(Slow(), {FOREVER}) as loop:
            send()
            loop.call_later(1.2, send, signal.{second})
            loop.run_forever()
        say("after")
        """
    )
    assert_orderly(outcome, "started", "stopping", "still stopping", "cancelled", "after")


def test_a_sigint_after_a_delay_that_was_over_cuts_the_shutdown_short(run: Run) -> None:
    outcome = run(
        """
        class Slow(Server):
            async def stop(self, exception=None):
                say("stopping")
                send(signal.SIGINT)
                await asyncio.sleep(60)
                say("never")

        with entrypoint(Slow(), drain_delay=1.1) as loop:
            send()
            loop.run_forever()
        say("after")
        """
    )
    assert_orderly(outcome, "started", "stopping", "cancelled", "after")


REASONS = {
    "a crash": (
        """
        class Crashing(Server):
            async def start(self):
                self.start_event.set()
                await delayed.wait()
                raise LookupError("crash")

        async def main():
            send()
            await asyncio.sleep(0.1)
            delayed.set()
            await asyncio.sleep(60)

        delayed = asyncio.Event()
        try:
            with entrypoint(Crashing(), {option}) as loop:
                loop.run_until_complete(main())
        except LookupError as error:
            say(error)
        """,
        ["stopped LookupError('crash')", "crash"],
    ),
    "graceful_shutdown()": (
        """
        async def main():
            send()
            await asyncio.sleep(0.1)
            await svcrun.entrypoint.get_current().graceful_shutdown()
            say("called")

        with entrypoint(Server(), {option}) as loop:
            loop.run_until_complete(main())
        """,
        ["started", "stopped", "cancelled", "called"],
    ),
    "the end of the block": (
        """
        async def main():
            send()
            await asyncio.sleep(0.1)
            return "result"

        with entrypoint(Server(), {option}) as loop:
            say(loop.run_until_complete(main()))
        """,
        ["started", "result", "stopped", "cancelled"],
    ),
    "the end of main()": (
        """
        async def main():
            send()
            await asyncio.sleep(0.1)
            return "result"

        say(svcrun.run(main(), Server(), {option}))
        """,
        ["started", "stopped", "cancelled", "result"],
    ),
    "the end of an async block": (
        """
        async def main():
            async with entrypoint(Server(), {option}):
                send()
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.1)
            say("after")

        run_async(main())
        """,
        ["started", "stopped", "cancelled", "after"],
    ),
    "an error of the block": (
        """
        async def main():
            send()
            await asyncio.sleep(0.1)
            raise LookupError("of the block")

        try:
            with entrypoint(Server(), {option}) as loop:
                loop.run_until_complete(main())
        except LookupError as error:
            say(error)
        """,
        [
            "started",
            "stopped LookupError('of the block')",
            "cancelled",
            "of the block",
        ],
    ),
}


@pytest.mark.parametrize(("source", "expected"), REASONS.values(), ids=REASONS)
def test_another_reason_for_the_shutdown_does_not_wait_for_the_delay(
    run: Run, source: str, expected: list[str]
) -> None:
    outcome = run(source.replace("{option}", FOREVER))
    assert outcome.returncode == 0, outcome.stderr
    assert lines(outcome) == expected


def test_a_delay_ends_with_the_entrypoint_in_a_loop_that_runs_on(run: Run) -> None:
    outcome = run(
        """
        async def main():
            async with entrypoint(Server(), drain_delay=0.3):
                send()
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
            say("after")

        run_async(main())
        """
    )
    assert_orderly(outcome, "started", "stopped", "cancelled", "after")
    assert "has ended" not in outcome.stderr


def test_services_can_be_started_stopped_and_reloaded_during_the_delay(run: Run) -> None:
    outcome = run(
        """
        class Reloading(Server):
            async def reload(self):
                say("reloaded")

        async def main():
            ep = svcrun.entrypoint.get_current()
            send()
            await asyncio.sleep(0)
            service = Reloading()
            await ep.start_services(service)
            send(signal.SIGHUP)
            await asyncio.sleep(0.1)
            await ep.stop_services(service)
            say("main")
            await asyncio.sleep(60)

        with entrypoint(Server(), drain_delay=0.5) as loop:
            loop.run_until_complete(main())
        """
    )
    started = ["started", "started", "reloaded", "stopped", "cancelled", "main"]
    assert_orderly(outcome, *started, "stopped", "cancelled")


# A block or a loop that does not react.


@pytest.mark.parametrize("second", [False, True])
def test_code_that_does_not_run_the_loop_goes_on_during_the_delay(run: Run, second: bool) -> None:
    """Then it is interrupted once, and can clean up."""
    delay = 3600 if second else 1.5
    outcome = run(
        f"""
        with entrypoint(Server(), drain_delay={delay}):
            say("at", time.monotonic())
            send()
            if {second}:
                send_later(1.2)
            try:
                time.sleep(60)
            finally:
                say("at", time.monotonic())
                time.sleep(0.7)
                say("cleaned up")
        say("after")
        """
    )
    assert outcome.returncode == 0, outcome.stderr
    assert lines(outcome)[-4:] == ["cleaned up", "stopped", "cancelled", "after"]
    assert 1.2 <= seconds(outcome) < 20


def test_a_delay_that_was_over_before_the_loop_ran_is_not_announced(run: Run) -> None:
    outcome = run(
        """
        with entrypoint(Server(), drain_delay=0.2):
            send()
            time.sleep(60)
        """
    )
    assert_orderly(outcome, "started", "stopped", "cancelled")
    assert "drain_delay" not in outcome.stderr


def test_code_that_runs_the_loop_now_and_then_is_not_interrupted_before_the_end_of_the_delay(
    run: Run,
) -> None:
    outcome = run(
        """
        with entrypoint(Server(), drain_delay=1) as loop:
            say("at", time.monotonic())
            send()
            try:
                while True:
                    loop.run_until_complete(asyncio.sleep(0.01))
                    time.sleep(0.01)
            finally:
                say("at", time.monotonic())
        """
    )
    assert outcome.returncode == 0, outcome.stderr
    assert 1 <= seconds(outcome) < 20


def test_a_blocked_loop_has_the_delay_and_the_time_limit(run: Run) -> None:
    outcome = run(
        """
        with entrypoint(Server(), drain_delay=1, shutdown_timeout=0.5) as loop:
            loop.call_soon(send)
            loop.call_later(0.1, time.sleep, 60)
            loop.call_soon(threading.Timer(1.2, say, ["still there"]).start)
            loop.run_forever()
        """
    )
    assert outcome.returncode == 70
    assert "the event loop is blocked and the shutdown timed out" in outcome.stderr
    assert lines(outcome) == ["started", "still there"]


def test_a_loop_that_is_blocked_within_the_delay_alone_does_no_harm(run: Run) -> None:
    outcome = run(
        """
        with entrypoint(Server(), drain_delay=1.5, shutdown_timeout=0.5) as loop:
            loop.call_soon(send)
            loop.call_later(0.1, time.sleep, 1)  # longer than the time limit
            loop.run_forever()
        """
    )
    assert_orderly(outcome, "started", "stopped", "cancelled")


def test_the_time_limit_counts_from_the_end_of_the_delay(run: Run) -> None:
    outcome = run(
        """
        class Slow(Server):
            async def stop(self, exception=None):
                await asyncio.sleep(0.6)
                await super().stop(exception)

        with entrypoint(Slow(), drain_delay=1, shutdown_timeout=1) as loop:
            loop.call_soon(send)
            loop.run_forever()
        """
    )
    assert_orderly(outcome, "started", "stopped", "cancelled")


def test_a_shutdown_that_hangs_after_a_second_signal_has_the_time_limit_alone(run: Run) -> None:
    outcome = run(
        f"""
        class Hanging(Server):
            async def stop(self, exception=None):
                time.sleep(60)

        with entrypoint(Hanging(), {FOREVER}, shutdown_timeout=0.3) as loop:
            send()
            loop.call_later(1.2, send)
            loop.run_forever()
        """
    )
    assert outcome.returncode == 70
    assert "the event loop is blocked and the shutdown timed out" in outcome.stderr


def test_a_signal_that_comes_again_while_the_loop_is_blocked_ends_the_process(run: Run) -> None:
    outcome = run(
        f"""
        with entrypoint(Server(), {FOREVER}) as loop:
            send_later(0.7)
            loop.call_soon(send)
            loop.call_soon(time.sleep, 60)
            loop.run_forever()
        """
    )
    assert outcome.returncode == 70
    assert "came again and the event loop has not turned since" in outcome.stderr


def test_a_child_that_is_forked_off_during_the_delay_ends_at_its_own_signal(run: Run) -> None:
    outcome = run(
        """
        async def main():
            send()
            await asyncio.sleep(0.05)
            child = os.fork()
            if not child:
                signal.raise_signal(signal.SIGTERM)
                os._exit(1)
            _, status = os.waitpid(child, 0)
            say("child", os.waitstatus_to_exitcode(status))
            await asyncio.sleep(60)

        with entrypoint(Server(), drain_delay=0.5) as loop:
            loop.run_until_complete(main())
        """
    )
    assert_orderly(outcome, "started", "child -15", "stopped", "cancelled")


def test_two_hundred_lives_with_a_delay_leave_nothing(run: Run) -> None:
    outcome = run(
        """
        from tests.support import nothing_left

        with nothing_left():
            for _ in range(200):
                with entrypoint(Server(), drain_delay=0.001, log_config=False) as loop:
                    loop.call_soon(send)
                    loop.run_forever()
        say("after")
        """,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert outcome.returncode == 0, outcome.stderr
    assert lines(outcome)[-1] == "after"
    assert lines(outcome).count("stopped") == 200


# systemd.


def test_systemd_hears_of_the_stop_at_the_beginning_of_the_delay(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with managed(tmp_path, monkeypatch) as manager:
        program = run.start(
            """
            from svcrun.service.sdwatchdog import SDWatchdogService

            with entrypoint(SDWatchdogService(), Server(), drain_delay=3600) as loop:
                loop.run_forever()
            """,
            env={"NOTIFY_SOCKET": manager.address},
        )
        manager.wait_for("READY=1")
        program.send_signal(signals.SIGTERM)
        manager.wait_for("STOPPING=1")
        manager.wait_for("EXTEND_TIMEOUT_USEC=15000000", 2)
        manager.wait_for("STATUS=stopping, waiting for drain_delay")
        assert program.is_running()
        assert "stopped" not in program.stdout
        program.interrupt()
        outcome = program.wait()
    assert outcome.returncode == 0, outcome.stderr
    assert manager.phases() == ["READY", "STOPPING"]


def test_the_drain_delay_is_refused_if_it_is_negative() -> None:
    with pytest.raises(ValueError, match="drain_delay must be between 0 and"):
        entrypoint(drain_delay=-1)
