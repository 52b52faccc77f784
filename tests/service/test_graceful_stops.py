"""Laws of concurrent stops of services with graceful tasks, and of stops by such tasks (C32)."""

# A graceful task need not be awaited, nor kept by anybody but its service.
# mypy: disable-error-code="unused-awaitable"
from __future__ import annotations

import asyncio
import math

import pytest

from svcrun.service import Service
from tests.service.graceful import Noting, Plain, ignore_cancellation, now
from tests.support_clock import run_virtual

# More than one stop.


def test_a_stop_without_a_start_and_a_second_one_do_nothing() -> None:
    async def main() -> None:
        service = Plain()
        await service.stop()
        await service.stop()

    run_virtual(main())


def test_stops_at_the_same_time_all_wait_for_the_tasks() -> None:
    async def main() -> None:
        service = Noting()
        service.create_graceful_task(service.sleep("work", 2))

        async def stop() -> None:
            await service.stop()
            assert service.notes == ["work is done"]

        await asyncio.gather(*(stop() for _ in range(3)))
        assert now() == 2

    run_virtual(main())


def test_a_service_may_be_started_and_stopped_again() -> None:
    async def main() -> None:
        service = Noting(graceful_wait_timeout=2)
        for number in range(3):
            await service.start()
            service.create_graceful_task(service.sleep(f"{number} short", 1))
            service.create_graceful_task(service.sleep(f"{number} long", 3))
            poll = service.create_graceful_task(asyncio.sleep(math.inf), cancel=True)
            await asyncio.sleep(0.5)
            assert not poll.done()
            await service.stop()
            assert poll.cancelled()
        assert service.notes == [
            f"{number} {what}"
            for number in range(3)
            for what in ("short is done", "long is cancelled")
        ]

    run_virtual(main())


def test_a_stop_that_is_cancelled_cancels_the_tasks_and_waits_for_none() -> None:
    async def main() -> None:
        service = Noting()
        service.create_graceful_task(service.sleep("work", 10))
        stubborn = service.create_graceful_task(ignore_cancellation(4), cancel=True)
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(service.stop(), 2)
        assert now() == 2
        await asyncio.sleep(0)
        assert service.notes == ["work is cancelled"]
        await stubborn

    run_virtual(main())


def test_a_cancelled_stop_does_not_cancel_tasks_that_were_left_running() -> None:
    async def main() -> None:
        service = Noting(graceful_wait_timeout=1, cancel_on_timeout=False)
        work = service.create_graceful_task(service.sleep("work", 10))
        service.create_graceful_task(ignore_cancellation(4), cancel=True)
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(service.stop(), 2)
        await work
        assert service.notes == ["work is done"]

    run_virtual(main())


def test_a_stop_that_is_cancelled_while_the_server_stops_does_not_wait_for_the_tasks() -> None:
    class Slow(Service):
        async def stop(self, exception: BaseException | None = None) -> None:
            await asyncio.sleep(5)

    class Both(Noting, Slow): ...

    async def main() -> None:
        service = Both()
        service.create_graceful_task(service.sleep("work", 10))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(service.stop(), 2)
        assert now() == 2
        await asyncio.sleep(0)
        assert service.notes == ["work is cancelled"]

    run_virtual(main())


