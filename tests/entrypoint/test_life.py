"""Start-up, block and shutdown of each form of entrypoint (C9, C10, C12, C13, C17, C18)."""

import asyncio
import contextlib
import logging
import threading
from typing import Any

import pytest

import svcrun
from svcrun import Restart, Service, ServiceState, entrypoint
from svcrun.errors import NotEntered, StartCancelled, StartTimeout
from tests.entrypoint.actors import Asking, Brief, Failing, Hanging, Log, Server
from tests.entrypoint.forms import Form
from tests.support import PATIENCE, LoopFactory, nothing_left


def test_the_block_runs_once_all_services_have_started_and_they_stop_after_it(live: Form) -> None:
    log: Log = []

    async def body(_: entrypoint) -> None:
        log.append("block")

    live(Server(log=log, name="a"), Brief(log=log, name="b"), body=body)
    assert log == ["a starts", "b starts", "block", "a stops", "b stops", "a is cancelled"]


def test_the_block_gives_its_result(live: Form) -> None:
    async def body(_: entrypoint) -> int:
        return 42

    assert live(Server(log=[]), body=body) == 42


def test_without_services_the_block_just_runs(live: Form) -> None:
    async def body(ep: entrypoint) -> tuple[Service, ...]:
        return ep.services

    assert live(body=body) == ()


def test_the_block_waits_for_the_start_event_not_for_the_end_of_start(live: Form) -> None:
    log: Log = []

    class Slow(Server):
        async def start(self) -> None:
            await asyncio.sleep(0.02)
            await super().start()

    async def body(_: entrypoint) -> None:
        log.append("block")

    live(Slow(log=log), body=body)
    assert log == ["server starts", "block", "server stops", "server is cancelled"]


def test_a_thread_of_a_service_may_set_its_start_event(live: Form) -> None:
    log: Log = []

    class Threaded(Server):
        async def start(self) -> None:
            await asyncio.to_thread(self.work)

        def work(self) -> None:
            self.start_event.set()
            assert stopping.wait(PATIENCE)

        async def stop(self, exception: BaseException | None = None) -> None:
            stopping.set()
            await super().stop(exception)

    async def body(_: entrypoint) -> None:
        log.append("block")

    stopping = threading.Event()
    live(Threaded(log=log), body=body)
    assert log == ["block", "server stops"]


def test_a_service_finds_its_loop_and_its_entrypoint_everywhere(live: Form) -> None:
    found: list[Any] = []

    async def note() -> None:
        loop = asyncio.get_running_loop()
        found.append(service.loop is loop and svcrun.entrypoint.get_current().loop is loop)

    async def body(ep: entrypoint) -> None:
        await note()
        found.append(svcrun.entrypoint.get_current() is ep)

    service = Asking(log=[], in_start=note, in_stop=note)
    live(service, body=body)
    assert found == [True] * 4


def test_a_stop_receives_the_exception_that_ended_the_block(live: Form) -> None:
    told: list[BaseException | None] = []

    class Curious(Server):
        async def stop(self, exception: BaseException | None = None) -> None:
            told.append(exception)

    async def body(_: entrypoint) -> None:
        raise ValueError("in the block")

    with pytest.raises(ValueError, match="in the block") as caught:
        live(Curious(log=[]), body=body)
    live(Curious(log=[]))
    assert told == [caught.value, None]


def test_a_stop_without_a_parameter_is_called_without_the_exception(live: Form) -> None:
    class Plain(Server):
        async def stop(self) -> None:  # type: ignore[override]
            self.log.append("stops")

    log: Log = []
    live(Plain(log=log))
    assert log == ["server starts", "stops", "server is cancelled"]


def test_dependants_start_after_and_stop_before_their_dependencies(live: Form) -> None:
    log: Log = []
    first = Brief(log=log, name="first")
    second = Brief(log=log, name="second", depends_on=first)
    third = Brief(log=log, name="third", depends_on=[second])
    live(third, second, first)
    assert log == [
        *("first starts", "second starts", "third starts"),
        *("third stops", "second stops", "first stops"),
    ]


