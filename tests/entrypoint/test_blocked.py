"""A shutdown that hangs ends the process with exit code 70 and names the cause (C19, C20)."""

import signal as signals
import time
from pathlib import Path

import pytest

from tests.entrypoint.programs import Run, lines
from tests.support import PATIENCE, Outcome, Program

BLOCKING = {
    "a system call": "time.sleep(600)",
    "an endless loop": "while True: pass",
    "a lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "a regular expression": "import re; re.match('(a+)+b', 'a' * 60)",
}
blocking = pytest.mark.parametrize("code", BLOCKING.values(), ids=BLOCKING)


def assert_killed(outcome: Outcome) -> None:
    assert outcome.returncode == 70, outcome
    assert "exit with code 70" in outcome.stderr
    assert "Thread 0x" in outcome.stderr  # the stacks of all threads
    assert "in block_it" in outcome.stderr


def blocked(code: str) -> str:
    return f"""
def block_it():
    say("blocked")
    {code}

"""


def wait_until_blocked(program: Program) -> None:
    """Wait until the main thread is where it will stay.

    A signal that comes after the last look for signals, and before the call that blocks, is not
    handled until the next one.
    """
    program.wait_for_line("blocked")
    statistics = Path(f"/proc/{program.pid}/stat")
    asleep = busy = 0
    while statistics.exists() and asleep < 10 and busy < 100:
        is_asleep = statistics.read_text().rpartition(")")[2].split()[0] == "S"
        asleep, busy = (asleep + 1, busy) if is_asleep else (0, busy + 1)
        time.sleep(0.002)


@blocking
def test_a_second_signal_ends_a_process_whose_loop_is_blocked(run: Run, code: str) -> None:
    program = run.start(
        blocked(code)
        + """
with entrypoint(Server()) as loop:
    loop.call_soon(block_it)
    loop.run_forever()
"""
    )
    wait_until_blocked(program)
    program.terminate()
    time.sleep(0.5)
    assert program.is_running()
    program.interrupt()
    assert_killed(program.wait())


@pytest.mark.parametrize("second", [signals.SIGTERM, signals.SIGINT])
@pytest.mark.parametrize("first", [signals.SIGTERM, signals.SIGINT])
def test_the_second_signal_may_be_of_either_kind(
    run: Run, first: signals.Signals, second: signals.Signals
) -> None:
    program = run.start(
        blocked(BLOCKING["a lock"])
        + """
with entrypoint(Server()) as loop:
    loop.call_soon(block_it)
    loop.run_forever()
"""
    )
    wait_until_blocked(program)
    program.send_signal(first)
    time.sleep(0.5)
    assert program.is_running()
    program.send_signal(second)
    assert_killed(program.wait())


@pytest.mark.parametrize("code", [BLOCKING["a lock"], BLOCKING["a regular expression"]])
def test_without_a_second_signal_a_blocked_process_ends_with_the_time_limit(
    run: Run, code: str
) -> None:
    program = run.start(
        blocked(code)
        + """
with entrypoint(Server(), shutdown_timeout=0.5) as loop:
    loop.call_soon(block_it)
    loop.run_forever()
"""
    )
    wait_until_blocked(program)
    program.terminate()
    assert_killed(program.wait())


def test_signals_in_quick_succession_do_not_kill_a_loop_that_is_just_busy(run: Run) -> None:
    outcome = run(
        """
        async def main():
            send()
            send()
            time.sleep(0.15)
            send()
            await asyncio.sleep(60)

        with entrypoint(Server()) as loop:
            loop.run_until_complete(main())
        """
    )
    assert outcome.returncode == 0, outcome.stderr
    assert lines(outcome) == ["started", "stopped", "cancelled"]


def test_a_loop_that_iterated_since_the_first_signal_is_not_blocked(run: Run) -> None:
    outcome = run(
        """
        class Slow(Server):
            async def stop(self, exception=None):
                await asyncio.sleep(0.1)
                time.sleep(0.5)
                send()
                await super().stop(exception)

        with entrypoint(Slow()) as loop:
            loop.call_soon(send)
            loop.run_forever()
        """
    )
    assert outcome.returncode == 0, outcome.stderr
    assert lines(outcome) == ["started", "stopped", "cancelled"]


@blocking
def test_a_stop_that_blocks_the_loop_is_ended_with_the_time_limit(run: Run, code: str) -> None:
    outcome = run(
        blocked(code)
        + """
class Blocking(Server):
    async def stop(self, exception=None):
        block_it()

with entrypoint(Blocking(), shutdown_timeout=0.5):
    pass
"""
    )
    assert_killed(outcome)


