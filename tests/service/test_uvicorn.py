"""Options, endpoint, application and log of the uvicorn service."""

import asyncio
import contextlib
import errno
import inspect
import logging
import os
import pickle
import shutil
import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

uvicorn = pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")

from svcrun import entrypoint  # noqa: E402 - not without uvicorn
from svcrun.errors import (  # noqa: E402
    AlreadyRunning,
    ApplicationStartFailed,
    MissingParameters,
    ServerEnded,
)
from svcrun.service.uvicorn import UvicornService  # noqa: E402
from tests.conftest import Certificates  # noqa: E402
from tests.service.uvicorns import (  # noqa: E402
    Application,
    Receive,
    Send,
    answer,
    begin_start,
    get,
    greet,
    make,
    raw_client,
    request,
    running,
)
from tests.support import PATIENCE, Program, eventually, nothing_left, refuses  # noqa: E402

# The import strings of the tests name these.
application = Application()

# The same to the interpreter, and nothing to a type checker.
UNCHECKED: Any = make


def make_application() -> Application:
    return Application()


async def make_application_slowly() -> Application:
    await asyncio.sleep(0)
    return Application()


# Options


def test_every_option_of_uvicorn_is_an_attribute() -> None:
    missing = [name for name in inspect.signature(uvicorn.Config).parameters if not has(name)]
    assert missing == []


def has(name: str) -> bool:
    return hasattr(UvicornService, name)


# The service has its own defaults of these; older versions of uvicorn name ciphers.
OTHERWISE = {"app", "host", "port", "loop", "log_config", "use_colors", "ssl_ciphers"}


def test_an_option_has_the_default_of_uvicorn() -> None:
    different = {
        name: getattr(UvicornService, name)
        for name, one in inspect.signature(uvicorn.Config).parameters.items()
        if name not in OTHERWISE and getattr(UvicornService, name) != one.default
    }
    assert different == {}


def test_the_default_endpoint_is_port_8080_of_localhost() -> None:
    service = UvicornService(app=application)
    assert (service.address, service.port) == ("127.0.0.1", 8080)


async def test_options_reach_uvicorn() -> None:
    headers = [("X-One", "1"), ("X-One", "2")]
    service = make(headers=headers, server_header=False, date_header=False, root_path="/root")
    async with running(service):
        response = await get(service, "/x")
        assert response.headers.get_list("x-one") == ["1", "2"]
        assert "server" not in response.headers
        assert "date" not in response.headers
        assert response.text == "hello /root/x"


async def test_class_attributes_are_defaults() -> None:
    """C3."""

    class Plain(UvicornService):
        host = "127.0.0.1"
        port = 0
        server_header = False

        async def create_application(self) -> Any:
            return Application()

    async with running(Plain()) as service:
        response = await get(service)
        assert response.text == "hello /"
        assert "server" not in response.headers


async def test_the_date_header_is_current() -> None:
    """The main loop of uvicorn updates it once a second."""
    async with running(make()) as service:
        first = (await get(service)).headers["date"]
        assert service.server is not None
        state = service.server.server_state
        await eventually(lambda: (b"date", first.encode()) not in state.default_headers)
        assert (await get(service)).headers["date"] != first


async def test_callback_notify_is_called_while_the_service_runs() -> None:
    called = asyncio.Event()

    async def notify() -> None:
        called.set()

    async with running(make(callback_notify=notify, timeout_notify=0)):
        await asyncio.wait_for(called.wait(), PATIENCE)


