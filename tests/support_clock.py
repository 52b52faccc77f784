"""An event loop in virtual time, and what asks whether something is left in it."""

import asyncio
import contextlib
import gc
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from datetime import datetime
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from svcrun._util.tasks import format_stack
from tests.support import LoopFactory

T = TypeVar("T")


class Deadlock(AssertionError):
    """Everything waits for something else, and no timer will ever end that."""


class _JumpingSelector(selectors.DefaultSelector):
    """Wait for nothing: let the clock jump to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.tell_who_waits: Callable[[], str] = str

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is None:
            raise Deadlock(f"nothing is ready, and there is no timer:\n{self.tell_who_waits()}")
        self.now += timeout
        return ready


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """A loop that never sleeps: when nothing is ready, its time jumps to the next timer.

    Only for what waits for timers and for other tasks: a loop that waits for sockets or threads
    would jump over them.

    :raises Deadlock: from what runs the loop, when nothing is ready and there is no timer.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self._jumping.tell_who_waits = lambda: waiting_tasks(self)

    def time(self) -> float:
        return self._jumping.now

    def turn(self, count: int = 1) -> None:
        """Run what is ready now, and what becomes ready by that, `count` times."""
        for _ in range(count):
            self.call_soon(self.stop)
            self.run_forever()

    def advance(self, seconds: float) -> None:
        """Run for `seconds` of virtual time."""
        self.call_later(seconds, self.stop)
        self.run_forever()

    def timers(self) -> list[asyncio.TimerHandle]:
        """Return the timers that wait for their time."""
        return [timer for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]


class Wall:
    """A wall clock that goes with the loop's, and can be set."""

    def __init__(self, loop: asyncio.AbstractEventLoop, now: datetime) -> None:
        self._loop = loop
        self._ahead = now.timestamp() - loop.time()

    def __call__(self) -> float:
        return self._loop.time() + self._ahead

    def set(self, seconds: float) -> None:
        """Set the clock forward, or back if `seconds` is negative."""
        self._ahead += seconds


def waiting_tasks(loop: asyncio.AbstractEventLoop) -> str:
    """Return the names of the unfinished tasks, with the line at which each waits."""
    tasks = sorted(asyncio.all_tasks(loop), key=asyncio.Task.get_name)
    return "\n".join(f"{task.get_name()}:\n{format_stack(task)}" for task in tasks)


@contextlib.contextmanager
def nothing_left_in(loop: VirtualClockLoop) -> Iterator[None]:
    """Fail if the block leaves a task, a timer or an unretrieved exception in `loop`."""
    unhandled: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    before = asyncio.all_tasks(loop)
    yield
    gc.collect(1)  # a task reports an unretrieved exception when it is collected
    tasks = asyncio.all_tasks(loop) - before - {asyncio.current_task(loop)}
    assert not tasks, f"left behind:\n{waiting_tasks(loop)}"
    assert not loop.timers()
    assert not unhandled


async def block(seconds: float) -> None:
    """Block the running loop for so much virtual time."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    loop._jumping.now += seconds
    await asyncio.sleep(0)


# For the conftest.py of a folder whose coroutine tests run in virtual time.


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, LoopFactory]:
    """Run coroutine tests in virtual time."""
    return {"virtual": VirtualClockLoop}


@pytest_asyncio.fixture(autouse=True)
async def nothing_left_behind() -> AsyncIterator[None]:
    """Fail a test that leaves a task, a timer or an untaken error in its loop."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualClockLoop):  # around a test that is no coroutine
        yield
        return
    with nothing_left_in(loop):
        yield


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` in virtual time; fail if it leaves anything behind."""
    loop = VirtualClockLoop()
    try:
        with nothing_left_in(loop):
            return loop.run_until_complete(main)
    finally:
        loop.close()
