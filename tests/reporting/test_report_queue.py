"""Laws of the handler that queues log records, and of the thread that makes reports of them."""

import asyncio
import contextvars
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from svcrun._reporting.report_queue import (
    Report,
    ReportHandler,
    claim_report,
    make_unhandled,
    unreported,
)
from svcrun.log.records import LazyRecord
from tests.support import PATIENCE, eventually

log = logging.getLogger("test")

user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="none")


class Reports(list[Report]):
    """A transport that collects reports while its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def make(self, report: Report) -> None:
        self.entered.set()
        self.gate.wait(30)
        self.append(report)


@asynccontextmanager
async def reporting(
    make: Callable[[Report], object], *, timeout: float = 30, **options: Any
) -> AsyncIterator[ReportHandler]:
    handler = ReportHandler(make, **({"level": logging.WARNING} | options))
    handler.attach()
    try:
        yield handler
    finally:
        await handler.finish(timeout)


@pytest.fixture
def reports() -> Reports:
    return Reports()


def messages(reports: Reports) -> list[str]:
    return [report.record.message for report in reports]


@pytest.mark.usefixtures("no_leaks")
async def test_records_that_wait_at_the_stop_are_reported_and_nothing_is_left(
    reports: Reports,
) -> None:
    async with reporting(reports.make):
        for number in range(50):
            log.warning("number %d", number)
    assert messages(reports) == [f"number {number}" for number in range(50)]


async def test_level_and_filters_select_the_reported_records(reports: Reports) -> None:
    filters = [logging.Filter("test"), lambda record: "no" not in record.msg]
    async with reporting(reports.make, level=logging.ERROR, filters=filters):
        log.warning("less")
        log.error("yes")
        log.error("no")
        logging.getLogger("another").error("yes")
    assert messages(reports) == ["yes"]


async def test_a_failing_filter_loses_no_record(
    reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(record: logging.LogRecord) -> bool:
        raise ZeroDivisionError

    async with reporting(reports.make, filters=[fail]):
        log.warning("here")
    assert messages(reports) == ["here"]
    assert "a filter failed" in caplog.text


async def test_an_error_of_the_snapshot_is_logged_and_not_raised_by_the_log_call(
    reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    async with reporting(reports.make, snapshot=fail) as handler:
        log.warning("here")
    assert handler.dropped == 1
    assert "could not queue a log record" in caplog.text


async def test_a_report_has_the_values_of_the_time_of_the_log_call(reports: Reports) -> None:
    reports.gate.clear()
    async with reporting(reports.make):
        values, tags = [1], {"a": [1]}
        log.warning("values %s %s", values, 1, extra={"tags": tags})
        log.warning("values %(it)s", {"it": values})
        log.warning(values)
        values.append(2)
        tags["a"].append(2)
        reports.gate.set()
    assert messages(reports) == ["values [1] 1", "values [1]", "[1]"]
    first, second, third = (report.record for report in reports)
    assert (first.msg, first.args) == ("values %s %s", ("[1]", 1))
    assert (second.msg, second.args) == ("values %(it)s", {"it": "[1]"})
    assert (third.msg, third.args) == ("[1]", None)
    assert vars(first)["tags"] == {"a": [1]}


async def test_the_record_stays_as_it_is_for_other_handlers(reports: Reports) -> None:
    record = logging.LogRecord("test", logging.WARNING, "", 0, "values %s %s", ([1], 2), None)
    async with reporting(reports.make) as handler:
        handler.handle(record)
    assert (record.msg, record.args) == ("values %s %s", ([1], 2))


async def test_a_message_that_fails_to_render_is_reported(reports: Reports) -> None:
    async with reporting(reports.make) as handler:  # pytest's own handler would raise
        handler.handle(logging.LogRecord("test", logging.WARNING, "", 0, "%d", ("text",), None))
    assert messages(reports) == ["unprintable message '%d'"]


async def test_a_lazy_record_is_reported(reports: Reports) -> None:
    class Late(LazyRecord):
        levelno = logging.WARNING

        def compute(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
            return "late %d", (1,), {"more": 2}

    like = logging.LogRecord("test", logging.WARNING, "", 0, "", (), None)
    async with reporting(reports.make):
        log.handle(Late(like))
    assert messages(reports) == ["late 1"]
    assert vars(reports[0].record)["more"] == 2


async def test_a_report_is_made_in_the_context_of_the_log_call() -> None:
    found = []
    async with reporting(lambda _: found.append(user.get())):
        user.set("alice")
        log.warning("here")
        user.set("bob")
    assert found == ["alice"]


async def test_the_snapshot_is_taken_in_the_log_call(reports: Reports) -> None:
    async with reporting(reports.make, snapshot=user.get):
        user.set("alice")
        log.warning("here")
        user.set("bob")
    assert [report.snapshot for report in reports] == ["alice"]


async def test_a_report_that_the_transport_has_no_room_for_counts_as_dropped() -> None:
    async with reporting(lambda _: False) as handler:
        log.warning("here")
    assert (handler.dropped, handler.failed) == (1, 0)


async def test_the_stack_of_the_log_call_is_taken_on_request(reports: Reports) -> None:
    async with reporting(reports.make):
        log.warning("without")
        log.warning("with", extra={"stack": True})
    async with reporting(reports.make, stacks=True):
        log.warning("with")
        log.warning("with", exc_info=ValueError())
    without, asked, always, error = (report.stack for report in reports)
    assert without is error is None
    for stack in (asked, always):
        assert stack is not None
        frame, line = stack[-1]
        assert frame.f_code is test_the_stack_of_the_log_call_is_taken_on_request.__code__
        assert frame.f_code.co_firstlineno < line < frame.f_code.co_firstlineno + 10
        assert stack[0][0].f_back is None


async def test_records_beyond_the_queue_size_are_dropped_and_counted_in_the_log(
    reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    reports.gate.clear()
    async with reporting(reports.make, queue_size=10) as handler:
        log.warning("first")
        await asyncio.to_thread(reports.entered.wait)
        for number in range(100):
            log.warning("number %d", number)
        assert handler.dropped == 90
        reports.gate.set()
    assert messages(reports) == ["first", *(f"number {number}" for number in range(10))]
    assert "90 in all" in caplog.text


async def test_an_error_in_a_report_is_logged_and_counted(
    reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    def make(report: Report) -> None:
        reports.append(report)
        raise SystemExit("of a variable's __repr__")

    async with reporting(make) as handler:
        log.warning("one")
        log.warning("two")
    assert messages(reports) == ["one", "two"]
    assert (handler.failed, handler.dropped) == (2, 0)
    assert "could not make a report: SystemExit" in caplog.text


async def test_a_report_that_hangs_is_abandoned_after_the_timeout(
    reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    reports.gate.clear()
    async with reporting(reports.make, timeout=0.01) as handler:
        for _ in range(3):
            log.warning("here")
        await asyncio.to_thread(reports.entered.wait)
    assert handler.dropped == 3
    assert "3 in all" in caplog.text
    reports.gate.set()
    await eventually(lambda: not [t for t in threading.enumerate() if t.name == "svcrun-reports"])
    log.warning("later")
    assert messages(reports) == ["here"]


@pytest.mark.parametrize("is_late", [False, True])
async def test_an_abandoned_report_is_counted_once(is_late: bool) -> None:
    """Either the transport claims it in time, or it counts as dropped."""
    entered, gate, claimed = threading.Event(), threading.Event(), []

    def make(_: Report) -> None:
        if not is_late:
            claimed.append(claim_report())
        entered.set()
        gate.wait(PATIENCE)
        if is_late:
            claimed.append(claim_report())

    handler = ReportHandler(make, level=logging.WARNING)
    handler.attach()
    log.warning("current")
    await asyncio.to_thread(entered.wait, PATIENCE)
    log.warning("waiting")
    await handler.finish(0)
    gate.set()
    await eventually(lambda: claimed == [not is_late])
    assert handler.dropped == (2 if is_late else 1)
    assert claim_report()  # in a thread that makes no reports


async def test_log_records_of_the_reporting_itself_are_not_reported(reports: Reports) -> None:
    async def report_from_task() -> None:
        log.error("from a task of it")

    def make(report: Report) -> None:
        reports.append(report)
        log.error("from its thread")

    async with reporting(make), reporting(reports.make):
        with unreported():
            log.error("from a block of it")
            task = asyncio.create_task(report_from_task())
        await task
        log.error("from elsewhere")
    assert messages(reports) == ["from elsewhere"] * 2


async def test_an_error_whose_record_was_dropped_counts_as_unreported(reports: Reports) -> None:
    reports.gate.clear()
    async with reporting(reports.make, queue_size=1) as handler:
        log.error("first")
        await asyncio.to_thread(reports.entered.wait)
        log.error("second")
        lost = ValueError()
        log.error("third", exc_info=lost)
        assert not handler.has_reported(lost)
        reports.gate.set()
        await eventually(lambda: len(reports) == 2)
        handler.report_unhandled(lost)
    assert messages(reports) == ["first", "second", "Unhandled exception"]


async def test_a_handler_knows_the_errors_that_it_has_reported(reports: Reports) -> None:
    logged, other = ValueError(), ValueError()
    async with reporting(reports.make) as handler, reporting(reports.make, level=100) as deaf:
        log.error("here", exc_info=logged)
        assert handler.has_reported(logged)
        assert not handler.has_reported(other)
        assert not deaf.has_reported(logged)


def test_the_record_of_an_unhandled_error_has_its_file_and_traceback() -> None:
    try:
        raise ValueError("why")
    except ValueError as error:
        record = make_unhandled(error)
    assert record.pathname == __file__
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "why"


async def test_a_forked_child_reports_nothing(reports: Reports) -> None:
    async with reporting(reports.make) as handler:
        pid = os.getpid()
        log.warning("parent")
        handler._pid = pid + 1  # as in a forked child
        log.warning("child")
        handler._pid = pid
    assert messages(reports) == ["parent"]


async def test_finishing_without_a_start_or_twice_does_nothing(reports: Reports) -> None:
    handler = ReportHandler(reports.make, level=0)
    await handler.finish(1)
    handler.attach()
    await handler.finish(1)
    await handler.finish(1)