@pytest.mark.parametrize("phase", ["hook", "task", "generator", "start", "main"])
def test_a_loop_blocked_in_a_shutdown_ends_the_process_at_the_time_limit(
    run: Run, phase: str
) -> None:
    outcome = run(
        blocked("time.sleep(600)")
        + f"phase = {phase!r}"
        + """

class Blocking(Server):
    async def start(self):
        try:
            await super().start()
        finally:
            if phase == "start":
                block_it()

@svcrun.receiver(entrypoint.POST_STOP)
async def hook(**_):
    if phase == "hook":
        block_it()

async def task():
    try:
        await asyncio.sleep(600)
    finally:
        if phase == "task":
            block_it()

async def generate():
    try:
        yield
    finally:
        if phase == "generator":
            block_it()

async def main():
    async for _ in generator:
        send()
        try:
            await asyncio.sleep(600)
        finally:
            if phase == "main":
                block_it()

generator = generate()
with entrypoint(Blocking(), shutdown_timeout=0.5) as loop:
    keep = loop.create_task(task())
    loop.run_until_complete(main())
"""
    )
    assert_killed(outcome)


def test_a_program_outside_of_the_main_thread_is_watched_as_well(run: Run) -> None:
    outcome = run(
        blocked("time.sleep(600)")
        + """
class Blocking(Server):
    async def stop(self, exception=None):
        block_it()

def program():
    with entrypoint(Blocking(), shutdown_timeout=0.5):
        pass

thread = threading.Thread(target=program)
thread.start()
thread.join()
"""
    )
    assert_killed(outcome)


def test_a_timer_of_the_program_is_left_alone_and_the_watchdog_still_works(run: Run) -> None:
    outcome = run(
        blocked("time.sleep(600)")
        + """
class Blocking(Server):
    async def stop(self, exception=None):
        block_it()

signal.signal(signal.SIGALRM, lambda *_: say("alarm"))
signal.setitimer(signal.ITIMER_REAL, 0.2)
with entrypoint(Blocking(), shutdown_timeout=1):
    pass
"""
    )
    assert_killed(outcome)
    assert "alarm" in lines(outcome)


@pytest.mark.parametrize("form", ["block", "signal"])
@pytest.mark.parametrize(
    ("timer", "alarm"), [("REAL", "ALRM"), ("VIRTUAL", "VTALRM"), ("PROF", "PROF")]
)
def test_stop_may_use_the_timer_while_the_watchdog_continues(
    run: Run, timer: str, alarm: str, form: str
) -> None:
    outcome = run(
        blocked("time.sleep(600)")
        + f"""
which = signal.ITIMER_{timer}
alarm = signal.SIG{alarm}

class Blocking(Server):
    async def stop(self, exception=None):
        rung = []
        found = signal.signal(alarm, lambda *_: rung.append(1))
        signal.setitimer(which, 0.05)
        while not rung:
            pass
        say("rung", len(rung), signal.getitimer(which)[0])
        signal.setitimer(which, 0)
        signal.signal(alarm, found)
        block_it()

with entrypoint(Blocking(), shutdown_timeout=0.5) as loop:
    if {form!r} == "signal":
        loop.call_soon(send)
        loop.run_forever()
"""
    )
    assert_killed(outcome)
    assert "rung 1 0.0" in lines(outcome)


# Where nothing new is to be had.

EXHAUSTED = """
import resource


def use_up_threads():
    threading.stack_size(2**46)  # which no system has, so that none can be started
    try:
        threading.Thread(target=int).start()
    except RuntimeError:
        say("no threads")


def use_up_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        while True:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        say("no descriptors")


opened = []
"""

exhausted = pytest.mark.parametrize("resource", ["threads", "descriptors"])


