"""Threaded handlers write a record as it was in the log call, and do not change it."""

import contextvars
import copy
import io
import json
import logging
import pickle
import queue
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from logging.handlers import MemoryHandler, QueueHandler
from typing import Any

import pytest

from svcrun.log import ThreadedHandler, basic_config
from svcrun.log.records import LazyRecord, make_record
from tests.support import PATIENCE, nothing_left

# Import them now: the import opens shared libraries that stay open.
for extra in ("colorlog", "pythonjsonlogger", "rich.logging"):
    pytest.importorskip(extra)

log = logging.getLogger("captured")
request_id = contextvars.ContextVar("request_id", default="none")


class Keeper(logging.Handler):
    """A handler that keeps its records and values read from them."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.found: list[tuple[Any, Any, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.found.append((record.msg, record.args, record.getMessage()))


class State:
    """An object whose text changes between the log call and the write."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


@pytest.fixture(autouse=True)
def leave_nothing() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture
def second() -> Iterator[Keeper]:
    """A handler that is added to the root logger after the threaded one."""
    keeper = Keeper()
    yield keeper
    logging.getLogger().removeHandler(keeper)


FORMATS = ["stream", "color", "json", "plain", "rich", "rich_tb", "disabled"]
ERROR = LookupError("lost")
CALLS: list[tuple[Any, tuple[Any, ...]]] = [
    ("plain %d %s", (1, "text")),
    ("failed: %s", (ERROR,)),
    ("state %s", (State("first"),)),
    ("list %r", ([1],)),
    ("many %s %s %r", (1, State("x"), {"a": [1]})),
    ({"a": 1}, ()),
    ([1, 2], ()),
    (ERROR, ()),
    (State("first"), ()),
]


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize(("message", "arguments"), CALLS)
def test_the_next_handler_finds_the_record_as_the_caller_made_it(
    second: Keeper, log_format: str, message: object, arguments: tuple[Any, ...]
) -> None:
    extra = {"state": {"a": [1]}}
    options: dict[str, Any] = {} if log_format == "disabled" else {"stream": io.StringIO()}
    with basic_config(log_format=log_format, handlers=[Keeper()], **options) as session:
        logging.getLogger().addHandler(second)
        try:
            raise ERROR
        except LookupError:
            log.exception(message, *arguments, extra=extra)
        session.flush()
    (record,) = second.records
    assert record.msg is message
    assert record.args == arguments
    assert record.exc_info is not None
    assert record.exc_info[1] is ERROR
    assert record.exc_text is None
    assert vars(record)["state"] is extra["state"]
    assert not {"message", "asctime"} & set(vars(record))


@pytest.mark.parametrize("log_format", ["stream", "json"])
def test_a_mapping_of_arguments_stays_a_mapping(second: Keeper, log_format: str) -> None:
    with basic_config(log_format=log_format, stream=io.StringIO()):
        logging.getLogger().addHandler(second)
        log.info("%(a)s", {"a": [1]})
    assert second.found == [("%(a)s", {"a": [1]}, "[1]")]


def test_changes_of_a_record_by_the_next_handler_are_not_written(second: Keeper) -> None:
    class Mutator(Keeper):
        def emit(self, record: logging.LogRecord) -> None:
            record.msg, record.args, record.levelname = "gone", None, "GONE"
            record.exc_info, record.exc_text = None, "gone"
            record.name = "gone"  # left there: sentry-sdk reads it after all handlers

    stream, yours = io.StringIO(), Keeper()
    mutator = Mutator()
    try:
        with basic_config(log_format="stream", stream=stream, handlers=[yours]) as session:
            logging.getLogger().addHandler(mutator)
            log.info("plain %d", 1)
            log.info("state %s", State("text"))
            log.error("error", exc_info=ERROR)
            session.flush()
    finally:
        logging.getLogger().removeHandler(mutator)
    written = stream.getvalue().splitlines()
    assert written[:3] == [
        "INFO:captured:plain 1",
        "INFO:captured:state text",
        "ERROR:captured:error",
    ]
    assert written[-1] == "LookupError: lost"
    assert [text for _, _, text in yours.found] == ["plain 1", "state text", "error"]
    assert all("gone" not in text for text in stream.getvalue().splitlines())


