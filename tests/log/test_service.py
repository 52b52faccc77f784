"""Records have the name of the service that logged them."""

import asyncio
import gc
import io
import json
import logging
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from svcrun import Service, entrypoint
from svcrun._util.current_service import on_behalf_of
from svcrun.log import ThreadedHandler, basic_config
from svcrun.log.sinks import warn
from svcrun.restart import Restart
from svcrun.service import PeriodicService
from tests.support import LoopFactory, eventually

root = logging.getLogger()
FORMATTER = logging.Formatter("%(serviceName)s: %(message)s")


class Idle(Service):
    async def start(self) -> None:
        pass


@pytest.fixture(params=[True, False], ids=["buffered", "unbuffered"])
def buffered(request: pytest.FixtureRequest) -> bool:
    """Whether threads write the records."""
    chosen: bool = request.param
    return chosen


class Target(logging.StreamHandler[io.StringIO]):
    """A handler that keeps the service and the message of each record."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.setFormatter(FORMATTER)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


@pytest.fixture(autouse=True)
def no_errors(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Fail the test if a record could not be formatted."""
    yield
    assert "Logging error" not in capfd.readouterr().err


def test_every_handler_can_show_the_service(buffered: bool) -> None:
    yours, other, added = Target(), Target(), Target()
    with basic_config("info", "disabled", buffered, handlers=[yours, other]):
        root.addHandler(added)
        with on_behalf_of(Idle(name="inbox")):
            root.info("in")
        root.info("out")
        root.removeHandler(added)
    assert yours.lines == other.lines == added.lines == ["inbox: in", "None: out"]


def test_a_handler_that_is_added_to_a_log_that_is_disabled_can_show_the_service() -> None:
    added = Target()
    with basic_config("info", "disabled"):
        root.addHandler(added)
        with on_behalf_of(Idle()):
            root.info("x")
        root.removeHandler(added)
    assert added.lines == ["Idle: x"]


def test_a_service_name_given_as_extra_is_kept(buffered: bool) -> None:
    target = Target()
    with (
        basic_config("info", "disabled", buffered, handlers=[target]),
        on_behalf_of(Idle(name="inbox")),
    ):
        root.info("x", extra={"serviceName": "mine", "service": "mine"})
        root.info("y", extra={"service": "mine"})
    assert target.lines == ["mine: x", "inbox: y"]


def test_a_record_factory_of_the_program_may_set_the_service_name(buffered: bool) -> None:
    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = logging.LogRecord(*args, **kwargs)
        record.serviceName = "mine"
        return record

    target = Target()
    logging.setLogRecordFactory(make)
    try:
        with basic_config("info", "disabled", buffered, handlers=[target]):
            root.info("x")
    finally:
        logging.setLogRecordFactory(logging.LogRecord)
    assert target.lines == ["mine: x"]


def test_the_service_of_a_record_is_that_of_the_log_call() -> None:
    target = Target()
    with basic_config("info", "disabled", handlers=[target], flush_interval=3600) as session:
        for name in ("first", "second"):
            with on_behalf_of(Idle(name=name)):
                root.info("x")
        with on_behalf_of(Idle(name="flushing")):
            session.flush()
    assert target.lines == ["first: x", "second: x"]


def test_filters_can_read_the_service_name() -> None:
    target = Target()
    handler = ThreadedHandler(target)
    handler.addFilter(lambda record: vars(record)["serviceName"] == "inbox")
    with basic_config("info", "disabled", handlers=[handler]):
        root.info("x")
        with on_behalf_of(Idle(name="inbox")):
            root.info("y")
    handler.close()
    assert target.lines == ["inbox: y"]


def test_a_thread_of_no_service_has_none() -> None:
    target = Target()
    with basic_config("info", "disabled", handlers=[target]), on_behalf_of(Idle()):
        thread = threading.Thread(target=root.info, args=("x",))
        thread.start()
        thread.join()
    assert target.lines == ["None: x"]


def test_warnings_of_the_log_itself_have_no_service() -> None:
    with on_behalf_of(Idle()):
        assert FORMATTER.format(warn("lost")) == "None: lost"


