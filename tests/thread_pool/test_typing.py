"""Types of decorated functions; a type checker checks this file, and the tests run it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Generator, Iterator
from typing import Any, assert_type

import pytest

from svcrun.signal import Signal, receiver
from svcrun.thread_pool import (
    ThreadPoolExecutor,
    sync_await,
    threaded,
    threaded_iterable,
    threaded_separate,
    wait_separate_threads,
)
from svcrun.timeout import timeout
from svcrun.utils import awaitable, shield
from tests.support import PATIENCE


@pytest.fixture(autouse=True)
async def pool() -> AsyncIterator[None]:
    pool = ThreadPoolExecutor(2)
    pool.attach(asyncio.get_running_loop())
    yield
    await pool.close(PATIENCE)
    await wait_separate_threads(PATIENCE)


class Example:
    @threaded
    def method(self, value: int) -> str:
        return str(value)

    @threaded_separate(detach=True)
    def separate(self, value: int) -> str:
        return str(value)

    @threaded_iterable(max_size=1)
    def items(self, stop: int) -> Iterator[int]:
        yield from range(stop)


async def test_a_threaded_function_keeps_its_parameters_and_its_result() -> None:
    @threaded
    def function(value: int) -> str:
        return str(value)

    assert_type(await function(1), str)
    assert_type(await function.async_call(value=1), str)
    assert_type(function.sync_call(1), str)
    with pytest.raises(TypeError):
        await function()  # type: ignore[call-arg]


async def test_a_threaded_method_is_bound() -> None:
    example = Example()
    assert_type(await example.method(1), str)
    assert_type(example.method.sync_call(1), str)
    assert_type(await example.separate(1), str)
    assert_type(await Example.method(example, 1), str)


async def test_a_generator_becomes_an_async_iterator_of_its_items() -> None:
    @threaded
    def numbers(stop: int) -> Generator[int, None, None]:
        yield from range(stop)

    assert_type([number async for number in numbers(2)], list[int])
    assert_type([number async for number in Example().items(2)], list[int])
    async with Example().items(2) as items:
        assert_type([item async for item in items], list[int])


async def test_other_decorators_keep_the_signature() -> None:
    @timeout(PATIENCE)
    async def limited(value: int) -> str:
        return str(value)

    @shield
    async def shielded(value: int) -> str:
        return str(value)

    @awaitable
    def plain(value: int) -> str:
        return str(value)

    @receiver(Signal())
    async def received(value: int) -> None: ...

    assert_type(await limited(1), str)
    assert_type(await shielded(1), str)
    assert_type(await plain(1), str)
    assert_type(received(1), Coroutine[Any, Any, None]).close()
    assert_type(await threaded(lambda: sync_await(limited, 1))(), str)
