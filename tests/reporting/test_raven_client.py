"""Laws of the client that works around defects of raven 6.10 on current versions of Python."""

import gc
import http.client
import logging
import sys
import weakref
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("raven")
pytest.importorskip("aiohttp")

import raven.breadcrumbs
import raven.context
from raven.transport.http import HTTPTransport

from svcrun.service.raven import RavenSender
from tests.reporting.collectors import Collector, answer
from tests.service.streams import running
from tests.support import eventually

log = logging.getLogger("test")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def sending(collector: Collector, **options: Any) -> AbstractAsyncContextManager[RavenSender]:
    return running(RavenSender(sentry_dsn=collector.dsn(), flush_timeout=20, **options))


def values(collector: Collector) -> list[dict[str, Any]]:
    (event,) = collector.events
    found: list[dict[str, Any]] = event["exception"]["values"]
    return found


async def test_the_blocking_transports_of_raven_are_not_used(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    # That for HTTPS calls ssl.wrap_socket, which Python 3.12 has no more.
    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(HTTPTransport, "send", fail)
    async with sending(collector) as sender:
        log.error("here")
    assert sender.sent == 1


async def test_an_error_is_sent_each_time_it_is_logged(collector: Collector) -> None:
    # raven remembers errors by the addresses of what they are made of, which are soon used again,
    # and sends none that it takes for one of those.
    error = ValueError()
    async with sending(collector):
        log.error("one", exc_info=error)
        log.error("two", exc_info=error)
    assert sorted(collector.messages) == ["one", "two"]


async def test_no_reference_to_an_error_is_kept_after_it_is_sent(collector: Collector) -> None:
    class Failure(Exception):
        pass

    async with sending(collector) as sender:
        error = Failure()
        reference = weakref.ref(error)
        exc_info = (Failure, error, None)
        # Not by a logger: pytest keeps its records.
        assert sender._svcrun_reporting.handler is not None
        sender._svcrun_reporting.handler.handle(
            logging.LogRecord("test", 40, "", 0, "here", (), exc_info)
        )
        del error, exc_info
        await eventually(lambda: sender.sent)
        gc.collect()
        await eventually(lambda: reference() is None)


async def test_events_after_a_failure_are_sent(collector: Collector) -> None:
    # raven drops all that comes within a while after a failure, and logs each.
    collector.answers.append(answer(400))
    async with sending(collector) as sender:
        for _ in range(5):
            log.error("here")
    assert (sender.sent, sender.dropped) == (4, 1)


async def test_an_event_has_the_members_of_an_exception_group(collector: Collector) -> None:
    inner = ExceptionGroup("inner", [KeyError("a")])
    async with sending(collector):
        log.error("here", exc_info=ExceptionGroup("outer", [ValueError("b"), inner]))
    found = [value["value"].partition(" (")[0] for value in values(collector)]
    assert found == ["'a'", "inner", "b", "outer"]


async def test_an_event_has_the_causes_of_an_exception_even_if_they_form_a_cycle(
    collector: Collector,
) -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    async with sending(collector):
        log.error("here", exc_info=first)
    assert [value["value"] for value in values(collector)] == ["second", "first"]


async def test_an_event_has_the_notes_of_an_exception(collector: Collector) -> None:
    error = ValueError("why")
    error.add_note("because")
    async with sending(collector):
        log.error("here", exc_info=error)
    assert values(collector)[0]["value"] == "why\nbecause"


async def test_an_event_has_frames_without_line_numbers(collector: Collector) -> None:
    # raven fails where a line is None, as it is in generated code.
    def fail() -> None:
        raise ValueError

    # Entries of the table of lines that say "none", each for up to eight code units. They must not
    # tell of more than there are: with a trace function Python writes behind its memory then.
    full, rest = divmod(len(fail.__code__.co_code) // 2, 8)
    table = bytes([0xF8 | 7] * full + [0xF8 | rest - 1] * bool(rest))
    fail.__code__ = fail.__code__.replace(co_linetable=table)
    async with sending(collector):
        try:
            fail()
        except ValueError:
            log.exception("here")
    frame = values(collector)[0]["stacktrace"]["frames"][-1]
    assert (frame["function"], frame["lineno"]) == ("fail", fail.__code__.co_firstlineno)


async def test_a_record_that_raven_can_not_read_is_sent_as_text(collector: Collector) -> None:
    async with sending(collector) as sender:
        try:
            raise ValueError("why")
        except ValueError:
            log.exception("here", extra={"tags": 5})
    (event,) = collector.events
    assert (sender.sent, sender.dropped) == (1, 0)
    assert event["message"] == "here"
    assert "ValueError: why" in event["extra"]["traceback"]


async def test_variables_whose_repr_fails_are_sent(collector: Collector) -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

    def fail(odd: Odd, text: str, number: float, circle: list[Any]) -> None:
        raise ValueError

    circle: list[Any] = []
    circle.append(circle)
    async with sending(collector) as sender:
        try:
            fail(Odd(), "\udcff" * 10_000, float("nan"), circle)
        except ValueError:
            log.exception("here")
    assert (sender.sent, sender.dropped) == (1, 0)
    frame = values(collector)[0]["stacktrace"]["frames"][-1]
    assert "Odd" in frame["vars"]["odd"]
    assert len(frame["vars"]["text"]) < 1000


async def test_versions_are_found_without_pkg_resources(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # raven uses it, which is removed or deprecated.
    (tmp_path / "pkg_resources.py").write_text("raise DeprecationWarning")
    monkeypatch.syspath_prepend(tmp_path)
    options = {"include_paths": ["aiohttp.web", "nowhere"]}
    async with sending(collector, client_options=options):
        log.error("here")
    assert collector.events[0]["modules"].keys() == {"python", "aiohttp"}


async def test_neither_interpreter_nor_logging_nor_libraries_are_patched(
    collector: Collector,
) -> None:
    found = (
        sys.excepthook,
        logging.Logger.error,
        logging.Logger.log,
        http.client.HTTPConnection.putrequest,
    )
    async with sending(collector):
        assert found == (
            sys.excepthook,
            logging.Logger.error,
            logging.Logger.log,
            http.client.HTTPConnection.putrequest,
        )


async def test_no_reference_to_the_client_of_a_former_run_is_kept(collector: Collector) -> None:
    # Other tests, and programs, may have contexts of their own.
    before = raven.context.get_active_contexts()
    for _ in range(5):
        async with sending(collector):
            pass
    after = raven.context.get_active_contexts()
    assert [context for context in after if context not in before] == []
