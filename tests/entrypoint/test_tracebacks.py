"""The errors that come out are the ones that were raised, as they were raised (C12, C14, C18)."""

import asyncio
import contextlib
import gc
import logging
import traceback
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import svcrun
from svcrun import Restart, Service, entrypoint
from svcrun.errors import StartCancelled
from tests.entrypoint.forms import Form
from tests.support import LoopFactory


class Unavailable(Exception):
    """The error that the services of this module raise; it supports weak references."""


def third(error: BaseException) -> None:
    raise error


def second(error: BaseException) -> None:
    third(error)


def first(error: BaseException) -> None:
    """Raise `error` three calls deep."""
    second(error)


DEPTH = ("first", "second", "third")


class Raising(Service):
    """A service that raises in the given phase, three calls deep."""

    phase: str
    error: BaseException | None = None
    waits: bool = False

    async def start(self) -> None:
        if self.phase == "start":
            await self._raise()
        self.start_event.set()
        if self.phase == "run":
            await asyncio.sleep(0)
            await self._raise()
        await asyncio.Event().wait()

    async def stop(self, exception: BaseException | None = None) -> None:
        if self.phase == "stop":
            await self._raise()

    async def _raise(self) -> None:
        if self.waits:
            await asyncio.sleep(0.01)
        first(Unavailable("dsn") if self.error is None else self.error)


def functions(error: BaseException) -> list[str]:
    """Return the names of the functions in the traceback of `error`, outermost first."""
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


async def until_interrupted(_: entrypoint) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("phase", ["start", "run", "stop"])
def test_the_traceback_reaches_down_to_the_line_that_raised(
    live: Form, phase: str, waits: bool
) -> None:
    body = until_interrupted if phase == "run" else None
    with pytest.raises(Unavailable) as caught:
        live(Raising(phase=phase, waits=waits), body=body)
    assert functions(caught.value)[-4:] == ["_raise", *DEPTH]


def test_the_log_names_the_service_that_failed_to_start(
    live: Form, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Unavailable) as caught:
        live(Raising(phase="start", name="database"), Raising(phase="run", name="other"))
    records = [record for record in caplog.records if record.exc_info]
    assert ["database" in record.getMessage() for record in records] == [True]
    assert records[0].exc_info is not None
    assert records[0].exc_info[1] is caught.value


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("phase", ["start", "run"])
def test_a_cancellation_that_ends_a_start_is_the_cause_of_its_error(
    live: Form, phase: str, waits: bool
) -> None:
    """A ``start()`` that awaits a task which is cancelled by another one ends so."""
    body = until_interrupted if phase == "run" else None
    with pytest.raises(StartCancelled) as caught:
        live(Raising(phase=phase, waits=waits, error=asyncio.CancelledError()), body=body)
    cause = caught.value.__cause__
    assert isinstance(cause, asyncio.CancelledError)
    assert functions(cause) == ["start", "_raise", *DEPTH]


