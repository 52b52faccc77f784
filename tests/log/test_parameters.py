"""Parameters that programs written for aiomisc pass to the log."""

import io
import logging
import threading
from collections.abc import Callable, Iterator
from logging.handlers import MemoryHandler
from typing import Any

import pytest

from svcrun.log import ThreadedHandler, basic_config
from tests.support import PATIENCE, nothing_left, refuses

root = logging.getLogger()


@pytest.fixture(autouse=True)
def leave_nothing() -> Iterator[None]:
    with nothing_left():
        yield


class Keeper(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.closed = False
        self.busy, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def emit(self, record: logging.LogRecord) -> None:
        self.busy.set()
        self.gate.wait(PATIENCE)
        self.texts.append(record.getMessage())

    def close(self) -> None:
        self.closed = True
        super().close()


def test_the_names_of_an_entrypoint_are_accepted() -> None:
    stream, yours = io.StringIO(), Keeper()
    with basic_config(
        log_level="warning",
        log_format="stream",
        log_buffering=True,
        log_buffer_size=10,
        log_buffer_limit=20,
        log_flush_interval=0.1,
        log_date_format="at",
        log_handlers=[yours],
        stream=stream,
    ):
        assert root.level == logging.WARNING
        root.info("hidden")
        root.warning("x")
    assert stream.getvalue() == "at WARNING:root:x\n"
    assert yours.texts == ["x"]


def test_a_wrong_value_under_an_alias_is_refused() -> None:
    with pytest.raises(ValueError, match="loud"):
        basic_config(log_level="loud")


@pytest.mark.parametrize("buffered", [True, False])
def test_a_wrapper_replaces_each_handler_by_the_one_it_returns(buffered: bool) -> None:
    wrapped: list[logging.Handler] = []
    made: list[MemoryHandler] = []

    def wrap(handler: logging.Handler) -> logging.Handler:
        wrapped.append(handler)
        made.append(MemoryHandler(1000, target=handler))
        return made[-1]

    stream, yours = io.StringIO(), Keeper()
    with basic_config(
        log_format="stream",
        stream=stream,
        handlers=[yours],
        handler_wrapper=wrap,
        buffered=buffered,
    ) as session:
        root.info("x")
        assert (stream.getvalue(), yours.texts) == ("", [])
        session.flush()
        assert (stream.getvalue(), yours.texts) == ("INFO:root:x\n", ["x"])
        root.info("y")
    assert stream.getvalue() == "INFO:root:x\nINFO:root:y\n"
    assert yours.texts == ["x", "y"]
    assert len(wrapped) == 2
    assert wrapped[1] is yours
    assert not yours.closed
    assert [handler.target for handler in made] == [None, None]  # closed


def test_a_wrapper_may_return_the_handler_itself() -> None:
    def name(handler: logging.Handler) -> logging.Handler:
        handler.set_name("wrapped")
        return handler

    stream, yours = io.StringIO(), Keeper()
    with basic_config(log_format="plain", stream=stream, handlers=[yours], handler_wrapper=name):
        root.info("x")
    assert (stream.getvalue(), yours.texts) == ("x\n", ["x"])
    assert yours.get_name() == "wrapped"
    assert not yours.closed


def test_a_wrapper_may_return_a_threaded_handler() -> None:
    yours = Keeper()
    with basic_config(log_format="disabled", handlers=[yours], handler_wrapper=ThreadedHandler):
        root.info("x")
    assert yours.texts == ["x"]


@pytest.mark.parametrize(
    ("wrapper", "text"),
    [("x", "handler_wrapper='x'"), (lambda _: None, "which returned None")],
)
def test_a_wrapper_that_makes_no_handler_is_refused(wrapper: Any, text: str) -> None:
    with pytest.raises(TypeError) as caught:
        basic_config(log_format="plain", handler_wrapper=wrapper)
    assert refuses(caught.value, text)


@pytest.mark.parametrize(
    "make",
    [
        lambda target: ThreadedHandler(target, 3600, False),
        lambda target: ThreadedHandler(target, flush_interval=3600, buffered=False, queue_size=10),
    ],
)
def test_without_a_buffer_a_record_does_not_wait_for_others(
    make: Callable[[logging.Handler], ThreadedHandler],
) -> None:
    target = Keeper()
    handler = make(target)
    handler.start()
    root.addHandler(handler)
    try:
        root.warning("x")
        assert target.busy.wait(PATIENCE)
    finally:
        root.removeHandler(handler)
        handler.close()


@pytest.mark.parametrize(("size", "dropped"), [(0, 0), (5, 95)])
def test_queue_size_is_a_limit_unless_it_is_zero(size: int, dropped: int) -> None:
    target = Keeper()
    handler = ThreadedHandler(target, queue_size=size, flush_interval=0)
    target.gate.clear()
    for number in range(101):
        handler.handle(logging.makeLogRecord({"msg": str(number), "levelno": 20}))
        assert target.busy.wait(PATIENCE)  # it has the first
    target.gate.set()
    handler.close()
    assert len([text for text in target.texts if text.isdigit()]) == 101 - dropped
    expected = [f"{dropped} log records were dropped: more than 5 waited to be written"]
    assert [text for text in target.texts if "dropped" in text] == (expected if dropped else [])


@pytest.mark.parametrize("size", [-1, True, "many", None])
def test_a_wrong_queue_size_is_refused(size: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="queue_size must be"):
        ThreadedHandler(logging.NullHandler(), queue_size=size)