@exhausted
@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize(
    "form", ["signal", "block", "block before a wait", "main", "async", "hand"]
)
def test_a_stop_needs_no_new_thread_and_no_new_descriptor(
    run: Run, resource: str, form: str, buffered: bool
) -> None:
    outcome = run(
        EXHAUSTED
        + f"""
form = {form!r}

class Logging(Server):
    async def stop(self, exception=None):
        logging.info("stopping")
        await super().stop(exception)

async def main():
    use_up_{resource}()
    send()
    await asyncio.sleep(60)

async def in_task():
    async with entrypoint(Logging(), log_buffering={buffered}):
        await main()

if form == "async":
    run_async(in_task())
elif form == "hand":
    if os.environ["SVCRUN_USE_UVLOOP"] == "1":
        import uvloop as loops
    else:
        import asyncio as loops
    loop = loops.new_event_loop()
    ep = entrypoint(Logging(), log_buffering={buffered})
    loop.run_until_complete(ep.__aenter__())
    use_up_{resource}()
    loop.call_soon(send)
    loop.run_forever()
    loop.run_until_complete(ep.__aexit__(None, None, None))
    loop.close()
else:
    with entrypoint(Logging(), log_buffering={buffered}) as loop:
        if form == "signal":
            loop.call_soon(use_up_{resource})
            loop.call_soon(send)
            loop.run_forever()
        elif form == "block before a wait":
            use_up_{resource}()
            loop.run_until_complete(asyncio.sleep(0))
            loop.call_soon(send)
            loop.run_forever()
        elif form == "main":
            loop.run_until_complete(main())
        else:
            use_up_{resource}()
say("after")
"""
    )
    assert outcome.returncode == 0, outcome
    assert lines(outcome) == ["started", f"no {resource}", "stopped", "cancelled", "after"]
    assert "stopping" in outcome.stderr
    assert "Traceback" not in outcome.stderr


@exhausted
@pytest.mark.parametrize("form", ["signal", "block", "thread"])
def test_a_blocked_stop_is_ended_without_a_new_thread_and_a_new_descriptor(
    run: Run, resource: str, form: str
) -> None:
    outcome = run(
        EXHAUSTED
        + blocked("time.sleep(600)")
        + f"""
form = {form!r}

class Blocking(Server):
    async def stop(self, exception=None):
        use_up_{resource}()
        logging.info("stopping")
        block_it()

def program():
    with entrypoint(Blocking(), shutdown_timeout=0.5) as loop:
        if form == "signal":
            loop.call_soon(send)
            loop.run_forever()

if form == "thread":
    thread = threading.Thread(target=program)
    thread.start()
    thread.join()
else:
    program()
"""
    )
    assert_killed(outcome)
    assert "stopping" in outcome.stderr


@pytest.mark.parametrize("use_up", ["", "use_up_threads()"])
@pytest.mark.parametrize("form", ["block", "signal", "async"])
def test_a_blocked_stop_of_a_later_entrypoint_is_ended_with_the_time_limit(
    run: Run, form: str, use_up: str
) -> None:
    outcome = run(
        EXHAUSTED
        + blocked("time.sleep(600)")
        + f"""
form = {form!r}

class Blocking(Server):
    async def stop(self, exception=None):
        {use_up}
        block_it()

async def in_task():
    async with entrypoint(Blocking(), shutdown_timeout=0.5):
        pass

with entrypoint():
    pass
if form == "async":
    run_async(in_task())
with entrypoint(Blocking(), shutdown_timeout=0.5) as loop:
    if form == "signal":
        loop.call_soon(send)
        loop.run_forever()
"""
    )
    assert_killed(outcome)


def test_an_executor_of_the_program_is_dismissed_without_a_new_thread(run: Run) -> None:
    outcome = run(
        EXHAUSTED
        + """
from concurrent.futures import ThreadPoolExecutor

with entrypoint(Server()) as loop:
    loop.set_default_executor(ThreadPoolExecutor(1))
    loop.run_until_complete(loop.run_in_executor(None, int))
    use_up_threads()
say("after")
"""
    )
    assert outcome.returncode == 0, outcome
    assert lines(outcome) == ["started", "no threads", "stopped", "cancelled", "after"]
    assert "could not wait for the default executor" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_without_a_thread_for_the_watch_a_program_runs_and_is_warned(run: Run) -> None:
    outcome = run(
        EXHAUSTED
        + """
def program():
    with entrypoint(Server(), log_format="plain") as loop:
        if threading.current_thread() is threading.main_thread():
            loop.call_soon(send)
            loop.run_forever()

thread = threading.Thread(target=lambda: begun.wait(60) and program())
begun = threading.Event()
thread.start()
use_up_threads()
program()
begun.set()
thread.join()
"""
    )
    assert outcome.returncode == 0, outcome
    life = ["started", "stopped", "cancelled"]
    assert lines(outcome) == ["no threads", *life, *life]
    assert outcome.stderr.count("no thread could be started for the exit watchdog") == 2
    assert "Traceback" not in outcome.stderr