def test_a_handler_in_log_handlers_finds_message_and_arguments() -> None:
    yours = Keeper()
    state, numbers, table = State("first"), [1], {"a": [1]}
    with basic_config(log_format="disabled", handlers=[yours]):
        log.error("failed: %s", ERROR)
        log.info("%s %s %s", state, numbers, table)
        log.info(table)
        log.info(state)
        state.text = "second"
        numbers.append(2)
        table["a"].append(2)
    assert yours.found == [
        ("failed: %s", (ERROR,), "failed: lost"),
        ("%s %s %s", (state, [1], {"a": [1]}), "first [1] {'a': [1]}"),
        ({"a": [1]}, (), "{'a': [1]}"),
        (state, (), "first"),
    ]
    assert yours.found[0][1][0] is ERROR


def test_a_dictionary_as_the_message_is_an_object_in_json() -> None:
    stream = io.StringIO()
    details = {"a": 1, "b": {"c": [1]}}
    with basic_config(log_format="json", stream=stream):
        log.info(details)
        details["b"] = "changed"
    written = json.loads(stream.getvalue())
    assert (written["a"], written["b"]) == (1, {"c": [1]})


def test_the_exception_that_a_message_of_structlog_is_about_is_that_of_the_log_call() -> None:
    stream, yours = io.StringIO(), Keeper()
    details = {"event": "failed", "exc_info": True}
    with basic_config(log_format="json", stream=stream, handlers=[yours]):
        log.info(details)
        try:
            raise ERROR
        except LookupError:
            log.info(details)
    assert details["exc_info"] is True
    (before, *_), (handled, *_) = yours.found
    assert before["exc_info"] is True
    assert handled["exc_info"][1] is ERROR
    first, second = (json.loads(line)["exc_info"] for line in stream.getvalue().splitlines())
    assert first is True
    assert second.startswith("Traceback")
    assert second.endswith("LookupError: lost")


@pytest.mark.parametrize(
    "container",
    [
        {"a": [1]},
        [[1], (2, [3])],
        OrderedDict(a=[1]),
        defaultdict(list, a=[1]),
        Counter("aab"),
        deque([[1]]),
        {1, 2},
        bytearray(b"1"),
        ([1], {"a": {1}}),
    ],
)
def test_containers_are_seen_as_they_were_in_the_log_call(container: Any) -> None:
    yours = Keeper()
    before = copy.deepcopy(container)
    with basic_config(log_format="disabled", handlers=[yours]):
        log.info("%s %s", 1, container, extra={"thing": container})
        log.info(container)
        _change(container)
    first, second = yours.records
    assert first.args == (1, before)
    assert vars(first)["thing"] == before
    assert second.msg == before
    assert type(second.msg) is type(before)


def _change(container: Any) -> None:
    if isinstance(container, tuple):
        _change(container[0])
    elif isinstance(container, dict):
        container["more"] = 1
        container["a"] = 2
    elif isinstance(container, set):
        container.add(3)
    else:
        container.append(1)
        if not isinstance(container, bytearray):
            container[0] = 2


def test_containers_that_hold_themselves_many_times_are_copied_once() -> None:
    yours = Keeper()
    knot: dict[str, Any] = {}
    knot |= {str(number): knot for number in range(50)}
    pair: tuple[Any, ...] = ()
    for _ in range(100):
        pair = (pair, pair)
    with basic_config(log_format="disabled", handlers=[yours]):
        log.info("x", extra={"knot": knot, "pair": pair})
    (record,) = yours.records
    found = vars(record)["knot"]
    assert found is not knot
    assert found["7"] is found


def test_a_key_that_cannot_be_hashed_any_more_harms_no_log_call() -> None:
    class Key:
        fail = False

        def __hash__(self) -> int:
            if self.fail:
                raise RuntimeError
            return 1

    yours = Keeper()
    key = Key()
    table = {key: [1]}
    key.fail = True
    with basic_config(log_format="disabled", handlers=[yours]):
        log.info("x", extra={"table": table})
    assert vars(yours.records[0])["table"] is table


# Filters and context.


