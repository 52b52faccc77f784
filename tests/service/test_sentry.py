"""SentrySender: the reported errors, and the events that sentry-sdk builds of them."""

import asyncio
import logging
import pickle
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

sentry_sdk = pytest.importorskip("sentry_sdk")

from svcrun import Service, entrypoint, threaded  # noqa: E402 - after sentry_sdk is known to be there
from svcrun.errors import AlreadyRunning  # noqa: E402
from svcrun.service.sentry import SentrySender  # noqa: E402
from tests.conftest import Certificates  # noqa: E402
from tests.reporting.collectors import answer  # noqa: E402
from tests.reporting.envelopes import EnvelopeCollector, Event  # noqa: E402
from tests.support import eventually  # noqa: E402

log = logging.getLogger("test")


@pytest.fixture
def collector() -> Iterator[EnvelopeCollector]:
    with EnvelopeCollector() as server:
        yield server


@asynccontextmanager
async def running(sender: SentrySender) -> AsyncIterator[SentrySender]:
    """Start a sender for the block, with a scope of sentry that no other test has changed."""
    with sentry_sdk.isolation_scope() as scope:
        scope.clear()
        await sender.start()
        try:
            yield sender
        finally:
            await sender.stop()


def tag(event: Event) -> str | None:
    found: str | None = event.get("tags", {}).get("service")
    return found


# Reported events


@pytest.mark.usefixtures("no_leaks")
async def test_an_exception_is_reported_with_its_frames_and_variables() -> None:
    with EnvelopeCollector() as collector:
        async with running(collector.sender()) as sender:
            answer_of_all = 42
            try:
                _ = answer_of_all / 0
            except ZeroDivisionError:
                log.exception("can't divide %d", answer_of_all, extra={"unit": "m"})
        assert (sender.sent, sender.dropped) == (1, 0)
        (event,) = collector.events
    assert event["level"] == "error"
    assert event["logger"] == "test"
    assert event["logentry"] == {
        "message": "can't divide %d",
        "formatted": "can't divide 42",
        "params": [42],
    }
    assert event["extra"]["unit"] == "m"
    (error,) = event["exception"]["values"]
    assert (error["type"], error["value"]) == ("ZeroDivisionError", "division by zero")
    assert error["mechanism"] == {"type": "logging", "handled": True}
    frame = error["stacktrace"]["frames"][-1]
    assert "answer_of_all / 0" in frame["context_line"]
    assert frame["vars"]["answer_of_all"] == "42"


async def test_level_and_filters_select_the_reported_records(collector: EnvelopeCollector) -> None:
    filters = [logging.Filter("test"), lambda record: "no" not in record.msg]
    async with running(collector.sender(min_level="error", filters=filters)):
        log.warning("less")
        log.error("yes")
        log.error("no")
        logging.getLogger("another").error("yes, but not here")
    assert collector.messages == ["yes"]


@pytest.mark.parametrize(
    ("level", "name"), [(10, "debug"), (25, "info"), (30, "warning"), (55, "fatal")]
)
async def test_each_logging_level_maps_to_a_level_of_sentry(
    collector: EnvelopeCollector, caplog: pytest.LogCaptureFixture, level: int, name: str
) -> None:
    logger = logging.getLogger("test.level")
    caplog.set_level(1, logger.name)
    async with running(collector.sender(min_level=0)):
        logger.log(level, "now")
    assert [event["level"] for event in collector.events if event["logger"] == logger.name] == [
        name
    ]


async def test_an_error_of_a_task_that_is_not_awaited_is_reported(
    collector: EnvelopeCollector,
) -> None:
    async def fail() -> None:
        raise KeyError("lost")

    async with running(collector.sender()):
        task = asyncio.create_task(fail(), name="loser")
        await asyncio.wait([task])
    assert isinstance(task.exception(), KeyError)
    (event,) = collector.events
    assert event["logentry"]["formatted"] == "Unhandled exception in task loser"
    assert event["exception"]["values"][-1]["mechanism"]["handled"] is False
    assert event["exception"]["values"][-1]["stacktrace"]["frames"][-1]["function"].endswith("fail")


async def test_a_cancellation_or_exit_of_a_task_is_not_reported(
    collector: EnvelopeCollector,
) -> None:
    async def nothing() -> Any:
        return
        yield

    async with running(collector.sender()):
        tasks = [
            asyncio.create_task(asyncio.sleep(60)),
            asyncio.ensure_future(anext(nothing())),
        ]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.wait(tasks)
    assert collector.events == []


async def test_a_task_that_is_cancelled_before_it_begins_causes_no_warning(
    collector: EnvelopeCollector, recwarn: pytest.WarningsRecorder
) -> None:
    async with running(collector.sender()):
        task = asyncio.create_task(asyncio.sleep(60))
        task.cancel()
        await asyncio.wait([task])
        del task
    assert not recwarn.list