def test_services_without_an_order_start_and_stop_at_the_same_time(live: Form) -> None:
    barriers: dict[str, asyncio.Barrier] = {}

    async def meet(where: str) -> None:
        async with asyncio.timeout(PATIENCE):
            await barriers.setdefault(where, asyncio.Barrier(3)).wait()

    services = [
        Asking(log=[], in_start=lambda: meet("start"), in_stop=lambda: meet("stop"))
        for _ in range(3)
    ]
    live(*services)
    assert set(barriers) == {"start", "stop"}


def test_a_dependency_may_be_named_by_its_class_or_a_base_of_that(live: Form) -> None:
    log: Log = []

    class Derived(Brief):
        pass

    first, last = Brief(log=log, name="first", depends_on=Brief), Derived(log=log, name="last")
    live(first, last)
    assert log == ["last starts", "first starts", "first stops", "last stops"]


def test_a_service_given_twice_counts_once(live: Form) -> None:
    log: Log = []
    service = Brief(log=log)
    live(service, service)
    assert log == ["server starts", "server stops"]


# Failures of the start-up.


def test_a_failed_start_is_rolled_back_and_its_error_is_raised(live: Form) -> None:
    log: Log = []
    error = LookupError("from start()")
    services = Server(log=log, name="a"), Failing(log=log, error=error), Hanging(log=log, name="h")

    async def body(_: entrypoint) -> None:
        log.append("never")

    with pytest.raises(LookupError) as caught:
        live(*services, body=body)
    assert caught.value is error
    assert log[:2] == ["a starts", "h starts"]
    assert sorted(log[2:]) == ["a is cancelled", "a stops", "h is cancelled"]
    assert [service.state for service in services] == [
        *(ServiceState.STOPPED, ServiceState.FAILED, ServiceState.STOPPED)
    ]


def test_the_errors_of_several_failed_starts_are_raised_as_a_group(live: Form) -> None:
    errors = ValueError("one"), LookupError("two")
    with pytest.raises(ExceptionGroup) as caught:
        live(*(Failing(log=[], error=error) for error in errors))
    assert caught.value.exceptions == errors


