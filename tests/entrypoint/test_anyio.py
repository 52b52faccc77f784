"""An entrypoint within a scope of anyio, which repeats its cancellation (C9, C12, C17)."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from svcrun import Service, entrypoint
from tests.entrypoint.actors import Log, Server
from tests.support import LoopFactory

pytest.importorskip("anyio")

import anyio
from anyio.abc import TaskStatus

PAUSE = 0.3


class Host:
    """The task that runs an entrypoint, and the number of its cancellations."""

    def __init__(self) -> None:
        self.task = asyncio.current_task()
        self.cancellations = 0

    def count(self) -> None:
        assert self.task is not None
        self.cancellations = max(self.cancellations, self.task.cancelling())


class Slow(Server):
    """A service whose stop takes a while."""

    host: Host

    async def stop(self, exception: BaseException | None = None) -> None:
        await asyncio.sleep(PAUSE)
        self.host.count()
        self.log.append("slow stop")
        await super().stop(exception)


class Waiting(Service):
    log: Log
    host: Host
    begun: asyncio.Event

    async def start(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(PAUSE)
            self.host.count()
            self.log.append("cleaned up")


def run(loop_factory: LoopFactory, life: Callable[[Log], Coroutine[Any, Any, Host]]) -> Log:
    """Run a coroutine on a new loop, and return the log.

    An anyio scope whose cancellations are swallowed keeps the loop busy and cancels the task a
    thousand times; in good order it cancels it a few times.
    """
    log: Log = []
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        host = runner.run(life(log))
    assert 1 <= host.cancellations <= 5
    return log


def assert_orderly(log: Log, *entries: str) -> None:
    """Check that the services have made *entries*, and that the program continued after them."""
    assert set(entries) <= set(log)
    assert log[-1] == "after"
    assert "never" not in log


def test_a_stop_within_a_cancelled_scope_is_awaited_without_a_busy_loop(
    loop_factory: LoopFactory,
) -> None:
    async def life(log: Log) -> Host:
        host = Host()
        with anyio.CancelScope() as scope:
            async with entrypoint(Slow(host=host, log=log), log_config=False):
                scope.cancel()
                await asyncio.sleep(60)
            log.append("never")
        log.append("after")
        return host

    assert_orderly(run(loop_factory, life), "slow stop")


def test_a_start_within_a_cancelled_scope_is_rolled_back_without_a_busy_loop(
    loop_factory: LoopFactory,
) -> None:
    async def life(log: Log) -> Host:
        host, begun = Host(), asyncio.Event()

        async def cancel() -> None:
            await begun.wait()
            scope.cancel()

        cancelling = asyncio.create_task(cancel())
        slow, waiting = Slow(host=host, log=log), Waiting(host=host, log=log, begun=begun)
        with anyio.CancelScope() as scope:
            async with entrypoint(slow, waiting, log_config=False):
                log.append("never")
        await cancelling
        log.append("after")
        return host

    assert_orderly(run(loop_factory, life), "slow stop", "cleaned up")


def test_a_start_at_run_time_within_a_cancelled_scope_is_rolled_back_as_well(
    loop_factory: LoopFactory,
) -> None:
    async def life(log: Log) -> Host:
        host, begun, scope = Host(), asyncio.Event(), anyio.CancelScope()

        async def start() -> None:
            with scope:
                await ep.start_services(
                    Slow(host=host, log=log), Waiting(host=host, log=log, begun=begun)
                )
                log.append("never")

        async with entrypoint(log_config=False) as ep:
            host.task = task = asyncio.create_task(start())
            await begun.wait()
            scope.cancel()
            await task
            log.append("after")
        return host

    assert_orderly(run(loop_factory, life), "slow stop", "cleaned up")


def test_a_time_limit_of_anyio_ends_the_block_in_order(loop_factory: LoopFactory) -> None:
    async def life(log: Log) -> Host:
        host = Host()
        with anyio.move_on_after(0.05) as scope:
            async with entrypoint(Slow(host=host, log=log), log_config=False):
                await anyio.sleep(60)
        assert scope.cancelled_caught
        return host

    assert "slow stop" in run(loop_factory, life)


def test_an_entrypoint_in_a_task_group_that_is_cancelled_stops_in_order(
    loop_factory: LoopFactory,
) -> None:
    async def life(log: Log) -> Host:
        host = Host()

        async def serve(*, task_status: TaskStatus[None]) -> None:
            host.task = asyncio.current_task()
            async with entrypoint(Slow(host=host, log=log), log_config=False):
                task_status.started()
                await anyio.sleep(60)

        async with anyio.create_task_group() as group:
            await group.start(serve)
            group.cancel_scope.cancel()
        return host

    assert "slow stop" in run(loop_factory, life)
