"""The threaded handler never blocks a log call, and writes every record."""

import contextlib
import gc
import io
import itertools
import logging
import os
import select
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from svcrun.log import ThreadedHandler
from svcrun.log.handler import MAX_EXCEPTIONS
from svcrun.log.writer import THREAD_NAME
from tests.support import PATIENCE, nothing_left, refuses


class Collector(logging.Handler):
    """A handler that keeps its records, and blocks while its gate is closed."""

    def __init__(self, *, gate: threading.Event | None = None) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.threads: set[str] = set()
        self.busy = threading.Event()
        self.flushed = self.closed = 0
        self._gate = gate

    def emit(self, record: logging.LogRecord) -> None:
        self.busy.set()
        if self._gate is not None:
            self._gate.wait(PATIENCE)
        self.texts.append(record.getMessage())
        self.threads.add(threading.current_thread().name)

    def flush(self) -> None:
        self.flushed += 1

    def close(self) -> None:
        self.closed += 1
        super().close()


class Gated(io.StringIO):
    """A stream that blocks until its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.busy = threading.Event(), threading.Event()
        self.threads: set[int] = set()

    def write(self, text: str) -> int:
        self.threads.add(threading.get_ident())
        self.busy.set()
        self.gate.wait(PATIENCE)
        return super().write(text)


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """A logger without the handlers of the root logger."""
    logger = logging.Logger("test", logging.DEBUG)  # noqa: LOG001 - it must not be shared
    with nothing_left():
        yield logger
        for handler in logger.handlers:
            handler.close()


def attach(logger: logging.Logger, target: logging.Handler, **options: Any) -> ThreadedHandler:
    handler = ThreadedHandler(target, **options)
    logger.addHandler(handler)
    return handler


def log_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def test_records_are_written_in_their_order_by_a_thread_of_that_name(log: logging.Logger) -> None:
    target = Collector()
    attach(log, target)
    for number in range(5000):
        log.info("%d", number)
    log.handlers[0].close()
    assert target.texts == [str(number) for number in range(5000)]
    assert target.threads == {THREAD_NAME}


def test_a_handler_without_records_starts_no_thread(log: logging.Logger) -> None:
    before = log_threads()
    attach(log, Collector())
    log.handlers[0].flush()
    log.handlers[0].close()
    assert log_threads() == before


def test_a_record_is_written_after_the_flush_interval_without_another_one(
    log: logging.Logger,
) -> None:
    target = Collector()
    attach(log, target, flush_interval=0.01)
    log.info("alone")
    assert target.busy.wait(PATIENCE)


def test_the_writer_wakes_at_buffer_size_and_not_before(log: logging.Logger) -> None:
    target = Collector()
    attach(log, target, buffer_size=10, flush_interval=3600)
    for number in range(9):
        log.info("%d", number)
    assert not target.busy.wait(0.2)
    log.info("9")
    assert target.busy.wait(PATIENCE)


def test_after_a_flush_records_are_collected_again(log: logging.Logger) -> None:
    target = Collector()
    handler = attach(log, target, flush_interval=3600)
    for _ in range(3):
        log.info("x")
        handler.flush()
        target.busy.clear()
    log.info("x")
    assert not target.busy.wait(0.2)


@pytest.mark.parametrize("level", [logging.ERROR, logging.CRITICAL])
def test_an_error_is_written_at_once(log: logging.Logger, level: int) -> None:
    target = Collector()
    attach(log, target, flush_interval=3600)
    log.info("before")
    log.log(level, "bad")
    assert target.busy.wait(PATIENCE)


def test_a_blocked_handler_blocks_no_log_call_and_gets_every_record(log: logging.Logger) -> None:
    gate = threading.Event()
    target = Collector(gate=gate)
    attach(log, target)
    log.info("0")
    assert target.busy.wait(PATIENCE) or log_threads()
    for number in range(1, 20_000):  # would never end if it waited for the gate
        log.info("%d", number)
    assert not target.texts
    gate.set()
    log.handlers[0].close()
    assert target.texts == [str(number) for number in range(20_000)]


def test_a_blocked_stream_blocks_no_log_call_and_gets_every_record(log: logging.Logger) -> None:
    stream = Gated()
    attach(log, logging.StreamHandler(stream), flush_interval=0)
    log.info("0")
    assert stream.busy.wait(PATIENCE)
    for number in range(1, 20_000):
        log.info("%d", number)
    stream.gate.set()
    log.handlers[0].close()
    assert stream.getvalue().split() == [str(number) for number in range(20_000)]


def test_records_logged_during_a_write_are_written_together(log: logging.Logger) -> None:
    """A caller that logs without a pause does not make the thread write line by line."""
    gate = threading.Event()
    target = Collector(gate=gate)
    handler = attach(log, target, buffer_size=10, flush_interval=3600)
    for number in range(10):
        log.info("%d", number)
    assert target.busy.wait(PATIENCE)
    for number in range(10, 13):
        log.info("%d", number)
    gate.set()
    deadline = time.monotonic() + PATIENCE
    while handler._writer.threshold != 9:  # it waits until there are ten
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert target.texts == [str(number) for number in range(10)]
    handler.flush()
    assert target.texts == [str(number) for number in range(13)]


class Burden(Exception):
    """An error whose instances are counted."""


def fail(count: int) -> Iterator[Burden]:
    for _ in range(count):
        try:
            raise Burden("heavy")
        except Burden as error:
            yield error


def test_in_a_flood_few_exceptions_are_kept_and_all_are_written(log: logging.Logger) -> None:
    stream = Gated()
    attach(log, logging.StreamHandler(stream), flush_interval=0)
    log.info("0")
    assert stream.busy.wait(PATIENCE)
    alive: weakref.WeakSet[Burden] = weakref.WeakSet()
    for error in fail(700):
        alive.add(error)
        log.error("failed", exc_info=error)
    del error
    gc.collect()
    assert MAX_EXCEPTIONS <= len(alive) <= MAX_EXCEPTIONS + 1
    stream.gate.set()
    log.handlers[0].close()
    assert stream.getvalue().count("Burden: heavy") == 700


def test_other_handlers_get_the_exceptions_of_a_flood(log: logging.Logger) -> None:
    gate, seen = threading.Event(), []

    class Needy(Collector):
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            seen.append(record.exc_info)

    attach(log, logging.StreamHandler(io.StringIO()), flush_interval=3600)
    attach(log, Needy(gate=gate))
    for error in fail(700):
        log.error("failed", exc_info=error)
    gate.set()
    for handler in log.handlers:
        handler.close()
    assert all(seen)
    assert len(seen) == 700


def test_the_thread_reports_a_formatter_that_fails_in_a_flood_of_errors(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(logging.Formatter):
        def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is logging's
            raise LookupError("no text")

    stream = Gated()
    target = logging.StreamHandler(stream)
    target.setFormatter(Failing())
    attach(log, target, flush_interval=0)
    log.info("0")
    assert stream.busy.wait(PATIENCE)
    for error in fail(MAX_EXCEPTIONS + 1):
        log.error("failed", exc_info=error)
    stream.gate.set()
    log.handlers[0].close()
    assert capsys.readouterr().err.count("LookupError: no text") == MAX_EXCEPTIONS + 1


def test_flush_waits_for_records_logged_before_it(log: logging.Logger) -> None:
    target = Collector()
    handler = attach(log, target, flush_interval=3600)
    for number in range(3000):
        log.info("%d", number)
    handler.flush()
    assert len(target.texts) == 3000
    assert target.flushed == 1


def test_flush_does_not_wait_for_records_logged_after_it(log: logging.Logger) -> None:
    gate = threading.Event()
    target = Collector(gate=gate)
    handler = attach(log, target)
    log.info("first")
    flushed = threading.Event()

    def flush() -> None:
        handler.flush()
        flushed.set()

    waiting = threading.Thread(target=flush)
    waiting.start()
    assert target.busy.wait(PATIENCE)
    gate.set()
    assert flushed.wait(PATIENCE)
    waiting.join()


def test_flush_gives_up_at_its_time_limit(log: logging.Logger) -> None:
    gate = threading.Event()
    handler = attach(log, Collector(gate=gate))
    log.info("stuck")
    assert handler.wait_written(timeout=0.05) is False
    gate.set()
    assert handler.wait_written(timeout=PATIENCE) is True


def test_close_returns_at_its_time_limit_and_reports_the_number_of_lost_records(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = threading.Event()
    target = Collector(gate=gate)
    handler = attach(log, target, flush_interval=0)
    log.info("in the sink")
    assert target.busy.wait(PATIENCE)
    for _ in range(41):
        log.info("behind it")
    handler.close(timeout=0.05)
    assert handler.abandoned
    assert "42 log records were not written in time" in capsys.readouterr().err
    log.info("too late")
    gate.set()


def test_close_gives_up_although_stderr_itself_is_blocked(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Gated()
    monkeypatch.setattr(sys, "stderr", stream)
    handler = attach(log, logging.StreamHandler(), flush_interval=0)
    log.info("stuck")
    assert stream.busy.wait(PATIENCE)
    handler.close(timeout=0.05)
    assert handler.abandoned
    assert threading.get_ident() not in stream.threads
    stream.gate.set()


def test_without_a_time_limit_a_slow_but_moving_sink_is_waited_for(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svcrun.log.writer.PATIENCE", 0.2)
    step = threading.Event()

    class Slow(Collector):
        def emit(self, record: logging.LogRecord) -> None:
            step.wait(0.05)
            super().emit(record)

    target = Slow()
    handler = attach(log, target)
    for number in range(20):
        log.info("%d", number)
    handler.close()
    assert len(target.texts) == 20
    assert not handler.abandoned


def test_without_a_time_limit_a_blocked_sink_is_given_up(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svcrun.log.writer.PATIENCE", 0.1)
    gate = threading.Event()
    handler = attach(log, Collector(gate=gate))
    log.info("stuck")
    handler.close()
    assert handler.abandoned
    gate.set()


def test_closing_twice_does_nothing_more(log: logging.Logger) -> None:
    target = Collector()
    handler = attach(log, target)
    log.info("once")
    handler.close()
    handler.close()
    assert target.texts == ["once"]


def test_the_target_is_flushed_but_not_closed(log: logging.Logger) -> None:
    collector = Collector()
    handler = attach(log, MemoryHandler(100, flushLevel=100, target=collector))
    log.info("held back")
    handler.close()
    assert collector.texts == ["held back"]
    assert not collector.closed


@pytest.mark.parametrize("early", [[], ["early"]])
def test_after_close_a_record_is_written_by_the_thread_that_logs_it(
    log: logging.Logger, early: list[str]
) -> None:
    target = Collector()
    handler = attach(log, target)
    for message in early:
        log.info(message)
    handler.close()
    target.threads.clear()
    log.info("late")
    assert target.texts == [*early, "late"]
    assert target.threads == {threading.current_thread().name}


def test_no_record_of_many_threads_gets_lost_while_the_handler_is_closed(
    log: logging.Logger,
) -> None:
    target = Collector()
    handler = attach(log, target)
    started = threading.Barrier(4)

    def shout() -> None:
        started.wait(PATIENCE)
        for number in range(2000):
            log.info("%d", number)

    threads = [threading.Thread(target=shout) for _ in range(3)]
    for thread in threads:
        thread.start()
    started.wait(PATIENCE)
    handler.close()
    for thread in threads:
        thread.join()
    handler.flush()
    assert len(target.texts) == 6000


def test_past_the_limit_new_records_are_dropped_and_their_number_is_logged(
    log: logging.Logger,
) -> None:
    gate = threading.Event()
    target = Collector(gate=gate)
    handler = attach(log, target, buffer_limit=100, flush_interval=0)
    log.info("first")
    assert target.busy.wait(PATIENCE)
    for number in range(150):
        log.info("%d", number)
    gate.set()
    handler.flush()
    log.info("room again")
    handler.close()
    assert target.texts[:101] == ["first", *map(str, range(100))]
    assert target.texts[101:] == [
        "50 log records were dropped: more than 100 waited to be written",
        "room again",
    ]


def test_dropped_records_of_many_threads_are_counted_to_the_last(log: logging.Logger) -> None:
    gate = threading.Event()
    target = Collector(gate=gate)
    handler = attach(log, target, buffer_limit=10, flush_interval=0)
    log.info("first")
    assert target.busy.wait(PATIENCE)

    def shout() -> None:
        for _ in range(1000):
            log.info("x")

    threads = [threading.Thread(target=shout) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gate.set()
    handler.close()
    dropped = [int(text.split()[0]) for text in target.texts if "dropped" in text]
    assert sum(dropped) + target.texts.count("x") == 4000


def test_arguments_are_rendered_as_they_are_at_the_call(log: logging.Logger) -> None:
    gate = threading.Event()
    target = Collector(gate=gate)
    attach(log, target)
    numbers, table = [1], {"key": 1}
    log.info("%s %r", numbers, table)
    log.info("%(key)s", table)
    log.info(numbers)
    numbers.append(2)
    table["key"] = 2
    gate.set()
    log.handlers[0].close()
    assert target.texts == ["[1] {'key': 1}", "1", "[1]"]


def test_arguments_that_cannot_change_are_rendered_by_the_writer(log: logging.Logger) -> None:
    seen: list[Any] = []

    class Spy(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((record.msg, record.args))

    attach(log, Spy())
    log.info("%s %s", "text", 1)
    log.handlers[0].close()
    assert seen == [("%s %s", ("text", 1))]


@given(
    st.lists(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            st.text(),
            st.binary(),
            st.lists(st.integers(), max_size=3),
            st.dictionaries(st.text(max_size=3), st.integers(), max_size=3),
            st.tuples(st.integers(), st.lists(st.text(max_size=3), max_size=2)),
        ),
        max_size=4,
    ),
    st.sampled_from(["%s", "%r", "%a"]),
)
def test_for_all_arguments_the_text_equals_that_of_the_standard_library(
    values: list[Any], conversion: str
) -> None:
    logger = logging.Logger("test", logging.DEBUG)  # noqa: LOG001 - it must not be shared
    plain, threaded = io.StringIO(), io.StringIO()
    logger.addHandler(logging.StreamHandler(plain))
    logger.addHandler(handler := ThreadedHandler(logging.StreamHandler(threaded)))
    logger.info(" ".join([conversion] * len(values)), *values)
    handler.close()
    assert threaded.getvalue() == plain.getvalue()


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("do not look at me")


class Str(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("do not look at me")


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("%s", (Hostile(),)),
        ("%s", (Str("x"),)),
        (Hostile(), ()),
        ("%d", ("text",)),
        ("no place", (1,)),
        ("%s %s", (1,)),
        ("%(a)s", ({"b": 1},)),
        ("%s", (Hostile, Hostile())),
    ],
)
def test_a_message_that_cannot_be_rendered_is_reported_once_and_harms_no_other(
    log: logging.Logger,
    capsys: pytest.CaptureFixture[str],
    message: Any,
    arguments: tuple[Any, ...],
) -> None:
    stream = io.StringIO()
    attach(log, logging.StreamHandler(stream))
    log.info("before")
    log.info(message, *arguments)
    log.info("after")
    log.handlers[0].close()
    assert stream.getvalue() == "before\nafter\n"
    report = capsys.readouterr().err
    assert report.count("--- Logging error ---") == 1
    assert __file__ in report


def test_two_handlers_of_a_record_that_cannot_be_rendered_do_not_raise(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        attach(log, Collector())
    log.info("%s", Hostile())
    for handler in log.handlers:
        handler.close()
    assert "do not look at me" in capsys.readouterr().err


def test_errors_are_not_reported_if_raise_exceptions_is_off(
    log: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    attach(log, Collector())
    log.info("%d", "text")
    log.handlers[0].close()
    assert not capsys.readouterr().err


def test_a_traceback_is_formatted_by_the_writer_and_then_released(log: logging.Logger) -> None:
    class Thing:
        pass

    gone = threading.Event()
    stream = io.StringIO()
    handler = attach(log, logging.StreamHandler(stream), flush_interval=0)

    def fail() -> None:
        thing = Thing()
        weakref.finalize(thing, gone.set)
        try:
            raise LookupError("lost")
        except LookupError:
            log.exception("failed")

    fail()
    handler.flush()
    gc.collect()
    assert gone.wait(PATIENCE)
    assert stream.getvalue().startswith("failed\nTraceback (most recent call last):\n")
    assert stream.getvalue().endswith("LookupError: lost\n")


def test_containers_in_extra_are_as_they_are_at_the_call(log: logging.Logger) -> None:
    seen: list[Any] = []

    class Spy(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(vars(record)["state"])
            seen.append(vars(record)["thing"])

    thing = Hostile()
    state: dict[str, Any] = {"list": [1], "set": {1}, "tuple": ([1],), "bytes": bytearray(b"1")}
    state["self"] = state
    attach(log, Spy(), flush_interval=3600)
    log.info("x", extra={"state": state, "thing": thing})
    state["list"].append(2)
    state["set"].add(2)
    state["tuple"][0].append(2)
    state["bytes"].append(2)
    state["more"] = 1
    log.handlers[0].close()
    found = seen[0]
    assert found.pop("self")["list"] == [1]
    assert found == {"list": [1], "set": {1}, "tuple": ([1],), "bytes": bytearray(b"1")}
    assert seen[1] is thing


def test_level_and_filters_of_the_target_hold(log: logging.Logger) -> None:
    stream, collector = io.StringIO(), Collector()
    for target in (logging.StreamHandler(stream), collector):
        target.setLevel(logging.INFO)
        target.addFilter(lambda record: "secret" not in record.getMessage())
        attach(log, target)
    log.debug("too low")
    log.info("a secret")
    log.info("shown")
    for handler in log.handlers:
        handler.close()
    assert stream.getvalue() == "shown\n"
    assert collector.texts == ["shown"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a filter may replace records since 3.12")
def test_a_filter_may_replace_the_record(log: logging.Logger) -> None:
    def replace(record: logging.LogRecord) -> Any:
        return logging.makeLogRecord({"msg": f"<{record.getMessage()}>", "levelno": 20})

    stream = io.StringIO()
    target = logging.StreamHandler(stream)
    target.addFilter(replace)
    attach(log, target).addFilter(replace)
    log.info("x")
    log.handlers[0].close()
    assert stream.getvalue() == "<<x>>\n"


def test_a_filter_of_the_handler_may_reject_a_record_and_may_raise(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(record: logging.LogRecord) -> bool:
        if record.msg == "fail":
            raise RuntimeError("bad filter")
        return record.msg == "good"

    target = Collector()
    attach(log, target).addFilter(check)
    for message in ("good", "bad", "fail"):
        log.info(message)
    log.handlers[0].close()
    assert target.texts == ["good"]
    assert "bad filter" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), KeyboardInterrupt()])
def test_a_failing_handler_does_not_end_the_thread(
    log: logging.Logger, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    class Failing(Collector):
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg == "fail":
                raise error
            super().emit(record)

    target = Failing()
    attach(log, target)
    for message in ("one", "fail", "two"):
        log.info(message)
    log.handlers[0].close()
    assert target.texts == ["one", "two"]
    assert type(error).__name__ in capsys.readouterr().err


def test_a_failing_formatter_costs_one_record(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.StringIO()
    target = logging.StreamHandler(stream)
    attach(log, target).setFormatter(logging.Formatter("%(extra)s %(message)s"))
    log.info("one", extra={"extra": 1})
    log.info("two")
    log.info("three", extra={"extra": 3})
    log.handlers[0].close()
    assert stream.getvalue() == "1 one\n3 three\n"
    assert capsys.readouterr().err.count("--- Logging error ---") == 1


class OddLevel(int):
    def __lt__(self, other: object) -> bool:
        raise TypeError("incomparable")


def test_a_record_with_an_odd_level_costs_one_record(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    stream, collector = io.StringIO(), Collector()
    handlers = [attach(log, logging.StreamHandler(stream)), attach(log, collector)]
    record = logging.makeLogRecord({"msg": "odd", "levelno": OddLevel(20)})
    for handler in handlers:
        handler.handle(record)
    log.info("next")
    for handler in handlers:
        handler.close()
    assert stream.getvalue() == "next\n"
    assert collector.texts == ["next"]
    assert "TypeError" in capsys.readouterr().err


def test_a_failing_flush_of_the_target_is_reported(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(Collector):
        def flush(self) -> None:
            raise OSError("full")

    attach(log, Failing())
    log.info("x")
    log.handlers[0].close()
    assert "can't be flushed: OSError: full" in capsys.readouterr().err


class Broken(io.StringIO):
    """A stream whose writes can be made to fail."""

    error: OSError | None = None

    def write(self, text: str) -> int:
        if self.error is not None:
            raise self.error
        return super().write(text)


def test_a_broken_stream_is_reported_once_and_when_it_works_again_the_loss_is_logged(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = Broken()
    handler = attach(log, logging.StreamHandler(stream))
    stream.error = OSError(28, "No space left on device")
    for number in range(3):
        log.info("lost %d", number)
        handler.flush()
    stream.error = None
    log.info("back")
    handler.close()
    assert stream.getvalue() == "back\n3 log records could not be written\n"
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_a_closed_stream_is_reported_once(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.StringIO()
    handler = attach(log, logging.StreamHandler(stream))
    stream.close()
    for _ in range(3):
        log.info("lost")
        handler.flush()
    assert capsys.readouterr().err.count("I/O operation on closed file") == 1


def test_a_character_that_the_stream_cannot_encode_is_escaped(log: logging.Logger) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    attach(log, logging.StreamHandler(stream))
    log.info("caf\u00e9 \ud800")
    log.handlers[0].close()
    assert raw.getvalue() == b"caf\\xe9 \\ud800\n"


def test_a_handler_does_not_receive_records_that_it_logs_while_it_writes(
    log: logging.Logger,
) -> None:
    class Chatty(Collector):
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            log.info("about %s", record.getMessage())

    chatty, other, stream = Chatty(), Chatty(), io.StringIO()
    attach(log, chatty)
    attach(log, other)
    quiet = attach(log, logging.StreamHandler(stream), passive=True)
    log.info("x")
    for handler in log.handlers:
        if handler is not quiet:
            handler.close()
    quiet.close()
    assert chatty.texts == other.texts == ["x"]
    assert sorted(stream.getvalue().split("\n")[:-1]) == ["about x", "about x", "x"]


def test_flush_and_close_by_the_target_itself_do_not_wait(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svcrun.log.writer.PATIENCE", 3600)

    class Odd(Collector):
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            handler.flush()
            if record.msg == "close":
                handler.close()

    target = Odd()
    handler = attach(log, target, flush_interval=0)
    log.info("x")
    handler.flush()
    log.info("close")
    for thread in log_threads():
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert target.texts == ["x", "close"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_a_signal_handler_may_log_and_flush_in_the_middle_of_a_log_call(
    log: logging.Logger,
) -> None:
    target = Collector()
    handler = attach(log, target)
    numbers = itertools.count()

    def interrupt(*_: object) -> None:
        number = next(numbers)
        log.warning("signal %d", number)
        if number % 20 == 0:
            handler.flush(PATIENCE)

    found = signal.signal(signal.SIGVTALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.001, 0.0007)
        for number in range(20_000):
            log.info("call %s", [number])
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, found)
    handler.close()
    calls = [text for text in target.texts if text.startswith("call")]
    assert calls == [f"call [{number}]" for number in range(20_000)]
    assert len(target.texts) - len(calls) == next(numbers)


def test_a_log_call_takes_no_lock_of_the_threading_module(log: logging.Logger) -> None:
    target = Collector()
    handler = attach(log, target)
    # The state that a signal handler finds when it interrupts Thread.start() in its own thread.
    with threading._active_limbo_lock:  # type: ignore[attr-defined]
        log.info("x")
    handler.close()
    assert target.texts == ["x"]


@pytest.mark.parametrize("where", ["svcrun.log.writer.start_new_thread", "threading.Thread.start"])
def test_where_no_thread_can_be_started_the_log_call_writes(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    stream = io.StringIO()
    handler = attach(log, logging.StreamHandler(stream))
    with monkeypatch.context() as patch:
        patch.setattr(where, refuse)
        for number in range(3):
            log.info("%d", number)
        handler.flush()
    assert stream.getvalue() == "0\n1\n2\n"
    handler.close()


def test_close_waits_for_a_log_call_that_writes_in_place_of_the_thread(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    stream = Gated()
    handler = attach(log, logging.StreamHandler(stream))
    monkeypatch.setattr("threading.Thread.start", refuse)
    log.info("x")
    assert stream.busy.wait(PATIENCE)
    handler.close(timeout=0.05)
    assert handler.abandoned
    stream.gate.set()


def test_a_passive_handler_that_is_never_closed_is_freed(log: logging.Logger) -> None:
    reference = weakref.ref(ThreadedHandler(Collector()))
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"buffer_size": 0}, ValueError, "buffer_size=0"),
        ({"buffer_size": "many"}, TypeError, "buffer_size='many'"),
        ({"buffer_size": True}, TypeError, "buffer_size=True"),
        ({"buffer_limit": -1}, ValueError, "buffer_limit=-1"),
        ({"flush_interval": -0.1}, ValueError, "flush_interval=-0.1"),
        ({"flush_interval": float("nan")}, ValueError, "flush_interval=nan"),
        ({"flush_interval": None}, TypeError, "flush_interval=None"),
    ],
)
def test_a_wrong_number_is_refused_by_name(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        ThreadedHandler(logging.NullHandler(), **options)
    assert refuses(caught.value, text)


def test_a_target_that_is_no_handler_is_refused() -> None:
    with pytest.raises(TypeError, match=r"target must be a logging\.Handler, not <class"):
        ThreadedHandler(logging.StreamHandler)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "limit"), [("pipe", select.PIPE_BUF), ("file", 1 << 18)])
def test_the_stderr_of_the_process_is_written_in_whole_lines(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, limit: int
) -> None:
    """A write to a pipe is atomic, so the output of other processes does not mix with it."""
    writes: list[bytes] = []
    write: Callable[[int, Any], int] = os.write

    def spy(descriptor: int, data: Any) -> int:
        writes.append(bytes(data))
        return write(descriptor, data)

    monkeypatch.setattr("svcrun.log.sinks.os.write", spy)
    with contextlib.ExitStack() as stack:
        if kind == "pipe":
            reader, writer = os.pipe()  # which takes all of it
            stack.callback(os.close, reader)
            stream = stack.enter_context(os.fdopen(writer, "w"))
        else:
            stream = stack.enter_context((tmp_path / "log").open("w"))
        monkeypatch.setattr(sys, "__stderr__", stream)
        handler = attach(log, logging.StreamHandler(stream), flush_interval=3600)
        for number in range(500):
            log.info("%d %s", number, "x" * 20)
        log.info("y" * (limit + 1))
        handler.close()
    assert all(data.endswith(b"\n") for data in writes)
    assert all(len(data) <= limit or data.count(b"\n") == 1 for data in writes)
    assert len(writes) <= 2 + 500 * 30 // limit + 1
    assert b"".join(writes).count(b"\n") == 501


def test_a_failed_write_is_reported_also_if_its_traceback_can_not_be_made(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """To make one, Python may import a module, for which there may be no descriptor."""

    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise LookupError

    def fail(*_: object) -> list[str]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("traceback.format_exception", fail)
    handler = ThreadedHandler(Broken())
    for text in ("first", "second"):
        handler.handle(logging.makeLogRecord({"msg": text, "levelno": logging.ERROR}))
    handler.close()
    output = capfd.readouterr().err
    for text in ("first", "second"):
        assert f"LookupError\nMessage: {text!r}\n" in output
    monkeypatch.undo()