async def test_events_that_the_program_captures_itself_are_sent(
    collector: EnvelopeCollector,
) -> None:
    async with running(collector.sender()):
        sentry_sdk.set_tag("color", "green")
        sentry_sdk.capture_message("hello")
    (event,) = collector.events
    assert event["message"] == "hello"
    assert event["tags"]["color"] == "green"


async def test_an_event_has_the_breadcrumbs_from_before_it_only(
    collector: EnvelopeCollector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, log.name)
    async with running(collector.sender()):
        log.info("first %s", "this")
        log.error("then")
        log.info("last")
    (event,) = collector.events
    assert [crumb["message"] for crumb in event["breadcrumbs"]["values"]] == ["first this"]


async def test_tasks_do_not_see_the_tags_of_each_other(collector: EnvelopeCollector) -> None:
    async def request(name: str) -> None:
        sentry_sdk.set_tag("request", name)
        await asyncio.sleep(0)
        log.error(name)

    async with running(collector.sender()):
        await asyncio.gather(request("one"), request("two"))
    assert {
        event["logentry"]["formatted"]: event["tags"]["request"] for event in collector.events
    } == {
        "one": "one",
        "two": "two",
    }


async def test_attach_stacktrace_adds_the_stack_of_a_log_call(collector: EnvelopeCollector) -> None:
    async with running(collector.sender(client_options={"attach_stacktrace": True})):
        log.error("here")
    (event,) = collector.events
    (thread,) = event["threads"]["values"]
    assert 'log.error("here")' in thread["stacktrace"]["frames"][-1]["context_line"]


# Tags of services


class Worker(Service):
    """A service that fails in every way that is reported."""

    async def start(self) -> None:
        sentry_sdk.capture_message("captured")
        log.error("logged")
        self.task = asyncio.create_task(self.fail())
        await threaded(log.error)("in a thread")
        await asyncio.gather(self.task, return_exceptions=True)

    async def fail(self) -> None:
        raise ValueError("in a task")


async def test_events_are_tagged_with_the_service_at_work(
    collector: EnvelopeCollector,
) -> None:
    async with entrypoint(collector.sender(), Worker(name="busy"), log_config=False):
        log.error("outside")
    tags = {
        event.get("message") or event["logentry"]["formatted"]: tag(event)
        for event in collector.events
    }
    assert tags.pop("outside") is None
    assert len(tags) == 4
    assert set(tags.values()) == {"busy"}


async def test_a_service_tag_set_by_the_program_is_kept(collector: EnvelopeCollector) -> None:
    async with running(collector.sender()):
        sentry_sdk.set_tag("service", "mine")
        log.error("now")
    assert [tag(event) for event in collector.events] == ["mine"]


# Once.


async def test_an_error_that_is_captured_several_times_is_reported_once(
    collector: EnvelopeCollector,
) -> None:
    async def inner() -> None:
        try:
            raise ValueError("seen")
        except ValueError as error:
            sentry_sdk.capture_exception(error)
            log.exception("once")
            raise

    async def outer() -> None:
        await asyncio.create_task(inner())

    async with running(collector.sender()):
        with pytest.raises(ValueError, match="seen"):
            await asyncio.create_task(outer())
        try:
            await outer()
        except ValueError:
            log.exception("another one of its kind")
    assert collector.errors == ["seen"] * 2


async def test_a_crash_is_reported_once(collector: EnvelopeCollector) -> None:
    class Crash(Service):
        on_crash = "ignore"

        async def start(self) -> None:
            self.start_event.set()
            await asyncio.sleep(0)
            raise ValueError("crash")

    crash = Crash(name="unlucky")
    async with entrypoint(collector.sender(), crash, log_config=False):
        await eventually(lambda: crash.state.name == "FAILED")
    (event,) = collector.events
    assert tag(event) == "unlucky"


async def test_the_error_of_the_block_is_reported(collector: EnvelopeCollector) -> None:
    with pytest.raises(ValueError, match="block"):
        async with entrypoint(collector.sender(), log_config=False):
            raise ValueError("block")
    assert collector.errors == ["block"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError])
async def test_a_deliberate_end_of_the_block_is_not_reported(
    collector: EnvelopeCollector, error: type[BaseException]
) -> None:
    sender = collector.sender()
    await sender.start()
    await sender.stop(error())
    assert collector.events == []


async def test_errors_of_other_services_during_the_shutdown_are_reported(
    collector: EnvelopeCollector,
) -> None:
    class Last(Service):
        async def start(self) -> None:
            pass

        async def stop(self, exception: BaseException | None = None) -> None:
            await asyncio.sleep(0.05)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        async with entrypoint(collector.sender(), Last(), log_config=False):
            pass
    assert collector.errors == ["stop"]