def test_an_error_during_the_roll_back_is_logged_and_hides_nothing(
    live: Form, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(LookupError, match="from start"):
        live(
            Failing(log=[], error=ValueError("from stop()"), phase="stop"),
            Failing(log=[], error=LookupError("from start()")),
        )
    assert "from stop()" in caplog.text


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_an_exception_of_any_kind_from_start_is_raised_after_the_roll_back(
    live: Form, error: BaseException, waits: bool
) -> None:
    log: Log = []

    async def fail() -> None:
        if waits:
            await asyncio.sleep(0.001)
        raise error

    if live.name == "async" and waits and not isinstance(error, GeneratorExit):
        pytest.skip("out of a task, it ends a loop that is not ours")
    with pytest.raises(type(error)) as caught:
        live(Server(log=log), Asking(log=log, in_start=fail))
    assert caught.value is error
    assert log == ["server starts", "server stops", "server is cancelled"]


class Odd(BaseException):
    """Not an Exception."""


KINDS = Odd("odd"), ExceptionGroup("group", [ValueError("in it")]), RecursionError("deep")


@pytest.mark.parametrize("phase", ["start", "run", "stop"])
@pytest.mark.parametrize("error", KINDS, ids=lambda error: type(error).__name__)
def test_an_error_of_any_kind_is_raised_as_it_is_after_all_services_are_stopped(
    live: Form, error: BaseException, phase: str
) -> None:
    log: Log = []

    async def body(_: entrypoint) -> None:
        if phase == "run":
            await asyncio.Event().wait()

    with pytest.raises(type(error)) as caught:
        live(Server(log=log), Failing(log=log, name="f", error=error, phase=phase), body=body)
    assert caught.value is error
    assert log.count("server stops") == log.count("server is cancelled") == 1
    assert log.count("f stops") == (phase != "start")


def test_the_error_of_a_start_that_timed_out_shows_where_it_waits(live: Form) -> None:
    log: Log = []
    with pytest.raises(TimeoutError, match="culprit") as caught:
        live(Server(log=log), Hanging(log=log, name="culprit"), start_timeout=0.05)
    assert isinstance(caught.value, StartTimeout)
    assert "await asyncio.Event().wait()" in str(caught.value)
    assert sorted(log[2:]) == ["culprit is cancelled", "server is cancelled", "server stops"]


def test_the_time_limit_of_a_service_comes_before_that_of_the_entrypoint(live: Form) -> None:
    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        live(Hanging(log=[], start_timeout=0.05), start_timeout=600)


# Failures at run time and in the shutdown.


def test_a_crash_ends_the_block_with_its_error(live: Form) -> None:
    log: Log = []
    error = ValueError("crash")

    begun = asyncio.Event()

    async def body(_: entrypoint) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            log.append("block is left")

    failing = Failing(log=log, name="f", error=error, phase="run", begun=begun)
    with pytest.raises(ValueError, match="crash") as caught:
        live(Server(log=log), failing, body=body)
    assert caught.value is error
    assert log == [
        *("server starts", "block is left", "server stops", "f stops", "server is cancelled")
    ]


def test_a_service_that_exits_the_program_does_so_after_the_shutdown(live: Form) -> None:
    if live.name == "async":
        pytest.skip("out of a task, it ends a loop that is not ours")
    log: Log = []
    service = Failing(log=log, name="f", error=SystemExit(7), phase="run", on_crash="ignore")

    async def body(_: entrypoint) -> None:
        await asyncio.Event().wait()

    with pytest.raises(SystemExit) as caught:
        live(Server(log=log), service, body=body)
    assert caught.value.code == 7
    assert log == ["server starts", "server stops", "f stops", "server is cancelled"]


@pytest.mark.parametrize("phase", ["start", "block", "stop"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(7)], ids=repr)
def test_an_error_that_a_callback_raises_through_the_loop_is_raised_after_the_shutdown(
    live: Form, phase: str, error: BaseException
) -> None:
    if live.name == "async":
        pytest.skip("it ends a loop that is not ours")
    log: Log = []

    def fail() -> None:
        raise error

    async def wait() -> None:
        asyncio.get_running_loop().call_soon(fail)
        await asyncio.sleep(0.01 if phase == "stop" else 60)  # a stop is not cancelled

    async def body(_: entrypoint) -> None:
        if phase == "block":
            await wait()

    service = Asking(
        log=log,
        name="a",
        in_start=wait if phase == "start" else None,
        in_stop=wait if phase == "stop" else None,
    )
    with pytest.raises(type(error)) as caught:
        live(Server(log=log), service, body=body)
    assert caught.value is error
    stopped = ["server stops", "server is cancelled"]
    if phase == "start":
        assert log == ["server starts", *stopped]
    else:
        assert log[2:] == [stopped[0], "a stops", stopped[1]]


@pytest.mark.parametrize("on_crash", ["shutdown", "ignore", Restart(delay=0)], ids=repr)
def test_a_crash_during_the_shutdown_is_raised_and_cuts_no_stop_short(
    live: Form, on_crash: Any, caplog: pytest.LogCaptureFixture
) -> None:
    log: Log = []
    error = ValueError("crash")
    stopping = asyncio.Event()

    class Late(Server):
        async def start(self) -> None:
            self.log.append("late starts")
            self.start_event.set()
            await stopping.wait()
            raise error

    async def slowly() -> None:
        stopping.set()
        await asyncio.sleep(0.01)
        log.append("slow has stopped")

    with pytest.raises(ValueError, match="crash") as caught:
        live(Late(log=log, name="late", on_crash=on_crash), Asking(log=log, in_stop=slowly))
    assert caught.value is error
    assert log == [
        *("late starts", "server starts", "late stops", "server stops", "slow has stopped")
    ]
    assert "Late name='late'" in caplog.text


def test_two_crashes_do_not_disturb_the_end_of_the_block(live: Form) -> None:
    log: Log = []
    begun = asyncio.Event()

    class Late(Failing):
        async def start(self) -> None:
            self.start_event.set()
            await begun.wait()
            await asyncio.sleep(0.05)
            raise self.error

    async def body(_: entrypoint) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.1)
            log.append("cleaned up")

    with pytest.raises(ExceptionGroup) as caught:
        live(
            Failing(log=log, error=ValueError("one"), phase="run", begun=begun),
            Late(log=log, error=ValueError("two")),
            body=body,
        )
    assert [str(error) for error in caught.value.exceptions] == ["one", "two"]
    assert "cleaned up" in log


