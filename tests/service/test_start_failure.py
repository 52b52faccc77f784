"""A start() that extends one of svcrun's and fails after it leaves nothing behind (C12, C22)."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from svcrun import Restart, Service, ServiceState, entrypoint
from svcrun.service import GracefulService, PeriodicService, TaskStoreBase, TCPServer, UDPServer
from tests.documents import free_ports
from tests.support import eventually


class Tcp(TCPServer):
    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.read()


class Udp(UDPServer):
    async def handle_datagram(self, data: bytes, addr: Any) -> None:
        pass


class Periodic(PeriodicService):
    interval = 0.001

    async def callback(self) -> None:
        pass


class Tasks(TaskStoreBase):
    async def start(self) -> None:
        self.endless = self.create_task(asyncio.sleep(600))


class Graceful(GracefulService):
    async def start(self) -> None:
        self.endless = self.create_graceful_task(asyncio.sleep(600), cancel=True)


class Both(GracefulService, Tcp):
    async def start(self) -> None:
        await super().start()
        self.endless = self.create_graceful_task(asyncio.sleep(600), cancel=True)


KINDS: dict[type[Service], dict[str, Any]] = {
    Tcp: {"address": "127.0.0.1", "port": 0},
    Udp: {"address": "127.0.0.1", "port": 0},
    Both: {"address": "127.0.0.1", "port": 0},
    Periodic: {},
    Tasks: {},
    Graceful: {},
}


class Broken(LookupError):
    pass


def extend(kind: type[Service], fail: Callable[[], Awaitable[None]], **options: Any) -> Service:
    """Create a service whose start() calls that of `kind` and then `fail`."""

    async def start(self: Any) -> None:
        await kind.start(self)
        await fail()

    async def stop(self: Any, exception: BaseException | None = None) -> None:
        raise AssertionError("stop() of a service that was not started")

    extended = type(kind.__name__, (kind,), {"start": start, "stop": stop})
    service: Service = extended(**KINDS[kind], **options)
    return service


async def break_at_once() -> None:
    raise Broken


async def break_later() -> None:
    await asyncio.sleep(0.01)
    raise Broken


async def hang() -> None:
    await asyncio.sleep(600)


def find_tasks() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


async def assert_nothing_left(service: Service) -> None:
    assert not find_tasks()
    if isinstance(service, Periodic):
        calls = service.periodic.calls
        await asyncio.sleep(0.02)
        assert service.periodic.calls == calls
    sock: Any = getattr(service, "socket", None)
    assert sock is None or sock.fileno() == -1


kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@kinds
@pytest.mark.parametrize("fail", [break_at_once, break_later])
async def test_a_start_that_raises_leaves_nothing_behind(
    kind: type[Service], fail: Callable[[], Awaitable[None]]
) -> None:
    service = extend(kind, fail)
    with pytest.raises(Broken):
        async with entrypoint(service, log_config=False):
            pass
    assert service.state is ServiceState.FAILED
    await assert_nothing_left(service)


@kinds
async def test_a_start_that_times_out_leaves_nothing_behind(kind: type[Service]) -> None:
    service = extend(kind, hang, start_timeout=0.05)
    with pytest.raises(TimeoutError):
        async with entrypoint(service, log_config=False):
            pass
    await assert_nothing_left(service)


@kinds
async def test_a_start_that_is_rolled_back_leaves_nothing_behind(kind: type[Service]) -> None:
    class Failing(Service):
        async def start(self) -> None:
            await asyncio.sleep(0.02)
            raise Broken

    service = extend(kind, hang)
    with pytest.raises(Broken):
        async with entrypoint(service, Failing(), log_config=False):
            pass
    assert service.state is ServiceState.STOPPED
    await assert_nothing_left(service)


@kinds
async def test_a_failed_start_at_run_time_leaves_nothing_behind_and_other_services_run_on(
    kind: type[Service],
) -> None:
    other = Tcp(address="127.0.0.1", port=0)
    service = extend(kind, break_later)
    async with entrypoint(other, log_config=False) as running:
        before = find_tasks()
        with pytest.raises(Broken):
            await running.start_services(service)
        assert find_tasks() <= before
        assert other.state is ServiceState.RUNNING
        assert service not in running.services


@kinds
def test_a_failed_start_in_a_loop_of_the_entrypoint_leaves_no_socket(kind: type[Service]) -> None:
    service = extend(kind, break_at_once)
    with pytest.raises(Broken), entrypoint(service, log_config=False):
        pass
    sock: Any = getattr(service, "socket", None)
    assert sock is None or sock.fileno() == -1


async def test_a_connected_client_does_not_delay_the_roll_back() -> None:
    connected = asyncio.Event()
    server: Any = None

    async def fail() -> None:
        reader, writer = await asyncio.open_connection(server.address, server.port)
        writer.write(b"x")
        connected.set()
        await asyncio.sleep(0.01)
        writer.close()
        raise Broken

    server = extend(Tcp, fail, drain_timeout=0.1)
    with pytest.raises(Broken):
        async with entrypoint(server, log_config=False):
            pass
    assert connected.is_set()
    await eventually(lambda: not find_tasks())
    await assert_nothing_left(server)


async def test_the_port_is_free_for_the_next_attempt_of_a_restart() -> None:
    (port,) = free_ports(1)
    attempts: list[int] = []

    class Flaky(Tcp):
        async def start(self) -> None:
            await super().start()
            attempts.append(1)
            if len(attempts) in {2, 3}:
                raise Broken
            self.start_event.set()
            if len(attempts) == 1:
                await asyncio.sleep(0.01)
                raise Broken

    policy = Restart(delay=0.001, jitter=0)
    service = Flaky(address="127.0.0.1", port=port, on_crash=policy)
    async with entrypoint(service, log_config=False):
        await eventually(lambda: len(attempts) == 4 and service.state is ServiceState.RUNNING)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
