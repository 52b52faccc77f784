import asyncio
import gc
import logging
import socket
import weakref
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest

from svcrun import utils
from svcrun.utils import SelectResult, awaitable, cancel_tasks, select, shield
from tests.support import PATIENCE, LoopFactory


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def give(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


class Solitude:
    """Wait in a task that only asyncio refers to, and weakly."""

    async def wait(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._future = weakref.ref(future)
        await future

    def end(self) -> None:
        gc.collect()
        future = self._future()
        assert future is not None, "the task was collected"
        future.set_result(None)


@pytest.fixture
async def problems() -> list[Any]:
    """The reports of the event loop."""
    found: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, problem: found.append(problem))
    return found


class TestAwaitable:
    async def test_a_plain_result_can_be_awaited(self) -> None:
        @awaitable
        def add(one: int, other: int) -> int:
            return one + other

        assert await add(1, other=2) == 3
        assert add.__name__ == "add"

    async def test_an_awaitable_result_is_passed_on_as_it_is(self) -> None:
        future = asyncio.get_running_loop().create_future()

        @awaitable
        def get() -> Awaitable[int]:
            return future

        future.set_result(1)
        assert get() is future
        assert await get() == 1

    def test_a_coroutine_function_stays_itself(self) -> None:
        assert awaitable(forever) is forever


class TestShield:
    async def test_the_result_is_returned(self) -> None:
        assert await shield(give)(1) == 1

    async def test_a_call_continues_when_its_caller_is_cancelled(self) -> None:
        solitude, done = Solitude(), asyncio.Event()

        @shield
        async def work() -> None:
            await solitude.wait()
            done.set()

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        solitude.end()
        async with asyncio.timeout(PATIENCE):
            await done.wait()

    async def test_a_call_runs_although_its_task_was_cancelled_before_it_began(self) -> None:
        done = asyncio.Event()

        @shield
        async def work() -> None:
            done.set()

        task = asyncio.create_task(work())
        task.cancel()
        async with asyncio.timeout(PATIENCE):
            await done.wait()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_an_error_is_raised(self) -> None:
        @shield
        async def fail() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()

    async def test_an_error_after_the_caller_was_cancelled_is_logged(
        self, caplog: pytest.LogCaptureFixture, problems: list[Any]
    ) -> None:
        go_on, failed = asyncio.Event(), asyncio.Event()

        @shield
        async def fail() -> None:
            await go_on.wait()
            failed.set()
            raise ZeroDivisionError

        task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        go_on.set()
        await failed.wait()
        await asyncio.sleep(0)
        (record,) = (record for record in caplog.records if record.name == "svcrun.utils")
        assert record.levelno == logging.ERROR
        assert "fail failed after its caller was cancelled" in record.getMessage()
        assert record.exc_info is not None
        assert not problems

    def test_a_function_that_is_not_a_coroutine_function_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"@shield .*async def.* not <built-in function print>"):
            shield(print)  # type: ignore[arg-type]


class TestCancelTasks:
    async def test_only_tasks_and_futures_that_are_not_done_are_cancelled(self) -> None:
        done = asyncio.create_task(give(1))
        await done
        task = asyncio.create_task(forever())
        future = asyncio.get_running_loop().create_future()
        await cancel_tasks([done, task, future])
        assert task.cancelled()
        assert future.cancelled()
        assert done.result() == 1

    async def test_cancelling_happens_at_the_call_and_waiting_is_optional(self) -> None:
        future = asyncio.get_running_loop().create_future()
        waiting = cancel_tasks({future})
        assert future.cancelled()
        await waiting

    async def test_waiting_lasts_until_the_tasks_have_cleaned_up(self) -> None:
        cleaned_up: list[int] = []

        async def work(number: int) -> None:
            try:
                await forever()
            finally:
                await asyncio.sleep(0)
                cleaned_up.append(number)

        tasks = [asyncio.create_task(work(number)) for number in range(3)]
        await asyncio.sleep(0)
        await cancel_tasks(iter(tasks))
        assert sorted(cleaned_up) == [0, 1, 2]

    async def test_an_error_during_the_cancellation_is_among_the_results(self) -> None:
        error = ZeroDivisionError()

        async def work() -> None:
            try:
                await forever()
            finally:
                raise error

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        assert await cancel_tasks([task]) == [error]

    async def test_without_tasks_the_future_is_done_at_once(self) -> None:
        waiting = cancel_tasks([])
        assert waiting.done()
        assert await waiting == []

    async def test_an_object_that_is_not_a_task_is_refused_and_nothing_is_cancelled(self) -> None:
        future = asyncio.get_running_loop().create_future()
        with pytest.raises(TypeError, match=r"not 'task'; .*create_task"):
            await cancel_tasks([future, "task"])  # type: ignore[list-item]
        assert not future.done()

    def test_tasks_can_be_cancelled_outside_of_coroutines(self, loop_factory: LoopFactory) -> None:
        loop = loop_factory()
        task = loop.create_task(forever())
        done = loop.create_future()
        done.set_result(None)
        assert loop.run_until_complete(cancel_tasks([done])) == []
        loop.run_until_complete(cancel_tasks([task]))
        assert task.cancelled()
        loop.close()


