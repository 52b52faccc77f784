"""Endpoint, parameters, application and start of AIOHTTPService (C3, C6, C7, C12, C23, C24)."""

import asyncio
import contextlib
import errno
import logging
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from aiohttp import web as aioweb
from aiohttp.abc import AbstractAccessLogger

from svcrun import Service, entrypoint
from svcrun.errors import AlreadyRunning
from svcrun.service.aiohttp import AIOHTTPService, Runner
from tests.service.streams import running
from tests.service.webs import Web, application, client, get, request, warm_up
from tests.support import Program, nothing_left, refuses

needs_ipv6 = pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")


async def hello(request: aioweb.Request) -> aioweb.Response:
    return aioweb.Response(text=f"hello {request.path[1:]}")


class Hello(AIOHTTPService):
    """At the top level of a module, so that it can be pickled."""

    starts = 0

    async def create_application(self) -> aioweb.Application:
        self.starts += 1
        return application(hello)


# The same to the interpreter, and nothing to a type checker.
UNCHECKED: Any = Hello


async def ask(service: AIOHTTPService, *, host: str | None = None) -> bytes:
    return (await get(service, "/you", host=host)).body


class TestEndpoints:
    """Where it listens."""

    async def test_port_0_selects_a_free_port_which_the_service_shows(self) -> None:
        service = Hello("127.0.0.1", 0)
        async with running(service):
            assert service.address == "127.0.0.1"
            assert service.port
            assert service.socket is not None
            assert service.socket.getsockname() == (service.address, service.port)
            assert await ask(service) == b"hello you"
        assert (service.address, service.port) == ("127.0.0.1", 0)
        assert getattr(service, "socket", "absent") is None
        assert (service.runner, service.site) == (None, None)

    async def test_nothing_is_bound_before_the_start(self) -> None:
        async with running(Hello("127.0.0.1", 0)) as service:
            other = Hello("127.0.0.1", service.port)
            assert other.socket is None

    async def test_localhost_is_the_default(self) -> None:
        async with running(Hello(port=0)) as service:
            assert service.address in {"127.0.0.1", "::1"}
            assert await ask(service, host="localhost") == b"hello you"

    @needs_ipv6
    async def test_all_addresses_of_ipv6_include_those_of_ipv4(self) -> None:
        async with running(Hello("::", 0)) as service:
            assert await ask(service, host="127.0.0.1") == b"hello you"
            assert await ask(service, host="::1") == b"hello you"

    @pytest.mark.parametrize("how", ["address", "path", "unix:", "pathlib"])
    async def test_a_path_binds_a_unix_socket_whose_file_is_removed_at_the_end(
        self, tmp_path: Path, how: str
    ) -> None:
        path = tmp_path / "http.sock"
        service = {
            "address": lambda: Hello(str(path)),
            "path": lambda: Hello(path=str(path)),
            "unix:": lambda: Hello(f"unix:{path}", 0),
            "pathlib": lambda: Hello(path),
        }[how]()
        for _ in range(2):
            async with running(service):
                assert (service.address, service.port) == (str(path), None)
                assert await ask(service) == b"hello you"
            assert not path.exists()

    @pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
    async def test_an_abstract_name_creates_no_file(self) -> None:
        name = f"\0svcrun-test-{os.getpid()}-{os.urandom(4).hex()}"
        async with running(Hello(name)) as service:
            assert service.address == name
            assert await ask(service) == b"hello you"

    async def test_a_bound_socket_can_be_passed(self) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            place = sock.getsockname()
            service = Hello(sock=sock)
            for _ in range(2):  # the second time, it binds another one to the same address
                async with running(service):
                    assert (service.address, service.port) == place
                    assert await ask(service) == b"hello you"
            assert sock.fileno() == -1

    async def test_an_inherited_descriptor_can_be_passed(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            place = sock.getsockname()
            service = Hello(sock=socket.socket(fileno=os.dup(sock.fileno())))
        async with running(service):
            assert (service.address, service.port) == place
            assert await ask(service) == b"hello you"

    async def test_an_address_in_use_is_named_before_the_application_is_created(self) -> None:
        """C24."""
        async with running(Hello("127.0.0.1", 0)) as first:
            second = Hello("127.0.0.1", first.port, name="second")
            with pytest.raises(OSError, match=r"127\.0\.0\.1") as caught:
                await second.start()
            assert caught.value.errno == errno.EADDRINUSE
            assert str(first.port) in str(caught.value)
            assert "second" in str(caught.value)
            assert second.starts == 0
            assert second.socket is None
            await second.stop()
            assert await ask(first) == b"hello you"

    async def test_an_address_is_shared_only_with_reuse_port(self) -> None:
        """C24."""
        async with running(Hello("127.0.0.1", 0, reuse_port=True)) as first:
            with pytest.raises(OSError, match="in use"):
                await Hello("127.0.0.1", first.port).start()
            async with running(Hello("127.0.0.1", first.port, reuse_port=True)) as second:
                assert second.port == first.port

    async def test_options_are_set_before_the_socket_is_bound(self) -> None:
        options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
        async with running(Hello("127.0.0.1", 0, options=options)) as service:
            assert service.socket is not None
            assert service.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    async def test_the_endpoint_can_be_changed_before_the_start(self) -> None:
        service = Hello("203.0.113.7", 1)
        service.address, service.port = "127.0.0.1", 0
        async with running(service):
            assert await ask(service) == b"hello you"


class TestParameters:
    """C3, C6, C7."""

    @pytest.mark.parametrize(
        ("make", "error", "named"),
        [
            (UNCHECKED, ValueError, "port"),
            (lambda: UNCHECKED("", 80), ValueError, "address=''"),
            (lambda: UNCHECKED("::1", 70000), ValueError, "port=70000"),
            (lambda: UNCHECKED("::1", "80"), TypeError, "port='80'"),
            (lambda: UNCHECKED("/x", path="/y"), ValueError, "path='/y'"),
            (lambda: UNCHECKED(sock="a socket"), TypeError, "sock='a socket'"),
            (lambda: UNCHECKED("::1", 0, backlog=0), ValueError, "backlog=0"),
            (lambda: UNCHECKED("::1", 0, shutdown_timeout=-1), ValueError, "shutdown_timeout=-1"),
            (lambda: UNCHECKED("::1", 0, shutdown_timeout="5"), TypeError, "shutdown_timeout='5'"),
            (lambda: UNCHECKED("::1", 0, runner_kwargs=5), TypeError, "runner_kwargs=5"),
            (
                lambda: UNCHECKED("::1", 0, runner_kwargs={"keepalive": 5}),
                ValueError,
                "runner_kwargs['keepalive'] must be one of access_log,",
            ),
            (
                lambda: UNCHECKED("::1", 0, runner_kwargs={"handle_signals": True}),
                ValueError,
                "runner_kwargs['handle_signals']=True",
            ),
            (
                lambda: UNCHECKED("::1", 0, runner_kwargs={"shutdown_timeout": 5}),
                ValueError,
                "use the parameter shutdown_timeout",
            ),
            (
                lambda: UNCHECKED("::1", 0, runner_kwargs={"keepalive_timeout": "long"}),
                TypeError,
                "runner_kwargs['keepalive_timeout']='long'",
            ),
            (
                lambda: UNCHECKED("::1", 0, runner_kwargs={"access_log": "x"}),
                TypeError,
                "runner_kwargs['access_log']='x'",
            ),
            (lambda: UNCHECKED("::1", 0, app="no colon"), ValueError, "app='no colon'"),
        ],
    )
    async def test_a_wrong_parameter_is_refused_when_the_service_is_created(
        self, make: Callable[[], Any], error: type[Exception], named: str
    ) -> None:
        with pytest.raises(error) as caught:
            make()
        assert "Hello" in str(caught.value)
        assert refuses(caught.value, named)

    @pytest.mark.parametrize(
        "wrong",
        [{"access_log_format": "%Q"}, {"access_log_class": int}],
    )
    async def test_an_option_that_only_the_server_can_check_fails_the_start(
        self, wrong: Any
    ) -> None:
        service = Hello("127.0.0.1", 0, runner_kwargs=wrong)
        with pytest.raises((ValueError, TypeError)):
            async with running(service), client(service):
                pass
        assert service.socket is None

    async def test_class_attributes_are_defaults(self) -> None:
        class Mine(Hello):
            address = "127.0.0.1"
            port = 0
            shutdown_timeout = 7
            runner_kwargs = {"keepalive_timeout": 3}  # noqa: RUF012 - as people write it

        async with running(Mine()) as service:
            assert await ask(service) == b"hello you"
            assert (service.shutdown_timeout, Mine(shutdown_timeout=1).shutdown_timeout) == (7, 1)
            (connection,) = [service.runner and service.runner.server]
            assert connection is not None

    async def test_runner_kwargs_reach_the_server(self) -> None:
        service = Hello(
            "127.0.0.1",
            0,
            handler_cancellation=False,
            runner_kwargs=[("max_line_size", 100), ("keepalive_timeout", 3)],
        )
        async with running(service):
            server: Any = service.runner and service.runner.server
            assert server.handler_cancellation is False
            assert server().keepalive_timeout == 3
            assert (await get(service, "/" + "x" * 200)).status == 400

    async def test_a_service_can_be_pickled_before_it_runs(self) -> None:
        service = pickle.loads(pickle.dumps(Hello("127.0.0.1", 0, name="copy")))  # noqa: S301
        async with running(service):
            assert service.name == "copy"
            assert await ask(service) == b"hello you"

    async def test_methods_must_be_coroutine_functions(self) -> None:
        """C4."""
        for name in ("create_application", "make_runner", "create_site"):
            with pytest.raises(TypeError, match=rf"Wrong\.{name}"):
                type("Wrong", (AIOHTTPService,), {name: lambda self: None})


class TestApplications:
    """The accepted values of `app`."""

    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        name = f"webapp{os.urandom(4).hex()}"
        (tmp_path / f"{name}.py").write_text(
            "from aiohttp import web\n"
            "from tests.service.webs import application\n"
            "async def hello(request):\n"
            "    return web.Response(text='imported')\n"
            "def make():\n"
            "    return application(hello)\n"
            "class Namespace:\n"
            "    app = make()\n"
            "number = 5\n"
        )
        (tmp_path / f"{name}_broken.py").write_text("import no_such_module_of_anybody\n")
        monkeypatch.syspath_prepend(tmp_path)
        return name

    async def test_an_application_can_be_an_instance(self, http: Web) -> None:
        async with running(http.service(app=application(hello))) as service:
            assert await ask(service) == b"hello you"

    async def test_an_application_can_be_a_function_or_coroutine_function(self, http: Web) -> None:
        async def make() -> aioweb.Application:
            await asyncio.sleep(0)
            return application(hello)

        for app in (lambda: application(hello), make):
            async with running(http.service(app=app)) as service:
                assert await ask(service) == b"hello you"

    async def test_an_application_can_be_named(self, http: Web, module: str) -> None:
        for name in ("make", "Namespace.app"):
            async with running(http.service(app=f"{module}:{name}")) as service:
                assert await ask(service) == b"imported"

    async def test_the_default_application_is_empty(self, http: Web) -> None:
        async with running(http.service()) as service:
            assert (await get(service)).status == 404

    @pytest.mark.parametrize(
        ("name", "error", "text"),
        [
            ("no_such:app", ModuleNotFoundError, "no module 'no_such'"),
            ("{}:nothing", ImportError, "has no 'nothing'"),
            ("{}:Namespace.nothing", ImportError, "has no 'nothing'"),
            ("{}_broken:app", ModuleNotFoundError, "no_such_module_of_anybody"),
            ("{}:number", TypeError, "app=5"),
        ],
    )
    async def test_a_name_of_no_application_is_an_error(
        self, http: Web, module: str, name: str, error: type[Exception], text: str
    ) -> None:
        service = http.service(app=name.format(module))
        with pytest.raises(error) as caught:
            await service.start()
        assert refuses(caught.value, text)
        assert service.socket is None

    @pytest.mark.parametrize("app", [5, object(), b"module:app"])
    async def test_an_object_that_is_no_application_is_refused_at_once(
        self, http: Web, app: Any
    ) -> None:
        with pytest.raises(TypeError, match="AIOHTTPService: app must be"):
            http.service(app=app)

    @pytest.mark.parametrize("app", [lambda: 5, lambda: None])
    async def test_a_factory_that_returns_no_application_fails_the_start(
        self, http: Web, app: Any
    ) -> None:
        service = http.service(app=app)
        with pytest.raises(TypeError, match="AIOHTTPService: app must be"):
            await service.start()
        assert service.socket is None


class TestOverrides:
    """In the way in which users of aiomisc do it."""

    async def test_make_runner_may_return_an_app_runner(self) -> None:
        class Mine(Hello):
            async def make_runner(self, application: aioweb.Application) -> aioweb.BaseRunner:
                return aioweb.AppRunner(application, keepalive_timeout=1)

        async with running(Mine("127.0.0.1", 0)) as service:
            assert await ask(service) == b"hello you"

    async def test_create_site_may_return_a_sock_site(self) -> None:
        class Mine(Hello):
            async def create_site(self) -> aioweb.BaseSite:
                assert self.runner is not None
                assert self.socket is not None
                return aioweb.SockSite(self.runner, self.socket)

        async with running(Mine("127.0.0.1", 0)) as service:
            assert await ask(service) == b"hello you"

    async def test_create_site_may_return_a_site_that_binds_by_itself(self) -> None:
        class Mine(Hello):
            async def create_site(self) -> aioweb.BaseSite:
                assert self.runner is not None
                return aioweb.TCPSite(self.runner, str(self.address), self.port)

        service = Mine("127.0.0.1", 0)
        for _ in range(2):
            async with running(service):
                assert await ask(service) == b"hello you"

    async def test_several_overrides_work_together(self) -> None:
        class Mine(Hello):
            async def make_runner(self, application: aioweb.Application) -> aioweb.BaseRunner:
                return aioweb.AppRunner(application)

            async def create_site(self) -> aioweb.BaseSite:
                assert self.runner is not None
                assert self.socket is not None
                return aioweb.SockSite(self.runner, self.socket)

        await warm_up()
        with nothing_left():
            async with running(Mine("127.0.0.1", 0)) as service, client(service):
                assert await ask(service) == b"hello you"

    async def test_a_start_may_extend_that_of_the_base(self) -> None:
        class Mine(Hello):
            async def start(self) -> None:
                self.before = self.port
                await super().start()
                self.after = self.port

        async with running(Mine("127.0.0.1", 0)) as service:
            assert service.before == 0
            assert service.after == service.port != 0

    async def test_a_site_needs_a_runner(self) -> None:
        with pytest.raises(RuntimeError, match=r"create_site\(\) is called by start\(\)"):
            await Hello("127.0.0.1", 0).create_site()

    async def test_the_runner_is_svcruns_by_default(self) -> None:
        async with running(Hello("127.0.0.1", 0)) as service:
            assert type(service.runner) is Runner


class TestStart:
    """Successful and failed starts."""

    async def test_a_running_service_is_not_started_again(self) -> None:
        async with running(Hello("127.0.0.1", 0)) as service:
            with pytest.raises(AlreadyRunning):
                await service.start()
            assert await ask(service) == b"hello you"

    async def test_a_starting_service_is_not_started_again(self) -> None:
        service = Hello("127.0.0.1", 0)
        one, two = await asyncio.gather(service.start(), service.start(), return_exceptions=True)
        assert one is None
        assert isinstance(two, AlreadyRunning)
        await service.stop()

    async def test_connections_are_accepted_after_the_application_has_started(self) -> None:
        seen: list[Any] = []

        class Mine(AIOHTTPService):
            async def create_application(self) -> aioweb.Application:
                app = application(hello)
                app.on_startup.append(self.look)
                return app

            async def look(self, _: aioweb.Application) -> None:
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.open_connection("127.0.0.1", self.port)
                seen.append(self.port)  # which is known already

        async with running(Mine("127.0.0.1", 0)) as service:
            assert await ask(service) == b"hello you"
            assert seen == [service.port]

    @pytest.mark.parametrize("step", ["create", "startup", "context", "runner", "site"])
    @pytest.mark.parametrize("error", [LookupError("broken"), asyncio.CancelledError()])
    async def test_a_failed_start_raises_its_error_and_leaves_nothing_behind(
        self, step: str, error: BaseException, tmp_path: Path
    ) -> None:
        """C12."""
        order: list[str] = []

        async def fail(*_: Any) -> None:
            raise error

        async def context(_: aioweb.Application) -> Any:
            order.append("up")
            yield
            order.append("down")

        async def broken_context(_: aioweb.Application) -> Any:
            await fail()
            yield

        class Mine(AIOHTTPService):
            broken = True

            async def create_application(self) -> aioweb.Application:
                app = application(hello)
                app.cleanup_ctx.append(context)
                if self.broken:
                    if step == "create":
                        await fail()
                    if step == "startup":
                        app.on_startup.append(fail)
                    if step == "context":
                        app.cleanup_ctx.append(broken_context)
                return app

            async def make_runner(self, application: aioweb.Application) -> aioweb.BaseRunner:
                if step == "runner" and self.broken:
                    await fail()
                return await super().make_runner(application)

            async def create_site(self) -> aioweb.BaseSite:
                if step == "site" and self.broken:
                    await fail()
                return await super().create_site()

        service = Mine(tmp_path / "sock", None)
        await warm_up()
        with nothing_left():
            with pytest.raises(type(error)):
                await service.start()
            assert (service.socket, service.runner, service.site) == (None, None, None)
            assert not (tmp_path / "sock").exists()
            assert order.count("up") == order.count("down")
            await service.stop()
        service.broken = False
        async with running(service):
            assert await ask(service) == b"hello you"

    async def test_an_error_of_the_clean_up_does_not_hide_the_error_of_the_start(
        self, http: Web, caplog: pytest.LogCaptureFixture
    ) -> None:
        """C12."""

        async def context(_: aioweb.Application) -> Any:
            yield
            raise KeyError("cleanup")

        async def fail(_: aioweb.Application) -> None:
            raise LookupError("startup")

        def make() -> aioweb.Application:
            app = aioweb.Application()
            app.cleanup_ctx.append(context)
            app.on_startup.append(fail)
            return app

        with pytest.raises(LookupError, match="startup"):
            await http.service(app=make).start()
        (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
        assert "failed to clean up" in record.getMessage()

    async def test_a_cancelled_start_leaves_nothing_behind(self, http: Web) -> None:
        waiting = asyncio.Event()

        async def wait(_: aioweb.Application) -> None:
            waiting.set()
            await asyncio.sleep(600)

        def make() -> aioweb.Application:
            app = aioweb.Application()
            app.on_startup.append(wait)
            return app

        await warm_up()
        with nothing_left():
            service = http.service(app=make)
            start = asyncio.create_task(service.start())
            await waiting.wait()
            start.cancel()
            with pytest.raises(asyncio.CancelledError):
                await start
            assert service.socket is None

    async def test_a_start_that_extends_the_base_and_fails_after_it_leaves_nothing_behind(
        self,
    ) -> None:
        """C12."""

        class Mine(Hello):
            async def start(self) -> None:
                await super().start()
                raise LookupError

        await warm_up()
        with nothing_left(), pytest.raises(LookupError):
            async with entrypoint(
                Mine("127.0.0.1", 0), log_config=False, catch_signals=(), pool_size=1
            ):
                raise AssertionError

    async def test_context_values_can_be_awaited_by_the_application(self) -> None:
        class Database(Service):
            async def start(self) -> None:
                await asyncio.sleep(0)
                self.context["database"] = "connected"

        class Mine(AIOHTTPService):
            async def create_application(self) -> aioweb.Application:
                found = await self.context["database"]

                async def handle(_: aioweb.Request) -> aioweb.Response:
                    return aioweb.Response(text=found)

                return application(handle)

        service = Mine("127.0.0.1", 0)
        async with entrypoint(service, Database(), log_config=False, catch_signals=()):
            assert await ask(service) == b"connected"

    @pytest.mark.skipif(sys.platform == "win32", reason="needs both kinds of loop")
    async def test_the_same_instance_is_started_again_with_its_contexts(self, http: Web) -> None:
        order: list[str] = []

        async def context(_: aioweb.Application) -> Any:
            order.append("up")
            yield
            order.append("down")

        class Context(contextlib.AbstractAsyncContextManager[None]):
            async def __aenter__(self) -> None:
                order.append("enter")

            async def __aexit__(self, *_: object) -> None:
                order.append("exit")

        app, part = application(hello), aioweb.Application()
        app.cleanup_ctx.append(context)
        part.cleanup_ctx.append(lambda _: Context())
        app.add_subapp("/part", part)
        service = http.service(app=app)
        for _ in range(3):
            async with running(service):
                assert await ask(service) == b"hello you"
        # aiohttp leaves the contexts of all starts at each stop.
        assert order == ["up", "enter", "down", "exit"] * 3


class TestAccessLog:
    """The loggers of the access log."""

    async def test_the_access_log_can_be_disabled(
        self, http: Web, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        service = http.service(hello, runner_kwargs={"access_log": None})
        async with running(service):
            await ask(service)
        assert not [r for r in caplog.records if r.name == "aiohttp.access"]

    async def test_the_access_log_uses_aiohttps_logger_by_default(
        self, http: Web, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        async with running(http.service(hello)) as service:
            await ask(service)
        (record,) = [r for r in caplog.records if r.name == "aiohttp.access"]
        assert '"GET /you HTTP/1.1" 200 ' in record.getMessage()

    async def test_another_access_log_class_is_used(self, http: Web) -> None:
        lines: list[str] = []

        class Mine(AbstractAccessLogger):
            def log(self, request: Any, response: Any, time: float) -> None:
                lines.append(f"{request.path} {response.status}")

        async with running(
            http.service(hello, runner_kwargs={"access_log_class": Mine})
        ) as service:
            await ask(service)
        assert lines == ["/you 200"]


def test_a_program_logs_requests_through_the_entrypoint(
    run_program: Callable[..., Program],
) -> None:
    """And ends by SIGTERM with all of them written."""
    program = run_program(
        "import asyncio\n"
        "from aiohttp import web\n"
        "from svcrun import entrypoint\n"
        "from svcrun.service.aiohttp import AIOHTTPService\n"
        "from tests.service.webs import application\n"
        "async def hello(request):\n"
        "    return web.Response(text='hello')\n"
        "service = AIOHTTPService('127.0.0.1', 0, app=lambda: application(hello))\n"
        "with entrypoint(service, log_format='plain', log_level='info') as loop:\n"
        "    print('port', service.port, flush=True)\n"
        "    loop.run_forever()\n",
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    port = int(program.wait_for_line(r"port (\d+)")[1])
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(30)
        sock.sendall(request("/you", "Connection: close"))
        answer = b""
        while got := sock.recv(1000):
            answer += got
    assert answer.endswith(b"hello")
    program.send_signal(signal.SIGTERM)
    outcome = program.wait()
    assert outcome.returncode == 0
    assert '"GET /you HTTP/1.1" 200 ' in outcome.stderr + outcome.stdout
    assert "Listening http://127.0.0.1:" in outcome.stderr + outcome.stdout


@pytest.mark.parametrize("when", ["early", "late"])
async def test_a_service_is_stopped_with_the_others_of_its_entrypoint(when: str) -> None:
    service = Hello("127.0.0.1", 0)

    class Broken(Service):
        async def start(self) -> None:
            if when == "late":
                self.start_event.set()
                assert await ask(service) == b"hello you"
            raise LookupError

    with contextlib.suppress(asyncio.CancelledError), pytest.raises(LookupError):
        async with entrypoint(
            service, Broken(depends_on=service), log_config=False, catch_signals=()
        ) as running:
            await running.closing()
    assert service.socket is None
