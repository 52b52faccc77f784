"""Laws of handlers that services install for the signals of the entrypoint (C20a)."""

import pytest

from tests.entrypoint.programs import Run, lines
from tests.support import Outcome

INSTALLING = """
class Installing(Server):
    name = "bot"
    early = True
    way = "loop"

    async def start(self):
        if not self.early:
            self.start_event.set()
            await asyncio.sleep(0.05)
        self.install()
        say("installed")
        await super().start()

    def install(self):
        if self.way == "loop":
            for signum in (signal.SIGINT, signal.SIGTERM):
                self.loop.add_signal_handler(signum, self.on_signal, "argument")
        else:
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, self.on_signal)

    def on_signal(self, *args):
        say("handler", args[0] if self.way == "loop" else int(args[0]))

handlers = lambda: [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
found = handlers(), signal.set_wakeup_fd(-1)
"""

CHECK = """
assert (handlers(), signal.set_wakeup_fd(-1)) == found
say("after")
"""


def assert_orderly(outcome: Outcome, *said: str, warnings: int = 1) -> None:
    assert outcome.returncode == 0, outcome
    assert lines(outcome) == list(said), outcome
    assert "Traceback" not in outcome.stderr
    assert outcome.stderr.count("installed a handler") == warnings, outcome.stderr


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("way", ["loop", "signal"])
@pytest.mark.parametrize("form", ["sync", "async", "main"])
def test_a_signal_reaches_both_handlers_and_the_service_is_named(
    run: Run, way: str, early: bool, form: str, signal: str
) -> None:
    outcome = run(
        INSTALLING
        + f"""
async def block():
    async with entrypoint(bot):
        send_later(0.3)
        await asyncio.sleep(600)

bot = Installing(way={way!r}, early={early})
if {form!r} == "async":
    run_async(block())
else:
    with entrypoint(bot) as loop:
        send_later(0.3)
        if {form!r} == "sync":
            loop.run_forever()
        else:
            loop.run_until_complete(asyncio.sleep(600))
"""
        + CHECK,
        signal=signal,
    )
    heard = "argument" if way == "loop" else {"SIGTERM": "15", "SIGINT": "2"}[signal]
    said = ["installed", "started", f"handler {heard}", "stopped", "cancelled", "after"]
    assert_orderly(outcome, *said)
    assert "name='bot'" in outcome.stderr


def test_a_handler_that_is_not_bound_to_the_service_is_found_by_its_code(run: Run) -> None:
    outcome = run(
        """
        class Bot(Server):
            async def start(self):
                signal.signal(signal.SIGTERM, lambda *_: say("lambda"))
                await super().start()

        with entrypoint(Server(), Bot()) as loop:
            loop.call_soon(send)
            loop.run_forever()
        """
    )
    assert outcome.returncode == 0, outcome
    assert lines(outcome).count("lambda") == 1
    assert "Bot" in outcome.stderr


def test_a_handler_that_restores_the_previous_one_is_not_called_again(run: Run) -> None:
    outcome = run(
        INSTALLING
        + """
class Capturing(Server):
    async def start(self):
        self.start_event.set()
        found = signal.signal(signal.SIGTERM, lambda *_: say("captured"))
        await asyncio.sleep(0.01)
        signal.signal(signal.SIGTERM, found)
        say("put back")
        asyncio.get_running_loop().call_soon(send)
        await super().start()

with entrypoint(Capturing()) as loop:
    loop.run_forever()
"""
        + CHECK
    )
    assert_orderly(outcome, "put back", "started", "stopped", "cancelled", "after")


@pytest.mark.parametrize("signum", ["signal.SIGTERM", "signal.SIGHUP"])
def test_removing_a_handler_from_the_loop_keeps_the_handler_of_the_entrypoint(
    run: Run, signum: str
) -> None:
    outcome = run(
        INSTALLING
        + f"""
class Removing(Server):
    async def start(self):
        say(self.loop.remove_signal_handler({signum}))
        self.loop.add_signal_handler({signum}, say, "never")
        say(self.loop.remove_signal_handler({signum}))
        say(self.loop.remove_signal_handler({signum}))
        await super().start()

with entrypoint(Removing()) as loop:
    send_later(0.3)
    loop.run_forever()
"""
        + CHECK
    )
    said = ["False", "True", "False", "started", "stopped", "cancelled", "after"]
    assert_orderly(outcome, *said, warnings=int("TERM" in signum))


