"""make_record() returns the records that the standard library creates."""

import asyncio
import logging
import multiprocessing
import pickle
import sys
import threading
from collections import UserDict
from typing import Any, ClassVar

import pytest

from svcrun.log.records import LazyRecord, can_make_records, make_record

ARGUMENTS: list[tuple[Any, ...]] = [
    ("logger", logging.INFO, "/a/b/module.py", 7, "%s", (1,), None),
    ("logger", 15, "module", 7, "%s", (), None, "function", "Stack"),
    ("logger", logging.ERROR, "", 0, "%(a)s", ({"a": 1},), None),
    ("logger", logging.ERROR, "x.py", 0, "%(a)s", (UserDict(a=1),), None),
    ("logger", logging.ERROR, "x.py", 0, "%s", ({},), None),
    ("logger", logging.ERROR, "x.py", 0, "%s", ([],), None),
    ("logger", logging.DEBUG, None, 0, {"a": 1}, None, (ValueError, ValueError(), None)),
    ("logger", logging.DEBUG, 5, 0, "", (), None),
]
TIMES = {"created", "msecs", "relativeCreated"}


def timeless(record: logging.LogRecord) -> list[tuple[str, object]]:
    return [(name, value) for name, value in vars(record).items() if name not in TIMES]


def both(*arguments: Any) -> tuple[logging.LogRecord, logging.LogRecord]:
    return make_record(*arguments), logging.LogRecord(*arguments)


def test_make_record_is_complete_on_this_python() -> None:
    assert can_make_records()


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_every_attribute_is_that_of_the_standard_library(arguments: tuple[Any, ...]) -> None:
    ours, theirs = both(*arguments)
    assert timeless(ours) == timeless(theirs)
    assert list(vars(ours)) == list(vars(theirs))
    assert type(ours) is logging.LogRecord


def test_the_times_are_those_of_the_call() -> None:
    first = logging.LogRecord(*ARGUMENTS[0])
    ours = make_record(*ARGUMENTS[0])
    last = logging.LogRecord(*ARGUMENTS[0])
    assert first.created <= ours.created <= last.created
    assert first.relativeCreated - 0.01 <= ours.relativeCreated <= last.relativeCreated + 0.01
    assert ours.msecs == int(ours.created % 1 * 1000)


@pytest.mark.parametrize("flag", ["logThreads", "logProcesses", "logMultiprocessing"])
def test_attributes_that_logging_switches_off_are_none(
    monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    monkeypatch.setattr(logging, flag, False)
    ours, theirs = both(*ARGUMENTS[0])
    assert timeless(ours) == timeless(theirs)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="records know their task since 3.12")
async def test_the_name_of_the_task_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        ours, theirs = both(*ARGUMENTS[0])
        assert timeless(ours) == timeless(theirs)
        assert vars(ours)["taskName"] == "worker"
        monkeypatch.setattr(logging, "logAsyncioTasks", False)
        assert vars(make_record(*ARGUMENTS[0]))["taskName"] is None

    await asyncio.create_task(work(), name="worker")


async def test_outside_of_a_task_no_task_is_named() -> None:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[logging.LogRecord] = loop.create_future()
    loop.call_soon(lambda: done.set_result(make_record(*ARGUMENTS[0])))
    assert getattr(await done, "taskName", None) is None


def test_the_name_of_a_thread_is_its_name_now() -> None:
    thread = threading.current_thread()
    found = thread.name
    try:
        thread.name = "renamed"
        assert make_record(*ARGUMENTS[0]).threadName == "renamed"
    finally:
        thread.name = found


def test_a_broken_multiprocessing_module_gives_the_default_process_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert make_record(*ARGUMENTS[0]).processName == multiprocessing.current_process().name
    monkeypatch.delattr(multiprocessing, "current_process")
    assert make_record(*ARGUMENTS[0]).processName == "MainProcess"


def test_records_can_be_pickled() -> None:
    record = make_record(*ARGUMENTS[0])
    assert vars(pickle.loads(pickle.dumps(record))) == vars(record)  # noqa: S301 - our own


def test_a_record_factory_of_the_program_is_not_replaced() -> None:
    found = logging.getLogRecordFactory()
    try:
        logging.setLogRecordFactory(type("Mine", (logging.LogRecord,), {}))
        assert not can_make_records()
    finally:
        logging.setLogRecordFactory(found)


class Visit(LazyRecord):
    """A lazy record that counts its computations."""

    def __init__(self, visitor: str) -> None:
        super().__init__(logging.LogRecord(*ARGUMENTS[0]))
        self.counter[visitor] = 0

    counter: ClassVar[dict[str, int]] = {}

    def compute(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        (visitor,) = self.counter
        self.counter[visitor] += 1
        return "%s came", (visitor,), {"visitor": visitor}


@pytest.fixture
def visit(monkeypatch: pytest.MonkeyPatch) -> Visit:
    monkeypatch.setattr(Visit, "counter", {})
    return Visit("ada")


def test_a_lazy_record_computes_its_attributes_on_first_use(visit: Visit) -> None:
    assert visit.levelno == logging.INFO
    assert Visit.counter == {"ada": 0}
    assert visit.getMessage() == "ada came"
    assert Visit.counter["ada"] > 0


def test_a_lazy_record_has_all_attributes_whichever_is_asked_for_first(visit: Visit) -> None:
    like = vars(logging.LogRecord(*ARGUMENTS[0]))
    assert visit.visitor == "ada"
    for name, value in like.items():
        assert hasattr(visit, name)
        if name not in {*TIMES, "msg", "args"}:
            assert getattr(visit, name) == value


@pytest.mark.parametrize("name", [*vars(logging.LogRecord(*ARGUMENTS[0])), "visitor"])
def test_a_lazy_record_has_each_attribute_on_first_use(visit: Visit, name: str) -> None:
    assert hasattr(visit, name)
    assert visit.getMessage() == "ada came"


def test_the_time_of_a_lazy_record_is_that_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Visit, "counter", {})
    before = logging.LogRecord(*ARGUMENTS[0]).created
    visit = Visit("ada")
    after = logging.LogRecord(*ARGUMENTS[0])
    assert before <= visit.created <= after.created
    assert visit.relativeCreated <= after.relativeCreated + 0.01
    assert visit.msecs == int(visit.created % 1 * 1000)


def test_a_lazy_record_raises_attribute_error_for_unknown_names(visit: Visit) -> None:
    assert not hasattr(visit, "nothing")
    with pytest.raises(AttributeError, match="nothing"):
        _ = visit.nothing


def test_a_lazy_record_keeps_attributes_that_a_filter_sets(visit: Visit) -> None:
    visit.request_id = "7"
    assert logging.Formatter("%(message)s %(request_id)s").format(visit) == "ada came 7"
    visit.levelno = logging.ERROR
    assert visit.levelno == logging.ERROR


def test_to_record_returns_a_plain_record(visit: Visit) -> None:
    record = visit.to_record()
    assert record.getMessage() == "ada came"
    assert vars(record)["visitor"] == "ada"
    assert logging.Formatter("%(levelname)s %(visitor)s").format(record) == "INFO ada"
