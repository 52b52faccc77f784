"""The current service is known, however its code came to run."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from svcrun import (
    PeriodicCallback,
    Restart,
    Service,
    current_service,
    entrypoint,
    threaded,
    threaded_iterable,
    threaded_separate,
)
from svcrun._util.current_service import current_name, on_behalf_of
from svcrun._util.tasks import service_of
from svcrun.service import GracefulService, PeriodicService, SimpleServer
from tests.support import PATIENCE, LoopFactory, eventually

Main = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture
def run(loop_factory: LoopFactory) -> Iterator[Callable[[Main], None]]:
    """Run a coroutine on each kind of loop."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        yield lambda main: runner.run(asyncio.wait_for(main(), PATIENCE))


def running(*services: Service) -> entrypoint:
    return entrypoint(*services, log_config=False)


class Noting(Service):
    """Records the service at work in its start and its stop."""

    def __init__(self, **kwargs: Any) -> None:
        self.noted: list[tuple[str, Service | None]] = []
        super().__init__(**kwargs)

    def note(self, what: str) -> None:
        self.noted.append((what, current_service.get()))

    async def start(self) -> None:
        self.note("start")

    async def stop(self, exception: BaseException | None = None) -> None:
        self.note("stop")


def test_a_service_is_current_in_its_start_and_stop(run: Callable[[Main], None]) -> None:
    services = [Noting(), Noting()]

    async def main() -> None:
        async with running(*services):
            assert current_service.get() is None
        assert current_service.get() is None

    run(main)
    for service in services:
        assert service.noted == [("start", service), ("stop", service)]


def test_a_service_is_still_current_after_it_has_waited(run: Callable[[Main], None]) -> None:
    class Slow(Noting):
        async def start(self) -> None:
            await asyncio.sleep(0)
            self.note("start")
            self.start_event.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.note("end")

        async def stop(self, exception: BaseException | None = None) -> None:
            await asyncio.sleep(0)
            self.note("stop")

    services = [Slow(), Slow()]

    async def main() -> None:
        async with running(*services):
            pass

    run(main)
    for service in services:
        assert service.noted == [("start", service), ("stop", service), ("end", service)]


def test_a_service_that_starts_another_one_stays_current(
    run: Callable[[Main], None],
) -> None:
    inner = Noting()

    class Outer(Noting):
        async def start(self) -> None:
            await entrypoint.get_current().start_services(inner)
            self.note("start")

        async def stop(self, exception: BaseException | None = None) -> None:
            await entrypoint.get_current().stop_services(inner)
            self.note("stop")

    outer = Outer()

    async def main() -> None:
        async with running(outer):
            pass

    run(main)
    assert inner.noted == [("start", inner), ("stop", inner)]
    assert outer.noted == [("start", outer), ("stop", outer)]


def test_a_start_that_waits_for_another_service_is_current_itself(
    run: Callable[[Main], None],
) -> None:
    """The readiness of one lets loose the other, out of its own code."""

    class Ready(Noting):
        async def start(self) -> None:
            await asyncio.sleep(0)
            self.start_event.set()
            self.note("start")
            await asyncio.Event().wait()

    first = Ready()
    second = Noting(depends_on=first)

    async def main() -> None:
        async with running(second, first):
            pass

    run(main)
    assert first.noted == [("start", first), ("stop", first)]
    assert second.noted == [("start", second), ("stop", second)]


def test_a_restarted_service_is_current_again(run: Callable[[Main], None]) -> None:
    class Crashing(Noting):
        async def start(self) -> None:
            self.note("start")
            self.start_event.set()
            await asyncio.sleep(0)
            if len(self.noted) == 1:
                raise LookupError
            await asyncio.Event().wait()

    service = Crashing(on_crash=Restart(delay=0.001, jitter=0))
    other = Noting(depends_on=service)

    async def main() -> None:
        async with running(service, other):
            await eventually(lambda: len(other.noted) == 3)

    run(main)
    for one in (service, other):
        assert one.noted == [(what, one) for what in ("start", "stop") * 2]


def test_a_start_that_is_rolled_back_belongs_to_its_service(run: Callable[[Main], None]) -> None:
    """A base of the package releases its own resources; the subclass's stop is not called."""
    noted: list[Service | None] = []

    class Server:
        def is_serving(self) -> bool:
            return True

        def close(self) -> None:
            noted.append(current_service.get())

    class Failing(SimpleServer):
        async def start(self) -> None:
            server: Any = Server()
            self.server = server
            raise LookupError

    failing = Failing()

    async def main() -> None:
        with pytest.raises(LookupError):
            async with running(failing):
                pass

    run(main)
    assert noted == [failing]


async def test_a_start_that_is_called_directly_runs_for_the_service_of_its_caller() -> None:
    service = Noting()
    await service.start()
    with on_behalf_of(service):
        await service.stop()
    assert service.noted == [("start", None), ("stop", service)]


# Work that a service begins


