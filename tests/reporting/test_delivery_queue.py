"""RavenSender and servers that are slow, busy, broken, absent, or impostors."""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

pytest.importorskip("raven")
pytest.importorskip("aiohttp")

from svcrun._reporting.raven import delivery_queue as _delivery_queue
from svcrun._reporting.raven.rate_limits import MAX_LIMIT, read_limit, read_retry_after
from svcrun.service.raven import RavenSender
from tests.conftest import Certificates
from tests.reporting.collectors import (
    OK,
    Answer,
    Collector,
    Misbehaviour,
    answer,
    hang,
    reset,
    talk_for_ever,
    talk_nonsense,
)
from tests.service.streams import running
from tests.support import PATIENCE, LoopFactory, eventually

log = logging.getLogger("test")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the delay between attempts."""
    monkeypatch.setattr(_delivery_queue, "FIRST_DELAY", 0.01)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def sending(dsn: str, **options: Any) -> AbstractAsyncContextManager[RavenSender]:
    return running(RavenSender(sentry_dsn=dsn, **options))


async def until_settled(sender: RavenSender, count: int = 1) -> None:
    await eventually(lambda: sender.sent + sender.dropped >= count)


# Attempts


@pytest.mark.parametrize(
    "trouble", [answer(500), answer(503), reset, talk_nonsense, answer(429, retry_after="0")]
)
async def test_an_event_is_retried_until_the_server_accepts_it(
    collector: Collector, trouble: Answer | Misbehaviour
) -> None:
    collector.answers.extend([trouble, trouble])
    async with sending(collector.dsn()) as sender:
        log.error("here")
        await until_settled(sender)
    assert (sender.sent, sender.dropped) == (1, 0)
    assert collector.messages == ["here"] * 3


async def test_an_event_is_retried_until_the_server_listens() -> None:
    with Collector(listening=False) as collector:
        async with sending(collector.dsn()) as sender:
            log.error("here")
            await asyncio.sleep(0.05)
            collector.listen()
            await until_settled(sender)
        assert (sender.sent, sender.dropped) == (1, 0)


async def test_a_server_that_disappears_and_comes_back_gets_the_rest(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    async with sending(collector.dsn()) as sender:
        log.error("one")
        await until_settled(sender)
        await asyncio.to_thread(collector.close)
        log.error("two")
        await eventually(lambda: "could not send events" in caplog.text)
        with Collector(port=collector.port) as again:
            await until_settled(sender, 2)
            assert again.messages == ["two"]
    assert sender.sent == 2
    assert "accepts events again" in caplog.text


async def test_an_event_is_dropped_after_the_maximum_of_attempts(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_delivery_queue, "MAX_ATTEMPTS", 3)
    collector.usual = answer(500)
    async with sending(collector.dsn()) as sender:
        log.error("here")
        await until_settled(sender)
    assert (sender.sent, sender.dropped) == (0, 1)
    assert len(collector.requests) == 3
    assert caplog.text.count("could not send events") == 1
    assert "the server was unreachable or failed" in caplog.text


async def test_an_event_older_than_the_maximum_is_not_retried(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_delivery_queue, "MAX_AGE", -1.0)  # however coarse the clock is
    collector.usual = answer(500)
    async with sending(collector.dsn()) as sender:
        log.error("here")
        await until_settled(sender)
    assert sender.dropped == len(collector.requests) == 1


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 413])
async def test_rejected_events_are_dropped_and_logged_once(
    collector: Collector, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    collector.usual = answer(status, x_sentry_error="why not", location="http://127.0.0.1:9/")
    async with sending(collector.dsn()) as sender:
        log.error("one")
        log.error("two")
        await until_settled(sender, 2)
    assert (sender.sent, sender.dropped) == (0, 2)
    assert len(collector.requests) == 2
    assert caplog.text.count(f"rejects events: status {status} why not") == 1


@pytest.mark.parametrize(
    "limited",
    [
        answer(429, retry_after="3600"),
        answer(429),
        answer(200, x_sentry_rate_limits="60:error:organization"),
        answer(200, x_sentry_rate_limits="60::key"),
    ],
)
async def test_no_event_is_sent_during_a_rate_limit(
    collector: Collector, limited: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    collector.answers.append(limited)
    async with sending(collector.dsn(), flush_timeout=4 * PATIENCE) as sender:
        log.error("one")
        await eventually(lambda: "limits the rate" in caplog.text)
        log.error("two")
        async with asyncio.timeout(PATIENCE):
            await sender.stop()
    assert len(collector.requests) == 1
    assert sender.sent + sender.dropped == 2


async def test_events_are_sent_again_after_a_rate_limit(collector: Collector) -> None:
    collector.answers.append(answer(429, retry_after="0.05"))
    async with sending(collector.dsn()) as sender:
        log.error("one")
        log.error("two")
        await until_settled(sender, 2)
    assert (sender.sent, sender.dropped) == (2, 0)


def test_every_form_of_a_rate_limit_is_understood() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert read_retry_after({"Retry-After": "7"}) == 7
    assert 90 < (read_retry_after({"Retry-After": soon}) or 0) <= 100
    assert read_retry_after({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0
    for nonsense in ("", "soon", "nan", "Thu, 99 Foo 1970"):
        assert read_retry_after({"Retry-After": nonsense}) is None
    assert read_limit(200, {}) == 0
    assert read_limit(503, {"Retry-After": "7"}) == 0
    assert read_limit(429, {}) == 60
    assert read_limit(429, {"Retry-After": "1e99"}) == MAX_LIMIT
    limits = "x:error:a, 10:transaction:key, 5:default;error:organization, 2::key"
    assert read_limit(200, {"X-Sentry-Rate-Limits": limits}) == 5
    assert read_limit(200, {"X-Sentry-Rate-Limits": "nonsense"}) == 0


# Connections


async def test_a_few_connections_are_kept_open(collector: Collector) -> None:
    async with sending(collector.dsn(), flush_timeout=20):
        for number in range(50):
            log.error("number %d", number)
    assert len(collector.requests) == 50
    assert collector.connections <= _delivery_queue.CONNECTIONS


async def test_an_endless_response_is_not_read(collector: Collector) -> None:
    collector.usual = talk_for_ever
    async with sending(collector.dsn()) as sender:
        log.error("one")
        log.error("two")
        await until_settled(sender, 2)
    assert sender.sent == 2


async def test_an_attempt_has_a_time_limit(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.answers.append(hang)
    async with sending(collector.dsn("?timeout=0.5")) as sender:
        log.error("here")
        await until_settled(sender)
    assert sender.sent == 1
    assert ": ConnectionTimeoutError" in caplog.text or "Timeout" in caplog.text


async def test_the_certificate_of_the_server_is_checked(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    with Collector(certificates) as collector:
        for options, sent in (
            ("", 0),
            (f"?ca_certs={certificates.other_ca}", 0),
            (f"?ca_certs={certificates.ca}", 1),
            ("?verify_ssl=0", 1),
        ):
            caplog.clear()
            async with sending(collector.dsn(options, host="localhost")) as sender:
                log.error("here")
                if sent:
                    await until_settled(sender)
                else:
                    await eventually(lambda: "certificate verify failed" in caplog.text)
            assert sender.sent == sent, options


async def test_the_server_may_have_an_ipv6_address() -> None:
    # raven leaves out its brackets.
    async with sending("http://public@[::1]:9/42") as sender:
        assert sender.client is not None
        assert sender.client.remote.store_endpoint == "http://[::1]:9/api/42/store/"


async def test_the_host_name_is_resolved(collector: Collector) -> None:
    async with sending(collector.dsn(host="localhost")) as sender:
        log.error("here")
        await until_settled(sender)
    assert sender.sent == 1


async def test_an_event_for_an_unknown_host_name_is_retried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def look_up(*_: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with sending("http://public@sentry.invalid/42") as sender:
        log.error("here")
        await eventually(lambda: "could not send events" in caplog.text)
    assert sender.dropped == 1
    assert "Name or service not known" in caplog.text


# The end


def stuck_name_server(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    answered = threading.Event()

    def look_up(*_: object) -> list[Any]:
        answered.wait(4 * PATIENCE)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return answered.set


async def test_retries_share_the_lookup_of_a_host_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_delivery_queue, "MAX_ATTEMPTS", 3)
    release = stuck_name_server(monkeypatch)
    try:
        async with sending("http://public@sentry.invalid/42?timeout=0.05") as sender:
            for _ in range(5):
                log.error("here")
            await eventually(lambda: sender.dropped == 5)
            lookups = [one for one in threading.enumerate() if one.name == "svcrun-resolver"]
            assert len(lookups) == 1
    finally:
        release()


@pytest.mark.parametrize("behaviour", [hang, "absent", "no name server"])
def test_the_stop_does_not_wait_for_a_server_that_does_not_respond(
    loop_factory: LoopFactory,
    behaviour: Misbehaviour | str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = "127.0.0.1"
    release: Callable[[], None] = lambda: None  # noqa: E731 - a default

    async def main(collector: Collector) -> RavenSender:
        sender = RavenSender(sentry_dsn=collector.dsn(host=host), flush_timeout=0.3)
        sender.set_loop(asyncio.get_running_loop())
        await sender.start()
        for _ in range(20):
            log.error("here")
        await sender.stop()
        return sender

    with Collector(listening=behaviour != "absent") as collector:
        if callable(behaviour):
            collector.usual = behaviour
        if behaviour == "no name server":
            host = "sentry.invalid"
            release = stuck_name_server(monkeypatch)
        try:
            # All of the loop: the threads of its executor are waited for when it is closed.
            begin = time.monotonic()
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                sender = runner.run(main(collector))
            assert time.monotonic() - begin < PATIENCE  # a quarter of the server's silence
        finally:
            release()
    assert (sender.sent, sender.dropped) == (0, 20)
    assert "20 in all" in caplog.text


async def test_the_stop_sends_waiting_events(collector: Collector) -> None:
    collector.answers.append(answer(500))
    async with sending(collector.dsn(), flush_timeout=20) as sender:
        for _ in range(100):
            log.error("here")
    assert (sender.sent, sender.dropped) == (100, 0)


@pytest.mark.parametrize(("then", "sent"), [(OK, 1), (answer(500), 0)])
async def test_an_event_between_two_attempts_gets_a_last_one_at_the_stop(
    collector: Collector,
    then: Answer,
    sent: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_delivery_queue, "FIRST_DELAY", 3600)
    collector.answers.append(answer(500))
    collector.usual = then
    async with sending(collector.dsn(), flush_timeout=20) as sender:
        log.error("here")
        await eventually(lambda: "could not send events" in caplog.text)
    assert (sender.sent, sender.dropped) == (sent, 1 - sent)
    assert len(collector.requests) == 2


async def test_a_stop_that_is_cancelled_leaves_nothing_behind(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.usual = hang
    handlers = list(logging.getLogger().handlers)
    sender = RavenSender(sentry_dsn=collector.dsn(), flush_timeout=20)
    sender.set_loop(asyncio.get_running_loop())
    tasks = asyncio.all_tasks()
    await sender.start()
    log.error("here")
    await asyncio.to_thread(collector.wait_for, 1)
    stop = asyncio.create_task(sender.stop())
    await asyncio.sleep(0.05)
    stop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stop
    assert sender.dropped == 1
    assert logging.getLogger().handlers == handlers
    assert asyncio.all_tasks() == tasks


# A flood


async def test_each_record_counts_as_sent_or_dropped(collector: Collector) -> None:
    async with sending(collector.dsn(), queue_size=20, flush_timeout=20) as sender:
        for number in range(2000):
            try:
                raise ValueError(number)
            except ValueError:
                log.exception("failed")
            if number % 100 == 0:
                await asyncio.sleep(0)
        assert sender._svcrun_reporting.handler is not None
        assert sender._svcrun_reporting.handler._queue.qsize() <= 20
    assert sender.sent + sender.dropped == 2000
    assert sender.sent == len(collector.requests)
    assert sender.dropped > 1000


async def test_events_captured_by_the_program_are_dropped_if_the_queue_is_full(
    collector: Collector,
) -> None:
    collector.usual = hang
    async with sending(collector.dsn(), queue_size=5, flush_timeout=0.1) as sender:
        assert sender.client is not None
        for _ in range(100):
            sender.client.captureMessage("here")
    assert (sender.sent, sender.dropped) == (0, 100)


async def test_an_event_captured_during_the_stop_is_counted_and_one_after_it_is_not(
    collector: Collector,
) -> None:
    collector.usual = hang
    async with sending(collector.dsn(), flush_timeout=0.3) as sender:
        assert sender.client is not None
        sender.client.captureMessage("before")
        await eventually(lambda: collector.requests)
        stop = asyncio.create_task(sender.stop())
        queue = sender.client.remote.get_transport()
        await eventually(lambda: queue.is_full)  # the queue has begun to close
        sender.client.captureMessage("during")
        await stop
    sender.client.captureMessage("after")
    await asyncio.sleep(0)
    assert (sender.sent, sender.dropped) == (0, 2)


async def test_an_event_that_was_claimed_is_counted_before_the_stop_ends(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed, stopped = threading.Event(), threading.Event()

    def claim() -> bool:
        claimed.set()
        stopped.wait(0.2)  # the stop has to wait for this thread, so this times out
        return True

    monkeypatch.setattr(_delivery_queue, "claim_report", claim)
    async with sending(collector.dsn(), flush_timeout=0) as sender:
        assert sender.client is not None
        thread = threading.Thread(target=sender.client.captureMessage, args=("here",))
        thread.start()
        await asyncio.to_thread(claimed.wait)
    assert sender.sent + sender.dropped == 1
    stopped.set()
    thread.join()
    assert sender.sent + sender.dropped == 1


async def test_waiting_events_are_bounded_and_no_event_is_made_without_room(
    collector: Collector,
) -> None:
    collector.usual = hang
    async with sending(collector.dsn(), queue_size=5, flush_timeout=0.1) as sender:
        queue = sender._svcrun_reporting.delivery
        assert queue is not None
        for _ in range(200):
            log.error("here")
            await asyncio.sleep(0.001)
        await eventually(lambda: queue.is_full)
        assert len(queue._queue) == 5
    assert (sender.sent, sender.dropped) == (0, 200)
