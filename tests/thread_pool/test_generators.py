"""Laws of generators that run in threads."""

import asyncio
import contextlib
import contextvars
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor as StandardPool
from typing import Any

import pytest

from svcrun.thread_pool import (
    IteratorWrapper,
    IteratorWrapperSeparate,
    ThreadPoolExecutor,
    threaded,
    threaded_iterable,
    threaded_iterable_separate,
    threaded_separate,
    wait_separate_threads,
)
from svcrun.thread_pool.generators import ThreadedIterable, ThreadedIterableSeparate
from tests.support import PATIENCE, eventually

Decorator = Callable[..., Any]


@pytest.fixture(autouse=True)
async def pool() -> AsyncIterator[ThreadPoolExecutor]:
    """A pool of the loop; each test must end all of its threads."""
    pool = ThreadPoolExecutor(2)
    pool.attach(asyncio.get_running_loop())
    yield pool
    gc.collect()
    assert await pool.close(PATIENCE) == []
    assert await wait_separate_threads(PATIENCE) == []
    assert not [thread for thread in threading.enumerate() if "svcrun" in thread.name]


@pytest.fixture(autouse=True)
async def problems() -> AsyncIterator[list[Any]]:
    """The reports of the event loop; there are none unless a test expects them."""
    found: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, problem: found.append(problem))
    yield found
    gc.collect()
    await asyncio.sleep(0)
    assert not found


@pytest.fixture(params=[threaded_iterable, threaded_iterable_separate])
def decorator(request: pytest.FixtureRequest) -> Decorator:
    decorator: Decorator = request.param
    return decorator


class Numbers:
    """A generator that records its progress and its end."""

    def __init__(self, decorator: Decorator, max_size: int = 1) -> None:
        self.made = 0
        self.thread = ""
        self.closed = threading.Event()
        self.begin = decorator(max_size=max_size)(self._count)

    def _count(self, stop: int = 1_000_000) -> Iterator[int]:
        self.thread = threading.current_thread().name
        try:
            for number in range(stop):
                self.made += 1
                yield number
        finally:
            self.closed.set()


@pytest.mark.parametrize("max_size", [0, 1, 5])
async def test_all_items_come_in_order(decorator: Decorator, max_size: int) -> None:
    numbers = Numbers(decorator, max_size)
    assert [number async for number in numbers.begin(100)] == list(range(100))
    assert numbers.closed.is_set()


async def test_the_generator_runs_in_another_thread() -> None:
    numbers = Numbers(threaded_iterable)
    assert [number async for number in numbers.begin(1)] == [0]
    assert numbers.thread.startswith("svcrun-pool-")
    numbers = Numbers(threaded_iterable_separate)
    assert [number async for number in numbers.begin(1)] == [0]
    assert numbers.thread == "svcrun-_count"


async def test_the_generator_begins_with_the_iteration(decorator: Decorator) -> None:
    numbers = Numbers(decorator)
    async with numbers.begin(3) as iterator:
        await asyncio.sleep(0)
        assert numbers.thread == ""
        assert [number async for number in iterator] == [0, 1, 2]


@pytest.mark.parametrize("max_size", [1, 7])
async def test_the_generator_runs_ahead_up_to_its_limit(
    decorator: Decorator, max_size: int
) -> None:
    numbers = Numbers(decorator, max_size)
    async with numbers.begin() as iterator:
        taken = 0
        async for _ in iterator:
            taken += 1
            # One more than the limit: the generator waits to put the last one.
            await eventually(lambda: numbers.made == taken + max_size + 1)  # noqa: B023
            if taken == 10:
                break
    assert numbers.made == taken + max_size + 1


async def test_without_a_limit_the_generator_runs_ahead(decorator: Decorator) -> None:
    numbers = Numbers(decorator, max_size=0)
    iterator = aiter(numbers.begin(1000))
    assert await anext(iterator) == 0
    await eventually(numbers.closed.is_set)
    assert numbers.made == 1000
    assert [number async for number in iterator] == list(range(1, 1000))


async def test_leaving_the_loop_closes_the_generator(decorator: Decorator) -> None:
    numbers = Numbers(decorator)
    async for number in numbers.begin():
        if number == 3:
            break
    await eventually(numbers.closed.is_set)


async def test_leaving_the_loop_closes_the_generator_although_it_is_still_referenced(
    decorator: Decorator,
) -> None:
    numbers = Numbers(decorator)
    iterator = numbers.begin()
    async for number in iterator:
        if number == 3:
            break
    await eventually(numbers.closed.is_set)
    assert iterator.closed
    await iterator.close()


async def test_leaving_the_block_waits_until_the_generator_is_closed(decorator: Decorator) -> None:
    numbers = Numbers(decorator)
    async with numbers.begin() as iterator:
        async for number in iterator:
            if number == 3:
                break
    assert numbers.closed.is_set()


async def test_leaving_the_block_by_an_error_closes_the_generator(decorator: Decorator) -> None:
    numbers = Numbers(decorator)

    async def consume() -> None:
        async with numbers.begin() as iterator:
            async for _ in iterator:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await consume()
    assert numbers.closed.is_set()


