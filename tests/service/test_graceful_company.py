"""Services with graceful tasks in an entrypoint, and together with other services (C32)."""

# A graceful task need not be awaited, nor kept by anybody but its service.
# mypy: disable-error-code="unused-awaitable"
from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from svcrun import entrypoint
from svcrun.service import GracefulService, PeriodicService, Service, TCPServer, UDPServer
from svcrun.service._internals import part_of
from svcrun.service.graceful import _GracefulTasks
from tests.entrypoint.forms import NAMES, Form
from tests.service.datagrams import client
from tests.service.graceful import Noting, Plain, ignore_cancellation, messages, now
from tests.support import PATIENCE, eventually
from tests.support_clock import run_virtual

if TYPE_CHECKING:
    from tests.support import LoopFactory


# In an entrypoint.


@pytest.fixture(params=NAMES)
def live(request: pytest.FixtureRequest, loop_factory: LoopFactory) -> Form:
    """Run services in each of the forms, on each kind of loop."""
    return Form(request.param, loop_factory)


def test_the_entrypoint_waits_for_the_tasks(live: Form) -> None:
    class Swan(Noting):
        async def start(self) -> None:
            self.create_graceful_task(self.sleep("swan", 0.05))
            self.create_graceful_task(self.sleep("duckling", 60), cancel=True)
            await asyncio.sleep(0)

    service = Swan()
    live(service)
    assert service.notes == ["duckling is cancelled", "swan is done"]


@pytest.mark.parametrize("cancel", [False, True])
@pytest.mark.parametrize("way", ["stop_services", "graceful_shutdown"])
def test_a_task_may_stop_its_service_through_the_entrypoint(
    live: Form, way: str, cancel: bool
) -> None:
    class Ending(Noting):
        async def start(self) -> None:
            self.create_graceful_task(self.end(), cancel=cancel)
            self.create_graceful_task(self.sleep("work", 0.05))

        async def end(self) -> None:
            await block_runs.wait()
            ep = entrypoint.get_current()
            if way == "stop_services":
                await ep.stop_services(self)
            else:
                await ep.graceful_shutdown()
            self.notes.append("end is done")

    async def body(_: entrypoint) -> None:
        block_runs.set()
        try:
            await asyncio.sleep(PATIENCE if way == "graceful_shutdown" else 0)
        except asyncio.CancelledError:
            service.notes.append("block is told")
        await eventually(lambda: "end is done" in service.notes)

    block_runs = asyncio.Event()
    service = Ending()
    with contextlib.suppress(SystemExit):  # of svcrun.run(), whose main() gave no result
        live(service, body=body, shutdown_timeout=10)
    told = ["block is told"] if way == "graceful_shutdown" else []
    assert service.notes == [*told, "work is done", "end is done"]


