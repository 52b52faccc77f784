"""Laws of the decorators `threaded` and `threaded_separate`."""

import asyncio
import contextlib
import contextvars
import functools
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from svcrun.thread_pool import (
    ThreadPoolExecutor,
    threaded,
    threaded_separate,
    wait_separate_threads,
)
from svcrun.thread_pool.separate_threads import get_separate_threads
from tests.support import PATIENCE, LoopFactory, Program, eventually

Decorator = Callable[..., Any]


@pytest.fixture(autouse=True)
async def pool() -> AsyncIterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(4)
    pool.attach(asyncio.get_running_loop())
    yield pool
    assert await pool.close(PATIENCE) == []
    assert await wait_separate_threads(PATIENCE) == []
    assert not [thread for thread in threading.enumerate() if "svcrun" in thread.name]


@pytest.fixture(params=[threaded, threaded_separate])
def decorator(request: pytest.FixtureRequest) -> Decorator:
    decorator: Decorator = request.param
    return decorator


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def current_name() -> str:
    return threading.current_thread().name


async def test_a_call_runs_in_a_thread_and_its_result_is_awaited(decorator: Decorator) -> None:
    @decorator
    def work(one: int, *, other: int) -> tuple[int, bool]:
        return one + other, threading.current_thread() is threading.main_thread()

    assert await work(1, other=2) == (3, False)


async def test_an_error_is_raised_by_the_awaited_call(decorator: Decorator) -> None:
    @decorator
    def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await work()


async def test_stop_iteration_does_not_hang_the_awaiting_task(decorator: Decorator) -> None:
    @decorator
    def work() -> None:
        next(iter(()))

    with pytest.raises(RuntimeError, match="raised StopIteration"):
        async with asyncio.timeout(PATIENCE):
            await work()


async def test_a_call_begins_at_once(decorator: Decorator) -> None:
    begun = threading.Event()
    future = decorator(begun.set)()
    begun.wait(PATIENCE)
    assert begun.is_set()
    await future


async def test_calls_run_at_the_same_time(decorator: Decorator) -> None:
    meet = decorator(threading.Barrier(4).wait)
    await asyncio.gather(*(meet(PATIENCE) for _ in range(4)))


async def test_the_thread_sees_the_callers_context_variables(decorator: Decorator) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")

    @decorator
    def work() -> int:
        seen = variable.get()
        variable.set(-1)
        return seen

    calls = []
    for number in range(8):
        variable.set(number)
        calls.append(work())
    assert await asyncio.gather(*calls) == list(range(8))
    assert variable.get() == 7


async def test_a_cancelled_caller_leaves_the_call_running(
    decorator: Decorator, release: threading.Event
) -> None:
    begun, ended = threading.Event(), threading.Event()

    @decorator
    def work() -> None:
        begun.set()
        release.wait(PATIENCE)
        ended.set()

    call = asyncio.ensure_future(work())
    await eventually(begun.is_set)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not ended.is_set()
    release.set()
    await eventually(ended.is_set)


async def test_a_cancelled_call_that_has_not_begun_never_begins(
    pool: ThreadPoolExecutor, release: threading.Event
) -> None:
    ran: list[int] = []
    begun = threading.Barrier(5)

    @threaded
    def hold() -> None:
        begun.wait(PATIENCE)
        release.wait(PATIENCE)

    held = [hold() for _ in range(4)]
    begun.wait(PATIENCE)
    queued = [asyncio.ensure_future(threaded(ran.append)(number)) for number in range(10)]
    for call in queued:
        call.cancel()
    release.set()
    pool.shutdown(wait=True)  # blocks the loop, so that the executor does not see the cancellation
    assert ran == []
    await asyncio.gather(*held)


async def test_a_failed_call_leaves_nothing_behind(decorator: Decorator) -> None:
    class Argument: ...

    @decorator
    def fail(_: Argument) -> None:
        raise ZeroDivisionError

    async def call(argument: Argument) -> None:
        with contextlib.suppress(ZeroDivisionError):
            await fail(argument)

    argument = Argument()
    alive = weakref.ref(argument)
    gc.disable()  # a cycle would only go with the collector
    try:
        await call(argument)
        del argument
        await eventually(lambda: alive() is None)
    finally:
        gc.enable()


async def test_a_function_keeps_its_name_and_can_be_called_as_it_was(decorator: Decorator) -> None:
    @decorator
    def work() -> str:
        """Work."""
        return current_name()

    assert work.__name__ == "work"
    assert work.__doc__ == "Work."
    assert work.sync_call() == current_name()
    assert await work.async_call() != current_name()
    assert "work" in repr(work)


class Base:
    """Methods of every kind, decorated by `make`."""

    value: int

    def __init__(self, value: int) -> None:
        self.value = value


def make(decorator: Decorator) -> Any:
    class Example(Base):
        @decorator
        def method(self, other: int) -> int:
            return self.value + other

        @decorator
        @classmethod
        def class_method(cls, other: int) -> tuple[type, int]:
            return cls, other

        @decorator
        @staticmethod
        def static_method(other: int) -> int:
            return other

    return Example


async def test_methods_of_every_kind_can_be_decorated(decorator: Decorator) -> None:
    example_class = make(decorator)
    example, other = example_class(1), example_class(2)
    assert await example.method(1) == 2
    assert await other.method(1) == 3
    assert example.method.sync_call(1) == 2
    assert await example.method.async_call(1) == 2
    assert await example_class.method(example, 1) == 2
    for owner in (example, example_class):
        assert await owner.class_method(1) == (example_class, 1)
        assert owner.class_method.sync_call(1) == (example_class, 1)
        assert await owner.static_method(1) == 1
        assert owner.static_method.sync_call(1) == 1