def test_a_crash_before_the_block_rolls_back_the_start_up_and_is_raised(
    live: Form, caplog: pytest.LogCaptureFixture
) -> None:
    log: Log = []

    async def body(_: entrypoint) -> None:
        log.append("never")

    with pytest.raises(ValueError, match="crash"):
        live(
            Failing(log=log, error=ValueError("crash"), phase="run"),
            Failing(log=log, error=LookupError("from stop()"), phase="stop", name="s"),
            Hanging(log=log, name="h"),
            body=body,
        )
    assert sorted(log) == [
        *("h is cancelled", "h starts", "s is cancelled", "s starts", "s stops", "server stops")
    ]
    assert "from stop()" in caplog.text


def test_two_crashes_before_the_block_are_raised_as_a_group(live: Form) -> None:
    errors = ValueError("one"), LookupError("two")

    class Crashing(Server):
        error: BaseException

        async def start(self) -> None:
            self.start_event.set()
            await asyncio.sleep(0)  # both of them crash in the next turn
            raise self.error

    services = [Crashing(log=[], error=error) for error in errors]

    class Slow(Server):
        async def start(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.05)

    with pytest.raises(ExceptionGroup) as caught:
        live(*services, Slow(log=[]))
    assert caught.value.exceptions == errors


async def test_a_cancellation_during_the_shutdown_is_raised_after_the_shutdown() -> None:
    log: Log = []

    async def slowly() -> None:
        task.cancel()
        await asyncio.sleep(0.01)
        log.append("stopped")

    async def block() -> None:
        async with entrypoint(Asking(log=log, in_stop=slowly), log_config=False):
            pass
        log.append("never")

    task = asyncio.create_task(block())
    await asyncio.wait((task,))
    assert task.cancelled()
    assert log == ["server starts", "server stops", "stopped"]


async def test_a_cancellation_is_raised_even_if_another_event_ends_the_block_as_well() -> None:
    log: Log = []

    async def block() -> None:
        async with entrypoint(Brief(log=log), log_config=False) as ep:
            ending = asyncio.create_task(ep.graceful_shutdown())
            asyncio.get_running_loop().call_soon(task.cancel)
            await asyncio.gather(ending, asyncio.Event().wait())
        log.append("never")

    task = asyncio.create_task(block())
    await asyncio.wait((task,))
    assert task.cancelled()
    assert log == ["server starts", "server stops"]


