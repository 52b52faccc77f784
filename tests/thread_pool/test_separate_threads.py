"""Laws of a group of threads."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from svcrun.thread_pool.thread_group import ThreadGroup, stoppable
from tests.support import PATIENCE, eventually


@pytest.fixture
def group() -> Iterator[ThreadGroup]:
    group = ThreadGroup()
    yield group
    group.join()


@pytest.fixture
def release(group: ThreadGroup) -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def start(group: ThreadGroup, target: Callable[..., object], *args: object) -> None:
    group.start(target, args, name="svcrun-test", daemon=True)


async def test_the_threads_have_ended_after_waiting(group: ThreadGroup) -> None:
    local = threading.local()
    threads: list[threading.Thread] = []

    class SlowToGo:
        def __del__(self) -> None:
            time.sleep(0.05)

    def work() -> None:
        local.value = SlowToGo()  # which goes after the last line that the thread runs
        threads.append(threading.current_thread())

    start(group, work)
    start(group, work)
    assert await group.wait(PATIENCE) == []
    assert [thread.is_alive() for thread in threads] == [False, False]


async def test_a_thread_that_begins_as_the_last_one_ends_is_waited_for(group: ThreadGroup) -> None:
    first, second, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        second.wait(PATIENCE)
        ended.set()

    start(group, first.wait, PATIENCE)
    waiting = asyncio.create_task(group.wait(PATIENCE))
    await asyncio.sleep(0)
    first.set()
    while len(group):  # blocks the loop, so that the waiting task can't notice
        time.sleep(0.001)  # noqa: ASYNC251
    start(group, work)
    asyncio.get_running_loop().call_later(0.01, second.set)
    assert await waiting == []
    assert ended.is_set()


def test_joining_lasts_until_the_threads_have_ended(group: ThreadGroup) -> None:
    local = threading.local()
    threads: list[threading.Thread] = []

    class SlowToGo:
        def __del__(self) -> None:
            time.sleep(0.05)

    def work() -> None:
        local.value = SlowToGo()
        threads.append(threading.current_thread())

    start(group, work)
    while len(group):
        time.sleep(0.001)
    group.join()
    assert [thread.is_alive() for thread in threads] == [False]


async def test_several_tasks_can_wait_for_the_threads(
    group: ThreadGroup, release: threading.Event
) -> None:
    start(group, release.wait, PATIENCE)
    waiting = [asyncio.create_task(group.wait(PATIENCE)) for _ in range(3)]
    await asyncio.sleep(0)
    release.set()
    assert await asyncio.gather(*waiting) == [[], [], []]


async def test_waiting_for_threads_stops_their_stoppable_blocks(group: ThreadGroup) -> None:
    begun, stop = threading.Event(), threading.Event()

    def work() -> None:
        with stoppable(stop.set):
            begun.set()
            stop.wait(PATIENCE)

    start(group, work)
    await eventually(begun.is_set)
    assert await group.wait(PATIENCE) == []
    assert stop.is_set()


async def test_a_stoppable_block_that_begins_during_the_wait_is_stopped_at_once(
    group: ThreadGroup, release: threading.Event
) -> None:
    stop = threading.Event()

    def work() -> None:
        release.wait(PATIENCE)
        with stoppable(stop.set):
            stop.wait(PATIENCE)

    start(group, work)
    waiting = asyncio.create_task(group.wait(PATIENCE))
    await asyncio.sleep(0)
    release.set()
    assert await waiting == []
    assert stop.is_set()


@pytest.mark.parametrize("how", ["finished", "timed out", "cancelled"])
async def test_a_stoppable_block_after_the_wait_is_not_stopped(
    group: ThreadGroup, release: threading.Event, how: str
) -> None:
    stopped: list[str] = []

    def work() -> None:
        with stoppable(lambda: stopped.append("too early")):
            pass

    start(group, release.wait, PATIENCE)
    if how == "finished":
        release.set()
        assert await group.wait(PATIENCE) == []
    elif how == "timed out":
        assert len(await group.wait(timeout=0.01)) == 1
    else:
        waiting = asyncio.create_task(group.wait(PATIENCE))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    start(group, work)
    release.set()
    group.join()
    assert not stopped
    assert await group.wait(PATIENCE) == []


def test_a_stoppable_block_in_a_thread_of_no_group_is_not_stopped() -> None:
    ran: list[int] = []

    def work() -> None:
        with stoppable(lambda: ran.append(0)):
            ran.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [1]
