"""Laws of calls from a thread to the event loop."""

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from svcrun.thread_pool import (
    ThreadPoolExecutor,
    from_thread,
    sync_await,
    sync_wait_coroutine,
    threaded,
    threaded_separate,
    wait_coroutine,
    wait_separate_threads,
)
from tests.support import PATIENCE, LoopFactory


@pytest.fixture(autouse=True)
async def pool() -> AsyncIterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(4)
    pool.attach(asyncio.get_running_loop())
    yield pool
    assert await pool.close(PATIENCE) == []
    assert await wait_separate_threads(PATIENCE) == []


@pytest.fixture(params=[threaded, threaded_separate])
def decorator(request: pytest.FixtureRequest) -> Callable[..., Any]:
    decorator: Callable[..., Any] = request.param
    return decorator


async def add(one: int, *, other: int) -> tuple[int, threading.Thread]:
    await asyncio.sleep(0)
    return one + other, threading.current_thread()


async def fail() -> object:
    raise ZeroDivisionError


async def test_a_coroutine_runs_on_the_loop_that_called_the_thread(
    decorator: Callable[..., Any],
) -> None:
    here = threading.current_thread()
    loop = asyncio.get_running_loop()

    @decorator
    def work() -> list[Any]:
        return [
            wait_coroutine(add(1, other=2)),
            wait_coroutine(add(1, other=2), loop),
            sync_wait_coroutine(None, add, 1, other=2),
            sync_wait_coroutine(loop, add, 1, other=2),
            sync_await(add, 1, other=2),
            sync_await(add(1, other=2)),
        ]

    assert await work() == [(3, here)] * 6


async def test_sync_await_accepts_the_awaitable_of_a_threaded_function(
    decorator: Callable[..., Any],
) -> None:
    @threaded
    def inner(value: int) -> int:
        return value + 1

    @decorator
    def outer() -> int:
        return sync_await(inner, 1)

    assert await outer() == 2


async def test_an_error_of_the_coroutine_is_raised_in_the_thread(
    decorator: Callable[..., Any],
) -> None:
    @decorator
    def work() -> str:
        with pytest.raises(ZeroDivisionError):
            sync_await(fail)
        return "seen"

    assert await work() == "seen"


async def test_a_timeout_error_of_the_coroutine_is_raised_at_once() -> None:
    async def time_out() -> None:
        raise TimeoutError("its own")

    @threaded
    def work() -> str:
        with pytest.raises(TimeoutError, match="its own"):
            sync_await(time_out)
        return "seen"

    async with asyncio.timeout(PATIENCE):
        assert await work() == "seen"


async def test_a_cancelled_coroutine_is_a_cancellation_in_the_thread() -> None:
    async def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    @threaded
    def work() -> str:
        with pytest.raises(asyncio.CancelledError):
            sync_await(cancel)
        return "seen"

    assert await work() == "seen"


async def test_waiting_longer_than_one_look_at_the_loop_is_no_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(from_thread, "_POLL_INTERVAL", 0.001)

    async def rest() -> str:
        await asyncio.sleep(0.05)
        return "rested"

    assert await threaded(lambda: sync_await(rest))() == "rested"


async def test_the_coroutine_sees_the_context_variables_of_the_thread() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")

    async def read() -> int:
        return variable.get()

    @threaded
    def work() -> int:
        variable.set(2)
        return sync_await(read)

    variable.set(1)
    assert await work() == 2


async def test_a_thread_without_a_loop_has_to_pass_one() -> None:
    outcome: list[str] = []

    def work() -> None:
        try:
            wait_coroutine(fail())
        except RuntimeError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "pass it: wait_coroutine(coro, loop)" in outcome[0]


async def test_sync_await_in_the_thread_of_the_loop_is_refused() -> None:
    with pytest.raises(RuntimeError, match="would block the event loop itself; use await"):
        wait_coroutine(fail(), asyncio.get_running_loop())


def test_a_closed_loop_is_an_error(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        wait_coroutine(fail(), loop)


def test_a_loop_that_is_closed_during_the_wait_is_an_error(
    loop_factory: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_thread, "_POLL_INTERVAL", 0.001)
    loop = loop_factory()
    begun = loop.create_future()
    tasks: list[Any] = []
    outcome: list[str] = []

    async def hang() -> None:
        tasks.append(asyncio.current_task())
        begun.set_result(None)
        await loop.create_future()

    def work() -> None:
        try:
            wait_coroutine(hang(), loop)
        except RuntimeError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    loop.run_until_complete(begun)
    loop.close()
    thread.join(PATIENCE)
    assert "was closed before <coroutine object" in outcome[0]
    # The closed loop cannot end the task any more.
    tasks[0]._log_destroy_pending = False
    tasks[0].get_coro().close()
