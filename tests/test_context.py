import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from svcrun.context import Context, _contexts, get_context
from tests.support import PATIENCE, LoopFactory


@pytest.fixture
async def context() -> AsyncIterator[Context]:
    context = Context(asyncio.get_running_loop())
    yield context
    context.close()


@pytest.fixture(autouse=True)
def no_entry_is_left() -> Iterator[None]:
    yield
    assert not list(_contexts)


async def wait_for(context: Context, key: object) -> Any:
    async with asyncio.timeout(PATIENCE):
        return await context[key]


async def in_thread(function: Any) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    while thread.is_alive():  # noqa: ASYNC110 - the loop has to run meanwhile
        await asyncio.sleep(0.001)
    thread.join()


async def test_waiting_ends_when_the_value_is_set(context: Context) -> None:
    task = asyncio.create_task(wait_for(context, "key"))
    await asyncio.sleep(0)
    assert not task.done()
    context["key"] = 1
    assert await task == 1


@pytest.mark.parametrize("value", [None, False, 0, "text", asyncio.CancelledError()])
async def test_a_value_can_be_read_as_soon_as_it_is_set(context: Context, value: object) -> None:
    assert "key" not in context
    context["key"] = value
    assert "key" in context
    assert context["key"].result() is value


async def test_all_waiting_tasks_get_the_same_value(context: Context) -> None:
    tasks = [asyncio.create_task(wait_for(context, "key")) for _ in range(100)]
    await asyncio.sleep(0)
    value = object()
    context["key"] = value
    assert all(result is value for result in await asyncio.gather(*tasks))


async def test_a_later_value_replaces_the_earlier_one(context: Context) -> None:
    for value in (True, False, None):
        context["key"] = value
        assert await context["key"] is value


async def test_cancelling_one_waiting_task_leaves_the_others_waiting(context: Context) -> None:
    impatient = asyncio.create_task(wait_for(context, "key"))
    patient = asyncio.create_task(wait_for(context, "key"))
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    assert not patient.done()
    context["key"] = "value"
    assert await patient == "value"


async def test_the_future_of_a_cancelled_task_is_removed(context: Context) -> None:
    for number in range(10):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(context[number], timeout=0)
    await asyncio.sleep(0)
    assert not context._waiters


async def test_another_thread_can_set_a_value(context: Context) -> None:
    task = asyncio.create_task(wait_for(context, "key"))
    await asyncio.sleep(0)

    def work() -> None:
        context["key"] = "from a thread"
        assert "key" in context

    await in_thread(work)
    assert await task == "from a thread"


async def test_a_value_is_set_for_its_own_key_only(context: Context) -> None:
    task = asyncio.create_task(wait_for(context, "other"))
    context["key"] = 1
    await asyncio.sleep(0)
    assert not task.done()
    context["other"] = 2
    assert await task == 2


async def test_futures_of_the_context_work_with_the_tools_of_asyncio(context: Context) -> None:
    futures = {context["one"], context["two"]}
    context["one"] = 1
    done, pending = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    assert [future.result() for future in done] == [1]
    context["two"] = 2
    assert await asyncio.gather(*pending) == [2]


async def test_waiting_fails_at_close_and_names_the_key() -> None:
    context = Context(asyncio.get_running_loop())
    task = asyncio.create_task(wait_for(context, "missing"))
    await asyncio.sleep(0)
    context.close()
    with pytest.raises(RuntimeError, match=r"closed.*'missing'"):
        await task


async def test_a_closed_context_refuses_to_be_used() -> None:
    context = Context(asyncio.get_running_loop())
    context["key"] = 1
    context.close()
    context.close()
    assert "key" not in context
    with pytest.raises(RuntimeError, match=r"closed.*'key'"):
        await context["key"]
    with pytest.raises(RuntimeError, match=r"closed.*'key'"):
        context["key"] = 2


async def test_closing_logs_nothing_for_a_future_that_is_not_awaited() -> None:
    problems: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, problem: problems.append(problem))
    context = Context(loop)
    future = context["key"]
    context.close()
    del future
    gc.collect()
    await asyncio.sleep(0)
    assert not problems


def test_a_context_can_be_closed_after_its_loop(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    context = Context(loop)
    context["key"].add_done_callback(print)
    loop.close()
    with pytest.raises(RuntimeError, match=r"closed.*'key'"):
        context["key"] = 1
    context.close()


async def test_closing_wins_over_a_value_that_a_thread_set_just_before() -> None:
    context = Context(asyncio.get_running_loop())
    task = asyncio.create_task(wait_for(context, "key"))
    await asyncio.sleep(0)
    thread = threading.Thread(target=context.__setitem__, args=("key", 1))
    thread.start()
    thread.join()  # the wake-up is on its way
    context.close()
    with pytest.raises(RuntimeError, match=r"closed"):
        await task


async def test_a_context_cannot_be_iterated_over(context: Context) -> None:
    with pytest.raises(TypeError, match="not iterable"):
        iter(context)


async def test_get_context_finds_the_context_of_the_running_loop(context: Context) -> None:
    assert get_context() is context
    assert get_context(asyncio.get_running_loop()) is context


async def test_the_newest_of_nested_contexts_is_the_current_one_until_it_is_closed(
    context: Context,
) -> None:
    inner = Context(asyncio.get_running_loop())
    assert get_context() is inner
    inner.close()
    assert get_context() is context


async def test_nested_contexts_may_be_closed_in_any_order() -> None:
    loop = asyncio.get_running_loop()
    first, second = Context(loop), Context(loop)
    first.close()
    assert get_context() is second
    second.close()
    with pytest.raises(RuntimeError):
        get_context()


async def test_get_context_without_an_entrypoint_raises_with_a_remedy() -> None:
    with pytest.raises(RuntimeError, match=r"no entrypoint runs on <.*with entrypoint\("):
        get_context()


def test_get_context_outside_of_coroutines_finds_the_context_of_this_thread(
    loop_factory: LoopFactory,
) -> None:
    loop = loop_factory()
    context = Context(loop)
    found: list[Any] = []

    def look() -> None:
        try:
            found.append(get_context())
        except RuntimeError as error:
            found.append(str(error))

    assert get_context() is context
    context["key"] = 1
    assert loop.run_until_complete(context["key"]) == 1
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    context.close()
    loop.close()
    assert "get_context(loop)" in found[0]


def test_a_closed_context_keeps_nothing_of_its_loop_alive() -> None:
    loop = asyncio.SelectorEventLoop()
    alive = weakref.ref(loop)
    context = Context(loop)
    loop.run_until_complete(asyncio.wait({context["key"]}, timeout=0))
    context.close()
    loop.close()
    del loop, context
    gc.collect()
    assert alive() is None


async def test_the_representation_shows_the_set_and_the_awaited_keys(context: Context) -> None:
    context["one"] = 1
    future = context["two"]
    assert repr(context) == "<Context keys=['one'] awaited=['two']>"
    future.cancel()
    context.close()
    assert repr(context) == "<Context closed>"