@pytest.mark.parametrize("limits", [{"stop_timeout": 5}, {"shutdown_timeout": 5}], ids=str)
@pytest.mark.parametrize(
    ("kind", "cancel"),
    [("hangs", False), ("ignores its cancellation", False), ("ignores its cancellation", True)],
)
def test_a_task_without_end_is_bounded_and_named(
    kind: str, cancel: bool, limits: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        service = Plain(name="shop", stop_timeout=limits.get("stop_timeout"))
        ep = entrypoint(
            service,
            log_config=False,
            catch_signals=(),
            shutdown_timeout=limits.get("shutdown_timeout"),
        )
        await ep.__aenter__()
        coro = asyncio.sleep(1000) if kind == "hangs" else ignore_cancellation(20)
        task = service.create_graceful_task(coro, cancel=cancel)
        await asyncio.sleep(0)
        with pytest.raises(SystemExit) as caught:
            await ep.__aexit__(None, None, None)
        assert caught.value.code == 70
        assert "shop" in str(caught.value.__cause__)
        assert now() == 5
        await asyncio.wait((task,))
        assert now() == (5 if kind == "hangs" else 20)

    run_virtual(main())
    lines = messages(caplog)
    if "shutdown_timeout" in limits:
        assert lines.pop() == "shutdown timed out after 5.0 s"
    *reports, late, cut = lines
    waiting = "waiting for <Plain name='shop' STOPPING> (File "
    assert [report.partition(waiting)[0] for report in reports] == [
        f"shutdown still in progress after {seconds} s, " for seconds in (1, 2, 4)
    ]
    assert "<Plain name='shop' STOPPING> did not stop in time; cancelling it" in late
    assert "<Plain name='shop' STOPPING>: 1 task is still running when the stop was cut" in cut
    assert ("sleep" if kind == "hangs" else "ignore_cancellation") + " is waiting at" in cut


# Together with other services.


def tcp_server(*bases: type[Service]) -> Any:
    class Server(*bases):  # type: ignore[misc]
        notes: list[str]

        async def handle_client(
            self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            line = await reader.readline()
            self.create_graceful_task(self.deliver(line))
            self.create_graceful_task(asyncio.sleep(1000), cancel=True)
            writer.write(line)
            await writer.drain()

        async def deliver(self, line: bytes) -> None:
            await self.may_go_on.wait()
            self.notes.append(f"delivered {line!r}")

    server = Server("127.0.0.1", 0, notes=[])
    server.may_go_on = asyncio.Event()
    return server


FIRST = pytest.param((GracefulService, TCPServer), id="graceful first")
LAST = pytest.param((TCPServer, GracefulService), id="graceful last")


@pytest.mark.parametrize("bases", [FIRST, LAST])
async def test_a_task_outlives_the_handler_that_created_it(
    bases: tuple[type[Service], ...],
) -> None:
    server = tcp_server(*bases)
    await server.start()
    reader, writer = await asyncio.open_connection(server.address, server.port)
    address, port = server.address, server.port
    writer.write(b"parcel\n")
    assert await reader.readline() == b"parcel\n"
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    assert server.notes == []

    stopping = asyncio.create_task(server.stop())
    await eventually(lambda: server.server is None)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(address, port)
    server.may_go_on.set()
    await asyncio.wait_for(stopping, PATIENCE)
    assert server.notes == [r"delivered b'parcel\n'"]
    assert not part_of(server, _GracefulTasks).entries


async def test_a_handler_at_work_may_create_tasks_during_the_stop() -> None:
    at_work = asyncio.Event()

    class Server(GracefulService, TCPServer):
        notes: list[str]

        async def handle_client(
            self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            at_work.set()
            while not self.stopping:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0)
            self.create_graceful_task(self.deliver())

        async def deliver(self) -> None:
            await asyncio.sleep(0.05)
            self.notes.append("delivered")

    server = Server("127.0.0.1", 0, notes=[])
    await server.start()
    _, writer = await asyncio.open_connection(str(server.address), server.port)
    await at_work.wait()
    await asyncio.wait_for(server.stop(), PATIENCE)
    assert server.notes == ["delivered"]
    writer.close()
    await writer.wait_closed()


async def test_a_task_of_a_datagrams_handler_outlives_it() -> None:
    created = asyncio.Event()

    class Server(GracefulService, UDPServer):
        notes: list[str]

        async def handle_datagram(self, data: bytes, addr: Any) -> None:
            self.create_graceful_task(self.deliver(data))
            created.set()

        async def deliver(self, data: bytes) -> None:
            await asyncio.sleep(0.05)
            self.notes.append(f"delivered {data!r}")

    server = Server("127.0.0.1", 0, notes=[])
    await server.start()
    with client(server) as sock:
        sock.send(b"parcel")
        await created.wait()
    await asyncio.wait_for(server.stop(), PATIENCE)
    assert server.notes == ["delivered b'parcel'"]


def periodic_service(*bases: type[Service]) -> Any:
    class Shop(*bases):  # type: ignore[misc]
        notes: list[str]

        async def callback(self) -> None:
            self.create_graceful_task(self.deliver(self.periodic.calls))

        async def deliver(self, number: int) -> None:
            await asyncio.sleep(2.5)
            self.notes.append(f"{number} at {now():g}")

    return Shop(interval=1, notes=[])


@pytest.mark.parametrize(
    "bases",
    [(GracefulService, PeriodicService), (PeriodicService, GracefulService)],
    ids=["graceful first", "graceful last"],
)
def test_tasks_of_a_periodic_callback_outlive_it(bases: tuple[type[Service], ...]) -> None:
    async def main() -> None:
        service = periodic_service(*bases)
        await service.start()
        await asyncio.sleep(1.5)
        await service.stop()
        assert service.notes == ["1 at 2.5", "2 at 3.5"]
        assert now() == 3.5

    run_virtual(main())


def test_a_task_of_a_periodic_callback_may_stop_the_service() -> None:
    class Shop(GracefulService, PeriodicService):
        async def callback(self) -> None:
            self.create_graceful_task(self.stop())

    async def main() -> None:
        service = Shop(interval=1)
        await service.start()
        await asyncio.sleep(10)
        assert service.periodic.calls == 1

    run_virtual(main())