class TestSelect:
    async def test_the_first_result_is_returned_and_the_others_are_none(self) -> None:
        result = await select(forever(), give("first"), forever())
        assert list(result) == [None, "first", None]
        assert len(result) == 3
        assert "first" in result
        assert result.result_idx == 1
        assert result.is_exception is False
        assert result.value == result.result() == "first"
        assert result.done()

    async def test_the_others_are_cancelled_and_have_ended(self) -> None:
        ended: list[str] = []

        async def lose() -> None:
            try:
                await forever()
            finally:
                await asyncio.sleep(0)
                ended.append("coroutine")

        future = asyncio.get_running_loop().create_future()
        await select(give(1), lose(), future)
        assert ended == ["coroutine"]
        assert future.cancelled()

    async def test_without_wait_the_others_end_later(self) -> None:
        ended = asyncio.Event()

        async def lose() -> None:
            try:
                await forever()
            finally:
                await asyncio.sleep(0)
                ended.set()

        await select(give(1), lose(), wait=False)
        assert not ended.is_set()
        async with asyncio.timeout(PATIENCE):
            await ended.wait()

    async def test_without_cancel_the_others_go_on(self) -> None:
        solitude, done = Solitude(), asyncio.Event()

        async def second() -> None:
            await solitude.wait()
            done.set()

        await select(give(1), second(), cancel=False)
        solitude.end()
        async with asyncio.timeout(PATIENCE):
            await done.wait()

    async def test_the_first_argument_wins_if_several_are_done_at_once(self) -> None:
        assert list(await select(give(1), give(2))) == [1, None]

    async def test_an_error_of_the_first_one_is_raised(self, problems: list[Any]) -> None:
        async def fail() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await select(forever(), fail(), fail())
        gc.collect()
        await asyncio.sleep(0)
        assert not problems

    async def test_an_error_can_be_returned_as_a_result(self) -> None:
        error = ZeroDivisionError()

        async def fail() -> None:
            raise error

        result = await select(forever(), fail(), return_exceptions=True)
        assert list(result) == [None, error]
        assert result.is_exception
        with pytest.raises(ZeroDivisionError):
            result.result()

    async def test_a_cancelled_awaitable_counts_as_failed(self) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await select(forever(), future)

    async def test_a_timeout_cancels_all_and_there_is_no_result(self) -> None:
        future = asyncio.get_running_loop().create_future()
        result = await select(forever(), future, timeout=0)
        assert not result.done()
        assert list(result) == [None, None]
        assert result.result_idx is result.is_exception is result.result() is None
        assert future.cancelled()

    async def test_cancelling_the_caller_cancels_all(self) -> None:
        ended: list[int] = []

        async def work(number: int) -> None:
            try:
                await forever()
            finally:
                await asyncio.sleep(0)
                ended.append(number)

        task = asyncio.create_task(select(work(1), work(2), cancel=False))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(ended) == [1, 2]

    async def test_select_keeps_no_references_after_it_returns(self) -> None:
        await select(give(1), forever())
        await asyncio.sleep(0)
        assert not utils._background

    async def test_select_without_awaitables_is_refused(self) -> None:
        with pytest.raises(ValueError, match="needs at least one awaitable"):
            await select()

    async def test_an_argument_that_is_not_awaitable_is_refused_before_any_starts(
        self,
    ) -> None:
        task = asyncio.create_task(forever())
        with pytest.raises(TypeError, match="not 12"):
            await select(task, 12)  # type: ignore[arg-type]
        assert not task.cancelled()
        await cancel_tasks([task])

    async def test_only_the_running_loop_is_accepted(
        self, other_loop: asyncio.AbstractEventLoop
    ) -> None:
        assert list(await select(give(1), loop=asyncio.get_running_loop())) == [1]
        future = asyncio.get_running_loop().create_future()
        with pytest.raises(ValueError, match="is not the running loop"):
            await select(future, loop=other_loop)

    @pytest.fixture
    def other_loop(self) -> Iterator[asyncio.AbstractEventLoop]:
        loop = asyncio.SelectorEventLoop()
        yield loop
        loop.close()

    def test_the_representation_of_the_result_shows_its_items(self) -> None:
        result = SelectResult(2)
        result.result_idx, result.value = 1, "value"
        assert repr(result) == "<SelectResult [None, 'value']>"


def test_utils_exports_bind_socket() -> None:
    with utils.bind_socket(address="127.0.0.1", port=0) as sock:
        assert sock.family is socket.AF_INET


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"svcrun\.utils.*'nonsense'"):
        utils.nonsense  # type: ignore[attr-defined]  # noqa: B018