def call_soon(note: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(note)


def call_later(note: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(0.001, note)


def call_threadsafe(note: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon_threadsafe(note)


def call_when_done(note: Callable[[], None]) -> None:
    future = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda _: note())
    future.set_result(None)


def call_in_task(note: Callable[[], None]) -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        note()

    keep.append(asyncio.get_running_loop().create_task(work()))


def call_in_thread(note: Callable[[], None]) -> None:
    keep.append(threaded(note)())


def call_in_separate_thread(note: Callable[[], None]) -> None:
    keep.append(threaded_separate(note)())


def call_in_generator(note: Callable[[], None]) -> None:
    @threaded_iterable
    def generate() -> Iterator[None]:
        note()
        yield

    async def read() -> None:
        async with generate() as items:
            async for _ in items:
                pass

    keep.append(asyncio.get_running_loop().create_task(read()))


def call_periodically(note: Callable[[], None]) -> None:
    periodic = PeriodicCallback(note)
    keep.append(periodic)
    periodic.start(PATIENCE)


keep: list[object] = []
"""Objects that must not be collected while they are in use."""


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    keep.clear()


@pytest.mark.parametrize(
    "begin",
    [
        call_soon,
        call_later,
        call_threadsafe,
        call_when_done,
        call_in_task,
        call_in_thread,
        call_in_separate_thread,
        call_in_generator,
        call_periodically,
    ],
)
def test_tasks_and_callbacks_of_a_service_run_for_it(
    run: Callable[[Main], None], begin: Callable[[Callable[[], None]], None]
) -> None:
    noted: list[tuple[Service, Service | None]] = []

    class Beginner(Service):
        async def start(self) -> None:
            begin(lambda: noted.append((self, current_service.get())))

    services = [Beginner(), Beginner()]

    async def main() -> None:
        async with running(*services):
            await eventually(lambda: len(noted) == 2)

    run(main)
    assert {id(service) for service, _ in noted} == {id(service) for service in services}
    assert all(service is at_work for service, at_work in noted)


class Ticking(PeriodicService):
    """A periodic service that records the current service at each call."""

    interval = 0.001

    def __init__(self, **kwargs: Any) -> None:
        self.calls: list[Service | None] = []
        super().__init__(**kwargs)

    async def callback(self) -> None:
        self.calls.append(current_service.get())


def test_a_periodic_service_is_current_in_its_callback(run: Callable[[Main], None]) -> None:
    services = [Ticking(), Ticking()]

    async def main() -> None:
        async with running(*services):
            await eventually(lambda: all(len(service.calls) > 1 for service in services))

    run(main)
    for service in services:
        assert set(service.calls) == {service}


def test_a_cron_service_is_current_in_its_callbacks(run: Callable[[Main], None]) -> None:
    pytest.importorskip("croniter")
    from svcrun.service.cron import CronService

    noted: list[tuple[Service, Service | None]] = []

    class Jobs(CronService):
        async def start(self) -> None:
            self.register(self.early, spec="* * * * * *")
            await super().start()
            self.register(self.early, spec="* * * * * *")  # and one that came late

        async def early(self) -> None:
            noted.append((self, current_service.get()))

    services = [Jobs(), Jobs()]

    async def main() -> None:
        async with running(*services):
            await eventually(lambda: len(noted) >= 4)

    run(main)
    assert all(service is at_work for service, at_work in noted)


def test_a_graceful_service_is_current_in_its_tasks(run: Callable[[Main], None]) -> None:
    noted: list[tuple[Service, Service | None]] = []

    class Graceful(GracefulService):
        async def start(self) -> None:
            for _ in range(2):
                task = self.create_graceful_task(self.work())
                keep.append(task)

        async def work(self) -> None:
            await asyncio.sleep(0)
            noted.append((self, current_service.get()))

    async def main() -> None:
        async with running(Graceful(), Graceful()):
            await eventually(lambda: len(noted) == 4)

    run(main)
    assert all(service is at_work for service, at_work in noted)


# The name of a service


@pytest.mark.parametrize(
    ("name", "expected"), [("inbox", "inbox"), (None, "Noting"), ("", "Noting"), (5, "5")]
)
def test_a_service_is_called_by_its_name_or_class(name: Any, expected: str) -> None:
    assert current_name() is None
    with on_behalf_of(Noting(name=name)):
        assert current_name() == expected
    assert current_name() is None


def test_a_service_whose_name_raises_has_the_name_of_its_class() -> None:
    class Unreadable:
        def __str__(self) -> str:
            raise LookupError

    name: Any = Unreadable()
    with on_behalf_of(Noting(name=name)):
        assert current_name() == "Noting"


def test_the_service_of_a_task_or_handle_is_found_from_outside(run: Callable[[Main], None]) -> None:
    service = Noting()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with on_behalf_of(service):
            task = loop.create_task(asyncio.sleep(0))
            handles = [loop.call_soon(lambda: None), loop.call_later(1, lambda: None)]
        with on_behalf_of(Noting()):
            task.add_done_callback(lambda _: None)
        assert [service_of(work) for work in (task, *handles)] == [service] * 3
        await task
        assert service_of(task) is service
        assert service_of(loop.create_future()) is None

    run(main)