def test_the_log_is_written_before_a_blocked_process_is_ended(run: Run) -> None:
    outcome = run(
        blocked("time.sleep(600)")
        + """
class Blocking(Server):
    async def stop(self, exception=None):
        for number in range(500):
            logging.info("record %d", number)
        block_it()

with entrypoint(Blocking(), shutdown_timeout=0.5, log_flush_interval=100):
    pass
"""
    )
    assert_killed(outcome)
    assert outcome.stderr.count("INFO:root:record ") == 500


def test_an_unread_stderr_does_not_keep_a_blocked_process_alive(run: Run) -> None:
    outcome = run(
        blocked("time.sleep(600)")
        + """
class Blocking(Server):
    async def stop(self, exception=None):
        block_it()

read, write = os.pipe()
os.set_blocking(write, False)
try:
    while True:
        os.write(write, bytes(4096))
except BlockingIOError:
    os.set_blocking(write, True)
os.dup2(write, 2)
with entrypoint(Blocking(), shutdown_timeout=0.5, log_format="disabled"):
    pass
"""
    )
    assert outcome.returncode == 70


def test_the_stacks_of_a_process_without_stderr_go_nowhere(run: Run, tmp_path: Path) -> None:
    """The first file or socket that is opened then gets the descriptor of stderr."""
    path = tmp_path / "opened first"
    outcome = run(
        blocked("time.sleep(600)")
        + f"""
if len(sys.argv) == 1:
    os.close(2)
    os.execv(sys.executable, [*sys.orig_argv, "again"])

class Blocking(Server):
    async def stop(self, exception=None):
        block_it()

say(os.open({str(path)!r}, os.O_WRONLY | os.O_CREAT))
with entrypoint(Blocking(), shutdown_timeout=0.5):
    logging.error("x")
"""
    )
    assert outcome.returncode == 70
    assert lines(outcome)[0] == "2"
    assert path.read_bytes() == b""


# Starts, stops and threads that hang without blocking the loop.


def assert_hung(outcome: Outcome, *where: str) -> None:
    assert outcome.returncode == 70, outcome
    for text in where:
        assert text in outcome.stderr
    assert "Thread 0x" not in outcome.stderr  # the loop could end it


def test_a_stop_that_hangs_is_cancelled_logged_and_the_process_ends_with_70(run: Run) -> None:
    outcome = run(
        """
        class Hanging(Server):
            async def stop(self, exception=None):
                say("hangs")
                try:
                    await hang_here()
                finally:
                    say("was cancelled")

        async def hang_here():
            await asyncio.Event().wait()

        with entrypoint(Hanging(name="culprit"), Server(), shutdown_timeout=0.3):
            pass
        """
    )
    assert_hung(outcome, "culprit", "in hang_here")
    assert sorted(lines(outcome)) == sorted(
        ["started", "started", "hangs", "stopped", "was cancelled", "cancelled", "cancelled"]
    )


@pytest.mark.parametrize(
    "code",
    [
        "with entrypoint(Stubborn(), shutdown_timeout=0.3): pass",
        "run_async(block())",
        """
loop = asyncio.new_event_loop()
try:
    with entrypoint(Stubborn(), shutdown_timeout=0.3, loop=loop):
        pass
finally:
    release()
    loop.run_until_complete(asyncio.sleep(0.1))
    loop.close()
""",
    ],
    ids=["sync", "async", "given loop"],
)
def test_a_stop_that_ignores_cancellation_does_not_delay_the_exit(run: Run, code: str) -> None:
    outcome = run(
        """
class Stubborn(Server):
    stubborn = True

    async def stop(self, exception=None):
        self.me = asyncio.current_task()
        tasks.append(self)
        while self.stubborn:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                say("no")

async def block():
    try:
        async with entrypoint(Stubborn(), shutdown_timeout=0.3):
            pass
    finally:
        release()

tasks = []

def release():
    for service in tasks:
        service.stubborn = False
        service.me.cancel()

"""
        + code
    )
    assert outcome.returncode == 70, outcome
    assert "no" in lines(outcome)
    assert "Stubborn" in outcome.stderr


