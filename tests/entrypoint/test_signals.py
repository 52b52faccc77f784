"""A signal at any time ends the block in order (C17, C20, C21).

Each program sends the signal to itself at the point in question.
"""

import signal as signals

import pytest

from tests.entrypoint.programs import Run, complaints, lines
from tests.support import Outcome

SIGNALS = pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT"])


def by_name(**programs: str) -> pytest.MarkDecorator:
    names = [name.replace("_", " ") for name in programs]
    return pytest.mark.parametrize("source", programs.values(), ids=names)


def assert_orderly(outcome: Outcome, *said: str) -> None:
    assert lines(outcome) == list(said)
    assert not complaints(outcome)
    assert outcome.returncode == 0


# During start-up.


@SIGNALS
@by_name(
    in_a_hook_before_the_start="""
        @svcrun.receiver(entrypoint.PRE_START)
        async def hook(**_):
            send()
            await asyncio.sleep(0)
            say("never")

        with entrypoint(Server()):
            say("never")
        """,
    in_the_first_step_of_a_start="""
        class Signalling(Server):
            async def start(self):
                send()
                await super().start()

        with entrypoint(Signalling()):
            say("never")
        """,
    in_a_start_that_returns="""
        class Signalling(Service):
            async def start(self):
                send()

        with entrypoint(Server(), Signalling()):
            say("never")
        """,
    while_a_start_waits="""
        class Waiting(Service):
            async def start(self):
                asyncio.get_running_loop().call_later(0.05, send)
                await asyncio.Event().wait()

            async def stop(self, exception=None):
                say("never")

        with entrypoint(Server(), Waiting()):
            say("never")
        """,
    in_a_start_that_depends_on_another="""
        class Signalling(Service):
            depends_on = Server

            async def start(self):
                send()
                await asyncio.sleep(0.01)
                say("never")

        with entrypoint(Server(), Signalling()):
            say("never")
        """,
    in_a_hook_after_the_start="""
        @svcrun.receiver(entrypoint.POST_START)
        async def hook(**_):
            send()
            await asyncio.sleep(0)
            say("never")

        with entrypoint(Server()):
            say("never")
        """,
    in_the_last_step_of_a_hook="""
        @svcrun.receiver(entrypoint.POST_START)
        async def hook(**_):
            await asyncio.sleep(0)
            send()

        with entrypoint(Server()):
            say("never")
        """,
)
def test_a_signal_during_start_up_rolls_back_and_skips_the_block(
    run: Run, source: str, signal: str
) -> None:
    outcome = run(source + '\n        say("never")', signal=signal)
    said = ["started", "stopped", "cancelled"] if "started" in outcome.stdout else []
    assert_orderly(outcome, *said)


def test_a_signal_during_start_up_ends_an_async_program_in_good_order(run: Run) -> None:
    outcome = run(
        """
        class Waiting(Service):
            async def start(self):
                asyncio.get_running_loop().call_soon(send)
                await asyncio.Event().wait()

        async def main():
            async with entrypoint(Server(), Waiting()):
                say("never")
            say("never")

        run_async(main())
        """
    )
    assert_orderly(outcome, "started", "stopped", "cancelled")


@pytest.mark.parametrize(("signal", "code"), [("SIGTERM", 143), ("SIGINT", -signals.SIGINT)])
def test_run_raises_the_signal_that_came_during_start_up(run: Run, signal: str, code: int) -> None:
    outcome = run(
        """
        class Waiting(Service):
            async def start(self):
                send()
                await asyncio.Event().wait()

        async def main():
            say("never")

        svcrun.run(main(), Server(), Waiting())
        """,
        signal=signal,
    )
    assert lines(outcome) == ["started", "stopped", "cancelled"]
    assert outcome.returncode == code


def test_a_signal_during_start_up_is_not_hidden_by_a_roll_back_that_fails(run: Run) -> None:
    outcome = run(
        """
        class Failing(Server):
            async def stop(self, exception=None):
                raise ValueError("from stop()")

        class Waiting(Service):
            async def start(self):
                send()
                await asyncio.Event().wait()

        with entrypoint(Failing(), Waiting()):
            say("never")
        """
    )
    assert outcome.returncode == 0
    assert "ValueError: from stop()" in outcome.stderr
    assert lines(outcome) == ["started", "cancelled"]


# In the block.


