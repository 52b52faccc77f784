"""The end of tasks in flight: wait, cancel, abandon."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

from svcrun._util.drain import GRACE_PERIOD, Drain, cancel_or_abandon
from tests.support_clock import run_virtual

if TYPE_CHECKING:
    import pytest

log = logging.getLogger(__name__)


class Owner:
    """An owner of tasks, which keeps those that have finished."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[Any]] = []
        self.drain = Drain(log, self, lambda: self.tasks)

    def __repr__(self) -> str:
        return "<Owner>"

    def begin(self, coro: Any, name: str | None = None) -> asyncio.Task[Any]:
        task = asyncio.create_task(coro, name=name)
        self.tasks.append(task)
        return task

    def add(self, coro: Any) -> None:
        self.tasks.append(asyncio.create_task(coro))


def now() -> float:
    return asyncio.get_running_loop().time()


async def ignore_cancellation(seconds: float) -> None:
    end = now() + seconds
    while (left := end - now()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(left)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_tasks_that_end_before_the_deadline_are_not_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        owner = Owner()
        task = owner.begin(asyncio.sleep(4, "done"))
        owner.add(asyncio.sleep(3))
        assert await owner.drain.run(5, "drain_timeout") == []
        assert now() == 4
        assert task.result() == "done"

    run_virtual(main())
    assert not messages(caplog)


def test_tasks_that_are_begun_during_a_drain_are_waited_for() -> None:
    async def main() -> None:
        owner = Owner()

        async def begin_another() -> None:
            await asyncio.sleep(1)
            owner.add(asyncio.sleep(2))

        owner.add(begin_another())
        assert await owner.drain.wait() == []
        assert now() == 3

    run_virtual(main())


def test_a_late_task_is_cancelled_with_one_warning_that_shows_where_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        owner = Owner()
        task = owner.begin(asyncio.sleep(1000), "dawdler")
        owner.add(asyncio.sleep(1000))
        assert await owner.drain.run(5, "drain_timeout") == []
        assert now() == 5
        assert task.cancelled()

    run_virtual(main())
    [message] = messages(caplog)
    assert message.startswith(
        "<Owner>: 2 tasks are still running after drain_timeout=5 s; cancelling; "
        "dawdler is waiting at\n"
    )
    assert "in sleep" in message


def test_a_task_that_ignores_cancellation_is_abandoned_after_the_grace_period(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        owner = Owner()
        task = owner.begin(ignore_cancellation(1000), "stubborn")
        await asyncio.sleep(0)
        assert await owner.drain.run(5, "drain_timeout") == [task]
        assert now() == 5 + GRACE_PERIOD
        await task

    run_virtual(main())
    *_, message = messages(caplog)
    assert message.startswith("<Owner>: stubborn ignored cancellation; abandoning it at\n")
    assert "in ignore_cancellation" in message


def test_a_task_that_waits_for_the_drain_itself_is_not_waited_for() -> None:
    async def main() -> None:
        owner = Owner()

        async def stop() -> None:
            await asyncio.sleep(1)
            owner.tasks.clear()
            owner.drain.recheck()
            await end

        task = owner.begin(stop())
        end = asyncio.create_task(owner.drain.wait())
        assert await end == []
        assert now() == 1
        await task

    run_virtual(main())


def test_a_cancelled_drain_leaves_the_tasks_as_they_are() -> None:
    async def main() -> None:
        owner = Owner()
        task = owner.begin(asyncio.sleep(10, "done"))
        end = asyncio.create_task(owner.drain.run(100, "drain_timeout"))
        await asyncio.sleep(1)
        end.cancel()
        assert await task == "done"
        assert end.cancelled()

    run_virtual(main())


def test_one_task_is_cancelled_or_abandoned(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        idle = asyncio.create_task(asyncio.sleep(1000))
        assert not await cancel_or_abandon(idle, log, "idle")
        assert now() == 0
        stubborn = asyncio.create_task(ignore_cancellation(1000))
        await asyncio.sleep(0)
        assert await cancel_or_abandon(stubborn, log, "stubborn")
        assert now() == GRACE_PERIOD
        await stubborn

    run_virtual(main())
    [message] = messages(caplog)
    assert message.startswith("stubborn ignored cancellation; abandoning it at\n")