@pytest.mark.parametrize(
    ("parameters", "error", "named"),
    [
        ({"port": 70000}, ValueError, "port=70000"),
        ({"address": ""}, ValueError, "address=''"),
        ({"host": "a b"}, ValueError, "address='a b'"),
        ({"address": "::1", "host": "127.0.0.1"}, ValueError, "host='127.0.0.1'"),
        ({"path": "/a", "uds": "/b"}, ValueError, "uds='/b'"),
        ({"path": "/a", "fd": 0}, ValueError, "None beside fd=0"),
        ({"path": "/a", "port": 80}, ValueError, "port=80"),
        ({"path": "/a", "address": "::1"}, ValueError, "path='/a'"),
        ({"fd": "3"}, TypeError, "fd='3'"),
        ({"fd": 99999}, ValueError, "fd=99999"),
        ({"sock": "a socket"}, TypeError, "sock='a socket'"),
        ({"app": "no colon"}, ValueError, "app='no colon'"),
        ({"loop": "uvloop"}, ValueError, "loop_factory"),
        ({"reload": True}, ValueError, "reload=True"),
        ({"reload_dirs": ["."]}, ValueError, "reload_dirs=['.']"),
        ({"workers": 4}, ValueError, "reuse_port=True"),
        ({"env_file": ".env"}, ValueError, "env_file='.env'"),
        ({"backlog": 0}, ValueError, "backlog=0"),
        ({"limit_concurrency": 0}, ValueError, "limit_concurrency=0"),
        ({"limit_max_requests": 1.5}, TypeError, "limit_max_requests=1.5"),
        ({"shutdown_timeout": -1}, ValueError, "shutdown_timeout=-1"),
        ({"shutdown_timeout": None}, TypeError, "shutdown_timeout=None"),
        ({"timeout_graceful_shutdown": -1}, ValueError, "timeout_graceful_shutdown=-1"),
        ({"timeout_keep_alive": "5"}, TypeError, "timeout_keep_alive='5'"),
        ({"ws_max_size": 0}, ValueError, "ws_max_size=0"),
        ({"ws_ping_interval": float("nan")}, ValueError, "ws_ping_interval=nan"),
        ({"lifespan": "maybe"}, ValueError, "lifespan='maybe'"),
        ({"interface": "cgi"}, ValueError, "interface='cgi'"),
        ({"http": "h12"}, ValueError, "http='h12'"),
        ({"ws": None}, ValueError, "ws=None"),
        ({"log_level": "loud"}, ValueError, "log_level='loud'"),
        ({"log_level": True}, ValueError, "log_level=True"),
        ({"headers": {"X-One": "1"}}, TypeError, "headers={'X-One': '1'}"),
        ({"headers": [("X-One", 1)]}, TypeError, "headers="),
        ({"access_log": "no"}, TypeError, "access_log='no'"),
        ({"root_path": None}, TypeError, "root_path=None"),
        ({"callback_notify": 1}, TypeError, "callback_notify=1"),
        ({"ssl_certfile": "/no/such.pem"}, FileNotFoundError, "ssl_certfile"),
        ({"ssl_certfile": 5}, TypeError, "ssl_certfile=5"),
        ({"ssl_keyfile": __file__}, ValueError, "ssl_certfile=None"),
    ],
)
def test_a_wrong_parameter_is_refused_when_the_service_is_created(
    parameters: Any, error: type[Exception], named: str
) -> None:
    """C7."""
    with pytest.raises(error) as caught:
        UNCHECKED(**parameters)
    assert refuses(caught.value, named)
    assert "UvicornService" in str(caught.value)


def test_a_value_without_effect_is_accepted() -> None:
    make(loop="auto", reload=False, workers=1, env_file=None, reload_delay=0.25)


async def test_a_class_may_use_the_name_reload_otherwise() -> None:
    class Own(UvicornService):
        async def reload(self) -> str:  # type: ignore[misc]
            return "own"

    service = Own(app=application, address="127.0.0.1", port=0)
    async with running(service):
        assert await service.reload() == "own"


def test_a_loop_of_the_class_is_refused_too() -> None:
    class Own(UvicornService):
        loop = "uvloop"  # type: ignore[assignment]

    with pytest.raises(ValueError, match=r"loop must be left out .*, not 'uvloop'"):
        Own(app=application)


def test_an_option_that_the_installed_uvicorn_does_not_have_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from svcrun._web.uvicorn import options

    known = dict(options._KNOWN)
    known.pop("http2", None)
    monkeypatch.setattr(options, "_KNOWN", known)
    make()
    with pytest.raises(ValueError, match=r"http2 must be left out \(uvicorn .*, not True"):
        make(http2=True)


def test_a_service_without_an_application_is_refused() -> None:
    with pytest.raises(MissingParameters, match="UvicornService needs app="):
        UvicornService()


