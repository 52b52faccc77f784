"""An event loop in virtual time, and checks that a test leaves nothing in it."""

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
    """No callback is ready, and no timer is scheduled."""


class _JumpingSelector(selectors.DefaultSelector):
    """A selector that does not wait, but sets the clock to the time of the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.describe_waiting: Callable[[], str] = str

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is None:
            raise Deadlock(f"nothing is ready, and there is no timer:\n{self.describe_waiting()}")
        self.now += timeout
        return ready


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """A loop that never sleeps: if no callback is ready, its time jumps to the next timer.

    It is only for tests of timers and tasks. A loop that waits for sockets or threads would not
    wait for them.

    :raises Deadlock: in ``run_forever()``, if no callback is ready and no timer is scheduled.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self._jumping.describe_waiting = lambda: waiting_tasks(self)

    def time(self) -> float:
        return self._jumping.now

    def turn(self, count: int = 1) -> None:
        """Run `count` iterations of the loop."""
        for _ in range(count):
            self.call_soon(self.stop)
            self.run_forever()

    def advance(self, seconds: float) -> None:
        """Run for `seconds` of virtual time."""
        self.call_later(seconds, self.stop)
        self.run_forever()

    def timers(self) -> list[asyncio.TimerHandle]:
        """Return the timers that are scheduled and not cancelled."""
        return [timer for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]


class Wall:
    """A wall clock that runs with the clock of the loop, and can be set."""

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


# The conftest.py of a folder whose coroutine tests run in virtual time imports these.


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, LoopFactory]:
    """Run coroutine tests in virtual time."""
    return {"virtual": VirtualClockLoop}


@pytest_asyncio.fixture(autouse=True)
async def nothing_left_behind() -> AsyncIterator[None]:
    """Fail a test that leaves a task, a timer or an unretrieved exception in its loop."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualClockLoop):  # a test that is not a coroutine
        yield
        return
    with nothing_left_in(loop):
        yield


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` in virtual time; fail if it leaves tasks, timers or exceptions."""
    loop = VirtualClockLoop()
    try:
        with nothing_left_in(loop):
            return loop.run_until_complete(main)
    finally:
        loop.close()