def test_a_task_that_ignored_one_cancelled_stop_is_cancelled_by_the_next() -> None:
    async def main() -> None:
        service = Plain()
        heard = []

        async def task() -> None:
            for _ in range(3):
                try:
                    await asyncio.sleep(math.inf)
                except asyncio.CancelledError:
                    heard.append(now())

        service.create_graceful_task(task(), cancel=True)
        await asyncio.sleep(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(service.stop(), 2)
        await asyncio.sleep(1)
        await service.stop()
        assert heard == [1, 3, 4]

    run_virtual(main())


def test_tasks_are_awaited_when_the_stop_of_the_server_fails() -> None:
    class Failing(Service):
        async def stop(self, exception: BaseException | None = None) -> None:
            raise LookupError("no such thing")

    class Both(Noting, Failing): ...

    async def main() -> None:
        service = Both()
        service.create_graceful_task(service.sleep("swan", 1))
        service.create_graceful_task(service.sleep("duckling", 1), cancel=True)
        await asyncio.sleep(0)
        with pytest.raises(LookupError):
            await service.stop()
        assert service.notes == ["duckling is cancelled", "swan is done"]

    run_virtual(main())


# Tasks that stop their own service.


@pytest.mark.parametrize("cancel", [False, True])
def test_a_task_may_stop_its_service_and_continue(cancel: bool) -> None:
    async def main() -> None:
        service = Noting()

        async def stop() -> None:
            await service.stop()
            await service.sleep("stop", 1)

        service.create_graceful_task(service.sleep("work", 2))
        task = service.create_graceful_task(stop(), cancel=cancel)
        await task
        assert service.notes == ["work is done", "stop is done"]

    run_virtual(main())


def test_a_task_may_stop_its_service_from_a_task_of_its_own() -> None:
    async def main() -> None:
        service = Noting()

        async def stop() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(service.stop())

        await service.create_graceful_task(stop())

    run_virtual(main())


def test_tasks_that_all_stop_their_service_do_not_wait_for_each_other() -> None:
    async def main() -> None:
        service = Noting()

        async def stop(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            await service.stop()
            service.notes.append(name)

        for number in range(3):
            service.create_graceful_task(stop(f"stop {number}", number))
        service.create_graceful_task(service.sleep("work", 5))
        await asyncio.sleep(1.5)
        await service.stop()
        # A caller that is no task of the service waits until all tasks have ended.
        assert service.notes[0] == "work is done"
        assert sorted(service.notes[1:]) == ["stop 0", "stop 1", "stop 2"]
        assert now() == 5

    run_virtual(main())


def test_a_task_that_has_stopped_its_service_is_waited_for_by_others_again() -> None:
    async def main() -> None:
        service = Noting()

        async def restart() -> None:
            await service.stop()
            await service.start()
            await service.sleep("work after that", 5)

        service.create_graceful_task(restart())
        await asyncio.sleep(1)
        await service.create_graceful_task(service.stop())
        assert service.notes == ["work after that is done"]

    run_virtual(main())


def test_a_stop_by_a_task_waits_for_the_clean_up_of_another_that_stopped_the_service() -> None:
    async def main() -> None:
        service = Noting()

        async def stop() -> None:
            try:
                await service.stop()
            finally:
                await service.sleep("cleaning", 3)

        async def keep_stop_from_its_end() -> None:
            await asyncio.sleep(1)
            await service.stop()
            assert service.notes == ["cleaning is done"]

        service.create_graceful_task(stop(), cancel=True)
        await service.create_graceful_task(keep_stop_from_its_end())

    run_virtual(main())


def test_a_task_may_cancel_its_stop_and_continue() -> None:
    async def main() -> None:
        service = Noting()

        async def stop() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(service.stop(), 2)
            await service.sleep("stop", 1)

        service.create_graceful_task(service.sleep("work", 5))
        await service.create_graceful_task(stop())
        assert service.notes == ["work is cancelled", "stop is done"]

    run_virtual(main())


def test_a_stop_from_outside_that_is_cancelled_also_ends_the_stops_by_tasks() -> None:
    async def main() -> None:
        service = Noting()
        service.create_graceful_task(service.sleep("work", 5))
        task = service.create_graceful_task(service.stop())
        await asyncio.sleep(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(service.stop(), 2)
        await asyncio.wait((task,))
        assert task.cancelled()
        assert service.notes == ["work is cancelled"]
        assert now() == 3

    run_virtual(main())


def test_a_cancelled_stop_by_a_task_leaves_the_tasks_to_the_other_stops() -> None:
    async def main() -> None:
        service = Noting()
        service.create_graceful_task(service.sleep("work", 5))
        task = service.create_graceful_task(service.stop(), cancel=True)
        await asyncio.sleep(1)
        await service.stop()
        assert task.cancelled()
        assert service.notes == ["work is done"]

    run_virtual(main())


def test_a_cancelled_stop_by_a_task_cancels_all_tasks_if_it_is_the_only_stop() -> None:
    async def main() -> None:
        service = Noting()
        service.create_graceful_task(service.sleep("work", 5))
        task = service.create_graceful_task(service.stop())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait((task,))
        await asyncio.sleep(0)
        assert service.notes == ["work is cancelled"]

    run_virtual(main())


def test_a_task_of_one_service_may_stop_another_and_is_waited_for_by_its_own() -> None:
    async def main() -> None:
        one, other = Noting(), Noting()
        other.create_graceful_task(other.sleep("other work", 3))

        async def stop_other() -> None:
            await other.stop()
            one.notes.append("done")

        one.create_graceful_task(stop_other())
        await asyncio.sleep(1)
        await one.stop()
        assert other.notes == ["other work is done"]
        assert one.notes == ["done"]

    run_virtual(main())


def test_a_task_that_stops_another_service_is_waited_for_by_tasks_of_its_own() -> None:
    async def main() -> None:
        one, other = Noting(), Noting()
        other.create_graceful_task(other.sleep("other work", 3))

        async def stop_other() -> None:
            await other.stop()
            one.notes.append("done")

        one.create_graceful_task(stop_other())
        await asyncio.sleep(1)
        await one.create_graceful_task(one.stop())
        assert one.notes == ["done"]

    run_virtual(main())