# Parameters.


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"sentry_dsn": "nonsense"}, "sentry_dsn"),
        ({"sentry_dsn": "https://public:secret@host/project"}, "sentry_dsn"),
        ({"sentry_dsn": "https://public:secret@host:port/1"}, "sentry_dsn"),
        ({"sentry_dsn": 42}, "sentry_dsn"),
        ({"min_level": "loud"}, "min_level"),
        ({"client_options": ["release"]}, "client_options"),
        ({"client_options": {"colour": "red"}}, "colour"),
        ({"client_options": {"dsn": "https://public:secret@host/1"}}, "sentry_dsn"),
        ({"client_options": {"integrations": 3}}, "integrations"),
        ({"client_options": {"integrations": [Worker]}}, "integrations"),
        ({"client_options": {"disabled_integrations": ["asyncio"]}}, "disabled_integrations"),
        ({"client_options": {"ca_certs": "/absent/ca.pem"}}, "ca_certs.*/absent/ca.pem"),
        ({"filters": 3}, "filters"),
        ({"filters": [3]}, "filters"),
        ({"queue_size": 0}, "queue_size"),
        ({"flush_timeout": -1}, "flush_timeout"),
    ],
)
def test_an_error_about_a_wrong_value_names_it_and_contains_no_key(
    parameters: dict[str, Any], named: str
) -> None:
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=named) as caught:
        SentrySender(**{"sentry_dsn": "https://public@host/1"} | parameters)
    assert "secret" not in str(caught.value)


async def test_an_option_that_sentry_refuses_is_an_error_of_the_start(
    collector: EnvelopeCollector,
) -> None:
    factory = asyncio.get_running_loop().get_task_factory()
    sender = collector.sender(client_options={"max_request_body_size": "huge"})
    with pytest.raises(ValueError, match=r"client_options.*max_request_body_size"):
        await sender.start()
    assert not sentry_sdk.is_initialized()
    assert asyncio.get_running_loop().get_task_factory() is factory


