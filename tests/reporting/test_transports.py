"""The transports for a client of raven that a program makes itself."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("raven")
pytest.importorskip("aiohttp")

from raven.exceptions import APIError, RateLimited

from svcrun.service import raven as service
from tests.reporting.collectors import Collector, answer, hang, reset
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

# without it raven makes a deprecated call.
NOW = datetime(2026, 1, 2)  # noqa: DTZ001 - it takes it as UTC

QUEUED = (service.QueuedAioHttpTransport, service.QueuedKeepaliveAioHttpTransport)
TRANSPORTS = (service.AioHttpTransport, *QUEUED)

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


class Sending:
    """A transport, and the outcome that it reports for each event."""

    def __init__(self, transport: Any, url: str) -> None:
        self.transport = transport
        self.url = url
        self.outcomes: list[tuple[str, object]] = []

    def send(self, name: str) -> None:
        self.transport.async_send(
            self.url,
            name.encode(),
            {"Content-Type": "text/plain"},
            lambda: self.outcomes.append((name, None)),
            lambda error: self.outcomes.append((name, error)),
        )

    async def wait_for_outcomes(self, count: int) -> dict[str, object]:
        await eventually(lambda: len(self.outcomes) >= count)
        return dict(self.outcomes)


@asynccontextmanager
async def sending(
    collector: Collector, cls: Callable[..., Any] = service.AioHttpTransport, **options: Any
) -> AsyncIterator[Sending]:
    transport = cls(**options)
    try:
        yield Sending(transport, f"http://127.0.0.1:{collector.port}/api/42/store/")
    finally:
        await transport.close(timeout=0)


@pytest.mark.parametrize("cls", TRANSPORTS)
async def test_events_of_any_thread_are_sent_and_their_callbacks_called(
    collector: Collector, cls: Any
) -> None:
    async with sending(collector, cls) as events:
        events.send("here")
        await asyncio.to_thread(events.send, "there")
        assert await events.wait_for_outcomes(2) == {"here": None, "there": None}
    assert {request.body for request in collector.requests} == {b"here", b"there"}


@pytest.mark.parametrize("cls", TRANSPORTS)
async def test_the_transports_work_in_a_raven_client(
    collector: Collector, cls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import raven.base

    # The first client of a process is its global one, which raven never releases.
    monkeypatch.setattr(raven.base, "Raven", None)
    client = raven.base.Client(
        collector.dsn("?timeout=30&verify_ssl=0"),
        transport=cls,
        install_sys_hook=False,
        install_logging_hook=False,
        enable_breadcrumbs=False,
    )
    transport = client.remote.get_transport()
    try:
        client.captureMessage("hello", date=NOW)
        await asyncio.to_thread(collector.wait_for, 1)
    finally:
        client.set_dsn("", transport=service.DummyTransport)
        await transport.close()
    client.captureMessage("not sent", date=NOW)
    client.context.deactivate()
    assert collector.messages == ["hello"]


async def test_the_failure_callback_gets_the_error_of_the_server(collector: Collector) -> None:
    collector.answers += [answer(429, Retry_After="7"), answer(400, X_Sentry_Error="bad"), reset]
    async with sending(collector, service.QueuedAioHttpTransport) as events:
        for name in ("limited", "refused", "lost", "taken"):
            events.send(name)
        found: dict[str, Any] = await events.wait_for_outcomes(4)
    limited, refused = found["limited"], found["refused"]
    assert isinstance(limited, RateLimited)
    assert limited.retry_after == 7
    assert isinstance(refused, APIError)
    assert (refused.message, refused.code) == ("bad", 400)
    assert isinstance(found["lost"], Exception)
    assert found["taken"] is None


@pytest.mark.parametrize("cls", QUEUED)
async def test_a_full_queue_drops_its_oldest_event(collector: Collector, cls: Any) -> None:
    async with sending(collector, cls, qsize=2) as events:
        for name in ("one", "two", "three"):  # before the worker has its first turn
            events.transport._take((events.url, name.encode(), {}, *callbacks(events, name)))
        found = await events.wait_for_outcomes(3)
    assert {name for name, error in found.items() if error is None} == {"two", "three"}
    assert "full" in str(found["one"])


def callbacks(events: Sending, name: str) -> tuple[Callable[[], None], Callable[[object], None]]:
    def succeed() -> None:
        events.outcomes.append((name, None))

    def fail(error: object) -> None:
        events.outcomes.append((name, error))

    return succeed, fail


@pytest.mark.parametrize("cls", TRANSPORTS)
async def test_closing_sends_accepted_events_and_rejects_new_ones(
    collector: Collector, cls: Any
) -> None:
    async with sending(collector, cls) as events:
        events.send("before")
        await asyncio.sleep(0)
        end = events.transport.close()
        events.send("after")
        assert events.transport.close(timeout=0) is end
        await end
        assert (await events.wait_for_outcomes(2))["before"] is None
        assert "closed" in str(dict(events.outcomes)["after"])
    assert [request.body for request in collector.requests] == [b"before"]


@pytest.mark.parametrize("cls", TRANSPORTS)
async def test_closing_ends_at_its_timeout(collector: Collector, cls: Any) -> None:
    collector.usual = hang
    async with sending(collector, cls, timeout=3600) as events:
        events.send("hanging")
        await asyncio.to_thread(collector.wait_for, 1)
        await events.transport.close(timeout=0.01)


@pytest.mark.parametrize(("keepalive", "connections"), [(True, 1), (False, 3)])
async def test_connections_are_kept_or_made_for_each_event(
    collector: Collector, keepalive: bool, connections: int
) -> None:
    async with sending(collector, service.QueuedAioHttpTransport, keepalive=keepalive) as events:
        for number in range(3):
            events.send(str(number))
            await events.wait_for_outcomes(number + 1)
    assert collector.connections == connections


def test_a_transport_needs_a_running_loop_and_no_url() -> None:
    with pytest.raises(RuntimeError, match="running event loop"):
        service.AioHttpTransport()
    with pytest.raises(TypeError, match="parsed_url"):
        service.AioHttpTransport("http://127.0.0.1")  # type: ignore[arg-type]


def test_an_event_after_the_end_of_the_loop_fails(collector: Collector) -> None:
    async def main() -> Sending:
        async with sending(collector) as events:
            return events

    events = asyncio.run(main())
    events.transport._end = None
    events.send("late")
    ((_, error),) = events.outcomes
    assert isinstance(error, RuntimeError)
