"""The lifespan of an ASGI application, and the ways to give it to a service (C34)."""

import asyncio
import logging
from typing import Any

import pytest

pytest.importorskip("aiohttp_asgi")

from svcrun import entrypoint
from svcrun.errors import ApplicationStartFailed, ApplicationStopFailed
from svcrun.service.asgi import ASGIHTTPService
from svcrun.state import ServiceState
from tests.service.asgi import Message, Receive, Send, answer, ask, get, serving
from tests.support import eventually, nothing_left, refuses


class Living:
    """An application with given answers to its startup and its shutdown."""

    def __init__(self, startup: Any = "complete", shutdown: Any = "complete") -> None:
        self.answers = {"lifespan.startup": startup, "lifespan.shutdown": shutdown}
        self.received: list[str] = []
        self.scope: Message = {}
        self.cancelled = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await answer(send, repr(scope["state"]).encode())
            return
        self.scope = scope
        try:
            while True:
                kind = (await receive())["type"]
                self.received.append(kind)
                reply = self.answers[kind]
                if isinstance(reply, BaseException):
                    raise reply
                if reply == "hang":
                    await asyncio.Event().wait()
                if reply == "return":
                    return
                await send({"type": f"{kind}.{reply}", "message": "this is why"})
                if kind == "lifespan.shutdown":
                    return
        except asyncio.CancelledError:
            self.cancelled = True
            raise


def service(app: Any, **parameters: Any) -> ASGIHTTPService:
    return ASGIHTTPService("127.0.0.1", 0, app=app, **parameters)


async def test_the_application_receives_its_startup_and_its_shutdown() -> None:
    app = Living()
    async with serving(app, lifespan="auto"):
        assert app.received == ["lifespan.startup"]
    assert app.received == ["lifespan.startup", "lifespan.shutdown"]
    assert app.scope["asgi"] == {"version": "3.0", "spec_version": "2.0"}


async def test_the_state_of_the_lifespan_is_copied_into_each_request() -> None:
    class Stateful(Living):
        async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                scope["state"]["connection"] = [1]
            else:
                scope["state"]["connection"].append(2)  # a shallow copy
                scope["state"]["mine"] = True
            await super().__call__(scope, receive, send)

    async with serving(Stateful(), lifespan="auto") as running:  # aiohttp-asgi has no state
        assert (await ask(running, get())).body == b"{'connection': [1, 2], 'mine': True}"
        assert (await ask(running, get())).body == b"{'connection': [1, 2, 2], 'mine': True}"


@pytest.mark.parametrize("mode", ["auto", "on"])
async def test_a_startup_that_the_application_reports_as_failed_fails_the_start(mode: Any) -> None:
    # aiohttp-asgi serves all the same.
    app = Living(startup="failed")
    one = service(app, lifespan=mode)
    async with serving(Living()):
        pass  # libuv opens a descriptor with the first listener, and keeps it
    with nothing_left():
        with pytest.raises(ApplicationStartFailed, match="this is why"):
            await one.start()
        assert asyncio.all_tasks() == {asyncio.current_task()}
    assert one.socket is None


def test_the_error_of_a_failed_startup_is_raised_by_the_entrypoint(loop_factory: Any) -> None:
    one = service(Living(startup="failed"))
    with (
        pytest.raises(ApplicationStartFailed, match="this is why"),
        entrypoint(one, loop_factory=loop_factory, log_config=False),
    ):
        raise AssertionError("the block is not to be entered")
    assert one.state is ServiceState.FAILED


@pytest.mark.parametrize("startup", ["return", ZeroDivisionError("no")])
async def test_an_application_that_returns_from_its_lifespan_is_served_without_it(
    startup: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "svcrun.service.asgi")
    async with serving(Living(startup), lifespan="auto") as running:
        assert (await ask(running, get())).status == 200
    records = [record for record in caplog.records if record.name == "svcrun.service.asgi"]
    assert len(records) == 1
    # An error during the start-up of the application is logged.
    assert (records[0].levelno == logging.WARNING) is (startup != "return")


