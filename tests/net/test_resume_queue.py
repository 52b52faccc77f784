"""Laws of the queue that resumes the handlers of a server."""

import asyncio

import pytest

from svcrun._net.resume_queue import DIRECT, GROUP, ResumeQueue
from svcrun._util.eager import Waiter

Error = type[BaseException]


class Handlers:
    """Tasks that wait for their data, each again and again.

    :param number: how many there are.
    :param raises: what the first one ends with when it is resumed.
    """

    def __init__(self, number: int, *, raises: Error | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.waiters = [Waiter(loop) for _ in range(number)]
        self.resumed: list[int] = []
        self.tasks = [loop.create_task(self._handle(i, raises)) for i in range(number)]

    async def _handle(self, number: int, raises: Error | None) -> None:
        while True:
            await self.waiters[number]
            self.resumed.append(number)
            if raises is not None and number == 0:
                raise raises

    async def receive(self, queue: ResumeQueue, *numbers: int) -> list[int]:
        """Resume some readers in one callback, and return those that ran within it."""
        arrived = asyncio.get_running_loop().create_future()

        def receive() -> None:
            self.resumed.clear()
            for number in numbers:
                queue.resume(self.waiters[number])
            arrived.set_result(self.resumed.copy())

        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(receive)
        within: list[int] = await arrived
        await asyncio.sleep(0)
        return within

    async def end(self) -> None:
        """Cancel them."""
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)


async def test_handlers_whose_data_arrives_together_are_resumed_after_all_of_it() -> None:
    queue, handlers = ResumeQueue(), Handlers(3)
    for _ in range(3):
        assert await handlers.receive(queue, 2, 0, 1) == []
        assert handlers.resumed == [2, 0, 1]
    await handlers.end()


async def test_one_that_is_alone_is_resumed_within_the_callback_from_the_second_time_on() -> None:
    queue, handlers = ResumeQueue(), Handlers(1)
    assert await handlers.receive(queue, 0) == []
    assert handlers.resumed == [0]
    for _ in range(DIRECT):
        assert await handlers.receive(queue, 0) == [0]
    # Now and then the queue finds out whether it still is.
    assert await handlers.receive(queue, 0) == []
    assert await handlers.receive(queue, 0) == [0]
    await handlers.end()


async def test_load_is_noticed_by_those_that_are_resumed_directly() -> None:
    queue, handlers = ResumeQueue(), Handlers(DIRECT + 2)
    await handlers.receive(queue, 0)
    assert len(await handlers.receive(queue, *range(DIRECT + 2))) == DIRECT
    assert len(handlers.resumed) == DIRECT + 2
    assert await handlers.receive(queue, 0, 1) == []
    await handlers.end()


async def test_a_group_is_resumed_as_soon_as_it_is_complete() -> None:
    queue, handlers = ResumeQueue(), Handlers(2 * GROUP + 1)
    for _ in range(2):
        within = await handlers.receive(queue, *range(2 * GROUP + 1))
        assert within == [*range(2 * GROUP)]
        assert handlers.resumed == [*range(2 * GROUP + 1)]
    await handlers.end()


async def test_one_that_was_cancelled_meanwhile_is_passed_over() -> None:
    queue, handlers = ResumeQueue(), Handlers(2)

    def cancel() -> None:
        handlers.tasks[0].cancel()

    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(queue.resume, handlers.waiters[0])
    asyncio.get_running_loop().call_soon(queue.resume, handlers.waiters[1])
    asyncio.get_running_loop().call_soon(cancel)
    with pytest.raises(asyncio.CancelledError):
        await handlers.tasks[0]
    assert handlers.resumed == [1]
    await handlers.end()


async def test_a_task_resumes_none_while_it_runs() -> None:
    queue, handlers = ResumeQueue(), Handlers(GROUP)
    await asyncio.sleep(0)
    for waiter in handlers.waiters:
        queue.resume(waiter)
    assert handlers.resumed == []
    await asyncio.sleep(0)
    assert handlers.resumed == [*range(GROUP)]
    await handlers.end()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_exit_in_one_handler_ends_the_others(error: Error) -> None:
    handlers: list[Handlers] = []

    async def receive() -> None:
        handlers.append(Handlers(3, raises=error))
        await handlers[0].receive(ResumeQueue(), 0, 1, 2)
        await asyncio.sleep(0.1)

    with pytest.raises(error):
        asyncio.run(receive())
    assert handlers[0].resumed == [0, 1, 2]
    assert isinstance(handlers[0].tasks[0].exception(), error)
