"""A process that is forked inside a block behaves like a fresh one (C21b)."""

import os
import signal as signals

import pytest

from tests.entrypoint.programs import Run, lines
from tests.support import Outcome

WORKER = """
def worker(signum=signal.SIGTERM):
    with entrypoint(Server(), log_format="plain") as loop:
        logging.warning("worker")
        assert svcrun.entrypoint.get_current().loop is loop
        send_later(0.05, signum)
        loop.run_forever()
    say("after")

def work(code=3):
    # No test may leave a child that runs the parent's program.
    try:
        worker()
        ended = code
    except BaseException as error:
        say("failed", repr(error))
        ended = 1
    os._exit(ended)

def wait_for(child):
    say("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

def fork(function=work):
    child = os.fork()
    if not child:
        function()
    wait_for(child)

def fork_by_multiprocessing():
    import multiprocessing

    process = multiprocessing.get_context("fork").Process(target=worker)
    process.start()
    process.join()
    say("child", process.exitcode)

"""

LIFE = ("started", "stopped", "cancelled")


def assert_orderly(outcome: Outcome, *said: str) -> None:
    assert lines(outcome) == list(said), outcome
    assert "Traceback" not in outcome.stderr
    assert "Warning" not in outcome.stderr
    assert outcome.returncode == 0


@pytest.mark.parametrize("way", ["fork()", "fork_by_multiprocessing()"])
@pytest.mark.parametrize(
    "where",
    [
        """
        with entrypoint(Server()) as loop:
            {way}
        """,
        """
        with entrypoint(Server()) as loop:
            loop.run_until_complete(asyncio.sleep(0))
            {way}
            loop.run_until_complete(asyncio.sleep(0))
        """,
        """
        class Forking(Server):
            async def start(self):
                self.start_event.set()
                await super().start()

        async def main():
            {way}

        with entrypoint(Forking()) as loop:
            loop.run_until_complete(main())
        """,
        """
        with entrypoint(Server()) as loop:
            loop.call_soon(lambda: {way})
            loop.call_soon(loop.stop)
            loop.run_forever()
        """,
        """
        async def main():
            async with entrypoint(Server()):
                {way}

        run_async(main())
        """,
        """
        with entrypoint(Server()):
            with entrypoint():
                {way}
        """,
    ],
    ids=["block", "block after a run", "task", "callback", "async block", "nested blocks"],
)
def test_a_forked_worker_runs_an_entrypoint_as_a_fresh_process_does(
    run: Run, where: str, way: str
) -> None:
    outcome = run(WORKER + where.format(way=way).replace("\n        ", "\n"))
    code = "child 3" if way == "fork()" else "child 0"
    assert_orderly(outcome, "started", *LIFE, "after", code, "stopped", "cancelled")
    assert outcome.stderr.count("worker") == 1


def test_a_worker_forked_during_a_start_or_stop_works(
    run: Run,
) -> None:
    outcome = run(
        WORKER
        + """
class Forking(Service):
    async def start(self):
        fork()

    async def stop(self, exception=None):
        fork()

with entrypoint(Forking()):
    say("block")
"""
    )
    worker = (*LIFE, "after", "child 3")
    assert_orderly(outcome, *worker, "block", *worker)


def test_a_worker_forked_in_a_thread_works(run: Run) -> None:
    outcome = run(
        "import warnings; warnings.simplefilter('ignore')  # of forking with threads\n"
        + WORKER
        + """
async def main():
    await asyncio.to_thread(fork)

with entrypoint() as loop:
    loop.run_until_complete(main())
"""
    )
    assert_orderly(outcome, *LIFE, "after", "child 3")


def test_a_worker_forked_by_a_worker_works(run: Run) -> None:
    outcome = run(
        WORKER
        + """
def boss():
    with entrypoint():
        fork()
    os._exit(4)

with entrypoint():
    fork(boss)
"""
    )
    assert_orderly(outcome, *LIFE, "after", "child 3", "child 4")


def test_a_worker_has_no_entrypoint_before_its_own_and_no_service_at_work(run: Run) -> None:
    outcome = run(
        WORKER
        + """
def look():
    try:
        svcrun.entrypoint.get_current()
    except NoEntrypoint:
        say("none")
    say(svcrun.current_service.get())
    try:
        asyncio.run(ep.stop_services())
    except NotEntered:
        say("left")

def worker():
    look()
    with entrypoint() as loop:
        pass
    look()

class Forking(Service):
    async def start(self):
        fork()

ep = entrypoint(Forking())
with ep:
    fork()
    assert svcrun.entrypoint.get_current() is ep
"""
    )
    seen = ["none", "None", "left", "none", "None", "left", "child 3"]
    assert_orderly(outcome, *seen, *seen)