@SIGNALS
@by_name(
    while_the_loop_waits="""
        with entrypoint(Server()) as loop:
            send_later(0.05)
            loop.run_forever()
        """,
    in_a_callback="""
        with entrypoint(Server()) as loop:
            loop.call_soon(send)
            loop.run_forever()
        """,
    before_the_loop_runs="""
        with entrypoint(Server()) as loop:
            send()
            loop.run_forever()
        """,
    in_the_last_step_of_what_ran_before="""
        async def first():
            send()

        with entrypoint(Server()) as loop:
            loop.run_until_complete(first())
            loop.run_forever()
        """,
    in_the_last_callback_of_what_ran_before="""
        with entrypoint(Server()) as loop:
            loop.call_later(0.05, loop.stop)
            loop.call_later(0.05, send)
            loop.run_forever()
            loop.run_forever()
        """,
    in_the_code_of_the_block="""
        with entrypoint(Server()):
            send_later(0.05)
            time.sleep(60)
            say("never")
        """,
    in_a_lock="""
        with entrypoint(Server()):
            send_later(0.05)
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()
            say("never")
        """,
    in_an_endless_loop="""
        with entrypoint(Server()):
            send_later(0.05)
            while True:
                pass
        """,
    in_a_regular_expression="""
        import re

        with entrypoint(Server()):
            send_later(0.05)
            re.match("(a+)+b", "a" * 60)
            say("never")
        """,
    while_the_block_runs_a_loop_of_its_own="""
        with entrypoint(Server()):
            send_later(0.05)
            asyncio.run(asyncio.sleep(60))
            say("never")
        """,
    while_main_waits="""
        async def main():
            send()
            await asyncio.sleep(60)
            say("never")

        with entrypoint(Server()) as loop:
            loop.run_until_complete(main())
            say("never")
        """,
    before_main_begins="""
        async def main():
            say("never")

        with entrypoint(Server()) as loop:
            send()
            loop.run_until_complete(main())
            say("never")
        """,
    while_a_future_is_waited_for="""
        with entrypoint(Server()) as loop:
            send_later(0.05)
            loop.run_until_complete(loop.create_future())
            say("never")
        """,
    while_an_async_block_waits="""
        async def main():
            async with entrypoint(Server()):
                send()
                await asyncio.sleep(60)
                say("never")

        run_async(main())
        """,
    in_a_loop_of_the_program="""
        loop = asyncio.new_event_loop()
        with entrypoint(Server(), loop=loop):
            send_later(0.05)
            loop.run_forever()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        """,
    in_a_runner_of_the_program="""
        async def main():
            send()
            await asyncio.sleep(60)
            say("never")

        with asyncio.Runner(debug=False) as runner:
            with entrypoint(Server(), loop=runner.get_loop()):
                runner.run(main())
                say("never")
        """,
)
def test_a_signal_ends_the_block_and_the_program_continues_after_it(
    run: Run, source: str, signal: str
) -> None:
    outcome = run(source + '\n        say("after")', signal=signal)
    assert_orderly(outcome, "started", "stopped", "cancelled", "after")


@SIGNALS
def test_a_signal_cancels_main_which_gets_its_time_to_clean_up(run: Run, signal: str) -> None:
    outcome = run(
        """
        async def main():
            send()
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.1)
                say("cleaned up")

        with entrypoint(Server()) as loop:
            loop.run_until_complete(main())
            say("never")
        say("after")
        """,
        signal=signal,
    )
    assert_orderly(outcome, "started", "cleaned up", "stopped", "cancelled", "after")


def test_the_code_of_a_block_gets_to_clean_up_with_the_loop(run: Run) -> None:
    outcome = run(
        """
        async def clean_up():
            await asyncio.sleep(0.1)
            say("cleaned up")

        with entrypoint(Server()) as loop:
            loop.call_soon(send)
            try:
                loop.run_forever()
            finally:
                loop.run_until_complete(clean_up())
        """
    )
    assert_orderly(outcome, "started", "cleaned up", "stopped", "cancelled")


def test_code_that_a_signal_interrupts_outside_of_the_loop_gets_to_clean_up(run: Run) -> None:
    outcome = run(
        """
        with entrypoint(Server()) as loop:
            send_later(0.05)
            try:
                time.sleep(60)
            finally:
                time.sleep(0.5)
                say("cleaned up")
        say("after")
        """
    )
    assert_orderly(outcome, "started", "cleaned up", "stopped", "cancelled", "after")