async def test_options_and_the_environment_reach_sentry(
    collector: EnvelopeCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENTRY_DSN", collector.dsn())
    monkeypatch.setenv("SENTRY_ENVIRONMENT", "tests")
    monkeypatch.setenv("SENTRY_RELEASE", "1.2.3")
    options = {"server_name": "here", "before_send": lambda event, hint: event | {"dist": "x"}}
    async with running(SentrySender(client_options=options)):
        log.error("now")
    (event,) = collector.events
    assert (event["environment"], event["release"], event["server_name"], event["dist"]) == (
        *("tests", "1.2.3", "here"),
        "x",
    )


async def test_without_an_address_the_start_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SENTRY_DSN", raising=False)
    with pytest.raises(ValueError, match="SENTRY_DSN"):
        await SentrySender().start()


async def test_integrations_of_the_program_are_used(collector: EnvelopeCollector) -> None:
    from sentry_sdk.integrations.asyncio import AsyncioIntegration
    from sentry_sdk.integrations.logging import LoggingIntegration

    async def fail() -> None:
        raise ValueError("in a task")

    integrations = [AsyncioIntegration(), LoggingIntegration(level=logging.ERROR)]
    loop = asyncio.get_running_loop()
    for _ in range(2):  # sentry sets up an integration once in a process
        async with running(collector.sender(client_options={"integrations": integrations})):
            log.warning("no breadcrumb")
            await asyncio.gather(asyncio.create_task(fail()), return_exceptions=True)
        assert loop.get_task_factory() is None
    errors = [event for event in collector.events if "exception" in event]
    assert [event["exception"]["values"][0]["mechanism"]["type"] for event in errors] == [
        "asyncio",
        "asyncio",
    ]
    assert [event.get("breadcrumbs") for event in errors] == [{"values": []}] * 2
    assert collector.messages == ["no breadcrumb"] * 2


async def test_integrations_can_be_disabled(collector: EnvelopeCollector) -> None:
    from sentry_sdk.integrations.asyncio import AsyncioIntegration

    options = {"disabled_integrations": [AsyncioIntegration]}
    async with running(collector.sender(client_options=options)):
        assert asyncio.get_running_loop().get_task_factory() is None


def test_a_sender_can_be_pickled_before_it_runs() -> None:
    sender = SentrySender(sentry_dsn="https://public@host/1", min_level="error")
    assert pickle.loads(pickle.dumps(sender)).min_level == "error"  # noqa: S301 - our own


# One client.


async def test_the_sentry_client_of_the_program_is_restored_by_the_stop(
    collector: EnvelopeCollector,
) -> None:
    with EnvelopeCollector() as other:
        sentry_sdk.init(other.dsn(), default_integrations=False)
        found = sentry_sdk.get_client()
        try:
            async with running(collector.sender()):
                sentry_sdk.capture_message("ours")
            assert sentry_sdk.get_client() is found
            sentry_sdk.capture_message("theirs")
        finally:
            found.close(timeout=10)
            sentry_sdk.get_global_scope().set_client(None)
        assert [event["message"] for event in other.events] == ["theirs"]
    assert [event["message"] for event in collector.events] == ["ours"]


async def test_a_sentry_client_that_the_program_sets_at_run_time_stays(
    collector: EnvelopeCollector,
) -> None:
    async with running(collector.sender()):
        sentry_sdk.init(default_integrations=False)
        theirs = sentry_sdk.get_client()
    try:
        assert sentry_sdk.get_client() is theirs
    finally:
        sentry_sdk.get_global_scope().set_client(None)


async def test_a_second_sender_is_refused_and_the_first_continues(
    collector: EnvelopeCollector,
) -> None:
    async with running(collector.sender()) as sender:
        with pytest.raises(RuntimeError, match="leave out one of the two"):
            await collector.sender().start()
        with pytest.raises(AlreadyRunning):
            await sender.start()
        log.error("still here")
    assert collector.messages == ["still here"]


async def test_the_stop_restores_all_hooks(collector: EnvelopeCollector) -> None:
    def factory(loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=loop, **options)

    async def begin() -> None:
        """Be a task."""

    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    handlers = logging.getLogger().handlers
    try:
        async with running(collector.sender()):
            assert loop.get_task_factory() is not factory
            await loop.create_task(begin())
        assert loop.get_task_factory() is factory
    finally:
        loop.set_task_factory(None)
    assert logging.getLogger().handlers == handlers
    assert not sentry_sdk.is_initialized()
    log.error("not reported")
    assert collector.events == []


async def test_a_failed_start_restores_all_hooks(
    collector: EnvelopeCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    loop = asyncio.get_running_loop()
    handlers = logging.getLogger().handlers
    sender = collector.sender()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="new thread"):
            await sender.start()
    assert loop.get_task_factory() is None
    assert logging.getLogger().handlers == handlers
    assert not sentry_sdk.is_initialized()
    async with running(sender):
        log.error("now it can")
    assert collector.messages == ["now it can"]


async def test_a_stopped_sender_can_be_started_again(collector: EnvelopeCollector) -> None:
    sender = collector.sender()
    for number in range(3):
        async with running(sender):
            log.error("life %d", number)
            await asyncio.gather(asyncio.create_task(_fail(number)), return_exceptions=True)
    assert collector.messages[::2] == [f"life {number}" for number in range(3)]
    assert collector.errors == ["0", "1", "2"]


async def _fail(number: int) -> None:
    raise ValueError(str(number))


async def test_a_stop_without_a_start_does_nothing() -> None:
    sender = SentrySender(sentry_dsn="https://public@host/1")
    await sender.stop()
    assert (sender.sent, sender.dropped) == (0, 0)


@pytest.mark.usefixtures("no_leaks")
async def test_two_concurrent_stops_of_a_sender_succeed() -> None:
    with EnvelopeCollector() as collector:
        sender = collector.sender()
        await sender.start()
        log.error("now")
        await asyncio.gather(sender.stop(), sender.stop())
        assert collector.messages == ["now"]


# Over TLS.


async def test_reports_go_over_tls(certificates: Certificates) -> None:
    with EnvelopeCollector(certificates) as collector:
        options = {"ca_certs": str(certificates.ca)}
        async with running(collector.sender(client_options=options)):
            log.error("secretly")
        assert collector.messages == ["secretly"]


async def test_a_server_with_an_untrusted_certificate_gets_no_event(
    certificates: Certificates,
) -> None:
    with EnvelopeCollector(certificates) as collector:
        options = {"ca_certs": str(certificates.other_ca)}
        async with running(collector.sender(client_options=options)) as sender:
            log.error("secretly")
        assert collector.requests == []
        assert sender.dropped == 1


async def test_the_errors_of_a_thread_are_reported(collector: EnvelopeCollector) -> None:
    def fail() -> None:
        raise ValueError("thread")

    async with entrypoint(collector.sender(), log_format="plain"):
        thread = threading.Thread(target=fail)
        thread.start()
        await asyncio.to_thread(thread.join)
    assert collector.errors == ["thread"]


async def test_rejected_events_are_counted(collector: EnvelopeCollector) -> None:
    collector.usual = answer(400)
    async with running(collector.sender()) as sender:
        log.error("now")
    assert (sender.sent, sender.dropped) == (0, 1)