async def test_a_cancelled_consumer_closes_the_generator(decorator: Decorator) -> None:
    numbers = Numbers(decorator)
    taken = asyncio.Event()

    async def consume() -> None:
        async for _ in numbers.begin():
            taken.set()
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(consume())
    await taken.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(numbers.closed.is_set)


async def test_a_consumer_cancelled_while_it_waits_for_an_item_leaves_no_thread(
    decorator: Decorator,
) -> None:
    begun, release, closed = threading.Event(), threading.Event(), threading.Event()

    @decorator
    def slow() -> Iterator[int]:
        try:
            begun.set()
            release.wait(PATIENCE)
            yield 1
        finally:
            closed.set()

    async def consume() -> None:
        async for _ in slow():
            raise AssertionError

    task = asyncio.create_task(consume())
    await eventually(begun.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    await eventually(closed.is_set)


async def test_dropping_an_iterator_closes_the_generator(decorator: Decorator) -> None:
    numbers = Numbers(decorator)
    iterator = numbers.begin()
    assert await anext(iterator) == 0
    del iterator
    gc.collect()
    await eventually(numbers.closed.is_set)


async def test_items_before_an_error_come_first_and_the_error_once(decorator: Decorator) -> None:
    @decorator
    def fail() -> Iterator[int]:
        yield 1
        yield 2
        raise ZeroDivisionError

    iterator = fail()
    assert [await anext(iterator), await anext(iterator)] == [1, 2]
    with pytest.raises(ZeroDivisionError):
        await anext(iterator)
    with pytest.raises(StopAsyncIteration):
        await anext(iterator)
    await iterator.close()


async def test_an_error_before_the_first_item_is_raised(decorator: Decorator) -> None:
    def no_generator() -> Iterator[int]:
        raise ZeroDivisionError

    def generator(divisor: int = 0) -> Iterator[int]:
        yield 1 // divisor

    for function in (no_generator, generator):
        with pytest.raises(ZeroDivisionError):
            await anext(decorator()(function)())


def fail_at_the_end() -> Iterator[int]:
    try:
        while True:
            yield 1
    finally:
        raise ZeroDivisionError


async def test_close_raises_an_error_of_the_generator_that_is_being_closed(
    decorator: Decorator,
) -> None:
    iterator = decorator(max_size=1)(fail_at_the_end)()
    assert await anext(iterator) == 1
    with pytest.raises(ZeroDivisionError):
        await iterator.close()


async def test_an_error_while_a_dropped_generator_is_closed_is_reported(
    decorator: Decorator, problems: list[Any]
) -> None:
    async for _ in decorator(max_size=1)(fail_at_the_end)():
        break

    def reported() -> bool:
        gc.collect()
        return bool(problems)

    await eventually(reported)
    assert isinstance(problems.pop()["exception"], ZeroDivisionError)


async def test_an_iterator_closed_before_its_start_has_no_items(decorator: Decorator) -> None:
    numbers = Numbers(decorator)
    iterator = numbers.begin()
    await iterator.close()
    assert [number async for number in iterator] == []
    assert numbers.thread == ""


async def test_closing_twice_is_harmless(decorator: Decorator) -> None:
    numbers = Numbers(decorator)
    iterator = numbers.begin()
    assert await anext(iterator) == 0
    await asyncio.gather(iterator.close(), iterator.close(), iterator.wait_closed())
    assert numbers.closed.is_set()


async def test_cancelling_the_wait_for_the_end_does_not_lose_the_error(
    decorator: Decorator,
) -> None:
    begun, release = threading.Event(), threading.Event()

    @decorator
    def slow() -> Iterator[int]:
        begun.set()
        release.wait(PATIENCE)
        yield 1

    iterator = slow()
    first = asyncio.ensure_future(anext(iterator))
    await eventually(begun.is_set)
    waiting = asyncio.create_task(iterator.wait_closed())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release.set()
    assert await first == 1
    assert [number async for number in iterator] == []


async def test_the_generator_sees_the_context_variables_of_the_iteration(
    decorator: Decorator,
) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")

    @decorator
    def values() -> Iterator[int]:
        yield variable.get()

    variable.set(1)
    assert [value async for value in values()] == [1]


async def test_a_pool_that_closes_ends_its_generators_with_pool_closed(
    pool: ThreadPoolExecutor,
) -> None:
    numbers = Numbers(threaded_iterable)
    iterator = numbers.begin()
    assert await anext(iterator) == 0
    await eventually(lambda: numbers.made == 3)
    assert await pool.close(PATIENCE) == []
    assert numbers.closed.is_set()
    # The item that it waited to put is lost, so this is not a normal end.
    assert await anext(iterator) == 1
    with pytest.raises(RuntimeError, match=r"_count.* ended early: its pool closed"):
        await anext(iterator)


async def test_a_default_executor_that_closes_ends_its_generators(pool: ThreadPoolExecutor) -> None:
    loop = asyncio.get_running_loop()
    await pool.close()
    default = ThreadPoolExecutor(1, "svcrun-default")
    loop.set_default_executor(default)
    numbers = Numbers(threaded_iterable)
    iterator = numbers.begin()
    assert await anext(iterator) == 0
    assert numbers.thread == "svcrun-default-1"
    assert await default.close(PATIENCE) == []
    assert numbers.closed.is_set()


async def test_a_generator_that_begins_while_its_pool_closes_ends_as_well(
    pool: ThreadPoolExecutor,
) -> None:
    begun, release = threading.Event(), threading.Event()

    def slow_to_begin() -> Iterator[int]:
        begun.set()
        release.wait(PATIENCE)
        return iter(range(1_000_000))

    iterator = threaded_iterable(slow_to_begin, max_size=1)()
    item = asyncio.ensure_future(anext(iterator))
    await eventually(begun.is_set)
    closing = asyncio.create_task(pool.close(PATIENCE))
    await asyncio.sleep(0)
    release.set()
    assert await closing == []
    with pytest.raises(RuntimeError, match="its pool closed"):
        await item


async def test_a_generator_that_its_pool_never_started_raises_pool_closed(
    pool: ThreadPoolExecutor,
) -> None:
    release = threading.Event()
    begun = threading.Barrier(3)

    def hold() -> None:
        begun.wait(PATIENCE)
        release.wait(PATIENCE)

    held = [threaded(hold)() for _ in range(2)]
    begun.wait(PATIENCE)
    numbers = Numbers(threaded_iterable)
    item = asyncio.ensure_future(anext(numbers.begin()))
    await asyncio.sleep(0)
    closing = asyncio.create_task(pool.close(PATIENCE))
    with pytest.raises(RuntimeError, match="its pool closed"):
        await item
    release.set()
    assert await closing == []
    await asyncio.gather(*held)


async def test_waiting_for_separate_threads_ends_their_generators() -> None:
    numbers = Numbers(threaded_iterable_separate)
    iterator = numbers.begin()
    assert await anext(iterator) == 0
    assert await wait_separate_threads(PATIENCE) == []
    assert numbers.closed.is_set()
    with contextlib.suppress(RuntimeError):
        async for _ in iterator:
            pass


async def test_methods_of_every_kind_can_be_generators(decorator: Decorator) -> None:
    class Example:
        @decorator
        def method(self) -> Iterator[object]:
            yield self

        @decorator
        @classmethod
        def class_method(cls) -> Iterator[object]:
            yield cls

        @decorator
        @staticmethod
        def static_method() -> Iterator[object]:
            yield None

    example = Example()
    assert [item async for item in example.method()] == [example]
    assert list(example.method.sync_call()) == [example]
    assert [item async for item in example.method.async_call()] == [example]
    for owner in (example, Example):
        assert [item async for item in owner.class_method()] == [Example]
        assert list(owner.class_method.sync_call()) == [Example]
        assert [item async for item in owner.static_method()] == [None]
        assert list(owner.static_method.sync_call()) == [None]


@pytest.mark.parametrize(
    ("decorator", "kind"),
    [(threaded, ThreadedIterable), (threaded_separate, ThreadedIterableSeparate)],
)
async def test_a_generator_function_under_threaded_becomes_iterable_with_a_limit(
    decorator: Decorator, kind: Any
) -> None:
    class Example:
        @decorator
        def method(self, stop: int) -> Iterator[int]:
            yield from range(stop)

        @decorator
        @staticmethod
        def static_method(stop: int) -> Iterator[int]:
            yield from range(stop)

    functions: list[Any] = [Example().method, Example.static_method]
    for function in functions:
        assert function.__class__ is kind
        assert function.max_size == 1024
        assert [number async for number in function(3)] == [0, 1, 2]


@pytest.mark.parametrize("wrapper", [IteratorWrapper, IteratorWrapperSeparate])
async def test_anything_that_can_be_iterated_over_can_be_wrapped(
    wrapper: type[IteratorWrapper[int]],
) -> None:
    def make() -> Iterable[int]:
        return [1, 2, 3]

    async with wrapper(make, max_size=1) as items:
        assert [item async for item in items] == [1, 2, 3]


async def test_an_executor_can_be_given() -> None:
    def name() -> Iterator[str]:
        yield threading.current_thread().name

    with StandardPool(1, "given") as executor:
        wrapper = IteratorWrapper(name, executor=executor, loop=asyncio.get_running_loop())
        assert [item async for item in wrapper] == ["given_0"]


@pytest.mark.parametrize("size", [-1, "1", 1.5, None])
async def test_an_invalid_limit_is_refused_by_name_and_value(
    decorator: Decorator, size: Any
) -> None:
    for make in (decorator(max_size=size), lambda f: IteratorWrapper(f, max_size=size)):
        with pytest.raises((TypeError, ValueError), match=rf"max_size must be .*, not {size!r}"):
            make(range)


def test_an_asynchronous_generator_function_is_refused(decorator: Decorator) -> None:
    async def generator() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match="generator is asynchronous"):
        decorator(generator)


async def test_many_abandoned_iterations_leave_no_thread(decorator: Decorator) -> None:
    for _ in range(50):
        async for number in Numbers(decorator).begin():
            if number == 2:
                break