def test_create_application_must_be_a_coroutine_function() -> None:
    """C4."""
    with pytest.raises(TypeError, match=r"Wrong\.create_application"):

        class Wrong(UvicornService):
            def create_application(self) -> Any:
                pass


# Place


async def test_port_0_selects_a_free_port_which_the_service_shows() -> None:
    """C23."""
    service = make()
    async with running(service):
        assert service.address == "127.0.0.1"
        assert service.port
        assert (await get(service)).text == "hello /"
    assert (service.address, service.port) == ("127.0.0.1", 0)


async def test_all_addresses_of_ipv6_include_those_of_ipv4() -> None:
    """C23."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with running(make(host="::", port=0)) as service:
        for host in ("127.0.0.1", "[::1]"):
            async with httpx.AsyncClient() as client:
                response = await client.get(f"http://{host}:{service.port}/x")
            assert response.text == "hello /x"


@pytest.mark.parametrize("how", ["address", "host", "path", "uds", "unix:"])
async def test_a_path_binds_a_unix_socket_whose_file_is_removed_at_the_end(
    tmp_path: Path, how: str
) -> None:
    """C23."""
    path = tmp_path / "sock"
    parameters = {"address": f"unix:{path}"} if how == "unix:" else {how: str(path)}
    async with running(make(**parameters)) as service:
        assert (service.address, service.port) == (str(path), None)
        assert path.is_socket()
        assert (await get(service, "/x")).text == "hello /x"
    assert not path.exists()


async def test_a_bound_socket_can_be_passed() -> None:
    """C23."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        place = sock.getsockname()
        service = make(sock=sock)
        async with running(service):
            assert (service.address, service.port) == place
            assert (await get(service)).text == "hello /"
        assert sock.fileno() == -1
        # Started again, it binds another socket to the same address.
        async with running(service):
            assert (service.address, service.port) == place
            assert (await get(service)).text == "hello /"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
async def test_an_inherited_descriptor_can_be_passed(
    tmp_path: Path, family: socket.AddressFamily
) -> None:
    with socket.socket(family) as sock:
        sock.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "sock"))
        sock.listen()
        place = sock.getsockname()
        service = make(fd=sock.detach())
    for _ in range(2):
        async with running(service):
            there = service.address if service.port is None else (service.address, service.port)
            assert there == place
            assert (await get(service)).text == "hello /"


def test_a_descriptor_that_is_no_stream_socket_is_refused_and_stays_open(tmp_path: Path) -> None:
    """C7."""
    with (tmp_path / "file").open("w") as file, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        for one in (file, datagrams):
            with pytest.raises(ValueError, match=rf"fd must be .*, not {one.fileno()}$"):
                make(fd=one.fileno())
            os.fstat(one.fileno())


async def test_a_descriptor_that_can_not_be_used_stays_open() -> None:
    with socket.socket() as sock:
        service = make(fd=sock.fileno())
        with pytest.raises(ValueError, match="bound"):
            await service.start()
        await service.stop()
        os.fstat(sock.fileno())


async def test_nothing_is_bound_before_the_start() -> None:
    async with running(make()) as first:
        make(port=first.port)
        assert (await get(first)).text == "hello /"


async def test_an_address_in_use_is_named_with_port_and_service() -> None:
    """C24."""
    async with running(make()) as first:
        second = make(port=first.port, name="second")
        with pytest.raises(OSError, match=r"'second'.*127\.0\.0\.1") as caught:
            await second.start()
        assert caught.value.errno == errno.EADDRINUSE
        assert str(first.port) in str(caught.value)
        await second.stop()
        assert (await get(first)).text == "hello /"


async def test_an_address_is_shared_only_with_reuse_port() -> None:
    """C24."""
    async with running(make(reuse_port=True)) as first:
        with pytest.raises(OSError, match="in use"):
            await make(port=first.port).start()
        async with running(make(port=first.port, reuse_port=True)) as second:
            assert second.port == first.port


async def test_options_are_set_on_the_socket() -> None:
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    async with running(make(options=options)) as service:
        assert service.socket is not None
        assert service.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_the_endpoint_can_be_changed_before_the_start() -> None:
    service = make(address="203.0.113.7", port=1)
    service.address, service.port = "127.0.0.1", 0
    async with running(service):
        assert (await get(service)).text == "hello /"


