"""A lazy record behaves like a plain record."""

import copy
import logging
import pickle
import sys
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest

from svcrun.log import ThreadedHandler
from svcrun.log.records import LazyRecord

FORMATS = (
    "%(levelname)s:%(name)s:%(message)s",
    "%(message)s",
    "%(message)s, %(path)s",
    "%(message).3s",
    "%(message)20s|",
    "%(message)s %(message)s",
    "%(msg)s",
    "%(args)s",
    "%(message)s %(created)f",
    "%(asctime)s %(message)s",
    "%(threadName)s %(process)d %(module)s %(message)s",
    "%(name)s",
    "%(serviceName)s %(message)s",
)


LIKE = logging.LogRecord("door", logging.INFO, "door.py", 7, "", (), None)
LIKE.serviceName = "porter"


class Visit(LazyRecord):
    """A record of a visit, computed from the name of the visitor."""

    __slots__ = ("_who",)

    def __init__(self, who: object) -> None:
        super().__init__(LIKE)
        self._who = who

    def compute(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        return "%s of %s", (self._who, 100 // len(str(self._who))), {"path": f"/{self._who}"}


def ordinary(record: Visit) -> logging.LogRecord:
    return logging.makeLogRecord(vars(record.to_record()))


@pytest.fixture(params=["a stream", "stderr", "another handler"])
def written(
    request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Write records by a thread, and return the text."""

    class Other(logging.StreamHandler[Any]):
        pass

    def write(
        *records: logging.LogRecord,
        formatter: logging.Formatter | None = None,
        prepare: Callable[[logging.Handler], object] = lambda _: None,
    ) -> str:
        stream: Any = StringIO() if request.param != "stderr" else sys.__stderr__
        kind = Other if request.param == "another handler" else logging.StreamHandler
        target = kind(stream)
        target.setFormatter(formatter)
        prepare(target)
        handler = ThreadedHandler(target)
        for record in records:
            handler.handle(record)
        handler.close(timeout=30)
        return stream.getvalue() if isinstance(stream, StringIO) else capfd.readouterr().err

    return write


@pytest.mark.parametrize("text", FORMATS)
def test_a_lazy_record_is_formatted_like_a_plain_record(
    written: Callable[..., str], text: str
) -> None:
    visits = [Visit("Ann"), Visit("B" * 50), Visit("Ann")]
    expected = "".join(logging.Formatter(text).format(ordinary(v)) + "\n" for v in visits)
    assert written(*visits, formatter=logging.Formatter(text)) == expected


def test_a_lazy_record_without_a_formatter_is_formatted_like_a_plain_record(
    written: Callable[..., str],
) -> None:
    assert written(Visit("Ann")) == "Ann of 33\n"


def test_a_formatter_of_another_class_gets_the_record(written: Callable[..., str]) -> None:
    class Counting(logging.Formatter):
        count = 0

        def format(self, record: logging.LogRecord) -> str:
            self.count += 1
            return f"{self.count}: {record.getMessage()}"

    assert written(Visit("Ann"), Visit("Bob"), formatter=Counting()) == (
        "1: Ann of 33\n2: Bob of 33\n"
    )


def test_defaults_of_a_formatter_replace_missing_attributes(
    written: Callable[..., str],
) -> None:
    formatter = logging.Formatter(
        "%(path)s %(other)s %(message)s", defaults={"path": "-", "other": "-"}
    )
    assert written(Visit("Ann"), formatter=formatter) == "/Ann - Ann of 33\n"


def test_a_filter_of_the_target_decides_and_changes(written: Callable[..., str]) -> None:
    def keep(record: logging.LogRecord) -> bool:
        record.msg = record.msg.replace("of", "OF")
        return "Ann" in record.getMessage()

    assert written(Visit("Ann"), Visit("Bob"), prepare=lambda target: target.addFilter(keep)) == (
        "Ann OF 33\n"
    )


def test_the_level_of_the_target_decides(written: Callable[..., str]) -> None:
    assert written(Visit("Ann"), prepare=lambda target: target.setLevel("ERROR")) == ""


def test_attributes_that_a_handler_changed_are_written(written: Callable[..., str]) -> None:
    visit = Visit("Ann")
    visit.msg, visit.request = visit.msg.replace("of", "and"), 5
    formatter = logging.Formatter("%(request)s %(message)s")
    assert written(visit, formatter=formatter) == "5 Ann and 33\n"


def test_attributes_set_before_the_first_use_are_written(written: Callable[..., str]) -> None:
    visit = Visit("Ann")
    visit.msg = "%s or %s"
    assert written(visit) == "Ann or 33\n"


def test_a_lazy_record_that_cannot_be_filled_in_is_reported_and_the_others_are_written(
    written: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    text = written(Visit("Ann"), Visit(""), Visit("Bob"))
    errors = capfd.readouterr().err + text
    assert "Ann of 33\n" in text
    assert "Bob of 33\n" in text
    assert "ZeroDivisionError" in errors
    assert "door.py" in errors


def test_a_lazy_record_has_the_attributes_of_a_record_and_no_others() -> None:
    for of in (vars, lambda record: record.__dict__):
        assert set(of(Visit("Ann"))) == {*vars(LIKE), "path"}
    assert Visit("Ann").getMessage() == "Ann of 33"
    assert Visit("Ann").levelno == logging.INFO
    assert not hasattr(Visit("Ann"), "absent")


def test_the_time_of_a_lazy_record_is_that_of_its_creation() -> None:
    before = logging.LogRecord("", 0, "", 0, "", (), None)
    visit = Visit("Ann")
    after = logging.LogRecord("", 0, "", 0, "", (), None)
    assert before.created <= visit.created <= after.created
    assert visit.msecs == int(visit.created % 1 * 1000)
    assert before.relativeCreated - 0.01 <= visit.relativeCreated <= after.relativeCreated + 0.01


def unpickled(one: object) -> Any:
    return pickle.loads(pickle.dumps(one))  # noqa: S301 - it was made here


@pytest.mark.parametrize("copied", [copy.copy, unpickled])
def test_a_copy_has_the_same_attributes(copied: Callable[[Any], Any]) -> None:
    assert vars(copied(visit := Visit("Ann"))) == vars(visit)