def test_containers_in_extra_are_captured_in_the_log_call(buffered: bool) -> None:
    """The name of the service is one more attribute, for each handler after the first."""
    seen: list[Any] = []

    class Yours(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(list(vars(record)["items"]))

    with basic_config("info", "disabled", buffered, handlers=[Yours(), Yours()]):
        items = [1]
        root.info("x", extra={"items": items})
        items.append(2)
    assert seen == [[1], [1]]


def log_as_json(extra: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    pytest.importorskip("pythonjsonlogger")
    stream = io.StringIO()
    with basic_config("info", "json", stream=stream, **options):
        root.info("x", extra=extra)
    written: dict[str, Any] = json.loads(stream.getvalue())
    return written


def test_json_has_the_current_service() -> None:
    assert log_as_json().keys().isdisjoint({"service", "serviceName"})
    with on_behalf_of(Idle(name="inbox")):
        written = log_as_json()
    assert written["service"] == "inbox"
    assert "serviceName" not in written


def test_json_has_the_service_given_as_extra() -> None:
    with on_behalf_of(Idle(name="inbox")):
        assert log_as_json({"service": "mine"})["service"] == "mine"
        assert log_as_json({"service": None})["service"] is None
        assert log_as_json({"serviceName": "mine"})["service"] == "mine"
        assert log_as_json(static_fields={"service": "mine"})["service"] == "mine"


def test_json_renames_and_reserves_the_service_field() -> None:
    with on_behalf_of(Idle(name="inbox")):
        assert log_as_json(rename_fields={"service": "unit"})["unit"] == "inbox"
        written = log_as_json(reserved_attrs=["args", "msg"])
    assert "serviceName" not in written
    assert written["funcName"] == "log_as_json"


# Records of the entrypoint and of the loop about services


def run(loop_factory: LoopFactory, *services: Service) -> list[str]:
    """Run services until one of them stops the program; return the records of each."""
    target = Target()
    options: Any = {"log_format": "disabled", "log_handlers": [target]}
    try:
        with entrypoint(*services, loop_factory=loop_factory, **options) as loop:
            loop.run_forever()
    except* LookupError:
        pass
    return target.lines


def test_a_crash_is_logged_for_the_service(loop_factory: LoopFactory) -> None:
    class Crashing(Service):
        async def start(self) -> None:
            self.start_event.set()
            await asyncio.sleep(0)
            raise LookupError

        async def stop(self, exception: BaseException | None = None) -> None:
            raise LookupError

    policy = Restart(delay=0.001, jitter=0, limit=1)
    lines = run(loop_factory, Crashing(name="weak", on_crash=policy), Idle(name="sound"))
    about = [line.split(": ", 1)[0] for line in lines if "name='weak'" in line]
    assert len(about) >= 4
    assert set(about) == {"weak"}


def test_an_unhandled_exception_is_logged_for_the_service_of_its_task(
    loop_factory: LoopFactory,
) -> None:
    class Careless(Service):
        async def start(self) -> None:
            loop = asyncio.get_running_loop()
            loop.call_soon(self.fail)
            task = loop.create_task(self.fail_later())
            task.add_done_callback(lambda _: loop.call_soon(end))
            del task

        def fail(self) -> None:
            raise ValueError("in a callback")

        async def fail_later(self) -> None:
            raise ValueError("in a task")

    ended = 0

    def end() -> None:
        nonlocal ended
        ended += 1
        if ended == 2:
            gc.collect()
            asyncio.get_running_loop().stop()

    lines = run(loop_factory, Careless(name="first"), Careless(name="second"))
    for name in ("first", "second"):
        assert len([line for line in lines if line.startswith(f"{name}: Exception in")]) == 1
        assert len([line for line in lines if line.startswith(f"{name}: Task exception")]) == 1


def test_a_skipped_call_is_logged_for_the_service_that_makes_it(
    loop_factory: LoopFactory,
) -> None:
    """All callbacks share one timer, which one of the services sets."""

    class Slow(PeriodicService):
        async def callback(self) -> None:
            await asyncio.sleep(0.01)

    def skipping() -> list[str]:
        return sorted(line for line in target.lines if "skipping calls until it ends" in line)

    target = Target()
    services = [Slow(name=name, interval=0.001) for name in ("first", "second")]
    options: Any = {"log_format": "disabled", "log_handlers": [target], "log_buffering": False}
    with entrypoint(*services, loop_factory=loop_factory, **options) as loop:
        loop.run_until_complete(eventually(lambda: len(skipping()) == 2))
    assert [line.split(":")[0] for line in skipping()] == ["first", "second"]


def test_a_blocked_event_loop_is_logged_without_a_service(loop_factory: LoopFactory) -> None:
    class Ticking(PeriodicService):
        async def callback(self) -> None:
            pass

    target = Target()
    options: Any = {"log_format": "disabled", "log_handlers": [target], "log_buffering": False}
    with entrypoint(Ticking(interval=0.001), loop_factory=loop_factory, **options) as loop:
        time.sleep(0.01)
        loop.run_until_complete(eventually(lambda: target.lines))
    assert target.lines[0].startswith("None: ")
    assert "event loop blocked for" in target.lines[0]


def test_a_record_about_a_signal_has_no_service(loop_factory: LoopFactory) -> None:
    class Interrupted(Service):
        async def start(self) -> None:
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGTERM)

    begin, end = run(loop_factory, Interrupted())
    assert begin == "None: SIGTERM received, shutting down"
    assert end.startswith("None: shutdown completed in ")
