"""basic_config() configures the root logger, and closing the session restores it."""

import asyncio
import io
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from svcrun.log import LogLevel, LogSession, ThreadedHandler, basic_config
from svcrun.log.records import make_record
from svcrun.log.writer import THREAD_NAME
from tests.support import PATIENCE, Program, loop_factories

root = logging.getLogger()


def state() -> tuple[object, ...]:
    return (
        root.level,
        list(root.handlers),
        sys.excepthook,
        threading.excepthook,
        logging.getLogRecordFactory(),
    )


@pytest.fixture(autouse=True)
def _everything_comes_back() -> Iterator[None]:
    before = state()
    yield
    assert state() == before
    assert THREAD_NAME not in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def text_handler() -> tuple[logging.Handler, io.StringIO]:
    stream = io.StringIO()
    return logging.StreamHandler(stream), stream


def test_records_of_every_logger_reach_the_format_and_the_handlers(stream: io.StringIO) -> None:
    yours, your_stream = text_handler()
    with basic_config("debug", "stream", handlers=[yours], stream=stream):
        logging.getLogger("a.b").debug("x %s", 1)
    assert stream.getvalue() == "DEBUG:a.b:x 1\n"
    assert your_stream.getvalue() == "x 1\n"


def test_the_first_record_starts_the_thread(stream: io.StringIO) -> None:
    with basic_config("info", "stream", stream=stream, handlers=[logging.NullHandler()]) as session:
        root.debug("too low")
        session.flush()
        assert THREAD_NAME not in {thread.name for thread in threading.enumerate()}