async def test_an_application_without_a_lifespan_is_served_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def raising(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        await answer(send)

    async def careless(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await answer(send)

    for app in (raising, careless):
        async with serving(app, lifespan="auto") as running:
            assert (await ask(running, get())).status == 200
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_with_lifespan_on_an_error_of_the_lifespan_fails_the_start() -> None:
    error = ZeroDivisionError("no")
    with pytest.raises(ZeroDivisionError) as caught:
        await service(Living(startup=error), lifespan="on").start()
    assert caught.value is error
    with pytest.raises(ApplicationStartFailed, match="returned"):
        await service(Living(startup="return"), lifespan="on").start()


async def test_with_lifespan_off_the_application_is_not_called_with_a_lifespan_scope() -> None:
    app = Living()
    async with serving(app, lifespan="off") as running:
        assert (await ask(running, get())).body == b"{}"
    assert app.scope == {}


async def test_a_cancelled_start_leaves_nothing_behind() -> None:
    app = Living(startup="hang")
    one = service(app)
    async with serving(Living()):
        pass
    with nothing_left():
        task = asyncio.create_task(one.start())
        await eventually(lambda: app.received)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
    assert app.cancelled
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("shutdown", ["failed", ZeroDivisionError("this is why")])
async def test_the_error_of_a_failed_shutdown_is_raised_by_the_stop(shutdown: Any) -> None:
    one = service(Living(shutdown=shutdown))
    await one.start()
    with pytest.raises(ApplicationStopFailed, match="this is why"):
        await one.stop()
    assert one.socket is None


@pytest.mark.parametrize("timeout", [0, 0.5])  # for its end it has a second at least
async def test_a_lifespan_shutdown_that_hangs_is_cancelled_and_its_stack_is_logged(
    timeout: float,
) -> None:
    app = Living(shutdown="hang")
    one = service(app, shutdown_timeout=timeout)
    await one.start()
    with pytest.raises(ApplicationStopFailed, match=r"asyncio\.Event\(\)\.wait\(\)"):
        await one.stop()
    assert app.cancelled
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_lifespan_that_fails_at_run_time_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fail = asyncio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await fail.wait()
        raise ZeroDivisionError("no")

    one = service(app)
    await one.start()
    fail.set()
    await eventually(lambda: caplog.records)
    assert "lifespan" in caplog.messages[0]
    assert caplog.records[0].exc_info is not None
    with pytest.raises(ApplicationStopFailed, match="no"):
        await one.stop()


async def test_a_service_can_be_started_again_with_the_same_application() -> None:
    app = Living()
    one = service(app)
    for _ in range(3):
        await one.start()
        assert (await ask(one, get())).status == 200
        await one.stop()
    assert app.received == ["lifespan.startup", "lifespan.shutdown"] * 3


# How a service gets its application


async def function(scope: Message, receive: Receive, send: Send) -> None:
    await answer(send, b"function")


def make() -> Any:
    return function


async def make_async() -> Any:
    return function


class Callable:
    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await answer(send, b"function")


class Flexible:
    async def __call__(self, *args: Any) -> None:
        await answer(args[2], b"function")


@pytest.mark.parametrize("app", [function, make, make_async, Callable(), Callable, Flexible()])
async def test_an_application_can_be_an_instance_or_a_factory(app: Any) -> None:
    async with serving(app) as running:
        assert (await ask(running, get())).body == b"function"


async def test_a_subclass_may_create_the_application() -> None:
    class Mine(ASGIHTTPService):
        async def create_asgi_app(self) -> Any:
            return function

    one = Mine("127.0.0.1", 0, lifespan="off")
    await one.start()
    assert (await ask(one, get())).body == b"function"
    await one.stop()


def test_a_service_without_an_application_is_refused() -> None:
    with pytest.raises(AttributeError, match="ASGIHTTPService needs app="):
        ASGIHTTPService("127.0.0.1", 0)


async def test_a_factory_that_returns_no_application_is_refused() -> None:
    with pytest.raises(TypeError, match=r"app must be .*, not 17"):
        await service(lambda: 17).start()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"app": "no-colon"}, "app='no-colon'"),
        ({"lifespan": "maybe"}, "lifespan='maybe'"),
        ({"ws_max_size": 0}, "ws_max_size=0"),
        ({"ws_ping_interval": -1}, "ws_ping_interval=-1"),
    ],
)
def test_a_wrong_value_is_refused_by_name(parameters: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        ASGIHTTPService("127.0.0.1", 0, **{"app": function, **parameters})
    assert refuses(caught.value, message)