def test_an_ignored_crash_is_logged_and_the_block_continues(
    live: Form, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(_: entrypoint) -> str:
        while "crash" not in caplog.text:  # noqa: ASYNC110 - the log has no event
            await asyncio.sleep(0.001)
        return "done"

    service = Failing(log=[], error=ValueError("crash"), phase="run", on_crash="ignore")
    assert live(service, body=body) == "done"
    assert repr(Failing) in caplog.text or "Failing" in caplog.text


def test_the_error_of_the_block_is_raised_unchanged_and_other_errors_are_logged(
    live: Form, caplog: pytest.LogCaptureFixture
) -> None:
    error = LookupError("in the block")

    async def body(_: entrypoint) -> None:
        raise error

    with pytest.raises(LookupError) as caught:
        live(Failing(log=[], error=ValueError("from stop()"), phase="stop"), body=body)
    assert caught.value is error
    assert "from stop()" in caplog.text


def test_the_error_of_a_single_failed_stop_is_raised_as_it_is_and_cuts_no_other_stop_short(
    live: Form,
) -> None:
    log: Log = []
    error = ValueError("from stop()")

    class Slow(Server):
        async def stop(self, exception: BaseException | None = None) -> None:
            await asyncio.sleep(0.05)
            await super().stop(exception)

    with pytest.raises(ValueError, match="from stop") as caught:
        live(Slow(log=log, name="slow"), Failing(log=log, name="f", error=error, phase="stop"))
    assert caught.value is error
    assert log[2:] == ["f stops", "slow stops", "slow is cancelled", "f is cancelled"]


def test_the_errors_of_several_failed_stops_are_raised_as_a_group_and_each_is_logged(
    live: Form, caplog: pytest.LogCaptureFixture
) -> None:
    errors = ValueError("one"), LookupError("two")
    services = [
        Failing(log=[], error=error, phase="stop", name=str(error)[1:-1]) for error in errors
    ]
    with pytest.raises(ExceptionGroup) as caught:
        live(*services)
    assert set(caught.value.exceptions) == set(errors)
    for service in services:
        assert repr(service.name) in caplog.text


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_an_exception_of_any_kind_from_stop_is_raised_once_all_services_are_stopped(
    live: Form, error: BaseException, waits: bool
) -> None:
    log: Log = []

    async def fail() -> None:
        if waits:
            await asyncio.sleep(0.001)
        raise error

    if live.name == "async" and waits:
        pytest.skip("out of a task, it ends a loop that is not ours")
    with pytest.raises(type(error)) as caught:
        live(Server(log=log), Asking(log=log, name="a", in_stop=fail))
    assert caught.value is error
    assert log[2:] == ["server stops", "a stops", "server is cancelled"]


def test_a_system_exit_from_stop_does_not_hide_the_error_of_the_block(live: Form) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise SystemExit(3)

    async def body(_: entrypoint) -> None:
        raise LookupError("in the block")

    if live.name == "async":
        pytest.skip("out of a task, it ends a loop that is not ours")
    with pytest.raises(LookupError):
        live(Asking(log=[], in_stop=fail), body=body)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), SystemExit(0)])
def test_an_exception_of_any_kind_from_the_block_is_raised_after_the_shutdown(
    live: Form, error: BaseException
) -> None:
    log: Log = []

    async def body(_: entrypoint) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        live(Server(log=log), body=body)
    assert caught.value is error
    assert log == ["server starts", "server stops", "server is cancelled"]


def test_a_stop_that_ends_by_cancellation_from_elsewhere_is_no_failure(live: Form) -> None:
    async def cancelled() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    log: Log = []
    live(Server(log=log), Asking(log=log, name="a", in_stop=cancelled))
    assert log[2:] == ["server stops", "a stops", "server is cancelled"]


def test_a_stray_loop_stop_disturbs_neither_start_nor_stop(
    live: Form,
) -> None:
    if live.name == "async":
        pytest.skip("the loop is not ours to run")
    log: Log = []

    async def stop_the_loop() -> None:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0.01)

    live(Asking(log=log, in_start=stop_the_loop, in_stop=stop_the_loop), Server(log=log, name="s"))
    assert log == [*("s starts", "server starts", "server stops", "s stops", "s is cancelled")]


def test_a_service_that_cancels_all_tasks_does_not_keep_the_loop_from_being_closed(
    live: Form,
) -> None:
    if not live.owns_loop:
        pytest.skip("it would cancel tasks of the test itself")
    log: Log = []

    async def cancel_all() -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.01)
        log.append("done")

    with contextlib.suppress(StartCancelled):
        live(Server(log=log), Asking(log=log, name="a", in_stop=cancel_all))
    assert log[2:4] == ["server stops", "a stops"]
    assert "server is cancelled" in log


# Services that live more than once.


def test_services_can_be_started_again_in_another_entrypoint(live: Form) -> None:
    log: Log = []
    services = Server(log=log, name="a"), Brief(log=log, name="b")
    live(*services)
    once = list(log)
    live(*services)
    assert log == once * 2


