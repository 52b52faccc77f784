"""RavenSender: the reported records, and the events that raven builds of them."""

import asyncio
import logging
import pickle
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

pytest.importorskip("raven")
pytest.importorskip("aiohttp")

import raven.base

from svcrun._util.current_service import current_service
from svcrun.errors import AlreadyRunning
from svcrun.service.base import Service
from svcrun.service.raven import RavenSender
from tests.conftest import Certificates
from tests.reporting.collectors import Collector
from tests.service.streams import running
from tests.support import LoopFactory, refuses

log = logging.getLogger("test")

KEYED = "http://public:secret@127.0.0.1:9/42"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture
def no_global_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the client that another test of this process made first: raven never releases it."""
    monkeypatch.setattr(raven.base, "Raven", None)


def sending(collector: Collector, **options: Any) -> AbstractAsyncContextManager[RavenSender]:
    """Run a sender; when the block is left, all has been sent."""
    parameters: dict[str, Any] = {"sentry_dsn": collector.dsn(), "flush_timeout": 20}
    return running(RavenSender(**parameters | options))


def fail(number: int = 0) -> None:
    1 / number


def log_failure(message: str = "failed", **extra: Any) -> None:
    try:
        fail()
    except ZeroDivisionError:
        log.exception(message, extra=extra)


# Reported events


async def test_an_exception_is_sent_with_its_stack_and_variables(collector: Collector) -> None:
    async with sending(collector):
        log_failure()
    (event,) = collector.events
    assert (event["message"], event["level"], event["logger"]) == ("failed", 40, "test")
    (value,) = event["exception"]["values"]
    assert (value["type"], value["value"]) == ("ZeroDivisionError", "division by zero")
    frame = value["stacktrace"]["frames"][-1]
    assert (frame["function"], frame["vars"]) == ("fail", {"number": "0"})
    assert frame["context_line"].startswith("    1 / number")


async def test_a_request_has_the_form_that_the_server_expects(collector: Collector) -> None:
    async with sending(collector):
        log.error("here")
    (request,) = collector.requests
    assert request.path == "/api/42/store/"
    auth = request.headers["X-Sentry-Auth"]
    assert "sentry_key=public" in auth
    assert "sentry_secret=secret" in auth
    assert request.headers["Content-Encoding"] == "deflate"


async def test_an_event_has_a_text_and_a_grouping_key(collector: Collector) -> None:
    async with sending(collector):
        log.warning("peer %s has %d", ["a"], 5)
    (event,) = collector.events
    assert event["message"] == "peer ['a'] has 5"
    assert event["sentry.interfaces.Message"]["message"] == "peer %s has %d"


async def test_level_and_filters_select_the_records_to_send(collector: Collector) -> None:
    async with sending(collector, min_level="error", filters=[lambda r: r.msg != "no"]):
        log.warning("less")
        log.error("yes")
        log.error("no")
    assert collector.messages == ["yes"]


async def test_an_event_is_tagged_with_the_service_at_work(collector: Collector) -> None:
    class Worker(Service):
        async def start(self) -> None:
            pass

    async with sending(collector):
        token = current_service.set(Worker(name="busy"))
        log.error("of a service")
        current_service.reset(token)
        log.error("of no service")
    assert {event["message"]: event["tags"] for event in collector.events} == {
        "of a service": {"service": "busy"},
        "of no service": {},
    }
    assert not any("serviceName" in event["extra"] for event in collector.events)


async def test_the_extra_of_a_log_call_is_sent(collector: Collector) -> None:
    async with sending(collector):
        log.error("here", extra={"tags": {"a": "b"}, "data": {"c": 1}, "fingerprint": ["f"]})
    (event,) = collector.events
    assert event["tags"] == {"a": "b"}
    assert event["extra"]["c"] == "1"
    assert event["fingerprint"] == ["f"]


async def test_the_context_set_on_the_client_is_sent(collector: Collector) -> None:
    async with sending(collector) as sender:
        assert sender.client is not None
        sender.client.user_context({"id": 7})
        sender.client.captureBreadcrumb(message="before")
        log.error("here")
        sender.client.context.clear()
        log.error("there")
    with_context, without = sorted(collector.events, key=lambda event: event["message"])
    assert with_context["user"] == {"id": 7}
    assert with_context["breadcrumbs"]["values"][0]["message"] == "before"
    assert "user" not in without
    assert "breadcrumbs" not in without


async def test_an_error_of_a_thread_is_reported(collector: Collector) -> None:
    async with sending(collector):
        await asyncio.to_thread(log_failure)
    assert collector.messages == ["failed"]


async def test_several_senders_report_to_their_own_servers(collector: Collector) -> None:
    with Collector() as other:
        async with sending(collector), sending(other, min_level="error"):
            log.warning("one")
            log.error("two")
        assert sorted(collector.messages) == ["one", "two"]
        assert other.messages == ["two"]


@pytest.mark.parametrize("error", [ValueError("why"), KeyboardInterrupt(), None])
async def test_the_error_that_ends_the_program_is_reported_once(
    collector: Collector, error: BaseException | None
) -> None:
    sender = RavenSender(sentry_dsn=collector.dsn(), flush_timeout=20)
    sender.set_loop(asyncio.get_running_loop())
    for logged in (False, True):
        await sender.start()
        if logged and error is not None:
            log.error("logged", exc_info=error)
        await sender.stop(error)
    is_error = isinstance(error, Exception)
    expected = ["Unhandled exception"] * is_error + ["logged"] * (error is not None)
    assert collector.messages == expected


# The options


async def test_each_option_of_the_client_has_its_effect(collector: Collector) -> None:
    options = {
        "name": "machine",
        "environment": "tests",
        "release": "1.2",
        "include_paths": {"tests", "svcrun"},
        "exclude_paths": {"tests.nothing"},
        "auto_log_stacks": True,
        "string_max_length": 5,
        "list_max_length": 2,
        "site": "here",
        "processors": ("raven.processors.SanitizePasswordsProcessor",),
        "context": {"password": "hidden", "numbers": [1, 2, 3], "text": "much too long"},
        "tags": {"a": "b"},
        "sample_rate": 1,
        "ignore_exceptions": ("KeyError",),
    }
    async with sending(collector, client_options=options):
        log.error("ignored", exc_info=KeyError())
        log.error("here")
        log_failure()
    event, failure = sorted(collector.events, key=lambda event: "exception" in event)
    assert (event["server_name"], event["environment"], event["release"]) == (
        "machine",
        "tests",
        "1.2",
    )
    assert event["extra"]["password"].strip("'") == "*****"[:5]
    assert event["extra"]["numbers"] == ["1", "2"]
    assert event["extra"]["text"] == "'much '"
    assert event["tags"] == {"a": "b", "site": "here"}
    assert event["modules"].keys() == {"python", "svcrun"}
    assert event["stacktrace"]["frames"][-1]["function"] == (
        "test_each_option_of_the_client_has_its_effect"
    )
    frame = failure["exception"]["values"][-1]["stacktrace"]["frames"][-1]
    assert frame["in_app"] is frame["module"].startswith("tests")


async def test_variables_and_versions_can_be_omitted(collector: Collector) -> None:
    options = {"capture_locals": False, "include_versions": False}
    async with sending(collector, client_options=options):
        log_failure()
    (event,) = collector.events
    assert event["modules"] == {}
    assert "vars" not in event["exception"]["values"][0]["stacktrace"]["frames"][0]


async def test_the_configured_keys_are_masked(collector: Collector) -> None:
    options = {
        "sanitize_keys": ["plan"],
        "processors": ("raven.processors.SanitizeKeysProcessor",),
    }
    async with sending(collector, client_options=options):
        log.error("here", extra={"plan": "secret"})
    assert collector.events[0]["extra"]["plan"].strip("'") == "********"


async def test_a_sample_rate_of_zero_sends_nothing(collector: Collector) -> None:
    async with sending(collector, client_options={"sample_rate": 0}) as sender:
        log.error("here")
    assert collector.requests == []
    assert (sender.sent, sender.dropped) == (0, 0)


async def test_options_default_to_environment_variables(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NAME", "ENVIRONMENT", "RELEASE"):
        monkeypatch.setenv(f"SENTRY_{name}", name.lower())
    monkeypatch.setenv("SENTRY_DSN", collector.dsn())
    async with sending(collector, sentry_dsn="", client_options={"name": ""}):
        log.error("here")
    (event,) = collector.events
    found = event["server_name"], event["environment"], event["release"]
    assert found == ("name", "environment", "release")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sentry_dsn": "https://sentry.example.com/1"}, "sentry_dsn='https://@sentry.exa"),
        ({"sentry_dsn": "https://public:secret@/1"}, "sentry_dsn='...'"),
        ({"sentry_dsn": "https://public:secret@host"}, "sentry_dsn='https://...@host'"),
        ({"sentry_dsn": "ftp://public:secret@host/1"}, "sentry_dsn='ftp://...@host/1'"),
        ({"sentry_dsn": "https://public:secret@host:port/1"}, "sentry_dsn='...'"),
        ({"sentry_dsn": "public:secret"}, "sentry_dsn='...'"),
        ({"sentry_dsn": f"{KEYED}?timeout=0"}, "sentry_dsn with ?timeout='0'"),
        ({"sentry_dsn": f"{KEYED}?timeout=soon"}, "sentry_dsn with ?timeout='soon'"),
        ({"sentry_dsn": f"{KEYED}?verify_ssl=maybe"}, "sentry_dsn with ?verify_ssl='maybe'"),
        ({"sentry_dsn": f"{KEYED}?workers=2"}, "an option of sentry_dsn='workers'"),
        ({"sentry_dsn": f"{KEYED}?ca_certs=/nowhere"}, "sentry_dsn with ?ca_certs='/nowhere'"),
        ({"min_level": "loud"}, "min_level='loud'"),
        ({"filters": [1]}, "filters=1"),
        ({"filters": 1}, "filters=1"),
        ({"client_options": 1}, "client_options=1"),
        ({"client_options": {"relase": 1}}, "client_options=['relase']"),
        ({"queue_size": 0}, "queue_size=0"),
        ({"queue_size": 1.5}, "queue_size=1.5"),
        ({"flush_timeout": -1}, "flush_timeout=-1"),
        ({"flush_timeout": "1"}, "flush_timeout='1'"),
    ],
)
def test_an_error_about_a_wrong_value_contains_no_key(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, TypeError, OSError)) as caught:
        RavenSender(**({"sentry_dsn": KEYED} | options))
    assert refuses(caught.value, message)
    assert "secret" not in str(caught.value)
    assert "public" not in str(caught.value)


def test_the_address_is_required() -> None:
    with pytest.raises(AttributeError, match="RavenSender needs sentry_dsn="):
        RavenSender()


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sentry_dsn": ""}, "SENTRY_DSN"),
        ({"client_options": {"processors": ["nowhere.Processor"]}}, "No module named 'nowhere'"),
        ({"client_options": {"string_max_length": "long"}}, "invalid literal"),
        ({"client_options": {"hook_libraries": ["nothing"]}}, "Unknown library"),
    ],
)
async def test_an_option_that_the_constructor_cannot_check_is_refused_at_the_start(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SENTRY_DSN", raising=False)
    sender = RavenSender(**({"sentry_dsn": KEYED} | options))
    sender.set_loop(asyncio.get_running_loop())
    with pytest.raises(ValueError, match=message):
        await sender.start()
    await sender.stop()


@pytest.mark.usefixtures("no_leaks")
def test_an_invalid_ca_file_fails_the_start_and_leaves_nothing_behind(
    certificates: Certificates,
) -> None:
    async def main() -> None:
        dsn = f"https://public@localhost/1?ca_certs={certificates.server_key}"
        sender = RavenSender(sentry_dsn=dsn)
        sender.set_loop(asyncio.get_running_loop())
        await sender.start()

    with pytest.raises(ValueError, match=r"server\.key"):
        asyncio.run(main())


# Masked data, and restored state


async def test_neither_keys_nor_secrets_are_logged(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with sending(collector) as sender:
        log.error("here")
        assert "public" not in repr(sender)
    assert f"reporting to http://127.0.0.1:{collector.port}/42" in caplog.text
    assert "public" not in caplog.text
    assert "secret" not in caplog.text


async def test_records_of_the_libraries_that_send_are_not_reported(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with sending(collector, min_level=logging.DEBUG):
        log.debug("here")
    assert "here" in collector.messages
    libraries = ("raven", "sentry", "aiohttp", "svcrun")
    assert [e for e in collector.events if e["logger"].startswith(libraries)] == []


@pytest.mark.usefixtures("no_leaks", "no_global_client")
def test_a_start_and_a_stop_leave_nothing_behind_on_any_loop(
    loop_factory: LoopFactory, certificates: Certificates
) -> None:
    async def main(collector: Collector) -> None:
        sender = RavenSender(sentry_dsn=collector.dsn(f"?ca_certs={certificates.ca}"))
        sender.set_loop(asyncio.get_running_loop())
        for number in range(3):
            await sender.start()
            with pytest.raises(AlreadyRunning):
                await sender.start()
            log.error("number %d", number)
            await sender.stop()
            await sender.stop()
            assert (sender.sent, sender.dropped) == (1, 0)

    found = sys.excepthook, threading.excepthook
    with Collector(certificates) as collector:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main(collector))
        assert collector.messages == ["number 0", "number 1", "number 2"]
    assert (sys.excepthook, threading.excepthook) == found
    assert raven.base.Raven is None


@pytest.mark.usefixtures("no_global_client")
async def test_a_start_that_can_not_create_a_thread_leaves_nothing_behind(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    handlers, tasks = list(logging.getLogger().handlers), asyncio.all_tasks()
    sender = RavenSender(sentry_dsn=collector.dsn())
    sender.set_loop(asyncio.get_running_loop())
    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError, match="new thread"):
        await sender.start()
    assert (logging.getLogger().handlers, asyncio.all_tasks()) == (handlers, tasks)
    assert raven.base.Raven is None


async def test_concurrent_stops_share_one_stop(collector: Collector) -> None:
    sender = RavenSender(sentry_dsn=collector.dsn(), flush_timeout=20)
    sender.set_loop(asyncio.get_running_loop())
    await sender.start()
    for _ in range(20):
        log.error("here")
    await asyncio.gather(sender.stop(), sender.stop())
    assert (sender.sent, sender.dropped) == (20, 0)


async def test_a_stop_without_a_start_does_nothing() -> None:
    sender = RavenSender(sentry_dsn=KEYED)
    await sender.stop()
    assert (sender.sent, sender.dropped) == (0, 0)


async def test_events_that_the_program_captures_itself_are_sent_until_the_stop(
    collector: Collector,
) -> None:
    async with sending(collector) as sender:
        assert sender.client is not None
        sender.client.captureMessage("here")
        await asyncio.to_thread(sender.client.captureMessage, "there")
    sender.client.captureMessage("later")
    assert sorted(collector.messages) == ["here", "there"]
    assert (sender.sent, sender.dropped) == (2, 0)


async def test_the_excepthook_is_restored_by_the_stop(collector: Collector) -> None:
    found = sys.excepthook
    for _ in range(2):
        async with sending(collector, client_options={"install_sys_hook": True}):
            assert sys.excepthook is not found
        assert sys.excepthook is found


def test_a_sender_can_be_pickled_before_it_runs() -> None:
    sender = pickle.loads(pickle.dumps(RavenSender(sentry_dsn=KEYED, min_level="error")))  # noqa: S301
    assert (sender.sentry_dsn, sender.min_level) == (KEYED, "error")


def test_an_address_may_be_a_url() -> None:
    yarl = pytest.importorskip("yarl")
    RavenSender(sentry_dsn=yarl.URL(KEYED))