async def test_a_service_can_be_pickled_before_it_runs() -> None:
    """C6."""
    service = pickle.loads(pickle.dumps(make(app=make_application, name="copy")))  # noqa: S301
    async with running(service):
        assert service.name == "copy"
        assert (await get(service)).text == "hello /"


# Application


@pytest.mark.parametrize(
    "app",
    [
        Application(),
        greet,
        make_application,
        make_application_slowly,
        f"{__name__}:application",
        f"{__name__}:make_application",
    ],
    ids=["instance", "function", "factory", "coroutine", "string", "string of a factory"],
)
async def test_an_application_can_be_an_instance_a_factory_or_a_name(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[make_application.__module__])
    application.life.clear()
    async with running(make(app=app)) as service:
        assert (await get(service)).text == "hello /"


async def test_an_application_that_accepts_any_arguments_is_not_called_as_a_factory() -> None:
    calls: list[int] = []

    async def app(*args: Any) -> None:
        calls.append(len(args))
        await greet(*args)

    async with running(make(app=app, lifespan="off")) as service:
        assert (await get(service)).text == "hello /"
    assert calls == [3]


async def test_a_factory_can_be_declared() -> None:
    def factory(first: Any = None, second: Any = None, third: Any = None) -> Any:
        return Application()

    async with running(make(app=factory, factory=True)) as service:
        assert (await get(service)).text == "hello /"


async def test_the_application_is_created_at_each_start() -> None:
    made: list[Application] = []

    def factory() -> Application:
        made.append(Application())
        return made[-1]

    service = make(app=factory)
    for _ in range(2):
        async with running(service):
            pass
    assert [one.life for one in made] == [["lifespan.startup", "lifespan.shutdown"]] * 2


@pytest.mark.parametrize(
    ("app", "error", "named"),
    [
        ("no_such_module:app", ModuleNotFoundError, "no_such_module"),
        ("json:app", ImportError, "'app'"),
        ("json:__name__", TypeError, "app='json'"),
        (lambda: None, TypeError, "app=None"),
    ],
)
async def test_an_object_that_is_no_application_fails_the_start_and_leaves_nothing_behind(
    app: Any, error: type[Exception], named: str
) -> None:
    with nothing_left():
        service = make(app=app)
        with pytest.raises(error) as caught:
            await service.start()
        assert refuses(caught.value, named)
        assert (service.address, service.port) == ("127.0.0.1", 0)
        await service.stop()


async def test_the_state_of_the_lifespan_is_that_of_requests() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await answer(send, scope["state"]["word"])
            return
        await receive()
        scope["state"]["word"] = b"kept"
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async with running(make(app=app)) as service:
        assert (await get(service)).text == "kept"


async def test_connections_are_accepted_after_the_application_has_started() -> None:
    go_on = asyncio.Event()
    asked = asyncio.Event()

    class Slow(Application):
        async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                asked.set()
                await go_on.wait()
            await super().__call__(scope, receive, send)

    service = make(app=Slow())
    task = asyncio.create_task(service.start())
    await asyncio.wait_for(asked.wait(), PATIENCE)
    assert not service.start_event.is_set()
    with pytest.raises(ConnectionRefusedError), raw_client(service):
        pass
    go_on.set()
    await asyncio.wait_for(service.start_event.wait(), PATIENCE)
    assert (await get(service)).text == "hello /"
    await service.stop()
    await task


async def refuse_to_start(scope: Any, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})
    await receive()  # for ever


async def raise_at_start(scope: Any, receive: Receive, send: Send) -> None:
    await receive()
    raise LookupError("no database")


@pytest.mark.parametrize(
    ("app", "lifespan"),
    [(refuse_to_start, "auto"), (refuse_to_start, "on"), (raise_at_start, "on")],
)
async def test_an_application_that_fails_to_start_fails_the_start_and_leaves_nothing_behind(
    app: Any, lifespan: str, tmp_path: Path
) -> None:
    """C12."""
    service = make(app=app, lifespan=lifespan, path=tmp_path / "sock", name="srv")
    with nothing_left():
        with pytest.raises(ApplicationStartFailed, match=r"'srv'.*no database"):
            await service.start()
        await service.stop()
        assert not (tmp_path / "sock").exists()
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_application_that_raises_at_its_lifespan_runs_without_one() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await answer(send)

    async with running(make(app=app)) as service:
        assert (await get(service)).text == "hello"


