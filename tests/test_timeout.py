import asyncio
import decimal
import functools
import inspect
import math
from typing import Any

import pytest

from svcrun.timeout import timeout
from tests.support import PATIENCE


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_a_call_past_the_limit_raises_an_error_that_names_function_and_limit() -> None:
    limited = timeout(0.01)(forever)
    with pytest.raises(TimeoutError, match=r"test_timeout\.forever took longer .* 0\.01 s"):
        await limited()


async def test_a_call_past_the_limit_is_cancelled() -> None:
    seen: list[str] = []

    @timeout(0)
    async def work() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    with pytest.raises(TimeoutError):
        await work()
    assert seen == ["cancelled"]


@pytest.mark.parametrize("seconds", [PATIENCE, math.inf])
async def test_a_call_within_the_limit_returns_its_result(seconds: float) -> None:
    @timeout(seconds)
    async def add(one: int, *, other: int) -> int:
        return one + other

    assert await add(1, other=2) == 3


async def test_a_timeout_error_of_the_function_itself_stays_as_it_is() -> None:
    @timeout(PATIENCE)
    async def fail(error: TimeoutError) -> None:
        raise error

    @timeout(0)
    async def fail_when_cancelled(error: TimeoutError) -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            raise error from None

    for function, error in (
        (fail, TimeoutError("its own")),
        (fail, TimeoutError()),
        (fail_when_cancelled, TimeoutError("its own")),
    ):
        with pytest.raises(TimeoutError) as caught:
            await function(error)
        assert caught.value is error


async def test_a_cancellation_from_outside_is_no_timeout() -> None:
    task = asyncio.create_task(timeout(PATIENCE)(forever)())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_methods_can_be_limited() -> None:
    class Worker:
        @timeout(PATIENCE)
        async def work(self, value: int) -> tuple["Worker", int]:
            return self, value

    worker = Worker()
    assert await worker.work(3) == (worker, 3)


def test_the_limited_function_still_looks_like_itself() -> None:
    limited = timeout(1)(forever)
    assert limited.__name__ == "forever"
    assert inspect.iscoroutinefunction(limited)


@pytest.mark.parametrize("seconds", [-1, -0.1, math.nan, -math.inf])
def test_a_limit_that_is_no_positive_number_is_refused_by_name_and_value(seconds: float) -> None:
    with pytest.raises(ValueError, match=rf"value must be .*, not {seconds!r}"):
        timeout(seconds)


@pytest.mark.parametrize("seconds", [None, "1", True, decimal.Decimal(1), forever])
def test_a_limit_of_another_type_is_refused(seconds: Any) -> None:
    with pytest.raises(TypeError, match=r"timeout\(\): value must be a number of seconds"):
        timeout(seconds)


async def items() -> Any:
    yield


@pytest.mark.parametrize("function", [print, lambda: None, None, items, functools.partial(print)])
def test_a_function_that_is_not_a_coroutine_function_is_refused(function: Any) -> None:
    with pytest.raises(TypeError, match=r"@timeout .*async def") as caught:
        timeout(1)(function)
    assert repr(function) in str(caught.value)