@pytest.mark.parametrize("where", ["block", "task"])
def test_asyncio_runs_in_a_worker(run: Run, where: str) -> None:
    outcome = run(
        WORKER
        + f"""
def worker():
    async def main():
        await asyncio.sleep(0.01)
        await asyncio.to_thread(int)
        say("ran")

    asyncio.run(main())

async def main():
    fork()

with entrypoint() as loop:
    if {where!r} == "block":
        fork()
    else:
        loop.run_until_complete(main())
"""
    )
    assert_orderly(outcome, "ran", "child 3")


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT", "SIGUSR1"])
@pytest.mark.parametrize("where", ["block", "task", "callback"])
def test_a_worker_without_an_entrypoint_has_the_handlers_that_the_parent_had_before(
    run: Run, where: str, signal: str
) -> None:
    outcome = run(
        WORKER
        + f"""
def worker():
    say(signal.getsignal(signal.{signal}) == found, signal.set_wakeup_fd(-1))
    signal.signal(signal.{signal}, signal.SIG_DFL)
    send()
    time.sleep(60)

async def main():
    fork()

found = signal.getsignal(signal.{signal})
with entrypoint(catch_signals=[signal.{signal}]) as loop:
    if {where!r} == "task":
        loop.run_until_complete(main())
    elif {where!r} == "callback":
        loop.call_soon(fork)
        loop.call_soon(loop.stop)
        loop.run_forever()
    else:
        fork()
    loop.run_until_complete(asyncio.sleep(0.01))
    say("goes on")
""",
        signal=signal,
    )
    number = getattr(signals, signal).value
    assert_orderly(outcome, "True -1", f"child -{number}", "goes on")


def test_a_signal_to_a_worker_does_not_reach_the_parent_nor_the_other_way_round(run: Run) -> None:
    program = run.start(
        WORKER
        + """
def worker():
    with entrypoint(Server()) as loop:
        say("pid", os.getpid())
        loop.run_forever()
    say("worker ends")

with entrypoint() as loop:
    child = os.fork()
    if not child:
        work()
    loop.run_until_complete(asyncio.to_thread(wait_for, child))
    say("parent goes on")
    loop.run_forever()
say("parent ends")
"""
    )
    child = int(program.wait_for_line(r"pid (\d+)")[1])
    os.kill(child, signals.SIGTERM)
    program.wait_for_line("parent goes on")
    program.terminate()
    outcome = program.wait()
    assert outcome.returncode == 0
    assert lines(outcome)[-4:] == ["worker ends", "child 3", "parent goes on", "parent ends"]


def test_a_worker_that_unwinds_after_its_own_entrypoint_has_its_own_exit_code(run: Run) -> None:
    outcome = run(
        WORKER
        + """
with entrypoint(Server()) as loop:
    child = os.fork()
    if not child:
        worker()
        sys.exit(5)
    wait_for(child)
say("parent")
"""
    )
    assert outcome.returncode == 0, outcome
    assert lines(outcome)[:5] == ["started", *LIFE, "after"]
    assert lines(outcome)[-4:] == ["child 5", "stopped", "cancelled", "parent"]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(
    "where",
    [
        "service.start = fork_in",
        "service.stop = fork_in",
        "ep.pre_start.connect(fork_in)",
        "ep.post_start.connect(fork_in)",
        "ep.pre_stop.connect(fork_in)",
        "ep.post_stop.connect(fork_in)",
    ],
)
def test_an_exit_out_of_a_coroutine_that_forked_ends_the_child_with_its_own_code(
    run: Run, where: str, waits: bool
) -> None:
    outcome = run(
        WORKER
        + f"""
class Plain(Service):
    async def start(self):
        pass

async def fork_in(*_, **__):
    if {waits}:
        await asyncio.sleep(0)
    child = os.fork()
    if not child:
        sys.exit(5)
    wait_for(child)

service = Plain()
ep = entrypoint(service, log_config=False)
{where}
with ep:
    pass
say("parent")
"""
    )
    assert outcome.returncode == 0, outcome
    assert lines(outcome) == ["child 5", "parent"]


def test_a_hung_stop_of_the_parent_is_ended_after_a_fork_as_well(run: Run) -> None:
    outcome = run(
        WORKER
        + """
class Blocking(Server):
    async def stop(self, exception=None):
        fork(lambda: os._exit(0))
        time.sleep(600)

with entrypoint(Blocking(), shutdown_timeout=0.5):
    pass
"""
    )
    assert outcome.returncode == 70, outcome
    assert "event loop is blocked" in outcome.stderr


def test_a_hung_stop_of_a_worker_ends_the_worker(run: Run) -> None:
    outcome = run(
        WORKER
        + """
class Blocking(Server):
    async def stop(self, exception=None):
        time.sleep(600)

def worker():
    with entrypoint(Blocking(), shutdown_timeout=0.5):
        pass

with entrypoint(Server()):
    fork()
"""
    )
    assert lines(outcome) == ["started", "started", "child 70", "stopped", "cancelled"]
    assert outcome.returncode == 0