@pytest.mark.parametrize("form", ["sync", "async"])
def test_a_main_that_swallows_its_cancellation_does_not_keep_services_from_being_stopped(
    run: Run, form: str
) -> None:
    outcome = run(
        """
        async def main():
            send()
            while True:
                try:
                    await asyncio.sleep(600)
                except asyncio.CancelledError:
                    say("no")

        async def block():
            async with entrypoint(Server(), shutdown_timeout=0.3):
                await main()

        if form == "sync":
            with entrypoint(Server(), shutdown_timeout=0.3) as loop:
                loop.run_until_complete(main())
        else:
            run_async(block())
        """.replace("form", repr(form))
    )
    assert outcome.returncode == 70, outcome
    assert lines(outcome)[:4] == ["started", "no", "stopped", "cancelled"]
    assert "in main" in outcome.stderr


@pytest.mark.parametrize("form", ["sync", "async"])
def test_a_start_that_ignores_cancellation_is_named_and_does_not_delay_the_exit(
    run: Run, form: str
) -> None:
    outcome = run(
        """
        async def hang_here(**_):
            send()
            while True:
                try:
                    await asyncio.sleep(600)
                except asyncio.CancelledError:
                    say("no")

        async def block():
            async with entrypoint(Server(), shutdown_timeout=0.3):
                say("never")

        entrypoint.POST_START.connect(hang_here)
        if form == "sync":
            with entrypoint(Server(), shutdown_timeout=0.3):
                say("never")
        else:
            run_async(block())
        """.replace("form", repr(form))
    )
    assert outcome.returncode == 70, outcome
    assert lines(outcome) == ["started", "no", "stopped", "cancelled"]
    assert "the start of the entrypoint ignored cancellation" in outcome.stderr
    assert "in hang_here" in outcome.stderr


@pytest.mark.parametrize("phase", ["start", "stop"])
def test_only_the_hanging_service_is_named(run: Run, phase: str) -> None:
    outcome = run(
        """
        class Stubborn(Server):
            async def start(self):
                if phase == "start":
                    send()
                    await self.hang_here()
                await super().start()

            async def stop(self, exception=None):
                await self.hang_here()

            async def hang_here(self):
                while True:
                    try:
                        await asyncio.sleep(600)
                    except asyncio.CancelledError:
                        pass

        with entrypoint(Server(name="innocent"), Stubborn(name="culprit"), shutdown_timeout=0.3):
            pass
        """.replace("phase", repr(phase))
    )
    assert_hung(outcome, "culprit", "in Stubborn.hang_here")
    assert "innocent" not in outcome.stderr
    assert {"stopped", "cancelled"} <= set(lines(outcome))


@pytest.mark.parametrize(
    "code",
    [
        "loop.run_in_executor(None, hang_here, begun)",
        "loop.run_until_complete(start(svcrun.threaded(hang_here)))",
        "loop.run_until_complete(start(svcrun.threaded_separate(hang_here)))",
    ],
    ids=["executor", "threaded", "separate"],
)
def test_a_thread_that_never_returns_ends_the_process_with_70(run: Run, code: str) -> None:
    outcome = run(
        f"""
        def hang_here(begun):
            begun.set()
            time.sleep(600)

        async def start(function):
            asyncio.ensure_future(function(begun))
            await asyncio.sleep(0)

        begun = threading.Event()
        with entrypoint(Server(), shutdown_timeout=0.3) as loop:
            {code}
            begun.wait()
        """
    )
    assert_hung(outcome, "in hang_here")
    assert lines(outcome) == ["started", "stopped", "cancelled"]


def test_an_executor_of_the_program_whose_thread_never_returns_ends_the_process_with_70(
    run: Run,
) -> None:
    outcome = run(
        """
        from concurrent.futures import ThreadPoolExecutor

        def hang_here(begun):
            begun.set()
            time.sleep(600)

        begun = threading.Event()
        with entrypoint(Server(), shutdown_timeout=0.3) as loop:
            loop.set_default_executor(ThreadPoolExecutor(1))
            loop.run_in_executor(None, hang_here, begun)
            begun.wait()
        """
    )
    assert_hung(outcome, "in hang_here")
    assert lines(outcome) == ["started", "stopped", "cancelled"]


def test_an_executor_of_the_program_is_shut_down_with_the_loop(run: Run) -> None:
    outcome = run(
        """
        from concurrent.futures import ThreadPoolExecutor

        def job():
            time.sleep(0.2)
            say("done")

        with entrypoint(Server()) as loop:
            loop.set_default_executor(ThreadPoolExecutor(1))
            loop.run_in_executor(None, job)
        say("after")
        """
    )
    assert outcome.returncode == 0
    assert not outcome.stderr
    assert lines(outcome) == ["started", "stopped", "cancelled", "done", "after"]


