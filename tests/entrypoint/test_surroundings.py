"""An entrypoint sets up loop, log, threads and signals, and restores them (C9, C17, C22)."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import tracemalloc
import warnings
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor as StandardExecutor
from typing import Any

import pytest

import svcrun
from svcrun import entrypoint, threaded
from svcrun._util.loop_internals import current_loop
from svcrun.errors import LoopClosed
from tests.entrypoint.actors import Asking, Brief, Failing, Log, Server
from tests.entrypoint.forms import Form
from tests.entrypoint.programs import Run, complaints, lines
from tests.support import PATIENCE, ROOT, LoopFactory, has, nothing_left

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# The loop.


def test_the_loop_is_made_by_the_factory_is_current_and_is_closed_at_the_end(
    loop_factory: LoopFactory,
) -> None:
    made: list[asyncio.AbstractEventLoop] = []

    def factory() -> asyncio.AbstractEventLoop:
        made.append(loop_factory())
        return made[0]

    with entrypoint(loop_factory=factory, log_config=False) as loop:
        assert [loop] == made
        assert current_loop() is loop
        assert not loop.is_closed()
    assert loop.is_closed()


@pytest.mark.skipif(not has("uvloop"), reason="needs uvloop")
@pytest.mark.parametrize(
    ("setting", "module"), [("", "uvloop"), ("1", "uvloop"), ("off", "asyncio")]
)
def test_the_loop_is_uvloop_where_installed_unless_that_is_off(
    setting: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SVCRUN_USE_UVLOOP", setting)
    with entrypoint(log_config=False) as loop:
        assert type(loop).__module__.split(".")[0] == module


@pytest.mark.skipif(has("uvloop"), reason="needs a Python without uvloop")
def test_a_uvloop_that_is_absent_is_searched_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[str] = []

    class Finder:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            searches.append(name)

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    for _ in range(3):
        with entrypoint(log_config=False) as loop:
            assert type(loop).__module__.startswith("asyncio.")
    assert searches.count("uvloop") <= 1


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_a_program_without_standard_streams_runs(run: Run, closed: tuple[int, ...]) -> None:
    outcome = run(
        f"""
        class Quiet(Service):
            async def start(self):
                await asyncio.to_thread(int)

        for descriptor in {closed}:
            os.close(descriptor)
        with entrypoint(Quiet(), log_format="disabled") as loop:
            loop.call_soon(send)
            loop.run_forever()
        os._exit(5)
        """
    )
    assert outcome.returncode == 5


def test_the_loop_that_was_current_before_is_so_again(loop_factory: LoopFactory) -> None:
    outer = loop_factory()
    before = current_loop()
    asyncio.set_event_loop(outer)
    try:
        with entrypoint(loop_factory=loop_factory, log_config=False):
            assert current_loop() is not outer
        assert current_loop() is outer
    finally:
        asyncio.set_event_loop(before)
        outer.close()


@pytest.mark.parametrize("debug", [False, True])
def test_debug_is_that_of_the_loop(debug: bool, loop_factory: LoopFactory) -> None:
    with entrypoint(loop_factory=loop_factory, log_config=False, debug=debug) as loop:
        assert loop.get_debug() is debug


def test_all_tasks_of_an_owned_loop_end_with_it(live: Form) -> None:
    if not live.owns_loop:
        pytest.skip("the loop is not ours")
    log: Log = []

    async def background() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            spawned.append(asyncio.ensure_future(last()))
            log.append("cancelled")

    async def last() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            log.append("last cancelled")

    spawned: list[asyncio.Future[None]] = []

    async def body(_: entrypoint) -> None:
        spawned.append(asyncio.ensure_future(background()))
        await asyncio.sleep(0)

    live(Brief(log=log), body=body)
    assert log[-3:] == ["server stops", "cancelled", "last cancelled"]


def test_async_generators_of_an_owned_loop_are_closed(live: Form) -> None:
    if not live.owns_loop:
        pytest.skip("the loop is not ours")
    log: Log = []

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            log.append("closed")

    generator = generate()

    async def body(_: entrypoint) -> None:
        await anext(generator)

    live(body=body)
    assert log == ["closed"]


def test_an_error_that_a_task_raises_on_its_cancellation_at_the_end_is_logged(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    async def background() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("in the clean-up")

    tasks: list[asyncio.Task[None]] = []

    async def main() -> None:
        tasks.append(asyncio.create_task(background()))
        await asyncio.sleep(0)

    with entrypoint(loop_factory=loop_factory, log_config=False) as loop:
        loop.run_until_complete(main())
    assert "in the clean-up" in caplog.text


async def test_a_loop_that_the_entrypoint_does_not_own_keeps_its_tasks_and_stays_open() -> None:
    task = asyncio.create_task(asyncio.Event().wait())
    async with entrypoint(Server(log=[]), log_config=False):
        inner = asyncio.create_task(asyncio.Event().wait())
        await asyncio.sleep(0)
    assert not task.done()
    assert not inner.done()
    assert await asyncio.to_thread(int) == 0
    for pending in (task, inner):
        pending.cancel()


def test_a_loop_passed_to_the_entrypoint_is_left_as_it_was(loop_factory: LoopFactory) -> None:
    def handler(_loop: asyncio.AbstractEventLoop, _context: dict[str, Any]) -> None: ...

    loop = loop_factory()
    loop.set_exception_handler(handler)
    run = loop.run_until_complete
    with entrypoint(Server(log=[]), loop=loop, pool_size=2):
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(threaded(threading.current_thread)())
    assert not loop.is_closed()
    assert loop.get_exception_handler() is handler
    assert loop.run_until_complete == run
    assert "run_until_complete" not in vars(loop)
    assert loop.run_until_complete(asyncio.sleep(0, "works")) == "works"
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_entrypoints_nest_on_one_loop(loop_factory: LoopFactory) -> None:
    log: Log = []
    with entrypoint(Server(log=log, name="outer"), loop_factory=loop_factory) as loop:
        with entrypoint(Server(log=log, name="inner"), loop=loop) as same:
            assert same is loop
            assert loop.run_until_complete(asyncio.sleep(0, 1)) == 1
        assert loop.run_until_complete(asyncio.sleep(0, 2)) == 2
    assert log == [
        *("outer starts", "inner starts", "inner stops", "inner is cancelled"),
        *("outer stops", "outer is cancelled"),
    ]


def test_entrypoints_nest_on_loops_of_their_own(loop_factory: LoopFactory) -> None:
    log: Log = []
    with entrypoint(Server(log=log, name="outer"), loop_factory=loop_factory) as outer:
        with entrypoint(Server(log=log, name="inner"), loop_factory=loop_factory) as inner:
            inner.run_until_complete(asyncio.sleep(0))
            assert svcrun.entrypoint.get_current().loop is inner
        assert current_loop() is outer
        assert svcrun.entrypoint.get_current().loop is outer
        outer.run_until_complete(asyncio.sleep(0))
    assert log == [
        *("outer starts", "inner starts", "inner stops", "inner is cancelled"),
        *("outer stops", "outer is cancelled"),
    ]


@pytest.mark.parametrize(
    "source",
    [
        """
        with entrypoint(Server(name="outer")) as outer:
            with entrypoint(Server(name="inner")) as inner:
                send_later(0.05)
                inner.run_forever()
            outer.run_forever()
            say("outer ends")
        """,
        """
        with entrypoint(Server(name="outer")) as outer:
            with entrypoint(Server(name="inner")) as inner:
                send_later(0.05)
                inner.run_forever()
            try:
                time.sleep(60)
            finally:
                say("outer ends")
        """,
        """
        with entrypoint(Server(name="outer")) as loop:
            with entrypoint(Server(name="inner"), loop=loop):
                send_later(0.05)
                loop.run_forever()
            loop.run_forever()
            say("outer ends")
        """,
        """
        async def main():
            async with entrypoint(Server(name="outer")):
                async with entrypoint(Server(name="inner")):
                    send()
                    await asyncio.sleep(60)
                try:
                    await asyncio.sleep(60)
                finally:
                    say("outer ends")

        run_async(main())
        """,
        """
        async def main():
            try:
                async with entrypoint(Server(name="inner")):
                    send()
                    await asyncio.sleep(60)
                await asyncio.sleep(60)
            finally:
                say("outer ends")

        with entrypoint(Server(name="outer")) as loop:
            loop.run_until_complete(main())
        """,
    ],
    ids=["two loops", "two loops and a busy block", "one loop", "async", "async in sync"],
)
def test_a_signal_ends_the_inner_entrypoint_and_then_the_outer_one(run: Run, source: str) -> None:
    outcome = run(source + '\n        say("after")')
    assert lines(outcome) == [
        *("started", "started", "stopped", "cancelled"),
        *("outer ends", "stopped", "cancelled", "after"),
    ]
    assert not complaints(outcome)
    assert outcome.returncode == 0


def test_closing_the_loop_inside_of_the_block_is_an_error_if_services_are_left(
    loop_factory: LoopFactory,
) -> None:
    def life(*services: Brief, error: Exception | None = None) -> None:
        with nothing_left(), entrypoint(*services, loop_factory=loop_factory) as loop:
            loop.close()
            if error is not None:
                raise error

    life()
    with pytest.raises(LoopClosed, match="forlorn"):
        life(Brief(log=[], name="forlorn"))
    with pytest.raises(LookupError, match="in the block"):
        life(Brief(log=[]), error=LookupError("in the block"))


# Threads.


def test_the_default_executor_has_as_many_threads_as_asked_for(loop_factory: LoopFactory) -> None:
    async def main() -> set[str]:
        loop = asyncio.get_running_loop()
        barrier = threading.Barrier(3)

        def job() -> str:
            barrier.wait(PATIENCE)
            return threading.current_thread().name

        jobs = [loop.run_in_executor(None, job) for _ in range(2)]
        await asyncio.to_thread(barrier.wait, PATIENCE)
        return set(await asyncio.gather(*jobs))

    with entrypoint(loop_factory=loop_factory, log_config=False, pool_size=3) as loop:
        names = loop.run_until_complete(main())
    assert len(names) == 2
    assert all("svcrun" in name for name in names)


def test_the_thread_pool_exists_before_the_first_start(live: Form) -> None:
    names: list[str] = []

    async def work() -> None:
        names.append(await threaded(lambda: threading.current_thread().name)())

    live(Asking(log=[], in_start=work, in_stop=work), pool_size=1)
    assert len(names) == 2
    assert all("svcrun" in name for name in names)


def test_jobs_at_work_are_waited_for(live: Form) -> None:
    log: Log = []
    begun = threading.Event()

    @threaded
    def job() -> None:
        begun.set()
        threading.Event().wait(0.05)
        log.append("done")

    async def body(_: entrypoint) -> None:
        asyncio.ensure_future(job()).add_done_callback(lambda done: done.cancelled())
        await asyncio.sleep(0)
        while not begun.is_set():  # noqa: ASYNC110 - an event of threads
            await asyncio.sleep(0.001)

    live(Brief(log=log), body=body, pool_size=1)
    if live.name != "async":
        assert log == ["server starts", "server stops", "done"]


def test_threads_end_with_the_entrypoint(live: Form) -> None:
    async def body(_: entrypoint) -> None:
        await threaded(threading.current_thread)()

    live(body=body, pool_size=2)
    assert not [thread for thread in threading.enumerate() if "svcrun-pool" in thread.name]


# Signals.


def test_signal_handlers_are_installed_before_the_first_start_and_restored_afterwards(
    live: Form,
) -> None:
    handlers: list[Any] = []

    def theirs(signum: int, frame: object) -> None: ...

    async def note() -> None:
        handlers.extend(map(signal.getsignal, SIGNALS))

    found = [signal.signal(signum, theirs) for signum in SIGNALS]
    try:
        live(Asking(log=[], in_start=note))
        assert [signal.getsignal(signum) for signum in SIGNALS] == [theirs, theirs]
    finally:
        for signum, handler in zip(SIGNALS, found, strict=True):
            signal.signal(signum, handler)
    assert (theirs in handlers) is (live.name == "thread")


@pytest.mark.parametrize("caught", [(), (signal.SIGUSR1,)])
def test_only_the_signals_that_were_asked_for_are_caught(
    caught: tuple[int, ...], loop_factory: LoopFactory
) -> None:
    watched = (*SIGNALS, signal.SIGUSR1)
    before = {signum: signal.getsignal(signum) for signum in watched}
    with entrypoint(loop_factory=loop_factory, log_config=False, catch_signals=caught):
        changed = {signum for signum in watched if signal.getsignal(signum) != before[signum]}
    assert changed == set(caught)


def test_any_signal_can_be_configured_to_end_the_block(run: Run) -> None:
    outcome = run(
        """
        with entrypoint(Server(), catch_signals=[signal.SIGUSR1]) as loop:
            loop.call_soon(send, signal.SIGUSR1)
            loop.run_forever()
        """
    )
    assert lines(outcome) == ["started", "stopped", "cancelled"]
    assert outcome.returncode == 0


@pytest.mark.parametrize("form", ["sync", "async"])
def test_without_caught_signals_a_keyboard_interrupt_is_raised_after_the_shutdown(
    run: Run, form: str
) -> None:
    outcome = run(
        """
        def interrupt():
            signal.raise_signal(signal.SIGINT)

        async def main():
            async with entrypoint(Server(), catch_signals=()):
                asyncio.get_running_loop().call_soon(interrupt)
                await asyncio.sleep(60)

        try:
            if form == "sync":
                with entrypoint(Server(), catch_signals=()) as loop:
                    loop.call_soon(interrupt)
                    loop.run_forever()
            else:
                run_async(main())
        except KeyboardInterrupt:
            say("interrupted")
        """.replace("form", repr(form))
    )
    assert outcome.returncode == 0, outcome
    assert lines(outcome)[0] == "started"
    assert lines(outcome)[1].startswith("stopped")
    assert lines(outcome)[2:] == ["cancelled", "interrupted"]


def test_a_descriptor_that_signals_write_to_is_left_alone(loop_factory: LoopFactory) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    found = signal.set_wakeup_fd(write)
    try:
        with entrypoint(loop_factory=loop_factory, log_config=False) as loop:
            loop.run_until_complete(asyncio.sleep(0))
        assert signal.set_wakeup_fd(write) == write
    finally:
        signal.set_wakeup_fd(found)
        os.close(read)
        os.close(write)


def test_signal_handlers_that_the_program_added_to_the_loop_are_removed_with_the_loop(
    run: Run,
) -> None:
    outcome = run(
        """
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        with entrypoint(Server()) as loop:
            loop.add_signal_handler(signal.SIGUSR1, say, "usr1")
            loop.add_signal_handler(signal.SIGTERM, loop.stop)
            loop.call_soon(send, signal.SIGUSR1)
            loop.call_soon(send)
            loop.run_forever()
        say(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
        say(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        """
    )
    assert lines(outcome) == ["started", "usr1", "stopped", "cancelled", "True", "True"]
    warning, *others = outcome.stderr.splitlines()
    assert warning == (
        "WARNING:svcrun.entrypoint:the program installed a handler for SIGTERM;"
        " the signal still stops the entrypoint"
    )
    assert [line.split(" ")[0] for line in others] == [
        "INFO:svcrun.entrypoint:SIGTERM",
        "INFO:svcrun.entrypoint:shutdown",
    ]
    assert outcome.returncode == 0


def test_a_timer_of_the_program_rings_undisturbed(loop_factory: LoopFactory) -> None:
    rung: list[int] = []

    def alarm(signum: int, frame: object) -> None:
        rung.append(signum)

    found = signal.signal(signal.SIGALRM, alarm)
    timer = signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:

        async def wait() -> None:
            while not rung:  # noqa: ASYNC110 - a signal is no event
                await asyncio.sleep(0.001)

        with entrypoint(Asking(log=[], in_stop=wait), loop_factory=loop_factory, log_config=False):
            pass
        assert rung == [signal.SIGALRM]
        assert signal.getsignal(signal.SIGALRM) is alarm
    finally:
        signal.signal(signal.SIGALRM, found)
        signal.setitimer(signal.ITIMER_REAL, *timer)


# When setting up fails.


def test_a_loop_factory_that_fails_leaves_nothing_behind() -> None:
    def factory() -> asyncio.AbstractEventLoop:
        raise ValueError("no loop")

    with (
        nothing_left(),
        pytest.raises(ValueError, match="no loop"),
        entrypoint(loop_factory=factory),
    ):
        pass


def test_a_log_format_that_fails_leaves_nothing_behind(loop_factory: LoopFactory) -> None:
    with (
        nothing_left(),
        pytest.raises(TypeError),
        entrypoint(loop_factory=loop_factory, log_date_format=5),  # type: ignore[arg-type]
    ):
        pass


def test_signals_outside_of_the_main_thread_are_refused_and_nothing_is_left(
    loop_factory: LoopFactory,
) -> None:
    errors: list[BaseException] = []

    def program() -> None:
        with (
            pytest.raises(ValueError, match="main thread") as caught,
            entrypoint(Brief(log=log), loop_factory=loop_factory, catch_signals=[signal.SIGTERM]),
        ):
            pass
        errors.append(caught.value)

    log: Log = []
    with nothing_left():
        thread = threading.Thread(target=program)
        thread.start()
        thread.join()
    assert errors
    assert not log


# Nothing is left.


def test_two_hundred_entrypoints_in_a_row_leak_nothing(live: Form) -> None:
    async def body(_: entrypoint) -> None:
        logging.getLogger("svcrun.test").warning("x")
        await asyncio.to_thread(int)
        await asyncio.sleep(0)

    def life(number: int) -> None:
        services: Any = [Server(log=[], name=str(number)), Brief(log=[])]
        if number % 2:
            services.append(Failing(log=[], error=ValueError("boom")))
        with contextlib.suppress(ValueError):
            live(*services, body=body, log_config=True, log_format="disabled")

    for number in range(20):
        life(number)
    gc.collect()
    with nothing_left(), warnings.catch_warnings():
        warnings.simplefilter("error")
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for number in range(200):
                life(number)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert after - before < 1_000_000  # 5 kB per entrypoint; a coverage tracer grows as well


@pytest.mark.parametrize("end", ["left", "signal", "crash", "start fails", "stop fails"])
def test_a_program_that_uses_every_feature_is_silent_and_leaks_nothing(run: Run, end: str) -> None:
    outcome = run(
        """
        import socket
        from tests.support import nothing_left

        class Listening(Service):
            async def start(self):
                self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)

            async def serve(self, reader, writer):
                writer.write(await reader.readline())
                writer.close()

            async def stop(self, exception=None):
                self.server.close()
                if end == "stop fails":
                    raise LookupError("expected")

        class Failing(Service):
            async def start(self):
                await asyncio.sleep(0.01)
                if end == "start fails":
                    raise LookupError("expected")
                self.start_event.set()
                await asyncio.sleep(0.01)
                if end == "crash":
                    raise LookupError("expected")
                await asyncio.Event().wait()

        async def main():
            listening = svcrun.entrypoint.get_current().services[0]
            host, port = listening.server.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"hello\\n")
            await reader.readline()
            writer.close()
            await writer.wait_closed()
            asyncio.ensure_future(asyncio.sleep(60))
            await asyncio.to_thread(int)
            logging.info("hello")
            if end == "signal":
                send()
            if end in ("signal", "crash"):
                await asyncio.sleep(60)

        def life():
            try:
                with entrypoint(Listening(), Failing()) as loop:
                    loop.run_until_complete(main())
            except LookupError:
                pass

        life()
        with nothing_left():
            for _ in range(3):
                life()
        say("done")
        """.replace("end ==", f"{end!r} ==").replace("end in", f"{end!r} in"),
        env={"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    assert lines(outcome) == ["done"]
    assert outcome.returncode == 0
    for line in ("Task was destroyed", "never retrieved", "Warning", "never awaited"):
        assert line not in outcome.stderr
    if end == "left":
        assert outcome.stderr == "INFO:root:hello\n" * 4


def test_the_executor_of_the_program_is_not_replaced_in_a_loop_that_is_given(
    loop_factory: LoopFactory,
) -> None:
    loop = loop_factory()
    with StandardExecutor(1, thread_name_prefix="theirs") as executor:
        loop.set_default_executor(executor)
        with entrypoint(loop=loop, pool_size=2, log_config=False):
            job = asyncio.to_thread(lambda: threading.current_thread().name)
            assert loop.run_until_complete(job).startswith("theirs")
        job = asyncio.to_thread(lambda: threading.current_thread().name)
        assert loop.run_until_complete(job).startswith("theirs")
    loop.close()


@pytest.mark.parametrize(
    ("where", "does", "code"),
    [
        ("block", "pass", 0),
        ("block", "sys.exit(3)", 3),
        ("task", "sys.exit(3)", 3),
        ("task", "raise KeyboardInterrupt", -signal.SIGINT),
        ("callback", "sys.exit(3)", 3),
    ],
)
def test_a_forked_child_that_unwinds_an_entrypoint_ends_nothing_of_its_parent(
    where: str, does: str, code: int, run: Run
) -> None:
    outcome = run(
        f"""
        def fork():
            child = os.fork()
            if not child:
                {does}
                return
            say("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            # The loop of the parent can still be woken.
            wake = asyncio.get_running_loop().call_soon_threadsafe
            threading.Timer(0.1, wake, [woken.set]).start()

        class Forking(Service):
            async def start(self):
                self.start_event.set()
                await asyncio.sleep(0)
                if {where!r} == "task":
                    fork()
                if {where!r} == "callback":
                    asyncio.get_running_loop().call_soon(fork)
                await asyncio.Event().wait()

        async def block():
            if {where!r} == "block":
                fork()
            if os.getpid() == parent:
                await woken.wait()

        parent, woken = os.getpid(), asyncio.Event()
        with entrypoint(Server(), Forking()) as loop:
            loop.run_until_complete(block())
        if os.getpid() == parent:
            say("left")
        """
    )
    assert lines(outcome) == ["started", f"child {code}", "stopped", "cancelled", "left"]
    assert outcome.returncode == 0