@pytest.mark.parametrize("hook", ["pre_start", "post_start", "pre_stop", "post_stop"])
def test_the_traceback_of_a_hook_reaches_down_to_the_line_that_raised(
    hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(**_: Any) -> None:
        first(Unavailable("hook"))

    ep = entrypoint(log_config=False)
    getattr(ep, hook).connect(fails)
    with pytest.raises(Unavailable) as caught, ep:
        pass
    assert functions(caught.value)[-4:] == ["fails", *DEPTH]


def test_each_member_of_a_group_has_its_own_traceback(live: Form) -> None:
    services = [Raising(phase="start", error=Unavailable(str(number))) for number in range(3)]
    with pytest.raises(ExceptionGroup) as caught:
        live(*services)
    assert sorted(str(error) for error in caught.value.exceptions) == ["0", "1", "2"]
    for error in caught.value.exceptions:
        assert functions(error) == ["start", "_raise", *DEPTH]
    assert caught.value.__context__ is None


def test_a_start_at_run_time_raises_the_whole_traceback(live: Form) -> None:
    async def body(ep: entrypoint) -> None:
        with pytest.raises(Unavailable) as caught:
            await ep.start_services(Raising(phase="start", waits=True))
        assert functions(caught.value)[-4:] == ["_raise", *DEPTH]

    live(body=body)


def test_the_error_past_a_restart_policy_has_its_whole_traceback(live: Form) -> None:
    service = Raising(phase="run", on_crash=Restart(limit=1, delay=0))
    with pytest.raises(Unavailable) as caught:
        live(service, body=until_interrupted)
    assert functions(caught.value)[-4:] == ["_raise", *DEPTH]


def test_an_error_that_two_services_share_is_logged_for_both(
    live: Form, caplog: pytest.LogCaptureFixture
) -> None:
    shared = Unavailable("shared")
    names = ["one", "two"]
    with pytest.raises(ExceptionGroup) as caught:
        live(*(Raising(phase="start", error=shared, name=name) for name in names))
    assert caught.value.exceptions == (shared, shared)
    assert functions(shared)[-3:] == list(DEPTH)
    for name, record in zip(names, caplog.records, strict=True):
        assert name in record.getMessage()
        assert record.exc_info is not None
        assert record.exc_info[1] is shared


@contextlib.contextmanager
def handling(error: BaseException) -> Iterator[None]:
    """Run the block while `error` is being handled."""
    try:
        raise error
    except type(error):
        yield


def chained(how: str) -> tuple[BaseException, BaseException | None, BaseException | None, bool]:
    """Return an error with a history, and that history."""
    error = Unavailable("chained")
    if how == "cause":
        error.__cause__ = LookupError("cause")
    if how in {"context", "suppressed"}:
        error.__context__ = LookupError("context")
        error.__suppress_context__ = how == "suppressed"
    return error, error.__cause__, error.__context__, error.__suppress_context__


class Rethrowing(Service):
    """A service that raises an error with a traceback, without changing the traceback."""

    phase: str
    error: BaseException

    async def start(self) -> None:
        if self.phase == "start":
            await self._raise()
        if self.phase == "run":
            self.start_event.set()
            await asyncio.sleep(0)
            await self._raise()

    async def stop(self, exception: BaseException | None = None) -> None:
        if self.phase == "stop":
            await self._raise()

    async def _raise(self) -> None:
        context = self.error.__context__
        try:
            raise self.error
        finally:
            self.error.__context__ = context


@pytest.mark.parametrize("around", [False, True], ids=["plainly", "while handling"])
@pytest.mark.parametrize("how", ["none", "cause", "context", "suppressed"])
@pytest.mark.parametrize("phase", ["start", "run", "stop"])
def test_an_error_keeps_its_cause_and_context(
    live: Form, phase: str, how: str, around: bool
) -> None:
    error, cause, context, suppressed = chained(how)
    body = until_interrupted if phase == "run" else None
    outer: Any = handling(OSError("around")) if around else contextlib.nullcontext()
    with outer, pytest.raises(Unavailable) as caught:
        live(Rethrowing(phase=phase, error=error), body=body)
    assert caught.value is error
    assert error.__cause__ is cause
    assert error.__context__ is context
    assert error.__suppress_context__ is suppressed


class Plain(Raising):
    """A service that raises in a frame without a reference to the error."""

    async def _raise(self) -> None:
        if self.waits:
            await asyncio.sleep(0.01)
        raise Unavailable


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("phase", ["start", "run", "stop"])
@pytest.mark.parametrize("name", ["sync", "given", "run"])  # a Runner refers to its error, too
def test_an_error_is_freed_when_it_was_handled_without_the_garbage_collector(
    name: str, loop_factory: LoopFactory, phase: str, waits: bool
) -> None:
    live = Form(name, loop_factory)
    logging.getLogger("svcrun").addHandler(quiet := logging.NullHandler())
    logging.getLogger("svcrun").propagate = False  # pytest keeps the records
    body = until_interrupted if phase == "run" else None
    gc.collect()
    gc.disable()
    try:
        try:
            live(Plain(phase=phase, waits=waits), body=body)
        except Unavailable as error:
            remembered = weakref.ref(error)
        assert remembered() is None
    finally:
        gc.enable()
        logging.getLogger("svcrun").propagate = True
        logging.getLogger("svcrun").removeHandler(quiet)


def test_an_error_out_of_start_that_is_an_exit_is_not_logged(
    live: Form, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit) as caught:
        live(Raising(phase="start", error=SystemExit(3)))
    assert caught.value.code == 3
    assert not [record for record in caplog.records if record.exc_info]


def test_the_command_line_shows_the_line_that_raised(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def main() -> None:
        """Return at once."""

    try:
        svcrun.run(main(), Raising(phase="start"), log_config=False)
    except Unavailable:
        traceback.print_exc()
    shown = capsys.readouterr().err
    assert 'first(Unavailable("dsn") if self.error is None else self.error)' in shown
    assert "During handling" not in shown


@pytest.mark.parametrize("name", ["sync", "given", "run"])
def test_services_that_have_stopped_are_freed_without_the_garbage_collector(
    name: str, loop_factory: LoopFactory
) -> None:
    class Returning(Service):
        async def start(self) -> None:
            """Be ready at once."""

    gc.collect()
    gc.disable()
    try:
        services: list[Service] = [Returning(), Raising(phase="")]
        remembered = [weakref.ref(service) for service in services]
        Form(name, loop_factory)(*services)
        services.clear()
        assert [service() for service in remembered] == [None, None]
    finally:
        gc.enable()