def test_filters_run_in_the_log_call_and_see_its_context() -> None:
    threads: list[threading.Thread] = []
    stream = io.StringIO()
    yours = logging.StreamHandler(stream)
    yours.setFormatter(logging.Formatter("%(request_id)s %(message)s"))

    def name(record: logging.LogRecord) -> bool:
        threads.append(threading.current_thread())
        record.request_id = request_id.get()
        return record.msg != "hidden"

    yours.addFilter(name)
    with basic_config(log_format="disabled", handlers=[yours]):
        for number in range(3):
            context = contextvars.copy_context()
            context.run(request_id.set, str(number))
            context.run(log.info, "state %s", State("text"))
            context.run(log.info, "hidden")
    assert stream.getvalue() == "0 state text\n1 state text\n2 state text\n"
    assert set(threads) == {threading.current_thread()}


@pytest.mark.parametrize("kind", ["handler", "stream"])
def test_a_handler_writes_in_the_context_of_the_log_call(kind: str) -> None:
    found: list[str] = []

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(f"{request_id.get()} {record.getMessage()}")

    class Format(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            found.append(f"{request_id.get()} {record.getMessage()}")
            return ""

    stream_handler = logging.StreamHandler(io.StringIO())
    stream_handler.setFormatter(Format())
    yours = Note() if kind == "handler" else stream_handler
    with basic_config(log_format="disabled", handlers=[yours, Note()] if kind == "x" else [yours]):
        for number in range(3):
            context = contextvars.copy_context()
            context.run(request_id.set, str(number))
            context.run(log.info, "plain")
            context.run(log.handle, Visit())
    assert found == [f"{number} {text}" for number in range(3) for text in ("plain", "lazy")]


def test_a_filter_is_asked_once_and_only_for_its_level() -> None:
    asked: list[object] = []

    def ask(record: logging.LogRecord) -> bool:
        asked.append(record.msg)
        return True

    yours = Keeper()
    yours.setLevel(logging.WARNING)
    yours.addFilter(ask)
    with basic_config(log_format="disabled", handlers=[yours]):
        log.info("low")
        log.warning("high")
    assert asked == ["high"]
    assert [record.msg for record in yours.records] == ["high"]


def test_changes_by_our_filter_do_not_reach_the_next_handler(second: Keeper) -> None:
    def redact(record: logging.LogRecord) -> bool:
        record.msg, record.args = "redacted %s", ("x",)
        return True

    yours = Keeper()
    yours.addFilter(redact)
    with basic_config(log_format="disabled", handlers=[yours]):
        logging.getLogger().addHandler(second)
        log.info("secret %s", State("key"))
        log.handle(Visit())
    assert yours.found == [("redacted %s", ("x",), "redacted x")] * 2
    assert [text for *_, text in second.found] == ["secret key", "lazy"]


def test_a_filter_in_the_thread_of_the_log_may_replace_the_message() -> None:
    class Redacting(Keeper):
        def emit(self, record: logging.LogRecord) -> None:
            record.args = ("***",)
            super().emit(record)

    yours = Redacting()
    with basic_config(log_format="disabled", handlers=[yours]):
        log.info("secret %s", State("key"))
    assert yours.found == [("secret %s", ("***",), "secret ***")]


def test_a_handler_with_a_handle_of_its_own_is_called_by_it() -> None:
    class Own(Keeper):
        def handle(self, record: logging.LogRecord) -> bool:
            self.records.append(record)
            return True

    yours = Own()
    yours.addFilter(lambda _: False)
    with basic_config(log_format="disabled", handlers=[yours]):
        log.info("x")
    assert [record.msg for record in yours.records] == ["x"]
    assert not yours.found


# Operations that libraries perform on records.


def test_a_queue_handler_in_log_handlers_passes_on_the_text_of_the_log_call() -> None:
    passed: queue.Queue[Any] = queue.Queue()
    state = State("first")
    with basic_config(log_format="disabled", handlers=[QueueHandler(passed)]):
        log.info("state %s", state)
        state.text = "second"
    record = passed.get(timeout=PATIENCE)
    assert record.getMessage() == record.msg == "state first"


def test_a_memory_handler_that_passes_records_on_has_the_text_of_the_log_call() -> None:
    last = Keeper()
    between = MemoryHandler(1000, target=last)
    state = State("first")
    with basic_config(log_format="disabled", handlers=[between]):
        log.info("state %s", state)
        state.text = "second"
    between.close()
    assert last.found == [("state %s", (state,), "state first")]


@pytest.mark.parametrize(
    "duplicate", [copy.copy, lambda record: logging.makeLogRecord(vars(record))]
)
def test_a_copy_of_a_captured_record_has_its_text_and_context(
    duplicate: Callable[[logging.LogRecord], logging.LogRecord],
) -> None:
    yours = Keeper()
    numbers = [1]
    with basic_config(log_format="disabled", handlers=[yours]):
        log.info("numbers %s", numbers)
        numbers.append(2)
    duplicated = duplicate(yours.records[0])
    assert duplicated.getMessage() == "numbers [1]"
    assert vars(duplicated) == vars(yours.records[0])
    pickled = pickle.loads(pickle.dumps(yours.records[0]))  # noqa: S301 - our own
    assert pickled.getMessage() == "numbers [1]"


def test_a_captured_record_has_the_attributes_of_the_original_and_no_more(second: Keeper) -> None:
    yours = Keeper()
    with basic_config(log_format="disabled", handlers=[yours]):
        logging.getLogger().addHandler(second)
        log.info("state %s", State("text"), extra={"more": 1})
    assert vars(yours.records[0]) == vars(second.records[0])


def test_records_of_a_class_of_the_users_keep_it(second: Keeper) -> None:
    class Braces(logging.LogRecord):
        def getMessage(self) -> str:  # noqa: N802 - the name is logging's
            return str(self.msg).format(*self.args or ())

        def shout(self) -> str:
            return self.getMessage().upper()

    yours = Keeper()
    found = logging.getLogRecordFactory()
    logging.setLogRecordFactory(Braces)
    state = State("first")
    try:
        with basic_config(log_format="disabled", handlers=[yours]):
            logging.getLogger().addHandler(second)
            log.info("{} and {}", 1, 2)  # noqa: PLE1205 - it is no % format
            log.info("state {}", state)  # noqa: PLE1205
            state.text = "second"
    finally:
        logging.setLogRecordFactory(found)
    plain, rendered = yours.records
    assert isinstance(plain, Braces)
    assert isinstance(rendered, Braces)
    assert (plain.shout(), rendered.shout()) == ("1 AND 2", "STATE FIRST")
    assert [type(record) for record in second.records] == [Braces, Braces]


class Visit(LazyRecord):
    """A lazy record."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(make_record("captured", logging.INFO, "", 0, "", (), None))

    def compute(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        return "la%s", ("zy",), {"visitor": "ada"}


def test_a_lazy_record_is_written_as_it_was_and_left_as_it_is(second: Keeper) -> None:
    gate = threading.Event()

    class Mutator(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            record.msg = "gone %s"
            gate.set()

    class Late(io.StringIO):
        def write(self, text: str) -> int:
            gate.wait(PATIENCE)
            return super().write(text)

    stream, yours, mutator = Late(), Keeper(), Mutator()
    visit = Visit()
    try:
        with basic_config(log_format="stream", stream=stream, handlers=[yours]):
            logging.getLogger().addHandler(mutator)
            log.handle(visit)
    finally:
        logging.getLogger().removeHandler(mutator)
    assert stream.getvalue() == "INFO:captured:lazy\n"
    assert yours.found == [("la%s", ("zy",), "lazy")]
    assert not hasattr(visit, "message")


def test_attributes_added_by_a_filter_of_the_logger_are_written() -> None:
    def add(record: logging.LogRecord) -> bool:
        record.request_id = "7"
        return True

    stream = io.StringIO()
    log.addFilter(add)
    try:
        with basic_config(log_format="stream", stream=stream) as session:
            session.handlers[0].setFormatter(logging.Formatter("%(request_id)s %(message)s"))
            log.handle(Visit())
    finally:
        log.removeFilter(add)
    assert stream.getvalue() == "7 lazy\n"


def test_a_handler_at_a_logger_of_its_own_leaves_the_record_to_the_root_logger(
    second: Keeper,
) -> None:
    yours = Keeper()
    handler = ThreadedHandler(yours)
    log.addHandler(handler)
    logging.getLogger().addHandler(second)
    try:
        log.warning("failed: %s", ERROR)
    finally:
        log.removeHandler(handler)
        handler.close()
    assert second.found == yours.found == [("failed: %s", (ERROR,), "failed: lost")]
    assert second.records[0] is not yours.records[0]