def test_an_exception_that_main_raises_on_its_cancellation_leaves_the_block(run: Run) -> None:
    outcome = run(
        """
        async def main():
            send()
            try:
                await asyncio.sleep(60)
            finally:
                raise ValueError("in the clean-up")

        try:
            with entrypoint(Server()) as loop:
                loop.run_until_complete(main())
        except ValueError as error:
            say(error)
        """
    )
    assert_orderly(
        outcome,
        "started",
        "stopped ValueError('in the clean-up')",
        "cancelled",
        "in the clean-up",
    )


@pytest.mark.parametrize(
    ("signal", "raised"), [("SIGTERM", "SystemExit(143)"), ("SIGINT", "KeyboardInterrupt()")]
)
@pytest.mark.parametrize("handles", [False, True])
def test_run_raises_the_signal_after_the_shutdown(
    run: Run, signal: str, raised: str, handles: bool
) -> None:
    outcome = run(
        f"""
        async def main():
            send()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                say("cleaned up")
                if not {handles}:
                    raise

        try:
            svcrun.run(main(), Server())
        except BaseException as error:
            say(repr(error))
        """,
        signal=signal,
    )
    assert_orderly(outcome, "started", "cleaned up", "stopped", "cancelled", raised)


def test_a_signal_from_outside_ends_a_program_that_waits(run: Run) -> None:
    program = run.start(
        """
        with entrypoint(Server()) as loop:
            loop.run_forever()
        """
    )
    program.wait_for_line("started")
    program.terminate()
    assert_orderly(program.wait(), "started", "stopped", "cancelled")


# During the shutdown.


@SIGNALS
@by_name(
    in_a_hook_before_the_stop="""
        @svcrun.receiver(entrypoint.PRE_STOP)
        async def hook(**_):
            send()
            await asyncio.sleep(0.05)

        with entrypoint(Server()):
            pass
        """,
    in_stop="""
        class Signalling(Server):
            async def stop(self, exception=None):
                send()
                await asyncio.sleep(0.05)
                await super().stop(exception)

        with entrypoint(Signalling()):
            pass
        """,
    in_what_start_does_when_cancelled="""
        class Signalling(Server):
            async def start(self):
                try:
                    await super().start()
                finally:
                    send()
                    await asyncio.sleep(0.05)

        with entrypoint(Signalling()):
            pass
        """,
    in_a_hook_after_the_stop="""
        @svcrun.receiver(entrypoint.POST_STOP)
        async def hook(**_):
            send()
            await asyncio.sleep(0.05)

        with entrypoint(Server()):
            pass
        """,
    in_a_task_that_is_cancelled="""
        async def signalling():
            try:
                await asyncio.sleep(60)
            finally:
                send()

        with entrypoint(Server()) as loop:
            task = loop.create_task(signalling())
            loop.run_until_complete(asyncio.sleep(0))
        """,
    in_an_async_generator="""
        async def generate():
            try:
                yield 1
            finally:
                send()

        generator = generate()

        async def main():
            await anext(generator)

        with entrypoint(Server()) as loop:
            loop.run_until_complete(main())
        """,
    in_a_thread_of_the_pool="""
        def job():
            begun.set()
            time.sleep(0.1)
            send()

        with entrypoint(Server()) as loop:
            begun = threading.Event()
            loop.run_in_executor(None, job)
            begun.wait()
        """,
    in_the_last_flush_of_the_log="""
        class Signalling(logging.Handler):
            entered = True

            def emit(self, record):
                pass

            def flush(self):
                if self.entered:
                    self.entered = False
                    send()

        with entrypoint(Server(), log_handlers=[Signalling()]):
            logging.warning("x")
        """,
    while_the_loop_is_closed="""
        class Loop(asyncio.SelectorEventLoop):
            def close(self):
                send()
                super().close()
                send()

        with entrypoint(Server(), loop_factory=Loop):
            pass
        """,
)
def test_a_signal_during_the_shutdown_changes_nothing(run: Run, source: str, signal: str) -> None:
    timer = "signal.getitimer(signal.ITIMER_REAL)[0]"  # which would kill a program that continues
    outcome = run(source + f'\n        say("after", {timer})', signal=signal)
    assert_orderly(outcome, "started", "stopped", "cancelled", "after 0.0")


