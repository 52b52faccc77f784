"""Laws of SentrySender with servers that fail or hang, and with floods of errors (C36)."""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

sentry_sdk = pytest.importorskip("sentry_sdk")

from svcrun.service.sentry import SentrySender  # noqa: E402 - after sentry_sdk is known to be there
from tests.conftest import Certificates  # noqa: E402
from tests.reporting.collectors import (  # noqa: E402
    Misbehaviour,
    answer,
    hang,
    reset,
    talk_nonsense,
)
from tests.reporting.envelopes import EnvelopeCollector  # noqa: E402
from tests.service.streams import running  # noqa: E402
from tests.support import PATIENCE, eventually, nothing_left  # noqa: E402

log = logging.getLogger("test")

# Seconds that a stop may take if the server does not respond: two, but machines are busy. A server
# that hangs does so for four times as long.
MAX_STOP = PATIENCE


@pytest.fixture
def collector() -> Iterator[EnvelopeCollector]:
    with EnvelopeCollector() as server:
        yield server


async def no_threads() -> None:
    """Wait until the threads of sentry have ended."""
    threads = threading.enumerate
    await eventually(lambda: not [t for t in threads() if "sentry" in t.name], within=10)


@pytest.mark.usefixtures("no_leaks")
async def test_an_absent_server_does_not_delay_the_stop(caplog: pytest.LogCaptureFixture) -> None:
    with EnvelopeCollector(listening=False) as collector:
        sender = SentrySender(sentry_dsn=collector.dsn())
        await sender.start()
        for number in range(200):
            log.error("lost %d", number)
        begin = time.monotonic()
        await sender.stop()
        assert time.monotonic() - begin < MAX_STOP
    assert sender.sent == 0
    assert sender.dropped == 200
    assert any("dropped events for 127.0.0.1" in message for message in caplog.messages)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.usefixtures("no_leaks")
async def test_a_server_that_never_responds_does_not_delay_the_stop(full: bool) -> None:
    with EnvelopeCollector() as collector:
        collector.usual = hang
        options = {"transport_queue_size": 20}
        sender = SentrySender(sentry_dsn=collector.dsn(), client_options=options)
        await sender.start()
        log.error("first")
        await asyncio.to_thread(collector.wait_for, 1)
        for number in range(100 if full else 1):
            sentry_sdk.capture_message(f"more {number}")
        begin = time.monotonic()
        await sender.stop()
        assert time.monotonic() - begin < MAX_STOP
        await no_threads()
    assert sender.sent == 0
    assert sender.dropped == (101 if full else 2)


@pytest.mark.usefixtures("no_leaks")
async def test_a_tls_server_that_never_responds_does_not_delay_the_stop(
    certificates: Certificates,
) -> None:
    with EnvelopeCollector(certificates) as collector:
        collector.usual = hang
        options = {"ca_certs": str(certificates.ca)}
        sender = SentrySender(sentry_dsn=collector.dsn(), client_options=options, flush_timeout=0.3)
        await sender.start()
        log.error("first")
        await asyncio.to_thread(collector.wait_for, 1)
        begin = time.monotonic()
        await sender.stop()
        assert time.monotonic() - begin < MAX_STOP
        await no_threads()
    assert (sender.sent, sender.dropped) == (0, 1)