def test_a_blocked_handler_does_not_block_the_others(stream: io.StringIO) -> None:
    gate = threading.Event()

    class Stuck(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            gate.wait(PATIENCE)

    with basic_config("info", "stream", handlers=[Stuck()], stream=stream) as session:
        root.info("x")
        assert isinstance(session.handlers[0], ThreadedHandler)
        assert session.handlers[0].wait_written(PATIENCE)
        assert stream.getvalue() == "INFO:root:x\n"
        gate.set()


def test_your_handlers_are_flushed_and_not_closed(stream: io.StringIO) -> None:
    calls: list[str] = []

    class Yours(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            calls.append(record.getMessage())

        def flush(self) -> None:
            calls.append("flush")

        def close(self) -> None:
            calls.append("close")
            super().close()

    yours = Yours()
    for buffered in (True, False):
        with basic_config("info", "disabled", buffered, handlers=[yours]):
            root.info("x")
        assert calls == ["x", "flush"]
        calls.clear()


def test_a_threaded_handler_of_the_program_outlives_the_session() -> None:
    target, written = text_handler()
    yours = ThreadedHandler(target, flush_interval=3600)
    with basic_config("info", "disabled", handlers=[yours]) as session:
        root.info("x")
        assert session.handlers == [yours]
    assert written.getvalue() == "x\n"
    yours.handle(make_record("", 20, "", 0, "y", (), None))
    yours.close()
    assert written.getvalue() == "x\ny\n"


def test_unbuffered_a_log_call_writes(stream: io.StringIO) -> None:
    with basic_config("info", "plain", buffered=False, stream=stream):
        root.info("x")
        assert stream.getvalue() == "x\n"
        assert THREAD_NAME not in {thread.name for thread in threading.enumerate()}


def test_disabled_writes_nothing_at_all(capfd: pytest.CaptureFixture[str]) -> None:
    with basic_config("info", "disabled"):
        root.critical("x")
        logging.getLogger("a").critical("y")
    assert capfd.readouterr() == ("", "")


def test_closing_twice_gives_the_same_answer_and_undoes_nothing_else(stream: io.StringIO) -> None:
    outer = basic_config("info", "plain", stream=stream)
    inner = basic_config("debug", "plain", stream=stream)
    assert inner.close() is True
    assert inner.close() is True
    assert root.handlers == outer.handlers
    outer.close()


def test_flush_and_close_give_up_together_at_one_time_limit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    gate, busy = threading.Event(), threading.Event()

    class Stuck(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            busy.set()
            gate.wait(PATIENCE)

    session = basic_config("info", "disabled", handlers=[Stuck(), Stuck()])
    root.error("x")
    assert busy.wait(PATIENCE)
    assert session.flush(timeout=0.05) is False
    assert session.close(timeout=0.05) is False
    assert session.close() is False
    gate.set()
    for thread in threading.enumerate():
        if thread.name == THREAD_NAME:
            thread.join(PATIENCE)
    assert "not written in time" in capsys.readouterr().err


def test_a_blocked_handler_takes_no_time_from_the_others(stream: io.StringIO) -> None:
    gate = threading.Event()

    class Stuck(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            gate.wait(PATIENCE)

    yours = [Stuck(), logging.StreamHandler(stream)]
    session = basic_config("info", "disabled", flush_interval=3600, handlers=yours)
    root.info("x")
    assert session.close(timeout=2) is False
    assert stream.getvalue() == "x\n"
    gate.set()
    for thread in threading.enumerate():
        if thread.name == THREAD_NAME:
            thread.join(PATIENCE)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_sessions_may_be_closed_in_any_order(order: tuple[int, ...]) -> None:
    before = state()
    targets = [text_handler() for _ in range(3)]
    sessions: list[LogSession | None] = [
        basic_config(10 * number + 1, "disabled", handlers=[handler])
        for number, (handler, _) in enumerate(targets)
    ]
    for closing in order:
        newest = max(number for number, session in enumerate(sessions) if session is not None)
        expected = sessions[newest]
        assert expected is not None
        assert (root.level, root.handlers) == (expected.level, expected.handlers)
        root.critical("for %d", newest)
        session = sessions[closing]
        assert session is not None
        session.close()
        sessions[closing] = None
    assert state() == before
    logged = "".join(stream.getvalue() for _, stream in targets)
    assert logged.count("\n") == 3
    for number, (_, stream) in enumerate(targets):
        assert set(stream.getvalue().splitlines()) <= {f"for {number}"}


def test_sessions_of_many_threads_restore_the_root_logger() -> None:
    def work() -> None:
        for _ in range(30):
            with basic_config("info", "disabled", handlers=[logging.NullHandler()]):
                root.info("x")

    before = state()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert state() == before


def test_handlers_that_other_code_adds_to_the_root_logger_stay() -> None:
    added = logging.NullHandler()
    with basic_config("info", "disabled"):
        root.addHandler(added)
        with basic_config("info", "disabled"):
            assert added in root.handlers
        assert added in root.handlers
    assert added in root.handlers
    root.removeHandler(added)


def test_a_hook_that_replaced_the_installed_one_stays_and_may_call_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = sys.excepthook
    with basic_config("info", "disabled", handlers=[logging.NullHandler()]):
        ours = sys.excepthook

        def later(*args: Any) -> None:
            ours(*args)

        sys.excepthook = later
    try:
        assert sys.excepthook is later
        # The second session saves this hook. The reference cycle must not become a recursion.
        with basic_config("info", "disabled"):
            pass
        assert sys.excepthook is later
        error = LookupError("lost")
        sys.excepthook(LookupError, error, None)
    finally:
        sys.excepthook = found
    assert "LookupError: lost" in capsys.readouterr().err


def test_a_record_factory_of_the_program_is_used_and_stays(stream: io.StringIO) -> None:
    found = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = found(*args, **kwargs)
        record.msg = f"<{record.msg}>"
        return record

    logging.setLogRecordFactory(factory)
    try:
        with basic_config("info", "plain", stream=stream):
            root.info("x")
        assert logging.getLogRecordFactory() is factory
    finally:
        logging.setLogRecordFactory(found)
    assert stream.getvalue() == "<x>\n"


def test_keyboard_interrupt_and_system_exit_go_to_the_hook_that_was_found(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO
) -> None:
    seen: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: seen.append(kind))
    with basic_config("info", "plain", stream=stream):
        for error in (KeyboardInterrupt(), SystemExit(1), ValueError("x")):
            sys.excepthook(type(error), error, None)
        assert "ValueError: x" in stream.getvalue()  # by now, for the process may be killed
    assert seen == [KeyboardInterrupt, SystemExit]
    monkeypatch.undo()


def test_without_a_format_an_unhandled_exception_is_printed_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: seen.append(kind))
    handler, _ = text_handler()
    with basic_config("info", "disabled", handlers=[handler]):
        sys.excepthook(ValueError, ValueError("x"), None)
    assert seen == [ValueError]
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (
            {"level": "loud"},
            ValueError,
            "level must be one of critical, error.*not 'loud'",
        ),
        ({"level": -1}, ValueError, "level must be .*not -1"),
        ({"level": None}, TypeError, "level must be .*not None"),
        ({"level": True}, TypeError, "level must be .*not True"),
        (
            {"log_format": "yaml"},
            ValueError,
            "log_format must be one of disabled.*not 'yaml'",
        ),
        ({"log_format": 99}, ValueError, "log_format must be .*not 99"),
        ({"log_format": b"json"}, TypeError, "log_format must be .*not b'json'"),
        ({"buffer_size": 0}, ValueError, "buffer_size must be .*not 0"),
        ({"buffer_size": 0, "buffered": False}, ValueError, "buffer_size must be .*not 0"),
        ({"buffer_limit": "x"}, TypeError, "buffer_limit must be .*not 'x'"),
        ({"flush_interval": -1}, ValueError, "flush_interval must be .*not -1"),
        ({"date_format": 5}, TypeError, "date_format must be .*not 5"),
        ({"handlers": [1]}, TypeError, "handlers must be .*not 1"),
        ({"handlers": 1}, TypeError, "handlers must be .*not 1"),
        ({"handlers": logging.NullHandler()}, TypeError, "handlers must be .*not <NullHandler"),
        ({"log_format": "stream", "colour": 1}, TypeError, "'stream' takes no colour"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name_and_changes_nothing(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    before = state()
    with pytest.raises(error, match=text):
        basic_config(**options)
    assert state() == before


@pytest.mark.parametrize(
    ("level", "number"),
    [("debug", 10), ("DEBUG", 10), ("Warn", 30), (LogLevel.error, 40), (15, 15), (" 15 ", 15)],
)
def test_a_level_is_a_name_in_any_case_or_a_number(level: int | str, number: int) -> None:
    with basic_config(level, "disabled"):
        assert root.level == number


def test_a_level_of_the_program_is_accepted_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(logging._nameToLevel, "NOTICE", 25)
    with basic_config("notice", "disabled"):
        assert root.level == 25


LoopFactory = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(params=list(loop_factories().values()), ids=list(loop_factories()))
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    loop: asyncio.AbstractEventLoop = request.param()
    yield loop
    loop.close()


def test_an_unhandled_exception_of_the_loop_is_logged_with_its_context(
    loop: asyncio.AbstractEventLoop, stream: io.StringIO
) -> None:
    def fail() -> None:
        raise LookupError("lost")

    with basic_config("info", "stream", loop=loop, stream=stream):
        loop.call_soon(fail)
        loop.run_until_complete(asyncio.sleep(0))
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("ERROR:asyncio.unhandled:")
    assert any(line.startswith("handle: <") for line in lines)
    assert lines[-1] == "LookupError: lost"


def test_closing_a_session_restores_the_exception_handler_of_the_loop(
    loop: asyncio.AbstractEventLoop,
) -> None:
    def found(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None: ...

    loop.set_exception_handler(found)
    with basic_config("info", "disabled", loop=loop):
        assert loop.get_exception_handler() is not found
    assert loop.get_exception_handler() is found


@pytest.mark.parametrize("first", [0, 1])
def test_two_sessions_on_one_loop_give_its_handler_back(
    loop: asyncio.AbstractEventLoop, first: int
) -> None:
    sessions = [basic_config("info", "disabled", loop=loop) for _ in range(2)]
    sessions.pop(first).close()
    assert loop.get_exception_handler() is not None
    sessions.pop().close()
    assert loop.get_exception_handler() is None


def test_a_loop_exception_handler_that_replaced_the_installed_one_stays(
    loop: asyncio.AbstractEventLoop,
) -> None:
    def later(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None: ...

    with basic_config("info", "disabled", loop=loop):
        loop.set_exception_handler(later)
    assert loop.get_exception_handler() is later


def test_the_running_loop_is_the_default(loop: asyncio.AbstractEventLoop) -> None:
    async def configure() -> None:
        with basic_config("info", "disabled"):
            assert loop.get_exception_handler() is not None

    loop.run_until_complete(configure())
    assert loop.get_exception_handler() is None


def test_importing_it_loads_nothing_that_asyncio_and_logging_do_not(
    run_program: Callable[..., Program],
) -> None:
    outcome = run_program(
        "import asyncio, logging, sys\n"
        "import svcrun\n"
        "before = set(sys.modules)\n"
        "import svcrun.log\n"
        "print(*(name for name in set(sys.modules) - before if not name.startswith('svcrun')))"
    ).wait()
    assert outcome.stdout == "\n"
