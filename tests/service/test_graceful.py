"""Laws of tasks that are awaited or cancelled when their service stops (C32)."""

# A graceful task need not be awaited, nor kept by anybody but its service.
# mypy: disable-error-code="unused-awaitable"
from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import math
import pickle
import sys
import weakref
from typing import Any

import pytest

from svcrun.service._internals import part_of
from svcrun.service.graceful import _GracefulTasks
from tests.service.graceful import Noting, Plain, ignore_cancellation, messages, now
from tests.support import PATIENCE
from tests.support_clock import run_virtual
from tests.support_counts import counted_calls

# The promises of the manual.


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
def test_after_graceful_wait_timeout_the_stop_waits_no_longer(
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
    assert "<Noting name='shop' NEW>: 1 task is still running after" in message
    assert "graceful_wait_timeout=10 s" in message
    assert ("; cancelling;" if cancel_on_timeout else "; left running;") in message
    assert "Noting.sleep is waiting at" in message
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


def test_tasks_cancelled_on_timeout_are_not_waited_for(
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


def test_the_timeout_does_not_limit_tasks_with_cancel() -> None:
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
def test_with_a_timeout_of_zero_the_stop_does_not_wait(timeout: float) -> None:
    async def main() -> None:
        service = Noting(graceful_wait_timeout=timeout)
        done = service.create_graceful_task(asyncio.sleep(0))
        await done  # which the service has not noticed yet
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


async def test_a_graceful_task_is_named_after_its_coroutine() -> None:
    service = Plain()

    async def answer() -> int:
        return 42

    task = service.create_graceful_task(answer())
    assert isinstance(task, asyncio.Task)
    assert task.get_name().endswith("answer")
    assert await task == 42


async def test_a_task_runs_in_a_copy_of_the_context_of_its_creator() -> None:
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
def test_a_task_that_exits_the_program_logs_nothing(
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


def test_a_task_that_the_program_cancels_is_removed(caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_task_that_has_ended_leaves_nothing_behind() -> None:
    async def main() -> None:
        service = Plain()

        async def answer() -> None: ...

        tasks = [
            weakref.ref(service.create_graceful_task(answer(), cancel=cancel))
            for cancel in (False, True)
        ]
        await asyncio.sleep(1)
        assert [task() for task in tasks] == [None, None]
        assert not part_of(service, _GracefulTasks).entries
        await service.stop()

    run_virtual(main())


def test_a_stopped_service_leaves_nothing_behind() -> None:
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
def test_a_negative_timeout_is_refused_at_construction(value: float) -> None:
    with pytest.raises(ValueError, match=r"Plain.*graceful_wait_timeout must be"):
        Plain(graceful_wait_timeout=value)


@pytest.mark.parametrize("value", ["soon", True, [1], b"1"])
def test_a_timeout_that_is_no_number_is_refused_at_construction(value: Any) -> None:
    with pytest.raises(TypeError, match=r"Plain.*graceful_wait_timeout must be"):
        Plain(graceful_wait_timeout=value)


def test_a_wrong_timeout_of_a_class_is_refused_at_construction() -> None:
    class Hasty(Plain):
        graceful_wait_timeout = -1

    with pytest.raises(ValueError, match=r"graceful_wait_timeout must be at least 0.*not -1"):
        Hasty()


def test_the_defaults_are_those_of_the_document() -> None:
    service = Plain()
    assert service.graceful_wait_timeout is None
    assert service.cancel_on_timeout is True


def test_a_graceful_service_can_be_pickled_before_it_runs() -> None:
    original = Noting(name="shop", graceful_wait_timeout=3, notes=("pickled",))
    service = pickle.loads(pickle.dumps(original))  # noqa: S301

    async def main() -> None:
        service.create_graceful_task(service.sleep("work", 1))
        await service.stop()

    run_virtual(main())
    assert service.notes == ["pickled", "work is done"]
    assert original.notes == ["pickled"]
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


def test_a_task_with_cancel_is_cancelled_once_by_several_stops() -> None:
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


# Many tasks.


def test_the_work_of_a_stop_is_proportional_to_the_number_of_tasks() -> None:
    def count(tasks: int) -> int:
        async def main() -> int:
            service = Plain(graceful_wait_timeout=10)
            for number in range(tasks):
                service.create_graceful_task(asyncio.sleep(number / 1000), cancel=number % 2 == 0)
            await asyncio.sleep(0)
            with counted_calls() as calls:
                await service.stop()
            return calls.count

        return run_virtual(main())

    # Ten times as many tasks; quadratic work would be a hundred times as much.
    assert count(5000) < 15 * count(500)
