"""Reports of an event loop to its exception handler are logged."""

import asyncio
import logging
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from svcrun.log import UnhandledLoopHook


class Spy(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def spy() -> Iterator[Spy]:
    logger = logging.getLogger("asyncio.unhandled")
    spy = Spy()
    logger.addHandler(spy)
    logger.propagate = False
    yield spy
    logger.propagate = True
    logger.removeHandler(spy)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("do not look at me")


class Transport(asyncio.Transport):
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("192.0.2.1", 5), "sockname": None}.get(name, default)

    def __repr__(self) -> str:
        return "<a transport>"


def report(loop: asyncio.AbstractEventLoop, spy: Spy, **context: Any) -> tuple[str, Any]:
    UnhandledLoopHook()(loop, context)
    (record,) = spy.records
    assert record.levelno == logging.ERROR
    return record.getMessage(), record.exc_info and record.exc_info[1]


def test_every_part_of_the_context_is_a_line(loop: asyncio.AbstractEventLoop, spy: Spy) -> None:
    error = LookupError("lost")
    message, found = report(
        loop,
        spy,
        message="It failed",
        exception=error,
        transport=Transport(),
        protocol="<a protocol>",
        socket="<a socket>",
        future=None,
        extra=Hostile(),
    )
    assert found is error
    assert message.splitlines() == [
        "It failed",
        "extra: <Hostile, without a representation: RuntimeError>",
        "protocol: '<a protocol>'",
        "socket: '<a socket>'",
        "transport: <a transport>",
        "peername: ('192.0.2.1', 5)",
    ]


def test_the_stack_of_the_creation_of_the_object_is_logged(
    loop: asyncio.AbstractEventLoop, spy: Spy
) -> None:
    message, _ = report(loop, spy, source_traceback=traceback.extract_stack())
    assert "Object created at (most recent call last):" in message
    assert __file__ in message


def test_an_empty_context_is_logged(loop: asyncio.AbstractEventLoop, spy: Spy) -> None:
    assert report(loop, spy) == ("Unhandled exception in event loop", None)


@pytest.mark.parametrize("key", ["future", "task"])
def test_the_exception_is_looked_for_in_the_future(
    loop: asyncio.AbstractEventLoop, spy: Spy, key: str
) -> None:
    future = loop.create_future()
    error = LookupError("lost")
    future.set_exception(error)
    _, found = report(loop, spy, **{key: future})
    assert found is error


def test_a_future_without_a_result_is_logged(loop: asyncio.AbstractEventLoop, spy: Spy) -> None:
    pending, cancelled = loop.create_future(), loop.create_future()
    cancelled.cancel()
    message, found = report(loop, spy, future=pending, task=cancelled)
    assert "future: <Future pending>" in message
    assert found is None


def test_percent_signs_in_a_message_are_just_text(
    loop: asyncio.AbstractEventLoop, spy: Spy
) -> None:
    assert report(loop, spy, message="100 %s")[0] == "100 %s"


def test_a_transport_without_extra_info_is_logged(
    loop: asyncio.AbstractEventLoop, spy: Spy
) -> None:
    assert "transport: 1" in report(loop, spy, transport=1)[0]


def test_a_context_that_cannot_be_logged_goes_to_the_default_handler(
    loop: asyncio.AbstractEventLoop, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(loop, "default_exception_handler", seen.append)
    context = {"source_traceback": 5}
    UnhandledLoopHook()(loop, context)
    assert seen == [context]
    assert not spy.records


def test_the_logger_can_be_chosen(loop: asyncio.AbstractEventLoop) -> None:
    logger = logging.getLogger("test.hook")
    spy = Spy()
    logger.addHandler(spy)
    UnhandledLoopHook("test.hook")(loop, {"message": "x"})
    logger.removeHandler(spy)
    assert [record.name for record in spy.records] == ["test.hook"]
