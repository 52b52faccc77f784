"""Tasks that come to their ends, or are cancelled, when their service stops (C32)."""

# A graceful task need not be awaited, nor kept by anybody but its service.
# mypy: disable-error-code="unused-awaitable"

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import math
import pickle
import sys
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from svcrun import entrypoint
from svcrun.service import GracefulService, PeriodicService, Service, TCPServer, UDPServer
from tests.entrypoint.forms import NAMES, Form
from tests.service.datagrams import client
from tests.support import PATIENCE, eventually
from tests.support_clock import run_virtual

if TYPE_CHECKING:
    from tests.support import LoopFactory


class Plain(GracefulService):
    """Does nothing but to have tasks."""

    async def start(self) -> None: ...


class Noting(Plain):
    """Notes what becomes of its tasks."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.notes: list[str] = []

    async def sleep(self, name: str, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.notes.append(f"{name} is cancelled")
            raise
        self.notes.append(f"{name} is done")


def now() -> float:
    return asyncio.get_running_loop().time()


async def ignore_cancellation(seconds: float) -> None:
    """Run on for a time, whatever others want."""
    end = now() + seconds
    while (left := end - now()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(left)


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


# What the document says.


def test_tasks_are_awaited_or_cancelled_and_awaited_at_the_stop() -> None:
    async def main() -> None:
        service = Noting()
        await service.start()
        service.create_graceful_task(service.sleep("swan", 3))
        service.create_graceful_task(service.sleep("duckling", 1), cancel=True)
        await asyncio.sleep(0)
        await service.stop()
        assert service.notes == ["duckling is cancelled", "swan is done"]
        assert now() == 3

    run_virtual(main())


def test_a_cancelled_task_may_take_its_time_to_clean_up() -> None:
    async def main() -> None:
        service = Noting(graceful_wait_timeout=1)

        async def task() -> None:
            try:
                await asyncio.sleep(math.inf)
            finally:
                await service.sleep("cleaning", 5)

        service.create_graceful_task(task(), cancel=True)
        await asyncio.sleep(0)
        await service.stop()
        assert service.notes == ["cleaning is done"]
        assert now() == 5

    run_virtual(main())


@pytest.mark.parametrize("cancel_on_timeout", [True, False])
def test_after_graceful_wait_timeout_nobody_waits(
    cancel_on_timeout: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        service = Noting(name="shop", graceful_wait_timeout=10, cancel_on_timeout=cancel_on_timeout)
        service.create_graceful_task(service.sleep("short", 9))
        task = service.create_graceful_task(service.sleep("long", 11))
        await service.stop()
        assert now() == 10
        if cancel_on_timeout:
            assert service.notes == ["short is done", "long is cancelled"]
        else:
            assert service.notes == ["short is done"]
            assert not task.done()
        await asyncio.wait((task,))
        assert task.cancelled() is cancel_on_timeout

    run_virtual(main())
    [message] = messages(caplog)
    assert "<Noting name='shop' NEW>: 1 tasks were not done" in message
    assert "graceful_wait_timeout=10 s" in message
    assert ("are cancelled" if cancel_on_timeout else "are left to run") in message
    assert "Noting.sleep waits at" in message
    assert "await asyncio.sleep(seconds)" in message


def test_a_task_that_ends_at_the_very_last_moment_is_not_late(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        service = Noting(graceful_wait_timeout=10)
        service.create_graceful_task(service.sleep("work", 10))
        await asyncio.sleep(0)
        await service.stop()
        assert service.notes == ["work is done"]

    run_virtual(main())
    assert not messages(caplog)


def test_what_is_cancelled_on_timeout_is_not_waited_for_further(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        service = Noting(graceful_wait_timeout=2)
        task = service.create_graceful_task(ignore_cancellation(8))
        await service.stop()
        assert now() == 2
        await task
        assert now() == 8

    run_virtual(main())
    assert len(messages(caplog)) == 1


def test_the_timeout_does_not_limit_what_is_cancelled() -> None:
    async def main() -> None:
        service = Noting(graceful_wait_timeout=2)
        service.create_graceful_task(ignore_cancellation(8), cancel=True)
        service.create_graceful_task(service.sleep("long", 4))
        await asyncio.sleep(0)
        await service.stop()
        assert now() == 8
        assert service.notes == ["long is cancelled"]

    run_virtual(main())


def test_without_a_timeout_the_stop_waits_as_long_as_it_takes() -> None:
    async def main() -> None:
        service = Noting()
        service.create_graceful_task(service.sleep("work", 1e6))
        await service.stop()
        assert service.notes == ["work is done"]

    run_virtual(main())


@pytest.mark.parametrize("timeout", [0, 0.0])
def test_a_timeout_of_zero_means_not_to_wait(timeout: float) -> None:
    async def main() -> None:
        service = Noting(graceful_wait_timeout=timeout)
        done = service.create_graceful_task(asyncio.sleep(0))
        await done  # which the service has not heard of yet
        service.create_graceful_task(service.sleep("work", 1))
        await asyncio.sleep(0)
        await service.stop()
        assert now() == 0
        assert service.notes == ["work is cancelled"]

    run_virtual(main())


async def test_a_timeout_may_be_infinite() -> None:
    service = Noting(graceful_wait_timeout=math.inf)
    service.create_graceful_task(service.sleep("work", 0.01))
    await asyncio.wait_for(service.stop(), PATIENCE)
    assert service.notes == ["work is done"]


# The task.


async def test_the_task_is_an_ordinary_one_that_is_named_after_its_coroutine() -> None:
    service = Plain()

    async def answer() -> int:
        return 42

    task = service.create_graceful_task(answer())
    assert isinstance(task, asyncio.Task)
    assert task.get_name().endswith("answer")
    assert await task == 42


async def test_a_task_has_the_context_of_who_creates_it_and_changes_only_its_own() -> None:
    variable = contextvars.ContextVar("variable", default=0)
    service = Plain()
    seen = []

    async def work() -> None:
        seen.append(variable.get())
        variable.set(2)

    variable.set(1)
    await service.create_graceful_task(work())
    assert seen == [1]
    assert variable.get() == 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio has no eager tasks")
def test_a_task_may_be_eager() -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(
            asyncio.eager_task_factory  # type: ignore[attr-defined, unused-ignore]
        )
        service = Noting()
        service.create_graceful_task(service.sleep("work", 1))
        service.create_graceful_task(asyncio.sleep(0))
        service.create_graceful_task(service.stop())
        await service.stop()
        assert service.notes == ["work is done"]

    run_virtual(main())


def test_a_task_that_raises_is_logged_once_with_its_service(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        raise LookupError("no such thing")

    async def main() -> None:
        service = Plain(name="shop")
        service.create_graceful_task(fail())
        await asyncio.sleep(1)
        await service.stop()

    run_virtual(main())
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "<Plain name='shop' NEW>" in record.getMessage()
    assert "fail failed" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


def test_tasks_that_raise_at_the_stop_neither_fail_nor_shorten_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        service = Noting()

        async def fail(*, cancel: bool) -> None:
            try:
                await asyncio.sleep(1)
            finally:
                raise LookupError("no such thing")

        for cancel in (False, True):
            service.create_graceful_task(fail(cancel=cancel), cancel=cancel)
        service.create_graceful_task(service.sleep("work", 2))
        await asyncio.sleep(0)
        await service.stop()
        assert service.notes == ["work is done"]

    run_virtual(main())
    assert len(messages(caplog)) == 2


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_task_that_ends_the_program_does_so_without_a_word_in_the_log(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        service = Plain()

        async def end() -> None:
            raise error

        service.create_graceful_task(end())
        await service.stop()

    with pytest.raises(type(error)):
        asyncio.run(main())
    assert not messages(caplog)


def test_a_task_that_somebody_cancels_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        service = Noting()
        task = service.create_graceful_task(service.sleep("work", 100))
        await asyncio.sleep(1)
        task.cancel()
        await service.stop()
        assert now() == 1
        assert service.notes == ["work is cancelled"]

    run_virtual(main())
    assert not messages(caplog)


def test_nothing_of_a_task_is_left_when_it_has_ended() -> None:
    async def main() -> None:
        service = Plain()

        async def answer() -> None: ...

        tasks = [
            weakref.ref(service.create_graceful_task(answer(), cancel=cancel))
            for cancel in (False, True)
        ]
        await asyncio.sleep(1)
        assert [task() for task in tasks] == [None, None]
        assert not service._graceful_tasks
        await service.stop()

    run_virtual(main())


def test_nothing_of_the_service_is_left_after_its_stop() -> None:
    async def main() -> weakref.ref[Noting]:
        service = Noting(graceful_wait_timeout=1)
        tasks = [
            weakref.ref(service.create_graceful_task(service.sleep("a", 0.5))),
            weakref.ref(service.create_graceful_task(service.sleep("b", 5))),
            weakref.ref(service.create_graceful_task(service.sleep("c", 5), cancel=True)),
        ]
        await service.stop()
        await asyncio.sleep(0)
        gc.collect()
        assert [task() for task in tasks] == [None, None, None]
        return weakref.ref(service)

    assert run_virtual(main())() is None


# The configuration.


@pytest.mark.parametrize("value", [-1, math.nan, -math.inf])
def test_a_timeout_that_is_no_time_is_refused_at_construction(value: float) -> None:
    with pytest.raises(ValueError, match=r"Plain.*graceful_wait_timeout=.*None for no limit"):
        Plain(graceful_wait_timeout=value)


@pytest.mark.parametrize("value", ["soon", True, [1], b"1"])
def test_a_timeout_that_is_no_number_is_refused_at_construction(value: Any) -> None:
    with pytest.raises(TypeError, match=r"Plain.*graceful_wait_timeout=.*None for no limit"):
        Plain(graceful_wait_timeout=value)


def test_a_wrong_timeout_of_a_class_is_refused_at_construction() -> None:
    class Hasty(Plain):
        graceful_wait_timeout = -1

    with pytest.raises(ValueError, match="graceful_wait_timeout=-1"):
        Hasty()


def test_the_defaults_are_those_of_the_document() -> None:
    service = Plain()
    assert service.graceful_wait_timeout is None
    assert service.cancel_on_timeout is True


def test_it_can_be_pickled_before_it_runs() -> None:
    service = pickle.loads(pickle.dumps(Noting(name="shop", graceful_wait_timeout=3)))  # noqa: S301

    async def main() -> None:
        service.create_graceful_task(service.sleep("work", 1))
        await service.stop()

    run_virtual(main())
    assert service.notes == ["work is done"]
    assert (service.name, service.graceful_wait_timeout) == ("shop", 3)


# Tasks that create others during the stop.


def test_a_task_may_create_others_during_the_stop() -> None:
    async def main() -> None:
        service = Noting()

        async def task() -> None:
            await asyncio.sleep(1)
            service.create_graceful_task(service.sleep("second", 2))
            service.create_graceful_task(service.sleep("third", 2), cancel=True)
            await service.sleep("first", 1)

        service.create_graceful_task(task())
        await service.stop()
        # The third was cancelled before it began.
        assert service.notes == ["first is done", "second is done"]
        assert now() == 3

    run_virtual(main())


def test_a_cancelled_task_may_create_others_to_clean_up() -> None:
    async def main() -> None:
        service = Noting()

        async def task() -> None:
            try:
                await asyncio.sleep(math.inf)
            finally:
                service.create_graceful_task(service.sleep("cleaning", 2))

        service.create_graceful_task(task(), cancel=True)
        await asyncio.sleep(0)
        await service.stop()
        assert service.notes == ["cleaning is done"]

    run_virtual(main())


def test_the_timeout_counts_from_the_beginning_of_the_stop_also_for_late_tasks() -> None:
    async def main() -> None:
        service = Noting(graceful_wait_timeout=3)

        async def task() -> None:
            await asyncio.sleep(2)
            service.create_graceful_task(service.sleep("late", 2))

        service.create_graceful_task(task())
        await service.stop()
        assert now() == 3
        assert service.notes == ["late is cancelled"]

    run_virtual(main())


def test_a_task_of_the_second_kind_is_cancelled_once_however_many_stops_there_are() -> None:
    async def main() -> None:
        service = Noting()

        async def task() -> None:
            try:
                await asyncio.sleep(math.inf)
            finally:
                await service.sleep("cleaning", 5)

        service.create_graceful_task(task(), cancel=True)
        await asyncio.sleep(0)
        first = asyncio.create_task(service.stop())
        await asyncio.sleep(1)
        await service.stop()
        await first
        assert service.notes == ["cleaning is done"]

    run_virtual(main())


# More than one stop.


def test_a_stop_without_a_start_and_a_second_one_do_nothing() -> None:
    async def main() -> None:
        service = Plain()
        await service.stop()
        await service.stop()

    run_virtual(main())


def test_stops_at_the_same_time_all_wait_for_the_tasks() -> None:
    async def main() -> None:
        service = Noting()
        service.create_graceful_task(service.sleep("work", 2))

        async def stop() -> None:
            await service.stop()
            assert service.notes == ["work is done"]

        await asyncio.gather(*(stop() for _ in range(3)))
        assert now() == 2

    run_virtual(main())


def test_a_service_may_be_started_and_stopped_again() -> None:
    async def main() -> None:
        service = Noting(graceful_wait_timeout=2)
        for number in range(3):
            await service.start()
            service.create_graceful_task(service.sleep(f"{number} short", 1))
            service.create_graceful_task(service.sleep(f"{number} long", 3))
            poll = service.create_graceful_task(asyncio.sleep(math.inf), cancel=True)
            await asyncio.sleep(0.5)
            assert not poll.done()
            await service.stop()
            assert poll.cancelled()
        assert service.notes == [
            f"{number} {what}"
            for number in range(3)
            for what in ("short is done", "long is cancelled")
        ]

    run_virtual(main())


def test_a_stop_that_is_cancelled_cancels_the_tasks_and_waits_for_none() -> None:
    async def main() -> None:
        service = Noting()
        service.create_graceful_task(service.sleep("work", 10))
        stubborn = service.create_graceful_task(ignore_cancellation(4), cancel=True)
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(service.stop(), 2)
        assert now() == 2
        await asyncio.sleep(0)
        assert service.notes == ["work is cancelled"]
        await stubborn

    run_virtual(main())


def test_a_stop_that_is_cancelled_leaves_alone_what_was_left_to_run() -> None:
    async def main() -> None:
        service = Noting(graceful_wait_timeout=1, cancel_on_timeout=False)
        work = service.create_graceful_task(service.sleep("work", 10))
        service.create_graceful_task(ignore_cancellation(4), cancel=True)
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(service.stop(), 2)
        await work
        assert service.notes == ["work is done"]

    run_virtual(main())


def test_a_stop_that_is_cancelled_while_the_server_stops_does_not_go_on_with_the_tasks() -> None:
    class Slow(Service):
        async def stop(self, exception: BaseException | None = None) -> None:
            await asyncio.sleep(5)

    class Both(Noting, Slow): ...

    async def main() -> None:
        service = Both()
        service.create_graceful_task(service.sleep("work", 10))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(service.stop(), 2)
        assert now() == 2
        await asyncio.sleep(0)
        assert service.notes == ["work is cancelled"]

    run_virtual(main())


def test_a_task_that_ignored_one_cancelled_stop_is_cancelled_by_the_next() -> None:
    async def main() -> None:
        service = Plain()
        heard = []

        async def task() -> None:
            for _ in range(3):
                try:
                    await asyncio.sleep(math.inf)
                except asyncio.CancelledError:
                    heard.append(now())

        service.create_graceful_task(task(), cancel=True)
        await asyncio.sleep(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(service.stop(), 2)
        await asyncio.sleep(1)
        await service.stop()
        assert heard == [1, 3, 4]

    run_virtual(main())


def test_tasks_are_seen_to_when_the_stop_of_the_server_fails() -> None:
    class Failing(Service):
        async def stop(self, exception: BaseException | None = None) -> None:
            raise LookupError("no such thing")

    class Both(Noting, Failing): ...

    async def main() -> None:
        service = Both()
        service.create_graceful_task(service.sleep("swan", 1))
        service.create_graceful_task(service.sleep("duckling", 1), cancel=True)
        await asyncio.sleep(0)
        with pytest.raises(LookupError):
            await service.stop()
        assert service.notes == ["duckling is cancelled", "swan is done"]

    run_virtual(main())


# Tasks that stop their own service.


@pytest.mark.parametrize("cancel", [False, True])
def test_a_task_may_stop_its_service_and_go_on(cancel: bool) -> None:
    async def main() -> None:
        service = Noting()

        async def stop() -> None:
            await service.stop()
            await service.sleep("stop", 1)

        service.create_graceful_task(service.sleep("work", 2))
        task = service.create_graceful_task(stop(), cancel=cancel)
        await task
        assert service.notes == ["work is done", "stop is done"]

    run_virtual(main())


def test_a_task_may_stop_its_service_from_a_task_of_its_own() -> None:
    async def main() -> None:
        service = Noting()

        async def stop() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(service.stop())

        await service.create_graceful_task(stop())

    run_virtual(main())


def test_tasks_that_all_stop_their_service_do_not_hold_each_other_up() -> None:
    async def main() -> None:
        service = Noting()

        async def stop(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            await service.stop()
            service.notes.append(name)

        for number in range(3):
            service.create_graceful_task(stop(f"stop {number}", number))
        service.create_graceful_task(service.sleep("work", 5))
        await asyncio.sleep(1.5)
        await service.stop()
        # Whoever is no task of the service waits for the end of all.
        assert service.notes[0] == "work is done"
        assert sorted(service.notes[1:]) == ["stop 0", "stop 1", "stop 2"]
        assert now() == 5

    run_virtual(main())


def test_a_task_that_has_stopped_its_service_is_waited_for_by_others_again() -> None:
    async def main() -> None:
        service = Noting()

        async def restart() -> None:
            await service.stop()
            await service.start()
            await service.sleep("work after that", 5)

        service.create_graceful_task(restart())
        await asyncio.sleep(1)
        await service.create_graceful_task(service.stop())
        assert service.notes == ["work after that is done"]

    run_virtual(main())


def test_a_stop_by_a_task_waits_for_the_cleaning_up_of_one_that_wanted_to_stop_as_well() -> None:
    async def main() -> None:
        service = Noting()

        async def stop() -> None:
            try:
                await service.stop()
            finally:
                await service.sleep("cleaning", 3)

        async def keep_stop_from_its_end() -> None:
            await asyncio.sleep(1)
            await service.stop()
            assert service.notes == ["cleaning is done"]

        service.create_graceful_task(stop(), cancel=True)
        await service.create_graceful_task(keep_stop_from_its_end())

    run_virtual(main())


def test_a_task_may_give_up_a_stop_and_go_on() -> None:
    async def main() -> None:
        service = Noting()

        async def stop() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(service.stop(), 2)
            await service.sleep("stop", 1)

        service.create_graceful_task(service.sleep("work", 5))
        await service.create_graceful_task(stop())
        assert service.notes == ["work is cancelled", "stop is done"]

    run_virtual(main())


def test_a_stop_from_outside_that_is_cancelled_also_ends_the_stops_by_tasks() -> None:
    async def main() -> None:
        service = Noting()
        service.create_graceful_task(service.sleep("work", 5))
        task = service.create_graceful_task(service.stop())
        await asyncio.sleep(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(service.stop(), 2)
        await asyncio.wait((task,))
        assert task.cancelled()
        assert service.notes == ["work is cancelled"]
        assert now() == 3

    run_virtual(main())


def test_the_stop_by_a_task_that_is_cancelled_leaves_the_others_to_who_waits_for_them() -> None:
    async def main() -> None:
        service = Noting()
        service.create_graceful_task(service.sleep("work", 5))
        task = service.create_graceful_task(service.stop(), cancel=True)
        await asyncio.sleep(1)
        await service.stop()
        assert task.cancelled()
        assert service.notes == ["work is done"]

    run_virtual(main())


def test_the_stop_by_a_task_that_is_cancelled_cancels_all_when_it_was_the_only_one() -> None:
    async def main() -> None:
        service = Noting()
        service.create_graceful_task(service.sleep("work", 5))
        task = service.create_graceful_task(service.stop())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait((task,))
        await asyncio.sleep(0)
        assert service.notes == ["work is cancelled"]

    run_virtual(main())


def test_a_task_of_one_service_may_stop_another_and_is_waited_for_by_its_own() -> None:
    async def main() -> None:
        one, other = Noting(), Noting()
        other.create_graceful_task(other.sleep("other work", 3))

        async def stop_other() -> None:
            await other.stop()
            one.notes.append("done")

        one.create_graceful_task(stop_other())
        await asyncio.sleep(1)
        await one.stop()
        assert other.notes == ["other work is done"]
        assert one.notes == ["done"]

    run_virtual(main())


def test_a_task_that_stops_another_service_is_waited_for_by_tasks_of_its_own() -> None:
    async def main() -> None:
        one, other = Noting(), Noting()
        other.create_graceful_task(other.sleep("other work", 3))

        async def stop_other() -> None:
            await other.stop()
            one.notes.append("done")

        one.create_graceful_task(stop_other())
        await asyncio.sleep(1)
        await one.create_graceful_task(one.stop())
        assert one.notes == ["done"]

    run_virtual(main())


# In an entrypoint.


@pytest.fixture(params=NAMES)
def live(request: pytest.FixtureRequest, loop_factory: LoopFactory) -> Form:
    """Run services in each of the forms, on each kind of loop."""
    return Form(request.param, loop_factory)


def test_the_entrypoint_waits_for_the_tasks(live: Form) -> None:
    class Swan(Noting):
        async def start(self) -> None:
            self.create_graceful_task(self.sleep("swan", 0.05))
            self.create_graceful_task(self.sleep("duckling", 60), cancel=True)
            await asyncio.sleep(0)

    service = Swan()
    live(service)
    assert service.notes == ["duckling is cancelled", "swan is done"]


@pytest.mark.parametrize("cancel", [False, True])
@pytest.mark.parametrize("way", ["stop_services", "graceful_shutdown"])
def test_a_task_may_ask_the_entrypoint_for_the_stop(live: Form, way: str, cancel: bool) -> None:
    class Ending(Noting):
        async def start(self) -> None:
            self.create_graceful_task(self.end(), cancel=cancel)
            self.create_graceful_task(self.sleep("work", 0.05))

        async def end(self) -> None:
            await block_runs.wait()
            ep = entrypoint.get_current()
            if way == "stop_services":
                await ep.stop_services(self)
            else:
                await ep.graceful_shutdown()
            self.notes.append("end is done")

    async def body(_: entrypoint) -> None:
        block_runs.set()
        try:
            await asyncio.sleep(PATIENCE if way == "graceful_shutdown" else 0)
        except asyncio.CancelledError:
            service.notes.append("block is told")
        await eventually(lambda: "end is done" in service.notes)

    block_runs = asyncio.Event()
    service = Ending()
    with contextlib.suppress(SystemExit):  # of svcrun.run(), whose main() gave no result
        live(service, body=body, shutdown_timeout=10)
    told = ["block is told"] if way == "graceful_shutdown" else []
    assert service.notes == [*told, "work is done", "end is done"]


@pytest.mark.parametrize("limits", [{"stop_timeout": 5}, {"shutdown_timeout": 5}], ids=str)
@pytest.mark.parametrize(
    ("kind", "cancel"),
    [("hangs", False), ("ignores its cancellation", False), ("ignores its cancellation", True)],
)
def test_a_task_without_end_is_bounded_and_named(
    kind: str, cancel: bool, limits: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        service = Plain(name="shop", stop_timeout=limits.get("stop_timeout"))
        ep = entrypoint(
            service,
            log_config=False,
            catch_signals=(),
            shutdown_timeout=limits.get("shutdown_timeout"),
        )
        await ep.__aenter__()
        coro = asyncio.sleep(1000) if kind == "hangs" else ignore_cancellation(20)
        task = service.create_graceful_task(coro, cancel=cancel)
        await asyncio.sleep(0)
        with pytest.raises(SystemExit) as caught:
            await ep.__aexit__(None, None, None)
        assert caught.value.code == 70
        assert "shop" in str(caught.value.__cause__)
        assert now() == 5
        await asyncio.wait((task,))
        assert now() == (5 if kind == "hangs" else 20)

    run_virtual(main())
    late, cut = messages(caplog)
    assert "<Plain name='shop' STOPPING> hangs and is cancelled" in late
    assert "<Plain name='shop' STOPPING>: 1 tasks were not done when the stop was cut short" in cut
    assert ("sleep" if kind == "hangs" else "ignore_cancellation") + " waits at" in cut


# Together with other services.


def tcp_server(*bases: type[Service]) -> Any:
    class Server(*bases):  # type: ignore[misc]
        notes: list[str]

        async def handle_client(
            self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            line = await reader.readline()
            self.create_graceful_task(self.deliver(line))
            self.create_graceful_task(asyncio.sleep(1000), cancel=True)
            writer.write(line)
            await writer.drain()

        async def deliver(self, line: bytes) -> None:
            await self.may_go_on.wait()
            self.notes.append(f"delivered {line!r}")

    server = Server("127.0.0.1", 0, notes=[])
    server.may_go_on = asyncio.Event()
    return server


FIRST = pytest.param((GracefulService, TCPServer), id="graceful first")
LAST = pytest.param((TCPServer, GracefulService), id="graceful last")


@pytest.mark.parametrize("bases", [FIRST, LAST])
async def test_a_task_outlives_the_handler_that_created_it(
    bases: tuple[type[Service], ...],
) -> None:
    server = tcp_server(*bases)
    await server.start()
    reader, writer = await asyncio.open_connection(server.address, server.port)
    address, port = server.address, server.port
    writer.write(b"parcel\n")
    assert await reader.readline() == b"parcel\n"
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    assert server.notes == []

    stopping = asyncio.create_task(server.stop())
    await eventually(lambda: server.server is None)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(address, port)
    server.may_go_on.set()
    await asyncio.wait_for(stopping, PATIENCE)
    assert server.notes == [r"delivered b'parcel\n'"]
    assert not server._graceful_tasks


async def test_a_handler_at_work_may_create_tasks_during_the_stop() -> None:
    at_work = asyncio.Event()

    class Server(GracefulService, TCPServer):
        notes: list[str]

        async def handle_client(
            self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            at_work.set()
            while not self.stopping:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0)
            self.create_graceful_task(self.deliver())

        async def deliver(self) -> None:
            await asyncio.sleep(0.05)
            self.notes.append("delivered")

    server = Server("127.0.0.1", 0, notes=[])
    await server.start()
    _, writer = await asyncio.open_connection(str(server.address), server.port)
    await at_work.wait()
    await asyncio.wait_for(server.stop(), PATIENCE)
    assert server.notes == ["delivered"]
    writer.close()
    await writer.wait_closed()


async def test_a_task_of_a_datagrams_handler_outlives_it() -> None:
    created = asyncio.Event()

    class Server(GracefulService, UDPServer):
        notes: list[str]

        async def handle_datagram(self, data: bytes, addr: Any) -> None:
            self.create_graceful_task(self.deliver(data))
            created.set()

        async def deliver(self, data: bytes) -> None:
            await asyncio.sleep(0.05)
            self.notes.append(f"delivered {data!r}")

    server = Server("127.0.0.1", 0, notes=[])
    await server.start()
    with client(server) as sock:
        sock.send(b"parcel")
        await created.wait()
    await asyncio.wait_for(server.stop(), PATIENCE)
    assert server.notes == ["delivered b'parcel'"]


def periodic_service(*bases: type[Service]) -> Any:
    class Shop(*bases):  # type: ignore[misc]
        notes: list[str]

        async def callback(self) -> None:
            self.create_graceful_task(self.deliver(self.periodic.calls))

        async def deliver(self, number: int) -> None:
            await asyncio.sleep(2.5)
            self.notes.append(f"{number} at {now():g}")

    return Shop(interval=1, notes=[])


@pytest.mark.parametrize(
    "bases",
    [(GracefulService, PeriodicService), (PeriodicService, GracefulService)],
    ids=["graceful first", "graceful last"],
)
def test_tasks_of_a_periodic_callback_outlive_it(bases: tuple[type[Service], ...]) -> None:
    async def main() -> None:
        service = periodic_service(*bases)
        await service.start()
        await asyncio.sleep(1.5)
        await service.stop()
        assert service.notes == ["1 at 2.5", "2 at 3.5"]
        assert now() == 3.5

    run_virtual(main())


def test_a_task_of_a_periodic_callback_may_stop_the_service() -> None:
    class Shop(GracefulService, PeriodicService):
        async def callback(self) -> None:
            self.create_graceful_task(self.stop())

    async def main() -> None:
        service = Shop(interval=1)
        await service.start()
        await asyncio.sleep(10)
        assert service.periodic.calls == 1

    run_virtual(main())


# Many tasks.


def test_many_tasks_take_time_in_proportion() -> None:
    def measure(count: int) -> float:
        async def main() -> float:
            service = Plain(graceful_wait_timeout=10)
            for number in range(count):
                service.create_graceful_task(asyncio.sleep(number % 7), cancel=number % 2 == 0)
            await asyncio.sleep(0)
            begin = time.process_time()
            await service.stop()
            return time.process_time() - begin

        return run_virtual(main())

    def best(count: int) -> float:
        return min(measure(count) for _ in range(3))

    # Ten times as many. What is quadratic takes a hundred times as long.
    assert best(5000) < 40 * best(500)