def test_the_previous_signal_handlers_are_back_after_the_entrypoint(run: Run) -> None:
    outcome = run(
        """
        with entrypoint(Server()):
            pass
        send()
        """
    )
    assert outcome.returncode == -signals.SIGTERM
    assert lines(outcome) == ["started", "stopped", "cancelled"]


# More than one signal.


@SIGNALS
@pytest.mark.parametrize("second", ["SIGTERM", "SIGINT"])
def test_a_signal_repeated_within_a_second_is_the_same_signal(
    run: Run, signal: str, second: str
) -> None:
    outcome = run(
        f"""
        async def main():
            send()
            try:
                await asyncio.sleep(60)
            finally:
                send(signal.{second})
                await asyncio.sleep(0.2)
                send(signal.{second})
                await asyncio.sleep(0.2)
                say("cleaned up")

        with entrypoint(Server()) as loop:
            loop.run_until_complete(main())
        """,
        signal=signal,
    )
    assert_orderly(outcome, "started", "cleaned up", "stopped", "cancelled")


def test_a_sigterm_repeated_later_changes_nothing(run: Run) -> None:
    outcome = run(
        """
        class Slow(Server):
            async def stop(self, exception=None):
                await asyncio.sleep(1.2)
                send()
                await asyncio.sleep(0.1)
                await super().stop(exception)

        with entrypoint(Slow()) as loop:
            loop.call_soon(send)
            loop.run_forever()
        """
    )
    assert_orderly(outcome, "started", "stopped", "cancelled")


INSISTING = {
    "main": """
        async def main():
            send()
            try:
                await asyncio.sleep(60)
            finally:
                await insist()

        with entrypoint(Server()) as loop:
            loop.run_until_complete(main())
        """,
    "a task that waits for the end": """
        async def main():
            send()
            await svcrun.entrypoint.get_current().closing()
            await insist()

        with entrypoint(Server()) as loop:
            loop.run_until_complete(main())
        """,
    "an async block": """
        async def main():
            async with entrypoint(Server()):
                send()
                try:
                    await asyncio.sleep(60)
                finally:
                    await insist()

        run_async(main())
        """,
    "a stop": """
        class Slow(Server):
            async def stop(self, exception=None):
                await super().stop(exception)
                await insist()

        with entrypoint(Slow()) as loop:
            loop.call_soon(send)
            loop.run_forever()
        """,
    "a hook": """
        @svcrun.receiver(entrypoint.PRE_STOP)
        async def hook(**_):
            await insist()

        with entrypoint(Server()) as loop:
            loop.call_soon(send)
            loop.run_forever()
        """,
    "code of the block": """
        with entrypoint(Server()) as loop:
            send()
            try:
                loop.run_forever()
            finally:
                time.sleep(1.2)
                send()
                time.sleep(60)
                say("never")
        """,
}


@pytest.mark.parametrize("source", INSISTING.values(), ids=INSISTING)
def test_a_second_sigint_cancels_the_remaining_stops_and_the_block_is_left(
    run: Run, source: str
) -> None:
    insist = """
        async def insist():
            await asyncio.sleep(1.2)
            send()
            await asyncio.sleep(60)
            say("never")
        """
    outcome = run(insist + source + '\n        say("after")', signal="SIGINT")
    assert outcome.returncode == 0, outcome.stderr
    assert lines(outcome) == ["started", "stopped", "cancelled", "after"]
    assert "Traceback" not in outcome.stderr


def test_a_second_sigint_does_not_wait_for_a_stop_that_ignores_cancellation(run: Run) -> None:
    outcome = run(
        """
        async def main():
            send()
            while True:
                try:
                    await asyncio.sleep(1.2)
                    send()
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    say("no")

        with entrypoint(Server()) as loop:
            loop.run_until_complete(main())
        """,
        signal="SIGINT",
    )
    assert outcome.returncode == 70
    assert lines(outcome)[:4] == ["started", "no", "no", "stopped"]


def test_a_child_process_that_is_forked_off_reacts_to_signals_as_before(run: Run) -> None:
    outcome = run(
        """
        with entrypoint(Server()) as loop:
            child = os.fork()
            if not child:
                send()
                os._exit(1)
            _, status = os.waitpid(child, 0)
            say("child", os.waitstatus_to_exitcode(status))
        """
    )
    assert_orderly(outcome, "started", "child -15", "stopped", "cancelled")