def test_handlers_of_other_signals_stay_with_the_loop(run: Run) -> None:
    outcome = run(
        INSTALLING
        + """
class Reloading(Server):
    async def start(self):
        self.loop.add_signal_handler(signal.SIGUSR1, say, "reload")
        await super().start()

with entrypoint(Reloading()) as loop:
    send_later(0.1, signal.SIGUSR1)
    send_later(0.4)
    loop.run_forever()
"""
        + CHECK
    )
    said = ["started", "reload", "stopped", "cancelled", "after"]
    assert_orderly(outcome, *said, warnings=0)


def test_a_handler_that_the_program_added_to_its_loop_is_still_called(run: Run) -> None:
    outcome = run(
        """
        async def main():
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, say, "program")
            async with entrypoint(Server()):
                send()
                await asyncio.sleep(600)
            await asyncio.sleep(0)
            send()
            await asyncio.sleep(0.1)
            say(loop.remove_signal_handler(signal.SIGTERM))

        run_async(main())
        """
    )
    said = lines(outcome)
    assert outcome.returncode == 0, outcome
    assert [line for line in said if line != "program"] == [
        *("started", "stopped", "cancelled", "True")
    ]
    assert said.count("program") == 2


@pytest.mark.parametrize("way", ["loop", "signal"])
def test_a_second_ctrl_c_cuts_the_shutdown_short_with_other_handlers_as_well(
    run: Run, way: str
) -> None:
    outcome = run(
        INSTALLING
        + f"""
class Slow(Installing):
    async def stop(self, exception=None):
        send_later(1.2)
        await asyncio.sleep(60)

with entrypoint(Slow(way={way!r})) as loop:
    loop.call_soon(send)
    loop.run_forever()
"""
        + CHECK,
        signal="SIGINT",
    )
    handler = "handler argument" if way == "loop" else "handler 2"
    said = ["installed", "started", handler, handler, "cancelled", "after"]
    assert_orderly(outcome, *said)


def test_a_handler_that_raises_ends_the_block_in_order(run: Run) -> None:
    outcome = run(
        """
        class Exiting(Server):
            async def start(self):
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
                await super().start()

        with entrypoint(Exiting()) as loop:
            send_later(0.3)
            loop.run_forever()
        """
    )
    assert outcome.returncode == 5, outcome
    assert lines(outcome)[0] == "started"
    assert lines(outcome)[-1] == "cancelled"


def test_a_signal_in_nested_blocks_ends_the_inner_block_and_then_the_outer_block(
    run: Run,
) -> None:
    outcome = run(
        INSTALLING
        + """
with entrypoint(Installing(name="outer", way="loop")) as loop:
    with entrypoint(Installing(name="inner", way="loop"), loop=loop):
        send_later(0.3)
        loop.run_forever()
        say("inner")
    loop.run_forever()
    say("outer")
"""
        + CHECK
    )
    assert outcome.returncode == 0, outcome
    said = lines(outcome)
    assert said.index("inner") < said.index("outer")
    assert said[-3:] == ["stopped", "cancelled", "after"]
    assert outcome.stderr.count("installed a handler") == 2


def test_an_entrypoint_leaves_no_handler_on_the_loop_of_the_program(run: Run) -> None:
    outcome = run(
        INSTALLING
        + """
async def main():
    loop = asyncio.get_running_loop()
    before = set(vars(loop))
    async with entrypoint(Installing()):
        pass
    say(*(set(vars(loop)) - before))

run_async(main())
"""
        + CHECK
    )
    assert_orderly(outcome, "installed", "started", "stopped", "cancelled", "", "after")