async def test_equal_objects_do_not_share_a_bound_method(decorator: Decorator) -> None:
    class Equal(Base):
        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 1

        @decorator
        def method(self) -> int:
            return self.value

    first, second = Equal(1), Equal(2)
    assert (await first.method(), await second.method()) == (1, 2)


async def test_any_callable_can_be_decorated(decorator: Decorator) -> None:
    class Holder:
        builtin = decorator(abs)

    assert await decorator(functools.partial(divmod, 7))(4) == (1, 3)
    assert await Holder().builtin(-1) == 1


def test_an_asynchronous_function_is_refused_by_name(decorator: Decorator) -> None:
    async def coroutine() -> None: ...

    async def generator() -> AsyncIterator[None]:
        yield

    for function in (coroutine, generator, staticmethod(coroutine)):
        with pytest.raises(TypeError, match=r"@threaded.*\.(coroutine|generator) is asynchronous"):
            decorator(function)


def test_an_object_that_is_not_callable_is_refused(decorator: Decorator) -> None:
    with pytest.raises(TypeError, match="needs a function, not 12"):
        decorator(12)


def test_outside_of_coroutines_a_call_begins_when_it_is_awaited(
    decorator: Decorator, loop_factory: LoopFactory
) -> None:
    loop = loop_factory()
    pool = ThreadPoolExecutor(1)
    pool.attach(loop)
    assert loop.run_until_complete(decorator(current_name)()) != current_name()
    loop.run_until_complete(pool.close(PATIENCE))
    loop.run_until_complete(wait_separate_threads(PATIENCE))
    loop.close()


async def test_threaded_uses_the_pool_of_its_loop() -> None:
    name = threaded(current_name)
    assert (await name()).startswith("svcrun-pool-")


async def test_without_a_pool_threaded_uses_the_default_executor(
    pool: ThreadPoolExecutor,
) -> None:
    await pool.close()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1, "default"))
    assert await threaded(current_name)() == "default-1"
    await loop.shutdown_default_executor()


async def test_the_default_executor_of_the_loop_is_not_the_pool() -> None:
    loop = asyncio.get_running_loop()
    name = await loop.run_in_executor(None, current_name)
    assert not name.startswith("svcrun-pool")
    await loop.shutdown_default_executor()


async def test_each_separate_call_has_a_thread_of_its_own() -> None:
    @threaded_separate
    def work() -> threading.Thread:
        return threading.current_thread()

    threads = await asyncio.gather(*(work() for _ in range(5)))
    assert len(set(threads)) == 5
    assert {thread.name for thread in threads} == {"svcrun-work"}
    assert all(thread.daemon for thread in threads)


async def test_separate_calls_are_not_bounded_by_the_pool() -> None:
    meet = threaded_separate(threading.Barrier(20).wait)
    await asyncio.gather(*(meet(PATIENCE) for _ in range(20)))


@pytest.mark.parametrize("with_brackets", [True, False])
async def test_a_separate_thread_can_be_one_that_the_interpreter_waits_for(
    *, with_brackets: bool
) -> None:
    def work() -> bool:
        return threading.current_thread().daemon

    if with_brackets:
        attached = threaded_separate(detach=False)(work)
    else:
        attached = threaded_separate(work, detach=False)
    assert await attached() is False


async def test_waiting_for_separate_threads_lasts_until_all_have_ended(
    release: threading.Event,
) -> None:
    work = threaded_separate(release.wait)
    calls = [asyncio.ensure_future(work(PATIENCE)) for _ in range(3)]
    calls[0].cancel()  # its thread is still there
    waiting = asyncio.create_task(wait_separate_threads(PATIENCE))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    release.set()
    assert await waiting == []
    assert len(get_separate_threads(asyncio.get_running_loop())) == 0
    assert await asyncio.gather(*calls[1:]) == [True, True]


async def test_hung_separate_threads_are_returned_with_name_and_stack(
    release: threading.Event,
) -> None:
    begun = threading.Event()

    @threaded_separate
    def hang() -> None:
        begun.set()
        release.wait(PATIENCE)

    call = asyncio.ensure_future(hang())
    await eventually(begun.is_set)
    (hung,) = await wait_separate_threads(timeout=0.01)
    assert hung.name == "svcrun-hang"
    assert "in hang" in hung.stack
    assert await wait_separate_threads(timeout=PATIENCE) == []  # it is reported once
    release.set()
    await call
    # No task has waited for the thread.
    await eventually(lambda: "svcrun-hang" not in {one.name for one in threading.enumerate()})


async def test_waiting_with_no_separate_threads_returns_at_once() -> None:
    waiting = wait_separate_threads(timeout=0)
    with pytest.raises(StopIteration):
        waiting.send(None)


async def test_an_ended_separate_thread_is_forgotten() -> None:
    for _ in range(10):
        await threaded_separate(time.time)()
    assert await wait_separate_threads(PATIENCE) == []
    assert len(get_separate_threads(asyncio.get_running_loop())) == 0


async def test_a_thread_that_cannot_be_started_is_an_error_of_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await threaded_separate(current_name)()
    assert await wait_separate_threads(timeout=0) == []


@pytest.mark.parametrize(
    ("decorator", "exits"),
    [("threaded_separate", True), ("threaded_separate(detach=False)", False)],
)
def test_the_interpreter_waits_for_a_separate_thread_only_without_detach(
    decorator: str, exits: bool, run_program: Callable[..., Program]
) -> None:
    program = run_program(
        f"""
import asyncio, threading, time
from svcrun.thread_pool import threaded_separate

@{decorator}
def work():
    time.sleep({PATIENCE * 4 if exits else 0.3})
    print("worked", flush=True)

async def main():
    work()

asyncio.run(main())
"""
    )
    outcome = program.wait()
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert outcome.stdout == ("" if exits else "worked\n")