def test_an_async_generator_that_hangs_while_it_closes_does_not_delay_the_exit(run: Run) -> None:
    outcome = run(
        """
        async def generate():
            try:
                yield
            finally:
                await hang_here()

        async def hang_here():
            await asyncio.Event().wait()

        async def main():
            await anext(generator)

        generator = generate()
        with entrypoint(Server(), shutdown_timeout=0.3) as loop:
            loop.run_until_complete(main())
        """
    )
    assert_hung(outcome, "async generator", "in hang_here")
    assert lines(outcome) == ["started", "stopped", "cancelled"]


@pytest.mark.parametrize("point", ["PRE_STOP", "POST_STOP"])
def test_a_hook_that_hangs_does_not_keep_services_from_being_stopped(run: Run, point: str) -> None:
    outcome = run(
        f"""
        @svcrun.receiver(entrypoint.{point})
        async def hang_here(**_):
            await asyncio.Event().wait()

        with entrypoint(Server(), shutdown_timeout=0.3):
            pass
        """
    )
    assert_hung(outcome, point.lower(), "in hang_here")
    assert lines(outcome) == ["started", "stopped", "cancelled"]


def test_a_task_that_does_not_end_is_named(run: Run) -> None:
    outcome = run(
        """
        async def hang_here():
            while True:
                try:
                    await asyncio.sleep(600)
                except asyncio.CancelledError:
                    pass

        with entrypoint(Server(), shutdown_timeout=0.3) as loop:
            task = loop.create_task(hang_here(), name="culprit")
            loop.run_until_complete(asyncio.sleep(0))
        """
    )
    assert_hung(outcome, "culprit", "in hang_here")


def test_the_exit_code_reports_a_roll_back_that_exceeded_the_time_limit(run: Run) -> None:
    outcome = run(
        """
        class Hanging(Server):
            async def stop(self, exception=None):
                await asyncio.Event().wait()

        class Failing(Service):
            async def start(self):
                await asyncio.sleep(0)
                raise ValueError("the reason")

        with entrypoint(Hanging(), Failing(), shutdown_timeout=0.3):
            say("never")
        """
    )
    assert_hung(outcome, "the reason", "Hanging")
    assert lines(outcome) == ["started", "cancelled"]


@pytest.mark.parametrize("raised", [False, True])
def test_the_exit_code_reports_a_stop_that_exceeded_its_limit_unless_the_block_raised(
    run: Run, raised: bool
) -> None:
    outcome = run(
        """
        class Hanging(Server):
            stop_timeout = 0.2

            async def stop(self, exception=None):
                await asyncio.Event().wait()

        with entrypoint(Hanging()):
            if raised:
                raise ValueError("the reason")
        """.replace("raised", str(raised))
    )
    assert outcome.returncode == (1 if raised else 70)
    assert "did not stop within 0.2 s" in outcome.stderr
    assert ("ValueError: the reason" in outcome.stderr) is raised


def test_the_error_of_the_block_is_logged_if_the_exit_code_reports_an_overrun(run: Run) -> None:
    outcome = run(
        """
        class Hanging(Server):
            async def stop(self, exception=None):
                await asyncio.Event().wait()

        with entrypoint(Hanging(), shutdown_timeout=0.2):
            raise ValueError("the reason")
        """
    )
    assert_hung(outcome, "ValueError: the reason")


def test_the_time_limit_covers_the_whole_shutdown(run: Run) -> None:
    begun = time.monotonic()
    outcome = run(
        """
        class Hanging(Server):
            async def stop(self, exception=None):
                await asyncio.Event().wait()

        first = Hanging()
        second = Hanging(depends_on=first)
        third = Hanging(depends_on=second)
        with entrypoint(first, second, third, shutdown_timeout=1):
            pass
        """
    )
    assert outcome.returncode == 70
    assert time.monotonic() - begun < PATIENCE / 2


def test_sigkill_is_never_needed(run: Run) -> None:
    program = run.start(
        """
        class Hanging(Server):
            async def stop(self, exception=None):
                while True:
                    try:
                        await asyncio.sleep(600)
                    except BaseException:
                        pass

        with entrypoint(Hanging(), shutdown_timeout=0.3) as loop:
            loop.run_forever()
        """
    )
    program.wait_for_line("started")
    program.send_signal(signals.SIGTERM)
    assert program.wait().returncode == 70