def test_a_service_that_failed_can_be_started_again(live: Form) -> None:
    log: Log = []
    service = Failing(log=log, error=ValueError("boom"))
    with pytest.raises(ValueError, match="boom"):
        live(service)
    service.phase = "never"
    live(service)
    assert log == ["server starts", "server stops", "server is cancelled"]


def test_a_service_can_run_in_one_entrypoint_at_a_time(live: Form) -> None:
    service = Brief(log=[])

    async def body(_: entrypoint) -> None:
        with pytest.raises(ValueError, match="another entrypoint"):
            async with entrypoint(service, log_config=False, catch_signals=()):
                pass

    live(service, body=body)
    assert service.state is ServiceState.STOPPED


def test_an_entrypoint_can_be_entered_once(loop_factory: LoopFactory) -> None:
    ep = entrypoint(loop_factory=loop_factory, log_config=False)
    with ep, pytest.raises(NotEntered, match="once"):
        ep.__enter__()
    with pytest.raises(NotEntered, match="once"), ep:
        pass


async def test_a_sync_block_in_a_running_loop_is_refused_with_the_remedy() -> None:
    with pytest.raises(NotEntered, match="async with"), entrypoint(log_config=False):
        pass


def test_an_entrypoint_that_is_not_entered_touches_nothing() -> None:
    root = logging.getLogger()
    before = list(root.handlers)
    with nothing_left():
        ep = entrypoint(Server(log=[]), log_level="debug")
        assert root.handlers == before
        assert ep.services == ()
        assert ep.ctx is None
        with pytest.raises(NotEntered):
            _ = ep.loop
        with pytest.raises(NotEntered):
            asyncio.run(ep.start_services())
        with pytest.raises(NotEntered):
            asyncio.run(ep.closing())
        with pytest.raises(NotEntered):
            asyncio.run(ep.graceful_shutdown())


def test_an_entrypoint_that_was_left_is_not_to_be_used_any_more(live: Form) -> None:
    kept: list[entrypoint] = []

    async def body(ep: entrypoint) -> None:
        kept.append(ep)

    live(Server(log=[]), body=body)
    (ep,) = kept
    assert ep.services == ()
    for call in (ep.start_services(), ep.stop_services(), ep.closing(), ep.graceful_shutdown()):
        with pytest.raises(NotEntered, match="left"):
            asyncio.run(call)


def test_entrypoints_live_side_by_side_in_threads(loop_factory: LoopFactory) -> None:
    logs: list[Log] = [[] for _ in range(4)]
    barrier = threading.Barrier(len(logs))

    def program(log: Log) -> None:
        async def body() -> None:
            await asyncio.to_thread(barrier.wait)
            current = svcrun.entrypoint.get_current()
            log.append(str([service.name for service in current.services]))

        with entrypoint(Server(log=log, name="s"), loop_factory=loop_factory) as loop:
            loop.run_until_complete(body())

    with nothing_left():
        threads = [threading.Thread(target=program, args=(log,)) for log in logs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert logs == [["s starts", "['s']", "s stops", "s is cancelled"]] * len(logs)


def test_leaving_a_second_time_does_nothing(loop_factory: LoopFactory) -> None:
    log: Log = []
    ep = entrypoint(Brief(log=log), loop_factory=loop_factory, log_config=False)
    with ep:
        pass
    assert ep.__exit__(None, None, None) is False
    assert log == ["server starts", "server stops"]


@pytest.mark.parametrize("turns", [1, 2, 3, 4])
def test_a_service_that_exits_the_program_just_after_its_start_does_so(
    turns: int, loop_factory: LoopFactory
) -> None:
    log: Log = []

    class Exiting(Service):
        async def start(self) -> None:
            self.start_event.set()
            for _ in range(turns):
                await asyncio.sleep(0)
            raise SystemExit(3)

    with (
        pytest.raises(SystemExit) as caught,
        entrypoint(Server(log=log), Exiting(), loop_factory=loop_factory, log_config=False) as loop,
    ):
        loop.run_until_complete(asyncio.sleep(10))
    assert caught.value.code == 3
    assert log[0] == "server starts"
    assert "server stops" in log
