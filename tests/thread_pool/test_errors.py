"""Any exception of a call in a thread is raised in the awaiting task."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import NoReturn

import pytest

from svcrun.thread_pool import (
    IteratorWrapper,
    IteratorWrapperSeparate,
    ThreadPoolExecutor,
    sync_await,
    threaded,
    threaded_separate,
    wait_coroutine,
)
from tests.support import PATIENCE

# The function never returns, but a decorator that depends on the return type needs one.
Fail = Callable[[], object]


class Falsy(Exception):
    def __bool__(self) -> bool:
        return False


class Empty(Exception):
    def __len__(self) -> int:
        return 0


class Incomparable(Exception):
    def __eq__(self, other: object) -> bool:
        raise LookupError

    __hash__ = Exception.__hash__


class Uncopyable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one + two)

    def __reduce__(self) -> NoReturn:
        raise LookupError


class MoreStopIteration(StopIteration):
    pass


@pytest.fixture(autouse=True)
async def pool() -> AsyncIterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(4)
    pool.attach(asyncio.get_running_loop())
    asyncio.get_running_loop().set_default_executor(pool)
    yield pool
    assert await pool.close(PATIENCE) == []


async def submit(pool: ThreadPoolExecutor, fail: Fail) -> object:
    return await pool.submit(fail)


async def look(pool: ThreadPoolExecutor, fail: Fail) -> object:
    job = pool.submit(fail)
    with contextlib.suppress(BaseException):
        await job
    return job.result()


async def run_in_executor(pool: ThreadPoolExecutor, fail: Fail) -> object:
    return await asyncio.get_running_loop().run_in_executor(pool, fail)


async def wait_in_thread(_: ThreadPoolExecutor, fail: Fail) -> object:
    async def work() -> object:
        return fail()

    return await threaded(lambda: wait_coroutine(work()))()


async def await_in_thread(_: ThreadPoolExecutor, fail: Fail) -> object:
    async def work() -> object:
        return fail()

    return await threaded(lambda: sync_await(work))()


async def iterate(_: ThreadPoolExecutor, fail: Fail) -> object:
    def items() -> Iterator[object]:
        return iter((fail(),))

    return [item async for item in IteratorWrapper(items)]


WAYS: list[Callable[[ThreadPoolExecutor, Fail], Awaitable[object]]] = [
    submit,
    look,
    run_in_executor,
    lambda _, fail: threaded(fail)(),
    lambda _, fail: threaded_separate(fail)(),
    lambda _, fail: asyncio.to_thread(fail),
    wait_in_thread,
    await_in_thread,
    iterate,
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "error",
    [
        Falsy("text"),
        Empty("text"),
        Incomparable("text"),
        Uncopyable(1, 2),
        BaseException("text"),
        asyncio.CancelledError("text"),
        ExceptionGroup("text", [StopIteration()]),
    ],
    ids=repr,
)
async def test_an_error_is_raised_unchanged(
    pool: ThreadPoolExecutor,
    way: Callable[[ThreadPoolExecutor, Fail], Awaitable[object]],
    error: BaseException,
) -> None:
    def fail() -> object:
        raise error

    with pytest.raises(type(error)) as raised:
        async with asyncio.timeout(PATIENCE):
            await way(pool, fail)
    if not isinstance(error, asyncio.CancelledError):  # a task that is cancelled has its own
        assert raised.value is error


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [StopIteration(5), MoreStopIteration(5)], ids=repr)
async def test_an_error_that_no_coroutine_can_raise_is_the_cause_of_one_that_it_can(
    pool: ThreadPoolExecutor,
    way: Callable[[ThreadPoolExecutor, Fail], Awaitable[object]],
    error: BaseException,
) -> None:
    def fail() -> object:
        raise error

    with pytest.raises(RuntimeError, match=r"raised .*StopIteration") as raised:
        async with asyncio.timeout(PATIENCE):
            await way(pool, fail)
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("wrapper", [IteratorWrapper, IteratorWrapperSeparate])
@pytest.mark.parametrize("error", [StopIteration(), StopAsyncIteration(), Falsy()], ids=repr)
async def test_a_generator_that_fails_does_not_look_complete(
    wrapper: type[IteratorWrapper[int]], error: BaseException
) -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise error

    iteration = aiter(wrapper(numbers))
    assert await anext(iteration) == 1
    with pytest.raises((RuntimeError, Falsy)) as raised:
        await asyncio.wait_for(anext(iteration), PATIENCE)
    assert error in {raised.value, raised.value.__cause__}


async def test_a_generator_that_cannot_be_made_does_not_look_empty() -> None:
    def fail() -> NoReturn:
        raise StopAsyncIteration

    with pytest.raises(RuntimeError, match="raised StopAsyncIteration"):
        async for _ in IteratorWrapper[object](fail):
            pass