async def test_a_server_that_accepts_no_connection_does_not_delay_the_stop() -> None:
    """The backlog of the listener is full, so that a client waits for its connection."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for other in (first, second):
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        port = listener.getsockname()[1]
        sender = SentrySender(sentry_dsn=f"http://public@127.0.0.1:{port}/42", flush_timeout=0.3)
        await sender.start()
        log.error("first")
        log.error("second")
        begin = time.monotonic()
        await sender.stop()
        assert time.monotonic() - begin < MAX_STOP
    await no_threads()
    assert sender.sent == 0


async def test_an_error_of_the_server_drops_one_event_and_is_not_reported(
    collector: EnvelopeCollector,
) -> None:
    collector.answers.append(answer(500))
    async with running(collector.sender()) as sender:
        log.error("first")
        await eventually(lambda: sender.dropped == 1)
        log.error("second")
    assert (sender.sent, sender.dropped) == (1, 1)
    assert collector.messages == ["first", "second"]


@pytest.mark.parametrize("how", [reset, talk_nonsense])
async def test_a_request_on_a_broken_connection_is_retried_once(
    collector: EnvelopeCollector, how: Misbehaviour
) -> None:
    collector.answers += [how, answer(200), how, how]
    async with running(collector.sender()) as sender:
        log.error("first")
        await eventually(lambda: sender.sent == 1)
        log.error("second")
        await eventually(lambda: sender.dropped == 1)
        log.error("third")
    assert (sender.sent, sender.dropped) == (2, 1)
    assert collector.messages == ["first", "first", "second", "second", "third"]


@pytest.mark.parametrize(
    "headers", [{"Retry_After": "60"}, {"X_Sentry_Rate_Limits": "60:error:organization"}]
)
async def test_no_event_is_sent_during_a_rate_limit(
    collector: EnvelopeCollector, headers: dict[str, str]
) -> None:
    collector.answers.append(answer(429, **headers))
    async with running(collector.sender()) as sender:
        log.error("first")
        await asyncio.to_thread(collector.wait_for, 1)
        await eventually(lambda: sender.dropped == 1)
        for number in range(10):
            log.error("too much %d", number)
        sentry_sdk.capture_message("too much as well")
        await eventually(lambda: sender.dropped == 12)
    assert collector.messages == ["first"]


async def test_events_are_sent_again_after_a_rate_limit(collector: EnvelopeCollector) -> None:
    collector.answers.append(answer(429, Retry_After="1"))
    async with running(collector.sender()) as sender:
        log.error("first")
        await eventually(lambda: sender.dropped == 1)
        begin = time.monotonic()
        while not sender.sent:
            assert time.monotonic() - begin < 30
            log.error("again")
            await asyncio.sleep(0.2)
    assert collector.messages[:2] == ["first", "again"]


async def test_a_slow_server_that_responds_gets_all_waiting_events(
    collector: EnvelopeCollector,
) -> None:
    def be_slow(connection: socket.socket, closing: threading.Event) -> None:
        time.sleep(0.1)
        connection.sendall(bytes(answer(200, Connection="close")))

    collector.usual = be_slow
    async with running(collector.sender(flush_timeout=1.5)) as sender:
        for number in range(20):
            log.error("number %d", number)
    assert (sender.sent, sender.dropped) == (20, 0)
    assert collector.messages == [f"number {number}" for number in range(20)]


async def test_a_stop_that_is_cancelled_leaves_nothing_behind(collector: EnvelopeCollector) -> None:
    collector.usual = hang
    with nothing_left():
        sender = collector.sender(flush_timeout=1)
        await sender.start()
        log.error("first")
        await eventually(lambda: collector.requests)
        stop = asyncio.create_task(sender.stop())
        await asyncio.sleep(0)
        stop.cancel()
        await asyncio.wait([stop])
        assert not sentry_sdk.is_initialized()
        await no_threads()
        collector.close()


async def test_an_event_made_after_the_stop_timed_out_is_counted_once(
    collector: EnvelopeCollector,
) -> None:
    entered, gate, left = threading.Event(), threading.Event(), threading.Event()

    def before_send(event: Any, _: dict[str, Any]) -> Any:
        entered.set()
        gate.wait(PATIENCE)
        left.set()
        return event

    options = {"before_send": before_send}
    sender = collector.sender(flush_timeout=0.1, client_options=options)
    await sender.start()
    log.error("current")
    await asyncio.to_thread(entered.wait, PATIENCE)
    log.error("waiting")
    await sender.stop()
    gate.set()
    await asyncio.to_thread(left.wait, PATIENCE)
    await no_threads()
    await eventually(lambda: "svcrun-reports" not in {it.name for it in threading.enumerate()})
    assert (sender.sent, sender.dropped) == (0, 2)
    assert collector.messages == []


def _log_an_error(number: int) -> None:
    try:
        _ = number / 0
    except ZeroDivisionError:
        log.exception("number %d", number)


async def _fail(number: int) -> None:
    raise ValueError(number)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pytest from recording a flood of log records."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        yield
    finally:
        root.handlers = handlers


def _begin_a_task(number: int) -> None:
    asyncio.get_running_loop().create_task(_fail(number)).add_done_callback(asyncio.Task.exception)


@pytest.mark.parametrize("work", [_log_an_error, _begin_a_task])
async def test_a_flood_is_bounded_and_counted(
    collector: EnvelopeCollector, work: Callable[[int], object]
) -> None:
    """The benchmark measures by how much it delays the loop."""
    with quiet():
        # On a busy machine, less time may cut the connection while the server takes an event.
        sender = collector.sender(flush_timeout=PATIENCE)
        await sender.start()
        for number in range(10_000):
            work(number)
            if number % 50 == 0:
                await asyncio.sleep(0)  # tasks have their turn
        await asyncio.sleep(0)
        await sender.stop()
    assert sender.sent + sender.dropped == 10_000
    assert 0 < sender.sent < 5000
    assert sender.sent == len(collector.events)