async def test_with_lifespan_off_the_application_is_not_called_for_it() -> None:
    app = Application()
    async with running(make(app=app, lifespan="off")) as service:
        assert (await get(service)).text == "hello /"
    assert app.life == []


async def test_a_cancelled_start_leaves_nothing_behind() -> None:
    """C12."""
    ends: list[str] = []
    asked = asyncio.Event()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        try:
            asked.set()
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")

    service = make(app=app)
    with nothing_left():
        task = asyncio.create_task(service.start())
        await asyncio.wait_for(asked.wait(), PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ends == ["cancelled"]
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await service.stop()


async def test_a_stop_while_the_application_starts_ends_the_start() -> None:
    asked = asyncio.Event()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        asked.set()
        await asyncio.Event().wait()

    service = make(app=app)
    with nothing_left():
        task = asyncio.create_task(service.start())
        await asyncio.wait_for(asked.wait(), PATIENCE)
        await service.stop()
        with pytest.raises(ServerEnded, match="stopped while it started"):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_stop_while_the_application_is_created_ends_the_start() -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    class Slow(UvicornService):
        async def create_application(self) -> Any:
            asked.set()
            await go_on.wait()
            return Application()

    service = Slow(port=0)
    with nothing_left():
        task = asyncio.create_task(service.start())
        await asyncio.wait_for(asked.wait(), PATIENCE)
        await service.stop()
        go_on.set()
        with pytest.raises(ServerEnded, match="stopped while it started"):
            await task


async def test_a_running_server_is_not_started_again() -> None:
    async with running(make()) as service:
        with pytest.raises(AlreadyRunning):
            await service.start()
        assert (await get(service)).text == "hello /"


async def test_a_service_can_be_started_and_stopped_several_times() -> None:
    """C22."""
    service = make(app=make_application)

    async def one_run() -> None:
        async with running(service):
            assert (await get(service)).text == "hello /"

    await one_run()  # imports modules on first use
    with nothing_left():
        for _ in range(10):
            await one_run()
        assert asyncio.all_tasks() == {asyncio.current_task()}


# The end of the server


@pytest.mark.parametrize("how", ["limit_max_requests", "should_exit"])
async def test_a_server_that_ends_by_itself_fails_its_start(how: str) -> None:
    """C14."""
    app = Application()
    service = make(app=app, name="srv", limit_max_requests=1 if how != "should_exit" else None)
    task = await begin_start(service)
    assert (await get(service)).text == "hello /"
    if how == "should_exit":
        assert service.server is not None
        service.server.should_exit = True
    with pytest.raises(ServerEnded, match=f"'srv'.*{how}"):
        await asyncio.wait_for(task, PATIENCE)
    assert app.life == ["lifespan.startup", "lifespan.shutdown"]
    assert service.socket is None
    await service.stop()


async def test_an_error_in_callback_notify_fails_the_service() -> None:
    """C14."""

    async def notify() -> None:
        raise LookupError("from callback_notify")

    task = await begin_start(service := make(callback_notify=notify, timeout_notify=0))
    with pytest.raises(LookupError):
        await asyncio.wait_for(task, PATIENCE)
    assert service.socket is None


def test_a_server_that_ends_by_itself_ends_the_program(
    run_program: Callable[..., Program],
) -> None:
    """C14."""
    program = run_program("""
import asyncio
from svcrun import entrypoint
from svcrun.service.uvicorn import UvicornService

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})

service = UvicornService(app=app, port=0, limit_max_requests=1, lifespan="off")
with entrypoint(service) as loop:
    print("port", service.port)
    loop.run_forever()
""")
    port = int(program.wait_for_line(r"port (\d+)")[1])
    assert httpx.get(f"http://127.0.0.1:{port}/").text == "hello"
    outcome = program.wait()
    assert outcome.returncode == 1
    assert "ServerEnded" in outcome.stderr
    assert "limit_max_requests=1" in outcome.stderr


# Log


async def test_the_access_log_can_be_disabled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with running(make()) as talkative, running(make(access_log=False)) as silent:
        await get(silent, "/silent")
        await get(talkative, "/talkative")
    lines = [record.getMessage() for record in caplog.records if record.name == "uvicorn.access"]
    assert len(lines) == 1
    assert '"GET /talkative HTTP/1.1" 200' in lines[0]


async def test_the_level_of_the_loggers_is_as_before_at_the_end() -> None:
    logger = logging.getLogger("uvicorn.error")
    before = logger.level
    async with running(make(log_level="Critical")):
        assert logger.level == logging.CRITICAL
    assert logger.level == before
    with contextlib.suppress(ApplicationStartFailed):
        await make(app=refuse_to_start, log_level=10).start()
    assert logger.level == before


def test_log_lines_arrive_in_the_log_of_the_entrypoint(
    run_program: Callable[..., Program],
) -> None:
    program = run_program("""
import json, logging, sys
from svcrun import entrypoint
from svcrun.service.uvicorn import UvicornService

async def app(scope, receive, send):
    raise LookupError("from the application")

service = UvicornService(app=app, port=0, lifespan="off")
with entrypoint(service, log_level="info", log_format="plain") as loop:
    print("port", service.port)
    loop.run_forever()
for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
    assert logging.getLogger(name).handlers == [] and logging.getLogger(name).propagate
""")
    port = int(program.wait_for_line(r"port (\d+)")[1])
    assert httpx.get(f"http://127.0.0.1:{port}/some/path").status_code == 500
    program.terminate()
    outcome = program.wait()
    assert outcome.returncode == 0, outcome.stderr
    log = outcome.stdout + outcome.stderr
    assert log.count('"GET /some/path HTTP/1.1" 500') == 1
    assert log.count("LookupError: from the application") == 1
    assert "\x1b" not in log


# TLS


@pytest.fixture
def tls(certificates: Certificates) -> dict[str, Any]:
    return {"ssl_certfile": certificates.server_cert, "ssl_keyfile": certificates.server_key}


async def test_a_certificate_and_a_key_serve_https(
    certificates: Certificates, tls: dict[str, Any]
) -> None:
    async def tell_scheme(scope: Any, receive: Receive, send: Send) -> None:
        await answer(send, scope["scheme"].encode())

    trusting = ssl.create_default_context(cafile=certificates.ca)
    async with running(make(tell_scheme, **tls)) as service:
        assert (await get(service, verify=trusting)).text == "https"
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await get(service, verify=ssl.create_default_context())


async def test_a_failed_handshake_is_logged_in_one_line_and_disturbs_no_other_client(
    certificates: Certificates, tls: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """C28."""
    trusting = ssl.create_default_context(cafile=certificates.ca)
    async with running(make(name="srv", **tls)) as service:
        with raw_client(service) as sock:
            sock.sendall(request())
            await eventually(lambda: "handshake" in caplog.text)
        assert (await get(service, verify=trusting)).text == "hello /"
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.exc_info for record in records] == [None]
    assert "'srv'" in records[0].getMessage()


async def test_a_client_without_a_certificate_can_be_refused(
    certificates: Certificates, tls: dict[str, Any]
) -> None:
    required = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": certificates.ca}
    async with running(make(**tls, **required)) as service:
        context = ssl.create_default_context(cafile=certificates.ca)
        with pytest.raises(httpx.TransportError):
            await get(service, verify=context)
        context.load_cert_chain(certificates.client_cert, certificates.client_key)
        assert (await get(service, verify=context)).text == "hello /"


def exchange(certificates: Certificates, folder: Path) -> dict[str, Any]:
    """Copy the server's files, and return the options for them."""
    for name, source in (("cert", certificates.server_cert), ("key", certificates.server_key)):
        shutil.copy(source, folder / name)
    return {"ssl_certfile": folder / "cert", "ssl_keyfile": folder / "key"}


@pytest.mark.parametrize("reloads", ["by hand", "by SIGHUP"])
async def test_reloaded_certificates_are_used_for_new_handshakes(
    certificates: Certificates, tmp_path: Path, reloads: str
) -> None:
    service = make(**exchange(certificates, tmp_path))
    before, after = (
        ssl.create_default_context(cafile=ca) for ca in (certificates.ca, certificates.other_ca)
    )
    async with entrypoint(service, log_config=False) as ep:
        async with httpx.AsyncClient(verify=before) as client:
            url = f"https://localhost:{service.port}/"
            assert (await client.get(url)).text == "hello /"
            shutil.copy(certificates.stranger_cert, tmp_path / "cert")
            shutil.copy(certificates.stranger_key, tmp_path / "key")
            if reloads == "by hand":
                service.reload_certificates()
            else:
                await ep.reload()
            assert (await client.get(url)).text == "hello /"  # on the open connection
        assert (await get(service, verify=after)).text == "hello /"
        with pytest.raises(httpx.ConnectError):
            await get(service, verify=before)


async def test_a_reload_of_unusable_certificates_changes_nothing(
    certificates: Certificates, tmp_path: Path
) -> None:
    async with running(make(**exchange(certificates, tmp_path))) as service:
        (tmp_path / "key").write_text("garbage")
        with pytest.raises(ValueError, match="ssl_certfile"):
            service.reload_certificates()
        trusting = ssl.create_default_context(cafile=certificates.ca)
        assert (await get(service, verify=trusting)).text == "hello /"


async def test_without_certificates_or_a_start_there_is_nothing_to_reload(
    tls: dict[str, Any],
) -> None:
    with pytest.raises(RuntimeError, match="reload_certificates"):
        make(**tls).reload_certificates()
    async with running(make()) as service:
        assert service._svcrun_reload() is None
        with pytest.raises(RuntimeError, match="reload_certificates"):
            service.reload_certificates()


@pytest.mark.skipif(
    "ssl_context_factory" not in inspect.signature(uvicorn.Config).parameters,
    reason="the option is newer than this uvicorn",
)
async def test_ssl_context_factory_creates_the_context(certificates: Certificates) -> None:
    def make_context(config: Any, default: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.server_cert, certificates.server_key)
        return context

    trusting = ssl.create_default_context(cafile=certificates.ca)
    async with running(make(ssl_context_factory=make_context)) as service:
        assert (await get(service, verify=trusting)).text == "hello /"


@pytest.mark.parametrize("wrong", ["no key", "another key", "an encrypted key"])
async def test_an_unusable_private_key_fails_the_start_and_leaves_nothing_behind(
    certificates: Certificates, tmp_path: Path, wrong: str
) -> None:
    """C7."""
    keys = {
        "no key": certificates.server_cert,
        "another key": certificates.client_key,
        "an encrypted key": tmp_path / "encrypted.key",
    }
    (tmp_path / "encrypted.key").write_text(ENCRYPTED_KEY)
    service = make(ssl_certfile=certificates.server_cert, ssl_keyfile=keys[wrong])
    with nothing_left():
        with pytest.raises(
            ValueError, match=r"UvicornService: ssl_certfile must be PEM files that OpenSSL"
        ):
            await service.start()
        await service.stop()


ENCRYPTED_KEY = """-----BEGIN EC PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: AES-128-CBC,0123456789ABCDEF0123456789ABCDEF

AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
-----END EC PRIVATE KEY-----
"""


# Signals


async def test_no_signal_handler_is_installed() -> None:
    before = {number: signal.getsignal(number) for number in signal.Signals}
    async with running(make()) as service:
        assert {number: signal.getsignal(number) for number in signal.Signals} == before
        assert service.server is not None
        with service.server.capture_signals():
            assert {number: signal.getsignal(number) for number in signal.Signals} == before
        assert (await get(service)).text == "hello /"


def test_without_uvicorn_the_import_names_the_extra(
    run_program: Callable[..., Program],
) -> None:
    """C2."""
    program = run_program("""
import sys
sys.modules["uvicorn"] = None
try:
    import svcrun.service.uvicorn
except ImportError as error:
    print(error)
""")
    assert program.wait().stdout == (
        "svcrun.service.uvicorn needs uvicorn: pip install 'svcrun[uvicorn]'\n"
    )
